"""The server's side: activation cache, sampler, trainer, checkpoints."""

from mobillm_flower.server.batches import BatchLoader
from mobillm_flower.server.cache import ActivationCache
from mobillm_flower.server.cache_file import Holding
from mobillm_flower.server.integrity import Damage
from mobillm_flower.server.objective import make_loss
from mobillm_flower.server.options import TrainerOptions
from mobillm_flower.server.rows import RowRef
from mobillm_flower.server.trainer import Trainer

__all__ = [
    "ActivationCache",
    "BatchLoader",
    "Damage",
    "Holding",
    "RowRef",
    "Trainer",
    "TrainerOptions",
    "make_loss",
]
