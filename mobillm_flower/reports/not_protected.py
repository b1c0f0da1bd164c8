"""What a run does not protect, said from its own settings; docs/explanation/not-protected.md gives the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mobillm_flower.config.compatibility import ANALYTIC, UPPER_LAYERS
from mobillm_flower.config.describe import value_text
from mobillm_flower.reports.source import ReportSource
from mobillm_flower.reports.units import bytes_text
from mobillm_flower.runs.device_events import GroupSummed
from mobillm_flower.runs.events import Prepared, Round

Statement = tuple[str, str]
"""What it is about, and what holds for this run."""


def not_protected(source: ReportSource) -> list[Statement]:
    """Return what the server, or whoever reads the run's folder, can learn about the devices' data."""
    return [
        ("Labels", " ".join(_labels(source))),
        ("Texts", " ".join(_texts(source))),
        ("What is guaranteed", " ".join(_guarantee(source))),
        ("Several releases of a sample", _releases(source)),
        ("What the server keeps", " ".join(_kept(source))),
        (
            "What else the server sees",
            "How many training and test samples a device has and how many it declines to release; when windows arrive, "
            "how long the forward pass took, and how much memory it needed; name, depth, width and precision of the "
            "backbone; each device's own metric; and a pseudonym that stays the same as long as a device keeps its "
            "folder, so that runs can be linked. None of it carries noise.",
        ),
        (
            "The side network",
            "It goes to every device that is evaluated. What its weights reveal of the training data has not been "
            "bounded. Deleting a device's rows from the cache does not take back what the weights have learned.",
        ),
    ]


def _groups(source: ReportSource) -> str:
    """Return what holds of sums where the server had those of groups alone; empty where it had each device's."""
    sizes = [len(group.devices) for group in source.run.all(GroupSummed)]
    if not sizes:
        return ""
    return (
        f"The server had the sum of groups of at least {min(sizes)} devices, and no device's own (secure sums). It can "
        "get one only if it makes up the other devices of a group, or a third of a group works with it."
    )


def _sums(source: ReportSource) -> bool:
    """Whether devices sent sums and no sample."""
    return bool(source.setting("strategy") == ANALYTIC)


def _labels(source: ReportSource) -> Iterator[str]:
    if groups := _groups(source):
        yield f"{groups} Of a group it knows, as a rule exactly, how many samples have each label."
        return
    if _sums(source):
        yield (
            "No label of a sample leaves a device: each device sends Σz·Δyᵀ and ΣΔy over all its samples. How many of "
            "them have each label follows from ΣΔy, as a rule exactly, and the server sees it of each device."
            if not source.setting("privacy.central-epsilon")
            else "No label of a sample leaves a device. Each device's Σz·Δyᵀ, which the server holds without noise, "
            "tells about how many of its samples have each label."
        )
        return
    if source.predicts_tokens:
        if source.setting("loss.objective") == "label":
            yield "Not protected: each device sends every token in the loss as it is: the whole response, or text."
            if source.setting("side-network.name") == UPPER_LAYERS:
                yield "A state of each token of the prompt goes with them: assume that the server reads the prompt too."
        else:
            yield (
                "Not protected: each device sends a correction of what the language-model head reads, token by token. "
                "The head is public, and the token that the correction favours most is as a rule the token itself: the "
                "response, or the text, can be read from it."
            )
    elif source.setting("loss.objective") == "label":
        yield "Not protected: with objective label each device sends every sample's label as it is."
        if source.setting("loss.send-base"):
            yield "It sends the backbone's own prediction beside it."
    elif source.is_regression:
        yield "Not protected: each device sends Δy = y − ŷ_b, how far off the backbone's own prediction is."
        backbones = source.side_network.get("backbones", {}).values()
        if backbones and all(backbone["base_prediction"] == "constant" for backbone in backbones):
            yield "This run's backbones have no prediction of their own, ŷ_b is 0, and Δy is the target itself."
        else:
            yield "Where a backbone has no prediction of its own, ŷ_b is 0 and Δy is the target itself."
    elif source.setting("privacy.joint-epsilon") or source.setting("privacy.label-epsilon"):
        kind = "with the text" if source.setting("privacy.joint-epsilon") else "by randomized response"
        yield (
            f"Protected {kind}: each device draws a label ỹ that may be another and sends Δy = onehot(ỹ) − 1/K, from "
            "which ỹ can be read, without any attack."
        )
        yield "Where a label is kept more often than not, ỹ is still the best guess, and as good as ε allows."
    else:
        yield (
            "Not protected: each device sends Δy = onehot(y) − p_b. Only the entry of the true class can be positive, "
            "so argmax(Δy) is the label, without any attack, and p_b = onehot(y) − Δy follows."
        )
        if source.setting("loss.name") == "logit":
            yield "This run's loss, logit, reads both back before each step: the server uses the labels."
        else:
            yield (
                "This run's loss, square, does not need them in a step; the server reads the labels back all the same, "
                "to report accuracies."
            )


def _texts(source: ReportSource) -> Iterator[str]:
    if groups := _groups(source):
        yield f"{groups} A group's Σz and Σzzᵀ tell of its samples what a device's would, only of more of them."
        return
    if _sums(source):
        fewest = _shown(source.setting("privacy.min-samples"))
        yield (
            "No vector of a sample leaves a device: each device sends Σz and Σzzᵀ over its samples, at least "
            f"{fewest}. Sums of few samples still tell much of each: whoever has the same backbone can test whether a "
            "text was among them, and whoever knows all of a device's samples but one has the last one."
        )
        return
    prepared = source.run.last(Prepared)
    pivots = sorted(set(prepared.pivots.values()) if prepared else ()) or [source.setting("activations.pivot")]
    named = ", ".join(str(pivot) for pivot in pivots)
    if any(name.startswith("activations") for name in _known_guarantee(source).get("parts", {})):
        yield "Each device sends one noisy vector for a text; how much of the text is in it, ε bounds."
        yield "What a real attack gets out of it, mobillm audit measures."
        return
    if "all" in pivots:
        yield (
            "Not protected: with pivot all each device sends a vector for every token and sampled layer; those of "
            "early layers stay close to the tokens' own embeddings, and the number of tokens is plain."
        )
    else:
        yield (
            f"Not protected: each device sends activations of every text (pivot {named}), a few vectors for each "
            "sampled layer. Published attacks rebuild much of a short text from one such vector."
        )
    yield "Whoever has the same backbone can test a guess by comparing vectors. Treat uploads as if they were the text."
    codec, keep = source.setting("activations.codec"), _shown(source.setting("activations.keep"))
    yield f"The codec ({codec}) and the share of values kept ({keep}) save bytes; neither is protection."


def _known_guarantee(source: ReportSource) -> Mapping[str, Any]:
    prepared = source.run.last(Prepared)
    return prepared.guarantee if prepared else {}


def _guarantee(source: ReportSource) -> Iterator[str]:
    """Return ε and δ of one sample's release, or why there is none."""
    guarantee = _known_guarantee(source) or {"epsilon": None, "reason": "the run did not get so far"}
    parts = [
        f"{name}: ε = {part[0]:.3g}" + (f", δ = {part[1]:g}" if part[1] else "")
        for name, part in guarantee.get("parts", {}).items()
    ]
    if guarantee["epsilon"] is None:
        yield from _noise(source)
        if parts:
            yield f"Protected by themselves are {'; '.join(parts)}."
        yield f"No ε can be named for a sample: {guarantee['reason']}."
        return
    if _sums(source):
        yield (
            f"The side network is differentially private: {'; '.join(parts)} (discrete Gaussian noise, replacement). "
            "The server adds the noise and is trusted: it holds the sums of each device, or group, without it. Devices "
            "that are left out later, or a total that is solved again with others, are another release, whose ε adds "
            "up with this."
        )
        yield "Outside it are metrics, times, counts and the fact of taking part."
        return
    epsilon, delta = f"{guarantee['epsilon']:.3g}", f", δ = {guarantee['delta']:g}" if guarantee["delta"] else ""
    yield (
        f"One release of one sample is locally differentially private with ε = {epsilon}{delta}: whatever the server "
        f"makes of it, another sample in its place changes how likely that is by a factor of at most e^{epsilon}."
    )
    yield f"Parts: {'; '.join(parts)}."
    most = max((device.samples for device in source.devices), default=0)
    if most:
        yield (
            f"It is a promise for each sample, not for each person: the device with the most samples sent {most:,}, "
            f"and all of them together have an ε of up to {most * guarantee['epsilon']:.4g}."
        )
    yield "Outside it are metrics, times, counts and the fact of taking part, and that numbers have finite precision."


def _noise(source: ReportSource) -> Iterator[str]:
    clip, sigma = source.setting("activations.clip-norm"), source.setting("activations.noise-sigma")
    bound, spread = _shown(clip), _shown(sigma)
    if sigma:
        yield (
            f"A sample's activations are clipped to an L2 norm of {bound}, and noise of standard deviation {spread} is "
            "added to each value."
        )
    elif clip:
        yield f"Clipping only: activations have an L2 norm of at most {bound} a sample; that alone hides nothing."
    elif not source.setting("privacy.activation-epsilon"):
        yield "Off: activations are sent as they are, up to the codec's rounding."


def _releases(source: ReportSource) -> str:
    most, budget = source.setting("privacy.max-releases"), source.setting("privacy.budget")
    bound = f"A device releases a sample at most {most} times" if most else "Devices count them and set no bound"
    if _known_guarantee(source).get("epsilon") is None:
        return f"{bound} (privacy.max-releases). Without an ε nothing composes their losses of privacy."
    return (
        f"{bound} (privacy.max-releases). A device adds up the ε of all releases of a sample, of all runs, in its "
        f"ledger, and refuses what is beyond {_shown(budget) if budget else 'that of one release'} (privacy.budget)."
    )


def _kept(source: ReportSource) -> Iterator[str]:
    last = source.run.last(Round)
    amount, what = "", "sums" if _sums(source) else "activations and targets"
    if last and last.num_held is not None and last.cache_bytes is not None:
        amount = f" ({last.num_held:,} samples, {bytes_text(last.cache_bytes)} at the last round)"
    yield (
        f"{source.run.folder.cache.name} in the run's folder holds all uploaded {what}{amount}, with "
        "device pseudonyms, unencrypted, readable by the file's owner alone."
    )
    days = source.setting("cache.retention-days")
    yield (
        f"Rows older than {_shown(days)} days are deleted when a run starts in the folder."
        if days
        else "Rows are kept for ever."
    )
    if source.run.folder.devices.is_dir():
        yield (
            "This was a simulation: the devices' own folders, with their secrets, are in the run's folder too, below "
            "devices/. Where they are read, keyed ids protect nothing."
        )


def _shown(value: object) -> str:
    return value_text(value).removesuffix(".0")
