"""What the library costs beside the bare thing."""
