"""Which backbone a device takes: measured in a fresh process, remembered, decided anew when it was asked otherwise."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.backbones import choose as module
from mobillm_flower.backbones.choose import Need, choose, decide, measure_need
from mobillm_flower.config import load_settings
from mobillm_flower.errors import SettingsError, UnsupportedError
from tests.support.tiny_models import save_tiny

MIB = 1 << 20
SMALL, LARGE, HUGE = Need(100 * MIB, 10), Need(250 * MIB, 20), Need(float("inf"), 10**9)


def backbone_settings(**values: Any) -> Any:
    return load_settings({f"backbone.{key.replace('_', '-')}": value for key, value in values.items()}).backbone


@pytest.mark.parametrize(
    ("mib", "chosen", "why"),
    [
        (250, "large", "large: 250 MiB measured, 250 MiB allowed; next would be huge with more memory than there is"),
        (249, "small", "small: 100 MiB measured, 249 MiB allowed; next would be large with 250 MiB"),
    ],
)
def test_the_largest_that_fits_is_taken_whatever_the_order(mib: int, chosen: str, why: str) -> None:
    needs = {"huge": HUGE, "small": SMALL, "large": LARGE}
    assert decide(needs, mib * MIB) == (chosen, why)
    assert decide(dict(reversed(needs.items())), mib * MIB) == (chosen, why)


def test_size_is_the_number_of_parameters_and_not_the_memory() -> None:
    assert decide({"a": Need(2.0, 10), "b": Need(1.0, 20)}, 5)[0] == "b"


def test_where_all_fit_the_reason_says_so() -> None:
    assert decide({"small": SMALL, "large": LARGE}, 1000 * MIB)[1].endswith("1,000 MiB allowed; the largest")


def test_nothing_fits_names_the_least_and_what_was_measured() -> None:
    expected = (
        r"none fits into 99 MiB; small is the least, with 100 MiB\. Measured: small needs 100 MiB; large needs 250 MiB"
    )
    with pytest.raises(SettingsError, match=expected):
        decide({"small": SMALL, "large": LARGE}, 99 * MIB)


def test_a_named_backbone_is_taken_without_a_word_or_a_file(tmp_path: Path) -> None:
    found = choose(backbone_settings(name="minilm", layers=2, choices="a,b"), file=tmp_path / "file")
    assert (found.options.name, found.options.layers, found.reason) == ("minilm", 2, "")
    assert not (tmp_path / "file").exists()


def test_by_partition_takes_the_choices_in_turns(tmp_path: Path) -> None:
    settings = backbone_settings(name="by-partition", choices="minilm@2,/some/where/tiny,minilm@6", layers=5)
    found = [choose(settings, file=tmp_path / "file", partition=i) for i in range(4)]
    assert [(c.options.name, c.options.layers) for c in found] == [
        ("minilm", 2),
        ("/some/where/tiny", 5),
        ("minilm", 6),
        ("minilm", 2),
    ]
    assert [c.reason for c in found[:2]] == ["minilm@2: by partition", "tiny: by partition"]


@pytest.mark.parametrize("name", ["auto", "by-partition"])
def test_choosing_needs_choices(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"backbone.choices=\[\] must be given when backbone.name={name}"):
        load_settings({"backbone.name": name})


class Measured:
    """Counts what is measured and answers from a table."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, needs: Any) -> None:
        self.requests: list[dict[str, Any]] = []

        def measure_need(request: dict[str, Any]) -> Any:
            self.requests.append(request)
            return needs[f"{request['name']}@{request['layers']}"]

        monkeypatch.setattr(module, "measure_need", measure_need)

    def names(self) -> Any:
        found = [f"{r['name']}@{r['layers']}" for r in self.requests]
        self.requests.clear()
        return found


def test_needs_and_decision_are_remembered_and_a_change_decides_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured(monkeypatch, {"m@2": SMALL, "m@4": LARGE, "m@6": HUGE})
    available = [300 * MIB]
    monkeypatch.setattr(module, "available_bytes", lambda: available[0])
    file = tmp_path / "backbone.json"

    def take(**values: Any) -> Any:
        return choose(backbone_settings(name="auto", **values), file=file).options.layers

    assert take(choices="m@4,m@2") == 4
    assert measured.names() == ["m@2", "m@4"]
    available[0] = 120 * MIB  # memory moves: the device stays what it said it was
    assert take(choices="m@2,m@4") == 4
    assert measured.names() == []
    assert take(choices="m@2,m@4,m@6") == 2  # another list
    assert measured.names() == ["m@6"]
    assert take(choices="m@2,m@4,m@6", memory_mib=260) == 4  # another memory: nothing to measure
    assert measured.names() == []
    assert take(choices="m@2,m@4,m@6", memory_mib=260, precision="bf16") == 4  # another precision: all to measure
    assert len(measured.names()) == 3
    assert take(choices="m@2", token_budget=64) == 2
    assert measured.names() == ["m@2"]
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.json"]


def test_what_cannot_be_remembered_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch, {"m@2": SMALL})
    file = tmp_path / "backbone.json"
    settings = backbone_settings(name="auto", choices="m@2", memory_mib=150)
    for content in ("{", "[]", json.dumps({"needs": {}})):
        file.write_text(content)
        assert choose(settings, file=file).options.layers == 2
        assert measured.names() == ["m@2"]


def request(folder: Path, **values: Any) -> Any:
    asked = {"name": str(folder), "layers": 0, "revision": "", "precision": "fp32", "device": "cpu", "token_budget": 64}
    return {**asked, "num_labels": 0, "label_words": [], "max_length": 16, "per_token": False, **values}


@pytest.mark.slow
def test_the_need_is_that_of_a_fresh_process_and_grows_with_the_token_budget(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "bert", hidden_size=64)
    small, large = measure_need(request(folder)), measure_need(request(folder, token_budget=32768, per_token=True))
    assert 20 * MIB < small.bytes < large.bytes
    # activations of three layers and every token alone, float32
    assert large.bytes - small.bytes > 32768 * 3 * 64 * 4
    assert small.parameters == large.parameters


def test_a_choice_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "bert")
    with pytest.raises(
        UnsupportedError, match=r"backbone.choices: .*model cannot be measured: .*layers=9, but the model"
    ):
        measure_need(request(folder, layers=9))
