"""A hostile server, simulated in full, against a device with each policy of docs/how-to/protect.md.

It sends run settings and requests of any kind, in any order, says that it holds what it likes, and keeps all that
comes. For every text at most the agreed number of draws leaves, ever.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobillm_flower import SideTuningClient, load_settings
from mobillm_flower.backbones.sources import BACKBONE_SOURCES
from mobillm_flower.clients import device as device_module
from mobillm_flower.clients import releases
from mobillm_flower.clients.own import device_settings
from mobillm_flower.core.side_networks import SideNetworkConfig
from mobillm_flower.errors import MobiLLMError
from mobillm_flower.privacy.device_folder import plain_text
from mobillm_flower.privacy.policy import Policy, read_policy
from mobillm_flower.tasks import load_splits
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.tasks.sums import sums_spec
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec
from mobillm_flower.wire.messages import (
    EvaluationRequest,
    WindowRequest,
    open_description,
    pack_evaluation,
    pack_request,
    refusal,
)
from mobillm_flower.wire.sums import SumsRequest, pack_sums_request
from tests.support.tiny_models import save_tiny

PAGE = Path(__file__).parents[2] / "docs/how-to/protect.md"
POLICIES = re.findall(r"```yaml\n(# policy\.yaml.*?)```", PAGE.read_text("utf-8"), re.S)
BASE: dict[str, Any] = {
    "backbone.name": "tiny",
    "task.max-length": 16,
    "activations.pivot": "mean",
    "activations.codec": "int8",
    "data.max-samples": 3,
    "loss.name": "logit",
}
MENU: dict[str, list[Any]] = {
    "task.labels": ["", "x,y", "alarm,timer,weather"],
    "task.kind": ["classification", "pairs", "regression", "language-modelling"],
    "task.prompt": ["", "Say {text}"],
    "task.max-length": [8, 16],
    "data.text-column": ["text", "persona"],
    "data.pair-column": ["", "text", "persona"],
    "data.label-column": ["intent", "persona", "text"],
    "data.train-split": ["train", "test"],
    "data.test-split": ["test", "train"],
    "data.source": ["phone-messages", "/etc"],
    "data.seed": [0, 1],
    "activations.codec": ["int8", "fp16", "nf4"],
    "activations.pivot": ["mean", "first", "all"],
    "activations.projection": [0, 4, 8],
    "activations.clip-norm": [0.0, 1e9],
    "activations.noise-sigma": [0.0, 1e-6],
    "loss.objective": ["difference", "label"],
    "privacy.joint-epsilon": [0.0, 1.0, 2.0, 8.0, 30.0],
    "privacy.activation-epsilon": [0.0, 1.0, 30.0],
    "privacy.label-epsilon": [0.0, 1.0, 30.0],
    "privacy.delta": [1e-6, 0.9],
    "privacy.budget": [0.0, 1000.0],
    "privacy.max-releases": [0, 1000],
    "privacy.max-evaluations": [0, 1000],
    "privacy.metric-epsilon": [0.0, 0.5, 30.0],
    "settings-file": ["", "/etc/passwd"],
    "strategy": ["pae", "fed", "analytic"],
}
INTENTS = set(load_splits(load_settings({"data.label-column": "intent"}).data)[0]["intent"])
HONEST = {"privacy.joint-epsilon": 2.0, "activations.projection": 4, "privacy.metric-epsilon": 0.1}
"""What every policy agrees to."""

ASKED: list[dict[str, Any]] = [
    {},
    {"sigma": 0.0},
    {"clip_norm": 0.0, "joint_epsilon": 0.0},
    {"joint_epsilon": 1000.0},
    {"label_epsilon": 1000.0},
    {"objective": "label"},
    {"layers": (1,)},
    {"stage": 1},
    {"codec": "fp32"},
]
"""What a request changes of the extraction that the device's settings ask for."""

changes = st.lists(st.sampled_from(sorted(MENU)), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(MENU[name]) for name in names})
)
runs = st.tuples(
    st.lists(changes, max_size=2),
    st.just([HONEST]),
    st.lists(st.tuples(st.sampled_from([HONEST, {}]), changes).map(lambda both: {**both[0], **both[1]}), max_size=4),
).map(lambda parts: [run for part in parts for run in part])


class Server:
    """What it asks, and what it got: the ids of releases, and metrics."""

    def __init__(self, folder: Path) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.node: dict[str, Any] = {"partition-id": 0, "num-partitions": 200, "device-folder": str(folder)}
        self.node["data.label-column"] = "intent"
        self.client = SideTuningClient()
        self.got: dict[bytes, float] = {}
        self.num_metrics, self.num_sums, self.told = 0, 0, set[str]()

    def ask(self, run: dict[str, Any], asked: dict[str, Any], *, forget: bool) -> None:
        context = Context(run_id=1, node_id=1, node_config=self.node, state=RecordDict(), run_config={**BASE, **run})
        described = self._send(RecordDict(), keys.DESCRIBE, context)
        if refusal(described) is not None:
            return
        device = open_description(described)
        self.told |= set(device.contract.labels)
        spec = extraction_spec(device.backbone, device_settings(context), num_blocks=1, num_outputs=1)
        held = frozenset() if forget else frozenset(self.got)
        for of_request in (replace(spec, **asked), spec):
            request = WindowRequest(device.contract, of_request, 1, 64, 1 << 24, held)
            answer = self._send(pack_request(request), keys.EXTRACT, context)
            if refusal(answer) is not None:
                continue
            assert of_request == spec  # no request but the one that the device's settings make
            releases = bytes(answer[keys.HEADER][keys.RELEASES])
            epsilon = spec.joint_epsilon or (spec.label_epsilon and device_settings(context).privacy.activation_epsilon)
            self.got |= {releases[i : i + 16]: epsilon + spec.label_epsilon for i in range(0, len(releases), 16)}
        with suppress(MobiLLMError):  # of tasks that have no sums
            sums = sums_spec(device_settings(context), device.contract, spec, capacity=1000)
            wanted_sums = SumsRequest(device.contract, spec, sums, frozenset())
            answer = self._send(pack_sums_request(wanted_sums), keys.SUM, context)
            self.num_sums += refusal(answer) is None
        side = SideNetworkConfig.of(
            {spec.backbone: spec.alignment}, name="additive", num_blocks=1, bottleneck=1, num_outputs=1
        )
        rule = {"loss": "logit", "scale": 1.0, "use_base": True}
        wanted = EvaluationRequest(device.contract, spec, side, rule, {}, frozenset(), "fp32")
        answer = self._send(pack_evaluation(wanted), keys.EVALUATE, context)
        if refusal(answer) is None and device.contract.metric in answer[keys.METRICS]:
            self.num_metrics += 1

    def _send(self, content: RecordDict, kind: str, context: Context) -> Any:
        message = Message(content, dst_node_id=1, message_type=kind)
        message.metadata.__dict__["_message_id"] = "m"
        return self.client.app(message, context).content


@contextmanager
def texts_of_releases() -> Iterator[dict[bytes, set[str]]]:
    """Note of which texts each release is that the device makes."""
    made: dict[bytes, set[str]] = defaultdict(set)
    make = releases.make_releases

    def noting(device: device_module.Device, spec: ExtractionSpec, indices: Any, release_ids: Any) -> Any:
        train = device.data.train
        for i in indices:
            made[release_ids[i]] |= {plain_text(train.texts[i]), plain_text((train.pairs or train.texts)[i])}
        return make(device, spec, indices, release_ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(releases, "make_releases", noting)
        yield made


@contextmanager
def texts_of_metrics() -> Iterator[set[str]]:
    """Note on which texts metrics are measured."""
    seen: set[str] = set()
    measure = device_module.Device.measure

    def noting(self: device_module.Device, model: Any) -> float:
        value = measure(self, model)
        seen.update(map(plain_text, self.test.texts))
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_module.Device, "measure", noting)
        yield seen


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = save_tiny(tmp_path_factory.mktemp("tiny"), "bert")
    if "tiny" not in BACKBONE_SOURCES:
        BACKBONE_SOURCES.add("tiny", lambda: folder)


def test_the_page_has_three_policies() -> None:
    assert len(POLICIES) == 3


@pytest.mark.parametrize("number", range(3))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=runs, changed=st.sampled_from(ASKED), forget=st.booleans())
def test_a_hostile_server_gets_of_every_text_what_the_policy_agrees_to(
    number: int, asked: list[dict[str, Any]], changed: dict[str, Any], forget: bool
) -> None:
    with tempfile.TemporaryDirectory() as name, texts_of_releases() as made, texts_of_metrics() as measured:
        folder = Path(name)
        (folder / "policy.yaml").write_text(POLICIES[number])
        policy: Policy = read_policy(folder / "policy.yaml")
        server = Server(folder)
        for run in asked:
            try:
                server.ask(run, changed, forget=forget)
            except MobiLLMError:  # of settings that no device could run under
                continue
        assert server.told <= INTENTS  # of no other column, and no labels that a run named
        assert server.got  # the honest run among them, at the least
        draws: dict[str, list[float]] = defaultdict(list)
        for release, epsilon in server.got.items():
            for text in made[release]:
                draws[text].append(epsilon)
        for spent in draws.values():
            assert not policy.releases or len(spent) <= policy.releases
            assert not policy.epsilon or all(0 < epsilon <= policy.epsilon for epsilon in spent)
            assert not policy.budget or sum(spent) <= policy.budget * (1 + 1e-9)
        assert not server.num_sums  # no policy of the page agrees to sums
        assert not policy.evaluations or server.num_metrics <= policy.evaluations
        assert not policy.promises or not set(draws) & measured
        for device in server.client._devices.values():
            device.folder.close()
