"""An audit's result in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NETWORK = "label: trained side network"
_NO_PAIR = "key: texts looked up, aligned to public text"
_BROKEN = 0.9
_WHO = (
    "An honest but curious server: it follows the protocol, keeps what it gets, knows the public backbone and the "
    "settings, and has other texts of the same kind. With a colluding device it has that device's texts and "
    "uploads too: the rows on leaked pairs count them. A passive listener learns sizes and times, where TLS is on."
)
_OUTSIDE = (
    "Outside every ε: how many samples a device has and declines to release, when it answers and how long it "
    "takes, its memory, backbone and own metrics, the number of tokens where it is sent, its pseudonym, and that "
    "it takes part. Codec and sparsification save bytes and are no protection. Secure aggregation does not apply, "
    "since the server works on single samples."
)
_FORGET = (
    "`mobillm cache forget` deletes a device's rows; with --retrain the side network is as if the device had never "
    "been there. Copies that were made before, and what was learned from rows by then, stay with whoever has them."
)
Statement = tuple[str, str]
"""What it is about, and what holds."""


def plain_words(result: Mapping[str, Any]) -> list[Statement]:
    """Return what the server could learn under the audited settings, what not, and what is not protected at all.

    Parameters
    ----------
    result : mapping
        The audit's result so far.
    """
    cell = result["cells"][0]
    if cell["skipped"]:
        return [("Not audited", cell["skipped"])]
    attacks = cell["attacks"]
    could: list[str] = []
    could_not: list[str] = []
    for what, name in (
        ("labels, from the targets alone", "label: argmax Δy"),
        ("labels, from activations and class shares", "label: clusters and class shares"),
        ("labels, from activations and one leaked pair a class", "label: clusters and one leaked pair a class"),
        ("words of a text", "text: words"),
        ("words of a text in their order", "text: sequence"),
        ("which of many suspected texts it is", "text: nearest of candidates"),
        ("which device an upload is of, without the pseudonym", "device: which one"),
        ("that two uploads are of one device, without the pseudonym", "device: two uploads of one"),
        ("whether a text was trained on", "membership AUC"),
    ):
        if name not in attacks:
            continue
        one = attacks[name]
        figures = f"{what} ({one['value']:.2f}; without uploads {one['baseline']:.2f})"
        (could if one["low"] > one["baseline"] else could_not).append(figures)
    return [
        ("Who attacks", _WHO),
        ("What this server could learn", _listed(could, "Nothing that these attacks show.")),
        (
            "What it could not",
            _listed(could_not, "None of these attacks failed.")
            + " An attack that fails proves nothing; a better one may "
            "come. Only a named ε bounds them all.",
        ),
        ("The guarantee", _guarantee(cell["epsilon"])),
        ("The floor", " ".join(_floor(attacks))),
        *_rotation(result["cells"]),
        ("What is not protected", _OUTSIDE),
        ("How long it is kept", _kept(float(result["retention_days"]))),
        ("What forgetting can undo", _FORGET),
    ]


def _guarantee(epsilon: Mapping[str, Any]) -> str:
    if epsilon["total"] is None:
        return f"None: no ε can be named, because {epsilon['reason']}."
    delta = f", δ = {epsilon['delta']:g}" if epsilon["delta"] else ", δ = 0"
    return (
        f"ε = {epsilon['total']:.4g}{delta} for one sample, text and label together, against anybody who sees its "
        "upload. Several samples of one person add up."
    )


def _floor(attacks: Mapping[str, Any]) -> Iterator[str]:
    one = attacks.get(f"{_NETWORK}, one leaked pair a class", attacks[_NETWORK])  # read as well as can be
    yield (
        f"The trained side network tells the label of an upload in {one['value']:.0%} of the cases (guessing the most "
        f"frequent class: {one['baseline']:.0%})."
    )
    yield "What the network was made to tell, no mechanism can keep from who has it and the activations."


def _rotation(cells: Sequence[Mapping[str, Any]]) -> Iterator[Statement]:
    """Say what the first cell with a secret rotation showed."""
    rotated = [cell["attacks"] for cell in cells if not cell["skipped"] and _NO_PAIR in cell["attacks"]]
    if not rotated:
        return
    attacks = rotated[0]
    by_leaked = {one["leaked"]: one["value"] for one in attacks.values() if one["leaked"] is not None}
    enough = [leaked for leaked, value in sorted(by_leaked.items()) if value >= _BROKEN]
    leaked = enough[0] if enough else max(by_leaked)
    looked, named = (attacks[f"label: {how}"]["value"] for how in ("argmax Δy", "rotated Δy, one leaked pair a class"))
    yield (
        "A secret rotation (privacy.mixing)",
        f"Obfuscation. argmax Δy names {looked:.0%} of the labels under it, one leaked pair a class {named:.0%}. Once "
        f"it is recovered from {leaked} leaked samples, {by_leaked[leaked]:.0%} of the other texts are looked up.",
    )


def _kept(days: float) -> str:
    if days:
        return f"Rows older than {days:g} days are deleted from the cache when a run starts in its folder."
    return "The cache keeps every upload until it is told to forget it (cache.retention-days = 0)."


def _listed(parts: list[str], none: str) -> str:
    return f"{'; '.join(parts)}." if parts else none
