"""What runs on a device: the model forward, nothing else."""

from mobillm_flower import SideTuningClient

app = SideTuningClient().app
