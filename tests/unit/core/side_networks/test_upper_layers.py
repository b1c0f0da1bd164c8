"""A side network that runs the backbone's own upper layers from cached states of a lower one."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower import SideTunedModel, load_settings
from mobillm_flower.audit.draw import load_devices
from mobillm_flower.backbones import load_backbone
from mobillm_flower.backbones.cut import Cut, UpperLayers
from mobillm_flower.core.layers import cut_layer
from mobillm_flower.core.side_networks import ActivationBatch, AlignmentSpec, SideNetworkConfig
from mobillm_flower.errors import ArgumentError, MismatchError, SettingsError, UnsupportedError
from mobillm_flower.evaluation.references import measure_references
from mobillm_flower.server import ActivationCache
from mobillm_flower.strategies.run_plan import arguments_named, make_plan
from mobillm_flower.tasks import load_local_data
from mobillm_flower.tasks.extraction import extraction_spec
from tests.support.packets import make_contract
from tests.support.present import present
from tests.support.runs import NUM_DEVICES, NUM_SAMPLES, run, tiny_config
from tests.support.tiny_models import DECODERS, ENCODERS, TEXTS, save_tiny, streaming

CUT = 1
FAMILIES = (*ENCODERS, "opt", "opt-350m", "gpt2", "gpt-neox", "llama", "qwen3", "gemma3", "phi3")
FAMILIES = tuple(name for name in FAMILIES if name in ENCODERS + DECODERS)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bert"), "bert")


def attached(backbone: Any, *, outputs: int = 3, random: bool = True, cut: int = CUT) -> Any:
    """A network on a backbone, whose every parameter is away from its start."""
    types = {backbone.info.fingerprint: AlignmentSpec(backbone.info.width, 1, backbone.info.depth - cut)}
    values = {"num_blocks": 1, "bottleneck": 4, "num_outputs": outputs}
    network: Any = SideNetworkConfig.of(types, name="upper-layers", **values).build()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters() if random else ():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    network.attach(UpperLayers(Cut(backbone, cut, setting="activations.layers")))
    return network.eval()


def batch(backbone: Any, samples: Any, cut: int = CUT) -> ActivationBatch:
    found = backbone.extract(samples, layers=(cut,), pivot="all").activations
    rows = torch.cat(found).flatten(2)
    return ActivationBatch(backbone.info.fingerprint, rows, torch.tensor([len(one) for one in found]))


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_leave_the_backbone_as_it_is(tmp_path: Path, family: str) -> None:
    """From the states at the cut the last layer leaves what it leaves in a whole forward pass, padding or not."""
    backbone = load_backbone(str(save_tiny(tmp_path, family)), device="cpu")
    samples = backbone.tokenize(TEXTS, None, 12)
    given, depth = batch(backbone, samples), backbone.info.depth
    lengths = present(given.lengths)
    expected = batch(backbone, samples, cut=depth).rows[:, 0]
    upper = UpperLayers(Cut(backbone, CUT, setting="activations.layers"))
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    rows = torch.zeros(*mask.shape, backbone.info.width).masked_scatter(mask.unsqueeze(2), given.rows)
    with torch.no_grad():
        found = upper(rows, mask.long(), lambda _i, states: states)[mask]
    assert torch.allclose(found, expected, atol=2e-4, rtol=1e-3)
    network = attached(backbone, random=False)
    assert not network([given]).any()
    states = network.output_norm(found)
    with torch.no_grad():
        network.output.weight.copy_(torch.randn(network.output.weight.shape))
    parts = torch.split(states, lengths.tolist())
    pooled = torch.stack([part[-1] if backbone.info.causal else part.mean(0) for part in parts])
    assert torch.allclose(network([given]), network.output(pooled), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["bert", "opt"])
def test_samples_of_a_batch_are_apart(tmp_path: Path, family: str) -> None:
    backbone = load_backbone(str(save_tiny(tmp_path, family)), device="cpu")
    network, samples = attached(backbone), backbone.tokenize(TEXTS, None, 12)
    alone = torch.cat([network([batch(backbone, [sample])]) for sample in samples])
    assert torch.allclose(network([batch(backbone, samples)]), alone, atol=1e-4)
    assert alone.std(0).min() > 1e-3


def test_training_moves_what_it_owns_and_nothing_of_the_backbone(bert: Path) -> None:
    backbone = load_backbone(str(bert), device="cpu")
    network = attached(backbone)
    before = copy.deepcopy(backbone.model.state_dict())
    network([batch(backbone, backbone.tokenize(TEXTS, None, 12))]).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert not any(parameter.grad is not None for parameter in backbone.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items())
    assert len(network.adapters) == backbone.info.depth - CUT + 1
    own = {name.split(".")[0] for name in network.state_dict()}
    assert own == {"adapters", "output_norm", "output"}


def test_a_copy_shares_the_layers(bert: Path) -> None:
    backbone = load_backbone(str(bert), device="cpu")
    network = attached(backbone)
    other = copy.deepcopy(network)
    given = batch(backbone, backbone.tokenize(TEXTS, None, 12))
    assert torch.equal(network([given]), other([given]))
    assert other._upper.upper is network._upper.upper


def test_a_device_stops_at_the_cut(bert: Path) -> None:
    backbone = load_backbone(str(bert), device="cpu")
    ran: list[int] = []
    for place, layer in enumerate(backbone.stack, 1):
        layer.register_forward_hook(lambda *_args, place=place: ran.append(place))
    samples = backbone.tokenize(TEXTS[:1], None, 12)
    backbone.extract(samples, layers=(CUT,), pivot="all")
    assert ran == list(range(1, CUT + 1))
    backbone.extract(samples, layers=(CUT, backbone.info.depth), pivot="all")
    assert ran[CUT:] == list(range(1, backbone.info.depth + 1))


def test_what_does_not_fit_is_refused(bert: Path) -> None:
    backbone = load_backbone(str(bert), device="cpu")
    given = batch(backbone, backbone.tokenize(TEXTS, None, 12))
    types = {given.backbone: AlignmentSpec(backbone.info.width, 1, 1)}
    bare = SideNetworkConfig.of(types, name="upper-layers", num_blocks=1, bottleneck=4, num_outputs=3).build()
    with pytest.raises(MismatchError, match="none were attached"):
        bare([given])
    network = attached(backbone)
    for wrong in (
        dataclasses.replace(given, backbone="ff" * 16),
        dataclasses.replace(given, lengths=None),
        dataclasses.replace(given, rows=given.rows.repeat(1, 2, 1)),
    ):
        with pytest.raises(MismatchError, match="do not fit a side network on the layers"):
            network([wrong])
    with pytest.raises(SettingsError, match=r"activations.layers=3 of 3 layers; give 1 to 2"):
        Cut(backbone, backbone.info.depth, setting="activations.layers")


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    backbone = load_backbone(str(save_tiny(tmp_path, "t5")), device="cpu")
    with pytest.raises(UnsupportedError, match="is an encoder-decoder, which cannot be cut"):
        Cut(backbone, 1, setting="activations.layers")


@pytest.mark.parametrize("words", [{"engine": "onnx"}, {"plan": streaming()}], ids=["onnx", "streamed"])
def test_layers_that_are_not_in_memory_are_refused(bert: Path, words: dict[str, Any]) -> None:
    """A device's own settings may differ from the run's."""
    if "engine" in words:
        pytest.importorskip("onnxruntime")
    backbone = load_backbone(str(bert), device="cpu", **words)
    with pytest.raises(UnsupportedError, match=r"set backbone\.memory-budget-mib=0 and backbone\.engine=torch"):
        Cut(backbone, 1, setting="activations.layers")


@pytest.mark.parametrize(
    ("depth", "layers", "found"), [(12, (), (4,)), (2, (), (1,)), (6, (), (2,)), (6, (5,), (5,)), (3, (1,), (1,))]
)
def test_where_the_cut_is(depth: int, layers: tuple[int, ...], found: tuple[int, ...]) -> None:
    assert cut_layer(depth, layers) == found


@pytest.mark.parametrize(("depth", "layers"), [(6, (6,)), (6, (0,)), (6, (2, 3)), (1, ())])
def test_a_cut_that_leaves_no_layer_is_refused(depth: int, layers: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"layers=.* must be one layer from 1 to"):
        cut_layer(depth, layers)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["activations.pivot=mean"], "activations.pivot=mean makes a few vectors"),
        (["activations.num-blocks=2"], "activations.num-blocks=2 asks for several layers"),
        (["activations.standardise=true"], "change them"),
        (["activations.clip-norm=1", "activations.noise-sigma=0.5"], "change them"),
        (["activations.projection=8"], "activations.projection=8 changes them"),
        (["privacy.mixing=rotation", "privacy.mixing-key=key", "loss.name=square"], "privacy.mixing=rotation changes"),
        (["backbone.engine=onnx"], "backbone.engine=onnx has them elsewhere"),
        (["side-network.width=8"], "side-network.width=8 cannot be used: the upper layers are 16 wide"),
    ],
)
def test_settings_that_change_states_are_refused(bert: Path, words: list[str], reason: str) -> None:
    info = load_backbone(str(bert), device="cpu").info
    types = {info.fingerprint: info}

    def build() -> None:
        settings = load_settings(overrides=["side-network.name=upper-layers", *words])
        plan = make_plan(settings, make_contract(), types, [4])
        with arguments_named():
            plan.side_config.build()

    with pytest.raises(SettingsError, match=reason):
        build()


def test_several_types_are_refused(bert: Path, tmp_path: Path) -> None:
    infos = [load_backbone(str(folder), device="cpu").info for folder in (bert, save_tiny(tmp_path, "bert", seed=1))]
    settings, types = (
        load_settings(overrides=["side-network.name=upper-layers"]),
        {one.fingerprint: one for one in infos},
    )
    with pytest.raises(UnsupportedError, match="takes one backbone type, and there are 2"):
        make_plan(settings, make_contract(), types, [4, 4])


def test_the_pivot_is_every_token(bert: Path) -> None:
    info = load_backbone(str(bert), device="cpu").info
    spec = extraction_spec(
        info, load_settings(overrides=["side-network.name=upper-layers"]), num_blocks=7, num_outputs=1
    )
    assert (spec.pivot, spec.layers, spec.layers_above) == ("all", (1,), info.depth - 1)
    assert extraction_spec(info, load_settings(), num_blocks=1, num_outputs=1).layers_above == 0


@pytest.mark.parametrize("words", [{}, {"strategy": "fed"}, {"privacy.label-epsilon": 4.0}, {"loss.name": "square"}])
def test_a_run_ends_with_what_training_in_one_place_gives(bert: Path, tmp_path: Path, words: dict[str, object]) -> None:
    config = tiny_config(tmp_path / "run", bert, side_network__name="upper-layers", trainer__dropout=0.0) | words
    done = run(config)
    settings = load_settings(config)
    assert len(ActivationCache(tmp_path / "run" / "cache.sqlite")) == NUM_DEVICES * NUM_SAMPLES
    assert measure_references(tmp_path / "run")["identical"]
    model = SideTunedModel.from_pretrained(tmp_path / "run" / "side_network", device="cpu")
    test = load_local_data(settings, 0, NUM_DEVICES).test
    scores = model.scores(test)
    model.save_pretrained(tmp_path / "again")
    again = SideTunedModel.from_pretrained(tmp_path / "again", device="cpu")
    assert torch.equal(again.scores(test), scores)
    state = present(model.side_network).state_dict()
    assert all(torch.equal(v, done.trainer.network.state_dict()[k]) for k, v in state.items())
    base = model.with_network(None)
    assert (base.scores(test) != scores).any()


def test_an_audit_names_settings_that_upload_the_same(bert: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, bert, side_network__name="upper-layers")
    with pytest.raises(UnsupportedError, match=r"what it uploads is what side-network.name=additive uploads with"):
        load_devices(load_settings(config))
    same = {"side-network.name": "additive", "activations.pivot": "all", "activations.num-blocks": 1}
    whole, cut = (load_backbone(str(bert), device="cpu", layers=layers) for layers in (0, CUT))
    specs = [
        extraction_spec(whole.info, load_settings(config), num_blocks=1, num_outputs=1),
        extraction_spec(cut.info, load_settings({**config, **same}), num_blocks=1, num_outputs=1),
    ]
    samples = whole.tokenize(TEXTS, None, 12)
    found = [
        torch.cat(backbone.extract(samples, layers=spec.layers, pivot=spec.pivot).activations)
        for backbone, spec in zip((whole, cut), specs, strict=True)
    ]
    assert torch.equal(*found)
