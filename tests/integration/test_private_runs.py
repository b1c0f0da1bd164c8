"""Whole runs under each mechanism: what leaves the devices, what the ledger allows, what the report says."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mobillm_flower import SideTunedModel
from mobillm_flower.cli import app
from mobillm_flower.config import load_settings
from mobillm_flower.errors import MismatchError, RunFailed, SettingsError
from mobillm_flower.privacy.labelled_cap import LabelledCap
from mobillm_flower.reports.not_protected import not_protected
from mobillm_flower.reports.source import read_source
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs.device_events import Failure
from mobillm_flower.runs.events import Evaluation, Prepared
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import read_run
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan, replay
from mobillm_flower.wire.target_bytes import decode_targets
from tests.support.present import present
from tests.support.runs import run, tiny_config
from tests.support.tiny_models import save_tiny

PROJECTED = {
    "activations__projection": 8,
    "activations__pivot": "mean",
    "activations__codec": "fp16",
    "loss__name": "logit",
    "side_network__name": "discriminant",
    "side_network__bottleneck": 64,  # the default: it has none
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory, backbone: Any) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("joint") / "run"
    config = tiny_config(folder, backbone, privacy__joint_epsilon=8, **PROJECTED)
    run(config)
    return folder, config


def held(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and labels as the server has them."""
    cache = ActivationCache(folder / "cache.sqlite")
    plan = present(TrainingPlan.of(cache))
    trainer = plan.trainer(cache, scores=lambda side, _: side, memory_bytes=1 << 20)
    batches, targets = trainer.loader.load(cache.rows())
    cache.close()
    return batches[0].rows.flatten(1), present(targets.differences).argmax(1)


def test_a_run_with_one_epsilon_for_vector_and_label(joint: Any) -> None:
    folder, _ = joint
    vectors, _labels = held(folder)
    assert vectors.shape == (60, 8)
    mechanism = LabelledCap(8.0, 12)
    # noise of unit variance in 7 of 8 directions: nothing like the unit vectors that went in
    assert vectors.square().sum(1).mean().item() == pytest.approx(7 + mechanism.height**2, rel=0.35)
    record = read_run(folder)
    assert record.outcome == "completed"
    (prepared,) = record.all(Prepared)
    assert prepared.guarantee == {
        "epsilon": 8.0,
        "delta": 0.0,
        "reason": "",
        "parts": {"activations and labels": [8.0, 0.0]},
    }
    assert ("privacy of a sample", "ε = 8", "δ = 0, local, one release; activations and labels ε = 8") in results_rows(
        record, {}
    )
    said = dict(not_protected(read_source(folder)))
    assert "locally differentially private with ε = 8:" in said["What is guaranteed"]
    assert "for each sample, not for each person" in said["What is guaranteed"]


def test_its_cache_trains_the_same_network_and_the_network_can_be_loaded(joint: Any, backbone: Any) -> None:
    folder, _ = joint
    model = SideTunedModel.from_pretrained(folder / "side_network", backbone=str(backbone))
    cache = ActivationCache(folder / "cache.sqlite")
    again = replay(cache, scores=lambda side, _: side)
    cache.close()
    for name, value in present(model.side_network).state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert any(value.abs().max() > 0 for value in again.state_dict().values())
    assert len(model.predict(["wake me at six", "play some music"]).labels) == 2


def test_a_second_run_with_another_epsilon_is_refused_by_the_ledger(joint: Any, tmp_path: Path, backbone: Any) -> None:
    first, config = joint
    again = {**config, "run.folder": str(tmp_path / "again"), "privacy.joint-epsilon": 4}
    nodes = [{"device-folder": str(first / "devices" / f"partition-{i}")} for i in range(3)]
    for node in nodes:
        assert Path(node["device-folder"]).is_dir()
        with contextlib.closing(sqlite3.connect(Path(node["device-folder"]) / "ledger.sqlite")) as db:
            assert {row[0] for row in db.execute("SELECT epsilon FROM releases")} == {8.0}
    (tmp_path / "again" / "devices").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "again" / "devices" / f"partition-{i}").symlink_to(first / "devices" / f"partition-{i}")
    with pytest.raises(Exception, match="no sample was received"):
        run(again)


@pytest.mark.parametrize(
    ("changes", "covered", "reason"),
    [
        ({"privacy__label_epsilon": 2.0}, {"labels"}, "activations are not noised"),
        ({"privacy__activation_epsilon": 6.0}, {"activations"}, "labels are sent unprotected"),
        ({"privacy__activation_epsilon": 6.0, "privacy__label_epsilon": 2.0}, {"activations", "labels"}, ""),
    ],
)
def test_the_parts_add_up_or_no_epsilon_is_named(
    tmp_path: Path, backbone: Any, changes: Any, covered: Any, reason: str
) -> None:
    run(tiny_config(tmp_path / "run", backbone, **PROJECTED, **changes))
    (prepared,) = read_run(tmp_path / "run").all(Prepared)
    found = prepared.guarantee
    assert set(found["parts"]) == covered
    assert found["reason"] == reason
    assert found["epsilon"] == (None if reason else pytest.approx(8.0, abs=1e-3))
    assert found["epsilon"] is None or found["epsilon"] <= 8.0


def test_randomized_labels_are_what_the_server_gets(tmp_path: Path, backbone: Any) -> None:
    plain, randomized = tmp_path / "plain", tmp_path / "randomized"
    run(tiny_config(plain, backbone))
    run(tiny_config(randomized, backbone, privacy__label_epsilon=1.0))
    true: dict[bytes, int] = {}
    drawn: dict[bytes, int] = {}
    for folder, labels in ((plain, true), (randomized, drawn)):
        cache = ActivationCache(folder / "cache.sqlite")
        plan = present(TrainingPlan.of(cache))
        spec = next(iter(plan.specs.values()))
        for row in cache.rows():
            ((activations, target),) = cache.read([row.id])
            target_batch = decode_targets([target], spec, plan.contract)
            labels[activations] = int(present(target_batch.differences).argmax())
        cache.close()
    assert set(true) == set(drawn)  # activations are the same
    kept = sum(true[key] == drawn[key] for key in true) / len(true)
    assert kept < 0.6  # e / (e + 11) = 0.2 expected
    said = dict(not_protected(read_source(randomized)))
    assert "by randomized response" in said["Labels"]
    assert "No ε can be named for a sample: activations are not noised" in said["What is guaranteed"]


def test_the_run_says_nothing_of_the_devices_secrets_or_texts(joint: Any) -> None:
    folder, _ = joint
    secrets = [file.read_bytes() for file in folder.glob("devices/*/secret")]
    assert len(secrets) == 3
    for file in folder.rglob("*"):
        if file.is_file() and "devices" not in file.parts:
            content = file.read_bytes()
            assert not any(secret in content or secret.hex().encode() in content for secret in secrets)
    assert "wake" not in RunFolder(folder).events.read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["privacy.joint-epsilon=8"], "give activations.projection"),
        (["privacy.joint-epsilon=8", "activations.projection=8", "privacy.label-epsilon=1"], "covers activations and"),
        (["privacy.activation-epsilon=8"], "needs a bound"),
        (["privacy.joint-epsilon=8", "activations.projection=8", "activations.codec=fp32"], "codec=fp32 cannot be"),
        (["activations.projection=8", "activations.clip-norm=1"], "has no use with activations.projection"),
        (["side-network.name=discriminant"], "choose loss.name=logit"),
        (["privacy.label-epsilon=1", "loss.objective=label"], "have no such protection"),
        (["privacy.delta=0"], "must be above 0"),
        (["privacy.joint-epsilon=-1"], "must be at least 0"),
    ],
)
def test_settings_that_protect_nothing_are_refused(words: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(overrides=words)


def test_a_secret_rotation_trains_as_well_and_only_its_holders_can_use_the_result(
    tmp_path: Path, backbone: Any
) -> None:
    file = tmp_path / "mixing.key"
    answer = CliRunner().invoke(app, ["mixing-key", str(file)])
    name = answer.stdout.strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert CliRunner().invoke(app, ["mixing-key", str(file)]).stdout.strip() == name  # not made anew
    rotated = {"privacy__mixing": name, "privacy__mixing_key": str(file), "activations__codec": "fp16"}
    run(tiny_config(tmp_path / "run", backbone, **rotated))
    record = read_run(tmp_path / "run")
    assert record.outcome == "completed"
    assert record.all(Evaluation)[-1].devices == 3  # each undoes the rotation with the key
    assert not record.all(Failure)
    _, read_as_label = held(tmp_path / "run")
    run(tiny_config(tmp_path / "plain", backbone, activations__codec="fp16"))
    _, true = held(tmp_path / "plain")
    assert sorted(read_as_label.tolist()) != sorted(true.tolist())
    folder = tmp_path / "run" / "side_network"
    with pytest.raises(MismatchError, match=r"trained with the mixing key .* this is \(none\)"):
        SideTunedModel.from_pretrained(folder, backbone=str(backbone))
    model = SideTunedModel.from_pretrained(folder, backbone=str(backbone), mixing_key=file)
    assert model.predict("wake me at six").scores.shape == (1, 12)
    secret = file.read_text().strip()
    for written in (tmp_path / "run").rglob("*"):
        if written.is_file():
            content = written.read_bytes()
            assert secret.encode() not in content
            assert bytes.fromhex(secret) not in content


def test_a_device_without_the_key_takes_no_part(tmp_path: Path, backbone: Any) -> None:
    config = tiny_config(tmp_path / "run", backbone, privacy__mixing="0123456789abcdef")
    with pytest.raises(RunFailed, match=r"needs privacy.mixing-key"):
        run({**config, "data.num-devices": 3, "rounds.timeout-s": 5.0})
