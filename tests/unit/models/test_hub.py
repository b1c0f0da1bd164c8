"""Side networks on the hub: what is sent, its card, and what is loaded again; only the network itself is a stand-in."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from mobillm_flower import SideTunedModel, load_settings
from mobillm_flower.backbones import load_backbone
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import SideNetworkConfig
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.models.card import CardFacts, model_card
from mobillm_flower.runs.events import Evaluation, Started
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.strategies.run_plan import make_plan
from mobillm_flower.tasks import make_contract
from tests.support.tiny_models import TEXTS, save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SideTunedModel:
    folder = tmp_path_factory.mktemp("models") / "bert"
    save_tiny(folder, "bert")
    backbone = load_backbone(str(folder), device="cpu")
    contract = make_contract(load_settings({"task.labels": "a,b,c", "task.max-length": 32}), ["a", "b", "c"])
    plan = make_plan(load_settings({}), contract, {backbone.info.fingerprint: backbone.info}, [50])
    return SideTunedModel(
        backbone,
        plan.side_config.build(),
        spec=plan.specs[backbone.info.fingerprint],
        contract=contract,
        rule=PredictionRule(scale=plan.scale, loss="square"),
        side_config=plan.side_config,
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where repositories of the hub lie, and what was asked of it."""
    asked: dict[str, Any] = {"folder": tmp_path / "hub"}

    def create(_self: Any, name: str, **options: Any) -> None:
        asked["create"] = (name, options)

    def upload(_self: Any, *, repo_id: str, folder_path: Path, **options: Any) -> Any:
        asked["upload"] = options
        shutil.copytree(folder_path, asked["folder"] / repo_id)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def download(name: str, **options: Any) -> str:
        if not (asked["folder"] / name).is_dir():
            raise ConnectionError
        asked["download"] = options
        return str(asked["folder"] / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_what_is_pushed_is_what_is_loaded(model: SideTunedModel, hub: dict[str, Any]) -> None:
    address = model.push_to_hub("me/intents", license="mit", datasets=["stanfordnlp/sst2"], metrics={"accuracy": 0.75})
    assert address == "https://huggingface.co/me/intents/commit/1"
    assert hub["create"] == ("me/intents", {"private": True, "exist_ok": True})
    again = SideTunedModel.from_pretrained("me/intents", backbone=model.backbone, revision="v1")
    assert hub["download"]["revision"] == "v1"
    assert again.predict(TEXTS).scores.equal(model.predict(TEXTS).scores)
    card = ModelCard.load(hub["folder"] / "me" / "intents" / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "text-classification")
    assert card.data.datasets == ["stanfordnlp/sst2"]
    (result,) = card.data.eval_results or []
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.75)
    assert 'from_pretrained("me/intents")' in card.content


def test_a_run_s_metric_is_in_the_card(model: SideTunedModel, hub: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").make()
    run.append(Started("Own"))
    run.append(Evaluation(1, 40, 2, {"accuracy": 0.625}))
    model.save_pretrained(run.side_network)
    SideTunedModel.from_pretrained(run.side_network, backbone=model.backbone).push_to_hub("me/run")
    card = ModelCard.load(hub["folder"] / "me" / "run" / "README.md")
    assert [result.metric_value for result in card.data.eval_results or []] == [0.625]


def test_what_the_hub_does_not_have_or_take_is_said(
    model: SideTunedModel, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedError, match=r"'me/none' is no folder here, and the Hugging Face hub did not give"):
        SideTunedModel.from_pretrained("me/none")
    with pytest.raises(UnsupportedError, match="'intents' is no name of a repository; give user/name"):
        model.push_to_hub("intents")

    def refuse(*_words: Any, **_options: Any) -> None:
        raise PermissionError("a secret")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UnsupportedError, match=r"did not take 'me/x' \(PermissionError\)") as caught:
        model.push_to_hub("me/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "base"),
    [
        (["minilm"], ["sentence-transformers/all-MiniLM-L6-v2"]),
        (["facebook/opt-125m", "/home/me/model"], ["facebook/opt-125m"]),
        (["./models"], None),
    ],
)
def test_the_base_model_is_named_as_the_hub_has_it(names: list[str], base: list[str] | None) -> None:
    side = SideNetworkConfig(name="additive", types={}, num_blocks=2, width=8, bottleneck=4, num_outputs=3)
    contract = make_contract(load_settings({"task.labels": "a,b,c", "task.max-length": 32}), ["a", "b", "c"])
    types = {name: BackboneInfo(name, "bert", False, 2, 8, "fp32", "0" * 64, "constant") for name in names}
    text = model_card(9, side, types, contract, CardFacts())
    assert ModelCard(text).data.to_dict().get("base_model") == base


def test_all_files_have_one_mode_and_three_labels_take_little(model: SideTunedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    files = list((tmp_path / "saved").iterdir())
    assert len({file.stat().st_mode for file in files}) == 1
    settings = load_settings({"backbone.name": "minilm", "task.labels": "a,b,c"})
    backbone = load_backbone("minilm")
    plan = make_plan(settings, model.contract, {backbone.info.fingerprint: backbone.info}, [50])
    assert sum(4 * value.numel() for value in plan.side_config.build().state_dict().values()) < 100_000
