"""Events as they are written and read, those of earlier releases too."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.log import EventReader, decode, encode
from mobillm_flower.runs.record import read_run

SAMPLES: dict[str, Any] = {
    "str": "a",
    "int": 3,
    "float": 0.5,
    "bool": True,
    "list[float]": [0.25, 1],
    "list[str]": ["a"],
    "list[list[int]]": [[2, 0], []],
    "Mapping[str, Any]": {"loss": [1, 2]},
    "Mapping[str, int]": {"a": 1},
    "Mapping[str, str]": {"a": "b"},
    "Mapping[str, list[int]]": {"a": [1, 2]},
    "Path": Path("run"),
}
WRONG: dict[str, list[Any]] = {
    "str": [7, ["a"]],
    "int": [1.5, True, "1"],
    "float": ["1", True, []],
    "bool": [1, "true"],
    "list[float]": [["a"], {}, "a"],
    "list[str]": [[1], "a"],
    "list[list[int]]": [[1], [["a"]], [[1.5]], {}],
    "Mapping[str, Any]": [[], "a", 7],
    "Mapping[str, int]": [{"a": "b"}, {"a": 1.5}],
    "Mapping[str, str]": [{"a": 1}, "a"],
    "Mapping[str, list[int]]": [{"a": 1}, {"a": [None]}],
}


def sample(cls: type[events.Event]) -> events.Event:
    """An event of a kind with a value for each field."""
    values: dict[str, Any] = {}
    for item in events.own_fields(cls):
        kind = str(item.type).removesuffix(" | None")
        values[item.name] = SAMPLES[kind]
    return cls(**values)


@pytest.mark.parametrize("kind", [kind for kind in events.KINDS if kind not in ("folder-seen", "other")])
def test_each_kind_is_read_as_it_was_written(kind: str) -> None:
    event = sample(events.KINDS[kind])
    line = encode(event, time=12.5, run="7")
    assert list(json.loads(line))[:3] == ["time", "event", "run"]
    assert decode(line) == dataclasses.replace(event, time=12.5, run="7")


@pytest.mark.parametrize("kind", [kind for kind in events.KINDS if kind not in ("folder-seen", "other")])
def test_a_field_of_another_type_is_no_event(kind: str) -> None:
    """Readers add up, sort and print what fields hold."""
    line = json.loads(encode(sample(events.KINDS[kind]), time=12.5, run="7"))
    for item in events.own_fields(events.KINDS[kind]):
        for other in WRONG[str(item.type).removesuffix(" | None")]:
            with pytest.raises(TypeError, match=f"{item.name} is a"):
                decode(json.dumps({**line, item.name: other}))


@pytest.mark.parametrize("head", [{"time": "1"}, {"time": None}, {"time": float("inf")}, {"run": 7}, {"event": 7}])
def test_a_line_without_a_time_or_kind_is_no_event(head: dict[str, object]) -> None:
    line = json.loads(encode(events.Stopped("a"), time=12.5, run="7"))
    with pytest.raises(TypeError, match=r"neither kind nor time|not supported"):
        decode(json.dumps(line | head))


def test_fields_are_written_in_one_key_style_and_defaults_are_left_out() -> None:
    for cls in events.KINDS.values():
        assert all(item.name == item.name.lower().replace("-", "_") for item in events.own_fields(cls))
        assert "time" in typing.get_type_hints(cls)
    assert json.loads(encode(events.Epoch(1, 3), time=1.0, run="")) == {
        "time": 1.0,
        "event": "epoch",
        "epoch": 1,
        "step": 3,
    }
    assert json.loads(encode(events.Finished("completed", 2.0), time=1.0, run="7")) == {
        **{"time": 1.0, "event": "finished", "run": "7"},
        **{"outcome": "completed", "seconds": 2.0},
    }


def test_logs_of_earlier_releases_are_read() -> None:
    round_ = decode('{"time": 1.0, "event": "round", "round": 2, "num-examples": 4, "num-held": 9, "cache-bytes": 7}')
    assert round_ == events.Round(2, 4, 9, cache_bytes=7, time=1.0)
    evaluation = decode(
        '{"time": 1.0, "event": "evaluation", "round": 2, "devices": 3, "f1-macro": 0.5, "auc": 0.2, "num-examples": 8}'
    )
    assert evaluation == events.Evaluation(2, 8, 3, {"f1-macro": 0.5, "auc": 0.2}, time=1.0)
    rejected = decode('{"time": 1.0, "event": "rejected", "round": 2, "device": "aa", "rule": "norm", "detail": "9"}')
    assert rejected == device_events.Rejected("aa", "norm", "9", time=1.0)


def test_a_kind_of_a_later_release_is_kept_apart_and_its_new_fields_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(
        '{"time": 1.0, "event": "started", "strategy": "PaeMobiLLM", "colour": "red"}\n'
        '{"time": 2.0, "event": "painted", "colour": "red"}\n'
    )
    assert read_run(tmp_path).events == [
        events.Started("PaeMobiLLM", time=1.0),
        events.Other("painted", {"colour": "red"}, time=2.0),
    ]


def test_a_reader_goes_on_where_it_stopped_and_waits_for_whole_lines(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append(events.Started("PaeMobiLLM"))
    reader = EventReader(run.events)
    assert [event.kind for event in reader.read()] == ["started"]
    assert reader.read() == []
    with run.events.open("a") as stream:
        stream.write('{"time": 1.0, "event": "trai')
    assert reader.read() == []
    with run.events.open("a") as stream:
        stream.write('ned", "steps": 3, "epochs": 1}\n')
    assert reader.read() == [events.Trained(3, 1, time=1.0)]


def test_rounds_take_known_metrics_by_flowers_names_and_keep_a_strategys_own() -> None:
    round_ = events.Round.of(3, {"num-examples": 1, "num-held": 2, "num-rejected": 0, "cache-bytes": 9, "mine": 0.5})
    assert round_ == events.Round(3, 1, 2, 0, 9, {"mine": 0.5})
