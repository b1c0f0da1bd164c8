"""A run that goes on where a finished one ended, with another task."""

from __future__ import annotations

from dataclasses import dataclass

from mobillm_flower.config.parts.ranges import number, one_of

REPLAY, SEQUENTIAL, CLOSED_FORM, OA_ADAPTER, O_LORA = "replay", "sequential", "closed-form", "oa-adapter", "o-lora"
"""Values of `continual.method`."""
NOTHING, SUMS, SHARE, ALL = "nothing", "sums", "share", "all"
"""Values of `continual.keep`."""


@dataclass
class ContinualSettings:
    """Tasks one after another: what a run takes over from a finished one, and what it leaves to the next.

    Parameters
    ----------
    after : str
        Folder, on the server, of the finished run that this one goes on with: same backbone and same uploads, other
        data, labels or prompt. Empty: it begins a side network.
    task : str
        Name of this run's task; empty: the source of its data and its label column, "phone-messages.intent".
    method : str
        How earlier tasks are kept: replay (samples of all tasks are trained on together), closed-form (each task keeps
        its own solution, and sums of all tell tasks apart), oa-adapter and o-lora (new adapters for each task, the
        earlier ones frozen), sequential (the side network is trained on, and forgets). The side networks of
        closed-form, oa-adapter and o-lora must be those of the first task, too.
    keep : str
        What a run leaves to the next when it has learned its task: all its samples, a share of them, sums (with method
        closed-form) or nothing. Samples that are not kept are deleted.
    share : float
        With keep `share`: the share of the samples.
    orthogonality : float
        λ, weight of the penalty on adapters that are not orthogonal to earlier tasks' (oa-adapter and o-lora).
    threshold : float
        τ₀, where thresholds of oa-adapter's dimensions start.
    """

    after: str = ""
    task: str = ""
    method: str = one_of(REPLAY, REPLAY, SEQUENTIAL, CLOSED_FORM, OA_ADAPTER, O_LORA)
    keep: str = one_of(ALL, ALL, SHARE, SUMS, NOTHING)
    share: float = number(0.1, above=0, below=1)
    orthogonality: float = number(0.5, at_least=0)
    threshold: float = number(1.5, at_least=0, below=2)

    @property
    def in_use(self) -> bool:
        """Whether the run is one of a sequence, as far as its own settings tell."""
        return self != ContinualSettings()
