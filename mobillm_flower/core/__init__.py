"""Pure tensors: no Flower, no transformers, no files."""
