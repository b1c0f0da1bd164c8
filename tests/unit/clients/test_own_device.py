"""A device of its own: it opens nothing that only a run names, and its promise stays as its owner wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from mobillm_flower.clients.own import check_run, device_settings, is_own, open_folder, told
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.errors import DataError, PolicyRefused, ReleaseRefused, SettingsError
from mobillm_flower.privacy.ledger import Limits
from mobillm_flower.privacy.policy import read_policy
from mobillm_flower.tasks.extraction import extraction_spec

BACKBONE = BackboneInfo("x", "bert", False, 6, 384, "fp32", "0" * 64, "constant")
GAUSSIAN = {"privacy.activation-epsilon": 2.0, "privacy.label-epsilon": 1.0, "privacy.budget": 3.0}
GAUSSIAN |= {"activations.projection": 16}


def context_of(node: dict[str, Any], run: dict[str, Any]) -> Context:
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run)


def agree(node: dict[str, Any], run: dict[str, Any]) -> None:
    context = context_of(node, run)
    check_run(device_settings(context), context)


@pytest.mark.parametrize(
    "run",
    [
        {"privacy.delta": 0.999999},
        {"privacy.budget": 100.0},
        {"settings": "privacy.delta=0.9 privacy.max-releases=0"},
        {"activations.clip-norm": 0.0, "privacy.delta": 0.5},
    ],
)
def test_what_shapes_a_promise_is_pinned_with_it(run: dict[str, Any]) -> None:
    settings = device_settings(context_of(GAUSSIAN, {**run, "activations.pivot": "mean"}))
    honest = device_settings(context_of(GAUSSIAN, {"activations.pivot": "mean"}))
    assert settings.privacy == honest.privacy
    spec = extraction_spec(BACKBONE, settings, num_blocks=3, num_outputs=1)
    assert spec == extraction_spec(BACKBONE, honest, num_blocks=3, num_outputs=1)
    assert spec.sigma > 3.9


def test_a_run_cannot_raise_the_budget_or_add_a_mechanism_beside_a_pinned_epsilon() -> None:
    node = {"privacy.joint-epsilon": 2.0, "activations.projection": 4}
    private = device_settings(context_of(node, {"privacy.budget": 50.0, "privacy.delta": 0.1})).privacy
    assert (private.joint_epsilon, private.budget, private.delta) == (2.0, 0.0, 1e-5)


def test_a_pinned_noise_pins_the_norm_that_it_is_measured_against() -> None:
    node = {"activations.noise-sigma": 1.0, "activations.clip-norm": 1.0}
    assert device_settings(context_of(node, {"activations.clip-norm": 1e9})).activations.clip_norm == 1.0
    with pytest.raises(SettingsError, match=r"must be used with activations\.clip-norm above 0"):
        device_settings(context_of({"activations.noise-sigma": 1.0}, {"activations.clip-norm": 1e9}))


def test_a_settings_file_of_the_run_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "secret.yaml"
    file.write_text("password: canary\n")
    for key in ("settings-file", "settings_file"):
        with pytest.raises(PolicyRefused, match="opens no settings-file that a run names") as caught:
            device_settings(context_of({"device-folder": str(tmp_path)}, {key: str(file)}))
        assert "canary" not in str(caught.value)
    file.write_text("trainer:\n  epochs: 3\n")
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"files: ['{file}']\n")
    context = context_of({"policy": str(policy)}, {"settings-file": str(file)})
    assert device_settings(context).trainer.epochs == 3
    assert device_settings(context_of({}, {"settings-file": str(file)})).trainer.epochs == 3  # a simulation


@pytest.mark.parametrize(
    ("run", "key"),
    [
        ({"backbone.name": "somebody/model"}, "backbone.name"),
        ({"backbone.name": "/srv/model"}, "backbone.name"),
        ({"backbone.name": "by-partition", "backbone.choices": "minilm@2,/srv/model@3"}, "backbone.choices"),
        ({"backbone.revision": "other"}, "backbone.revision"),
        ({"data.source": "/home/me"}, "data.source"),
        ({"data.source": "somebody/data"}, "data.source"),
        ({"activations.public-text": "/etc/passwd"}, "activations.public-text"),
        ({"privacy.mixing-key": "/etc/passwd"}, "privacy.mixing-key"),
    ],
)
def test_no_path_or_name_of_the_run_is_opened_unless_the_device_names_it(
    tmp_path: Path, run: dict[str, Any], key: str
) -> None:
    own = {"device-folder": str(tmp_path)}
    with pytest.raises(PolicyRefused, match=f"{key} of the run names"):
        agree(own, run)
    agree({**own, **run}, run)  # the device names it
    agree({}, run)  # a simulation
    agree(own, {})


@pytest.mark.parametrize("key", ["data.test-split", "data.train-split"])
def test_where_the_device_promises_something_it_says_which_rows_are_for_training(tmp_path: Path, key: str) -> None:
    own, other = {"device-folder": str(tmp_path)}, {key: "another"}
    with pytest.raises(PolicyRefused, match=f"{key} of the run names what is read of its rows, and which"):
        agree({**own, "privacy.max-releases": 1}, other)
    agree({**own, "privacy.max-releases": 1, **other}, {})
    agree(own, other)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.text-column", "diagnosis"),
        ("data.pair-column", "diagnosis"),
        ("data.label-column", "diagnosis"),
        ("data.split-column", "diagnosis"),
        ("data.subset", "other"),
        ("data.encoding", "latin-1"),
        ("data.delimiter", ";"),
        ("data.test-share", 0.5),
    ],
)
@pytest.mark.parametrize("promise", [{"privacy.max-releases": 1}, GAUSSIAN])
def test_where_the_device_promises_something_how_its_rows_are_read_is_its_own(
    tmp_path: Path, key: str, value: Any, promise: dict[str, Any]
) -> None:
    """A server would else learn any column as labels, or get a second draw of a text in another encoding."""
    own, asked = {"device-folder": str(tmp_path)}, {key: value, "activations.pivot": "mean"}
    with pytest.raises(PolicyRefused, match=f"{key} of the run names what is read of its rows"):
        agree({**own, **promise}, asked)
    agree({**own, **promise, key: value}, asked)
    agree(own, asked)


@pytest.mark.parametrize(
    ("own", "run", "key"),
    [
        ({}, {"privacy.min-samples": 9}, "privacy.min-samples"),
        ({"privacy.secure-sums": "always"}, {"privacy.secure-sums-devices": 3}, "privacy.secure-sums-devices"),
    ],
)
def test_a_run_raises_the_minima_of_a_device_of_its_own_and_does_not_lower_them(
    tmp_path: Path, own: dict[str, Any], run: dict[str, Any], key: str
) -> None:
    own = {"device-folder": str(tmp_path), **own}
    with pytest.raises(PolicyRefused, match=f"{key} of the run is below"):
        agree(own, run)
    agree({**own, **run}, {})
    agree(own, {key: 20})
    agree({}, run)  # a simulation's devices are the run's


def test_labels_that_its_rows_alone_have_are_not_told(tmp_path: Path) -> None:
    own = {"device-folder": str(tmp_path), "data.source": str(tmp_path), "privacy.max-releases": 1}
    with pytest.raises(PolicyRefused, match=r"would be read from this device's rows and told as they are; give task"):
        agree(own, {})
    agree({**own, "task.labels": "a,b"}, {})
    agree(own, {"task.kind": "regression"})
    agree({**own, "privacy.max-releases": 0, "data.source": "phone-messages"}, {})


def test_a_promise_needs_a_folder_that_stays() -> None:
    with pytest.raises(PolicyRefused, match="names no device-folder"):
        agree({"privacy.max-releases": 1}, {})


def test_a_node_without_a_word_of_its_own_is_part_of_a_simulation() -> None:
    assert not is_own(context_of({"partition-id": 0, "num-partitions": 3, "backbone.layers": 2}, {}))
    assert is_own(context_of({"privacy.budget": 1.0}, {}))


# policy.yaml -----------------------------------------------------------------------------------------------------
POLICY = """
tasks: [classification]
mechanisms: [joint]
epsilon: 2
budget: 4
releases: 2
evaluations: 5
metric-epsilon: 1
settings: {data.label-column: intent}
"""
ASKED = {"privacy.joint-epsilon": 1.0, "activations.projection": 8, "privacy.metric-epsilon": 0.5}


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "policy.yaml").write_text(POLICY)
    return {"device-folder": str(tmp_path)}


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ({"privacy.joint-epsilon": 3.0}, "the epsilon of a release=3 is above this device's policy's epsilon=2"),
        ({"privacy.joint-epsilon": 0.0}, "the mechanism='none' is not among this device's policy's mechanisms: joint"),
        ({"privacy.metric-epsilon": 0.0}, "asks for noise on metrics"),
        ({"privacy.metric-epsilon": 2.0}, "above this device's policy's metric-epsilon=1"),
        ({"task.kind": "language-modelling"}, "task.kind='language-modelling' is not among"),
        ({"data.test-split": "train"}, "data.test-split of the run names"),
    ],
)
def test_a_run_that_asks_for_more_than_the_policy_is_refused(
    node: dict[str, Any], run: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PolicyRefused, match=reason):
        agree(node, {**ASKED, **run})


def test_a_run_may_ask_for_less(node: dict[str, Any]) -> None:
    context = context_of(node, {**ASKED, "privacy.max-releases": 1, "privacy.budget": 99.0, "data.label-column": "x"})
    settings = device_settings(context)
    check_run(settings, context)
    assert settings.data.label_column == "intent"
    folder = open_folder(settings, context)
    assert folder.ledger.limits == Limits(max_releases=1, budget=4.0, max_evaluations=5)
    folder.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("releses: 2", "has the key 'releses'; it takes tasks, strategies"),
        ("releases: none", "releases of this device's policy must be a number above 0"),
        ("releases: 0", "must be a number above 0"),
        ("releases: 1.5", "must be a number above 0"),
        ("tasks: classification", "tasks of this device's policy must be a list"),
        ("settings: 4", "settings of this device's policy must be a mapping"),
        ("mechanisms: [all]", "mechanisms of this device's policy are among joint"),
        ("- a", "is no mapping"),
        ("a: [", r"cannot be read \("),
    ],
)
def test_a_policy_that_cannot_be_read_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(PolicyRefused, match=reason):
        read_policy(tmp_path / "policy.yaml")


def test_a_counter_that_the_node_config_names_notices_an_old_folder(tmp_path: Path) -> None:
    context = context_of({"device-folder": str(tmp_path / "d"), "device-counter": str(tmp_path / "counter")}, {})
    settings = device_settings(context)
    folder = open_folder(settings, context)
    folder.ledger.evaluate([])
    folder.close()
    (tmp_path / "counter").unlink()
    with pytest.raises(ReleaseRefused, match="counter beside this device's folder is missing"):
        open_folder(settings, context)


def test_a_server_is_told_nothing_of_the_devices_rows_and_paths(tmp_path: Path) -> None:
    own = context_of({"device-folder": str(tmp_path), "privacy.mixing-key": "/home/me/key"}, {})
    assert told(DataError("row 7: its label is none"), own) == (
        "DataError: this device cannot take part; its own log says why"
    )
    assert told(SettingsError("/home/me/key cannot be read"), own) == "SettingsError: … cannot be read"
    assert "row 7" in told(DataError("row 7: its label is none"), context_of({}, {}))


def test_a_server_is_told_no_path_of_the_policy(tmp_path: Path) -> None:
    key, rows, model = "/home/me/private/fleet.key", "/home/me/rows", "/home/me/model"
    (tmp_path / "policy.yaml").write_text(
        f"settings: {{privacy.mixing-key: {key}, data.source: /home/me}}\nfiles: ['{rows}']\nbackbones: ['{model}']\n"
    )
    own = context_of({"device-folder": str(tmp_path)}, {})
    said = told(SettingsError(f"{key}, {rows}, {model} and {tmp_path}/policy.yaml cannot be read"), own)
    assert said == "SettingsError: …, …, … and …/policy.yaml cannot be read"
    (tmp_path / "policy.yaml").write_text("a: [")
    assert told(PolicyRefused("it cannot be read"), own) == "PolicyRefused: it cannot be read"
