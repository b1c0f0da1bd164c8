"""What a run writes beside the cache holds no sample text, no sample row and no device's secret."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import pytest

from mobillm_flower.reports.html import write_report
from tests.support.runs import run, tiny_config
from tests.support.tiny_models import save_tiny

LABELS = ("alarm", "music", "weather")


def rows(split: str, count: int) -> list[dict[str, str]]:
    """Rows that can be told from anything else: each text holds a word of its own."""
    return [{"text": f"wake zq{split}{i}xw at noon", "intent": LABELS[i % 3]} for i in range(count)]


def findings(data: bytes, planted: dict[str, list[bytes]]) -> set[str]:
    return {what for what, needles in planted.items() if any(needle in data for needle in needles)}


def forms(secret: bytes) -> list[bytes]:
    """Every form in which a secret might be written by mistake."""
    return [secret, secret.hex().encode(), base64.b64encode(secret), repr(secret).encode(), str(list(secret)).encode()]


@pytest.mark.parametrize("strategy", ["pae", "fed"])
def test_nothing_that_a_run_writes_holds_texts_rows_or_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], strategy: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    samples = {"train": rows("train", 60), "test": rows("test", 12)}
    for split, members in samples.items():
        (source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in members), "utf-8")
    folder = tmp_path / "run"
    config = tiny_config(folder, save_tiny(tmp_path / "backbone", "bert"), preset=strategy, data__source=str(source))
    with caplog.at_level(logging.DEBUG):
        run(config)
    write_report(folder)
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    devices = {path: data for path, data in written.items() if folder / "devices" in path.parents}
    secrets = [data for path, data in devices.items() if path.name == "secret"]
    assert len(secrets) == 3
    every = [row for members in samples.values() for row in members]
    planted = {
        "text": [row["text"].split()[1].encode() for row in every],
        "row": [json.dumps(row).encode() for row in every],
        "secret": [form for secret in secrets for form in forms(secret)],
    }
    logs = "\n".join(record.getMessage() for record in caplog.records) + "".join(capfd.readouterr())
    assert "trainable parameters" in logs  # the run did log
    shown = {path: data for path, data in written.items() if path not in devices} | {Path("logs"): logs.encode()}
    assert {"events.jsonl", "settings.yaml", "report.html", "cache.sqlite"} <= {path.name for path in shown}
    assert {path.name: findings(data, planted) for path, data in shown.items() if findings(data, planted)} == {}
    # the search finds what is there: on the device its own secret, in the source texts and rows
    assert "secret" in findings(b"".join(devices.values()), planted)
    assert findings((source / "train.jsonl").read_bytes(), planted) == {"text", "row"}


def test_every_event_names_its_run_and_windows_their_device(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(tiny_config(folder, save_tiny(tmp_path / "backbone", "bert"), data__max_samples=20))
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    assert {event["run"] for event in events} == {"local"}
    assert all(list(event)[:3] == ["time", "event", "run"] for event in events)
    windows = [event for event in events if event["event"] == "window"]
    assert sorted(event["window"] for event in windows) == [1, 1, 1, 2, 2, 2]  # 20 samples, 12 a window
    assert len({(event["device"], event["window"]) for event in windows}) == 6
    (ingested,) = [event for event in events if event["event"] == "ingested"]
    assert (ingested["samples"], ingested["epochs"]) == (60, 2)
