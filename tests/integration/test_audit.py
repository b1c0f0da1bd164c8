"""`mobillm audit` on a tiny run and on settings: real devices, a real cache, every attack."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mobillm_flower import SideTuningClient
from mobillm_flower.audit.audit import Subject, run_audit
from mobillm_flower.audit.draw import QUICK, Draw, draw, load_devices
from mobillm_flower.audit.run_uploads import run_uploads
from mobillm_flower.backbones import load_backbone
from mobillm_flower.cli.audit import _subject
from mobillm_flower.config import load_settings
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.launch import read_app
from mobillm_flower.launch.own_rows import app_loader
from mobillm_flower.reports.html import write_report
from mobillm_flower.runs.folder import RunFolder
from tests.support.cli import lines, mobillm, refused
from tests.support.runs import NUM_DEVICES, run, tiny_config, tiny_run
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str, str]:
    """A tiny run that was audited: its folder, the JSON, the cache's hash before, and what was printed."""
    run = tiny_run(tmp_path_factory.mktemp("audit"))
    before = hashlib.sha256((run / "cache.sqlite").read_bytes()).hexdigest()
    result = mobillm("audit", run, "--quick", "--threads", 1)
    assert result.exit_code == 0, result.output
    return run, json.loads((run / "audit.json").read_text("utf-8")), before, result.stdout


def cell(found: dict[str, Any], kind: str) -> dict[str, Any]:
    (one,) = [cell for cell in found["cells"] if cell["kind"] == kind]
    assert one["skipped"] == ""
    return dict(one)


def test_an_unprotected_difference_gives_every_label_away(audited: Any) -> None:
    attack = cell(audited[1], "as set")["attacks"]["label: argmax Δy"]
    assert attack["value"] == 1.0
    assert attack["baseline"] < 0.5
    assert cell(audited[1], "as set")["epsilon"]["total"] is None


def test_randomized_response_is_near_its_theory(audited: Any) -> None:
    attack = cell(audited[1], "labels")["attacks"]["label: argmax Δy"]
    assert attack["theory"] < 0.5
    assert attack["low"] - 0.05 <= attack["theory"] <= attack["high"] + 0.05


def test_a_cell_under_an_epsilon_claims_it(audited: Any) -> None:
    protected = cell(audited[1], "joint")
    assert protected["epsilon"] == {"total": 8.0, "delta": 0.0, "reason": ""}
    assert "text: words, decoder that knows the noise" in protected["attacks"]
    assert protected["bytes_a_sample"] > 0


def test_every_attack_has_a_baseline_and_an_interval(audited: Any) -> None:
    for one in audited[1]["cells"]:
        assert len(one["attacks"]) >= 12
        for attack in one["attacks"].values():
            assert attack["low"] <= attack["value"] <= attack["high"]
            assert len(attack["seeds"]) == QUICK.seeds


def test_what_is_reached_without_uploads_is_the_same_however_they_are_protected(audited: Any) -> None:
    baselines: dict[str, set[float]] = {}
    for one in audited[1]["cells"]:
        for name, attack in one["attacks"].items():
            if not name.startswith("membership TPR"):  # whose baseline is its own share of wrong alarms
                baselines.setdefault(name, set()).add(attack["baseline"])
    assert {name: len(found) for name, found in baselines.items()} == dict.fromkeys(baselines, 1)
    assert {min(found) for name, found in baselines.items() if name.startswith("label: ")} == baselines[
        "label: argmax Δy"
    ]
    assert baselines["membership AUC"] == baselines["device: two uploads of one"] == {0.5}


def test_the_rows_attacked_are_those_of_the_run_and_its_cache_stays_as_it_is(audited: Any) -> None:
    run, found, before, _ = audited
    assert not [remark for remark in found["remarks"] if "matched" in remark]
    assert hashlib.sha256((run / "cache.sqlite").read_bytes()).hexdigest() == before


def test_randomized_labels_are_read_as_often_as_theory_says(audited: Any) -> None:
    checks = audited[1]["label_checks"]
    assert [(check["mechanism"], check["epsilon"]) for check in checks[:2]] == [
        ("randomized response", 1.0),
        ("labelled cap", 1.0),
    ]
    assert all(abs(check["value"] - check["theory"]) < 4 * 0.5 / check["count"] ** 0.5 for check in checks)


def test_claims_hold_against_draws(audited: Any) -> None:
    found = audited[1]
    assert {check["mechanism"] for check in found["epsilon_checks"]} == {
        "labelled cap",
        "randomized response",
        "gaussian",
    }
    assert all(check["holds"] for check in found["epsilon_checks"])


def test_a_secret_rotation_hides_from_a_look_and_falls_to_leaked_pairs(audited: Any) -> None:
    found = audited[1]
    attacks = cell(found, "mixing")["attacks"]
    plain = cell(found, "as set")["attacks"]
    assert attacks["label: argmax Δy"]["value"] < 0.9
    assert attacks["label: argmax Δy"]["theory"] is None
    assert attacks["label: rotated Δy, one leaked pair a class"]["value"] == 1.0
    assert attacks["text: nearest of candidates"]["high"] < plain["text: nearest of candidates"]["low"]
    broken = [one["value"] for one in attacks.values() if one["leaked"] is not None]
    assert broken[-1] > broken[0] + 0.2
    named = [word for one in found["cells"] for word in one["settings"] if word.startswith("privacy.mixing")]
    assert all(word.endswith("=") for word in named)  # no key and no file of one
    assert not [name for name in plain if name.startswith("key:")]


def test_texts_are_recovered_as_sequences_too(audited: Any) -> None:
    found = audited[1]
    for one in found["cells"]:
        assert {"text: sequence", "text: sequence, exact match"} <= set(one["attacks"])
    assert all("sequence" in layer for layer in cell(found, "as set")["layers"])
    assert {one["pivot"] for one in found["pivots"] if "sequence" in one} >= {"first", "first+mean", "last", "mean"}


def test_every_pivot_is_attacked_at_the_first_and_the_last_layer(audited: Any) -> None:
    found = {(one["pivot"], one["layer"]): one for one in audited[1]["pivots"]}
    assert {pivot for pivot, _ in found} >= {"all", "first", "first+mean", "last", "mean"}
    assert {layer for _, layer in found} == {1, 3}
    assert all(one["count"] == one["victims"] == 39 for one in found.values())
    pooled = {one["baseline"] for (pivot, _), one in found.items() if pivot != "all"}
    assert len(pooled) == 1  # the most frequent words, whatever is uploaded


def test_it_ends_in_plain_words_and_the_report_has_a_section(audited: Any) -> None:
    run, found, _, printed = audited
    titles = [title for title, _ in found["plain_words"]]
    assert titles[1:3] == ["What this server could learn", "What it could not"]
    assert titles[-3:] == ["What is not protected", "How long it is kept", "What forgetting can undo"]
    assert all(title in printed for title in titles)
    page = (run / "report.html").read_text("utf-8")
    assert "What a server could learn" in page
    assert "label: argmax Δy" in page
    (run / "audit.json").rename(run / "away.json")
    assert "What a server could learn" not in write_report(run).read_text("utf-8")
    (run / "away.json").rename(run / "audit.json")


def test_a_run_without_device_folders_is_attacked_by_uploads_made_anew(audited: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(audited[0], run, ignore=shutil.ignore_patterns("devices"))
    words = ["data.num-devices=3"]
    found = run_audit(
        Subject(lambda more: load_settings(file=run / "settings.yaml", overrides=[*words, *more]), run=RunFolder(run)),
        quick=True,
    )
    assert any("could not be matched" in remark for remark in found["remarks"])
    assert cell(found, "as set")["attacks"]["label: argmax Δy"]["value"] == 1.0


def test_settings_are_audited_and_no_text_or_label_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for split, count in (("train", 90), ("test", 30)):
        rows = [{"text": f"wake zq{split}{i}xw at noon", "intent": ("vqalarm", "vqmusic")[i % 2]} for i in range(count)]
        (source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = tiny_config(tmp_path / "run", save_tiny(tmp_path / "backbone", "bert"), data__source=str(source))
    settings |= {"data.num-devices": 3, "data.max-samples": 30}
    file = tmp_path / "settings.yaml"
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in nested(settings).items()), "utf-8")
    out, plot = tmp_path / "out" / "audit.json", tmp_path / "out" / "frontier.svg"
    printed = mobillm("audit", file, "--quick", "--threads", 1, "--json", out, "--plot", plot).output
    shown = printed + out.read_text("utf-8") + plot.read_text("utf-8") + "".join(capfd.readouterr())
    assert json.loads(out.read_text("utf-8"))["subject"] == "settings"
    assert plot.read_text("utf-8").startswith("<svg")
    assert not [needle for needle in ("zqtrain", "zqtest", "vqalarm", "vqmusic") if needle in shown]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone", "out", "settings.yaml", "source"]


def test_uploads_of_every_token_and_plain_labels_are_audited(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"preset": "mobillm", "data__num_devices": 3, "data__max_samples": 30}
    config = tiny_config(tmp_path / "run", save_tiny(tmp_path / "backbone", "opt"), **changes)
    found = run_audit(Subject(lambda words: load_settings(config, overrides=words)), quick=True)
    assert [one["name"] for one in found["cells"]] == ["as set"]  # no mechanism here protects a label that is sent
    assert cell(found, "as set")["pivot"] == "all"
    assert cell(found, "as set")["attacks"]["label: argmax Δy"]["value"] == 1.0


def test_a_run_with_a_secret_rotation_is_attacked_without_its_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    name = lines("mixing-key", key)[-1].split()[-1]
    run = tiny_run(tmp_path, privacy__mixing=name, privacy__mixing_key=str(key))
    found = run_audit(
        Subject(lambda words: load_settings(file=run / "settings.yaml", overrides=words), run=RunFolder(run)),
        quick=True,
    )
    assert not found["remarks"] or not [remark for remark in found["remarks"] if "matched" in remark]
    attacks = cell(found, "as set")["attacks"]
    assert attacks["label: argmax Δy"]["value"] < 0.9
    assert attacks["label: rotated Δy, one leaked pair a class"]["value"] == 1.0
    by_leaked = {one["leaked"]: one["value"] for one in attacks.values()}
    few, many = by_leaked[1], by_leaked[16]
    assert many > 3 * few
    assert cell(found, "unprotected")["attacks"]["label: argmax Δy"]["value"] == 1.0
    key.unlink()
    lost = run_audit(
        Subject(lambda words: load_settings(file=run / "settings.yaml", overrides=words), run=RunFolder(run)),
        quick=True,
    )
    assert "cannot be read" in lost["cells"][0]["skipped"]


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in flat.items():
        part, _, name = key.rpartition(".")
        if part:
            found.setdefault(part, {})[name] = value
        else:
            found[name] = value
    return found


def draws(**changes: Any) -> Draw:
    settings = load_settings({"data.label-column": "intent", "data.num-devices": 4, **changes})
    return draw(load_devices(settings), QUICK, seed=1)


def test_the_attackers_texts_are_none_of_the_victims_nor_held_out() -> None:
    drawn = draws()
    attacked = {text for data in drawn.fleet.values() for text in data.train.texts}
    assert 390 <= sum(len(data.train) for data in drawn.fleet.values()) <= 410
    assert attacked.isdisjoint(drawn.public.texts)
    assert attacked.isdisjoint(drawn.test.texts)
    assert set(drawn.public.texts).isdisjoint(drawn.test.texts)
    assert all(len(drawn.places[number]) == len(data.train) for number, data in drawn.fleet.items())


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="20 training samples are too few to attack; give at least 60"):
        draws(**{"data.max-samples": 5})


def test_what_cannot_be_audited_is_refused(audited: Any, tmp_path: Path) -> None:
    assert "is no run's folder, settings file or app's folder" in refused("audit", tmp_path / "nothing")
    assert "-c changes what a run was" in refused("audit", audited[0], "-c", "privacy.label-epsilon=1")


OWN = """
from mobillm_flower import SideTuningClient

WORDS = "cat dog mat sat ran good bad first day parcel".split()


def rows(context):
    number = int(context.node_config["partition-id"])
    held = [{"text": f"the {WORDS[i % 10]} {WORDS[(i * 3 + number) % 10]}", "intent": "ab"[i % 2]} for i in range(24)]
    return held, held[:4]


app = SideTuningClient(load_data=rows).app
"""
PROJECT = """
[tool.flwr.app.components]
serverapp = "own_rows_app:app"
clientapp = "own_rows_app:app"
[tool.flwr.app.config]
settings = "task.labels=a,b data.label-column=intent data.num-devices=3"
"""


def test_a_run_whose_devices_load_their_own_rows_is_audited_by_its_app(tmp_path: Path) -> None:
    folder, backbone = tmp_path / "app", save_tiny(tmp_path / "backbone", "bert")
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT, "utf-8")
    (folder / "own_rows_app.py").write_text(OWN, "utf-8")
    config = tiny_config(tmp_path / "run", backbone, task__labels="a,b", data__num_devices=NUM_DEVICES)
    load = app_loader(read_app(folder))
    run(config, app=SideTuningClient(load).app)
    with ExitStack() as stack:
        subject = _subject(tmp_path / "run", [], stack, folder)
        assert subject.run is not None
        settings = subject.settings(["data.max-samples=0"])
        devices = load_devices(settings)
        drawn, loaded = draw(devices, QUICK, seed=0), load_backbone(str(backbone), device="cpu")
        copy = tmp_path / "copy"
        given = stack.enter_context(run_uploads(subject.run, settings, devices, drawn, loaded, copy))
        assert given is not None
        assert len(given[0].rows) == len(given[0].samples) > 0
    assert "--app goes with a run's folder" in refused("audit", folder, "--app", folder)
