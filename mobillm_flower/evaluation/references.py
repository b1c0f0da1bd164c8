"""What a run's metric is read beside. These need all texts in one place: for simulations and benchmarks only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from mobillm_flower.backbones import Backbone
from mobillm_flower.backbones.load import load_with
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.config import Settings, load_settings
from mobillm_flower.core.backbone_info import BackboneInfo
from mobillm_flower.core.placement import CPU
from mobillm_flower.models.saved import saved_backbones, saved_contract
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.runs.device_events import DeviceMet, Window
from mobillm_flower.runs.events import Ingested, Prepared, Trained, TypeEvaluation
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import RunRecord, read_run
from mobillm_flower.runs.sequence import runs_before
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan, can_replay, known_backbones, replay
from mobillm_flower.strategies.frozen_parts import load_frozen_parts, training_device
from mobillm_flower.strategies.run_plan import prediction_rule
from mobillm_flower.tasks import TASKS, LocalData, Samples, load_central_data, measure, tokenize, with_tokens
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.left_out import NO_TOKENS

LOGISTIC, CENTRALIZED = "logistic_regression", "centralized"


def reference_seconds(run: RunRecord) -> dict[str, float]:
    """Estimate how long the references take that compute again what the run did, from the run's own times.

    Logistic regression needs a forward pass of every training text, the centralized side network the server's training.
    """
    windows = run.all(Window)
    seconds = {LOGISTIC: sum(window.forward_seconds for window in windows)}
    ingested, trained = run.session.last(Ingested), run.session.last(Trained)
    if ingested and trained:
        seconds[CENTRALIZED] = trained.time - ingested.time
    return seconds


def measure_references(
    run_path: Path,
    *,
    left_out: Mapping[str, float] = MappingProxyType({}),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a finished run's side network and its references on the whole test split.

    Parameters
    ----------
    run_path : Path
        A completed run of data that this machine can load.
    left_out : mapping of str to float
        References that are not measured since they take so many seconds; they come back under `left_out`.
    overrides : sequence of str
        ``key=value`` over the run's settings: where the rows are that its devices loaded by themselves.

    Returns
    -------
    dict
        Empty where the devices' samples are not those of `data.source` (a `load_data` of their own). Otherwise `metric`
        (its name), `num_test`, and the metric of: `tuned`, `base`, `majority`, `logistic_regression`,
        `centralized`; `identical`: whether the centralized weights equal the run's bit by bit, where the server
        trained on the CPU. For classes also `labels`, their names, and `confusion`, K×K counts of the tuned model:
        rows true, columns predicted. Where a fleet has several backbone types, each type's are under `types`, by the
        first 12 digits of its fingerprint; above stand their means, and the sum of their counts.
    """
    run = read_run(run_path)
    settings = load_settings(file=run.folder.settings, overrides=overrides)
    if settings.trainer.device != "cpu":
        settings.trainer.device = "auto"  # what the run was trained on may not be here
    data = _central_data(run, settings)
    if data is None:
        return {}
    contract = saved_contract(run.folder.side_network)
    references: dict[str, Any] = {
        "metric": contract.metric,
        "num_test": len(data.test),
        "num_train": len(data.train),
    }
    if not contract.per_token:
        references["majority"] = majority(data)
    if contract.labels:
        references["labels"] = list(contract.labels)
    if left_out:
        references["left_out"] = dict(left_out)
    network = None if CENTRALIZED in left_out else _replayed(run.folder, settings)
    on_the_cpu = {prepared.trained_on for prepared in run.all(Prepared)} == {"cpu"} and training_device(settings) == CPU
    untrained = {evaluation.type for evaluation in run.all(TypeEvaluation) if not evaluation.trained}
    identical, types = [], {}
    for info in saved_backbones(run.folder.side_network):
        name = info.fingerprint[:12]
        model = _model_of_type(run.folder, info, contract, settings)
        data = with_tokens(data, model.backbone, settings)
        if name in untrained:
            model = model.with_network(None)  # as on its devices
        types[name] = measured = _of_type(model, data, logistic=LOGISTIC not in left_out)
        if model.side_network is None:
            continue
        if network is not None:
            measured[CENTRALIZED] = model.with_network(network).evaluate(data.test)
            if on_the_cpu:  # no other device repeats its sums bit by bit
                theirs, ours = network.state_dict(), model.side_network.state_dict()
                identical.append(all(torch.equal(theirs[key], tensor) for key, tensor in ours.items()))
        if model.tasks is not None and len(model.tasks.names) > 1:
            measured["task_unknown"] = model.accuracy_among_all(data.test) if model.tasks.read_alike else None
            references.setdefault("tasks", _earlier_tasks(run, model, settings))  # of the first type alone
    references |= _together(list(types.values()))
    if len(types) > 1:
        references["types"] = types
    return references | ({"identical": all(identical)} if identical else {})


def _central_data(run: RunRecord, settings: Settings) -> LocalData | None:
    """Return all rows of `data.source`; None where its train rows are not those that the run's devices said they have.

    The settings get the fleet's size, which is not that of their simulation.
    """
    met = {event.device: event for event in run.all(DeviceMet)}
    settings.data.num_devices = len(met)
    data = load_central_data(settings)
    counted = sum(event.num_train + event.left_out.get(f"train {NO_TOKENS}", 0) for event in met.values())
    return data if counted == len(data.train) else None


def _model_of_type(run: RunFolder, info: BackboneInfo, contract: TaskContract, settings: Settings) -> SideTunedModel:
    """Return a run's model of one backbone type, as its devices have it."""
    options = LoadOptions.of(
        info, layers=info.depth, token_budget=settings.backbone.token_budget, engine=settings.backbone.engine
    )
    return SideTunedModel.from_pretrained(
        run.side_network,
        backbone=load_with(options.for_task(contract)),
        public_text=settings.activations.public_text,
        mixing_key=settings.privacy.mixing_key,
    )


def _of_type(model: SideTunedModel, data: LocalData, *, logistic: bool) -> dict[str, Any]:
    """Return the metric of a model, of its backbone alone and, where asked for, of logistic regression on it."""
    contract = model.contract
    own = model.backbone.info.base_prediction != "constant"  # otherwise it has no prediction of its own
    measured: dict[str, Any] = {"base": model.with_network(None).evaluate(data.test) if own else None}
    if contract.per_token:
        measured["tuned"] = model.evaluate(data.test)
    else:
        scores = model.scores(data.test)
        measured["tuned"] = measure(scores, data.test.labels, contract)
        if logistic:
            measured[LOGISTIC] = logistic_regression(model.backbone, data, contract)
        if contract.labels:
            measured["confusion"] = confusion(scores, data.test.labels, contract)
    return measured


def _earlier_tasks(run: RunRecord, model: SideTunedModel, settings: Settings) -> list[dict[str, Any]]:
    """Return the metrics of tasks that were learned before, on the test splits of their runs, as far as these are here.

    Each with the task known and, as accuracy among the classes of all tasks, unknown.
    """
    measured: list[dict[str, Any]] = []
    assert model.tasks is not None
    for name, earlier in runs_before(run):
        if earlier is None or not earlier.folder.settings.is_file():
            continue
        theirs = load_settings(file=earlier.folder.settings)
        contract, info = model.tasks.contract_of(name), model.backbone.info
        same = info.base_prediction == "constant" and not contract.label_words
        of_task = SideTunedModel.from_pretrained(
            run.folder.side_network,
            backbone=model.backbone if same else f"{info.name}@{info.depth}",
            public_text=settings.activations.public_text,
            task=name,
        )
        test = with_tokens(load_central_data(theirs), of_task.backbone, theirs).test
        measured.append(
            {
                "task": name,
                "metric": contract.metric,
                "num_test": len(test),
                "known": of_task.evaluate(test),
                "unknown": of_task.accuracy_among_all(test) if model.tasks.read_alike else None,
            }
        )
    return measured


def _together(types: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of the types' metrics, and the sum of their counts; a metric that one lacks is left out."""
    means: dict[str, Any] = {}
    for key in types[0]:
        values: list[Any] = [measured.get(key) for measured in types]
        if key == "confusion":
            means[key] = np.sum(values, axis=0).tolist()
        else:
            means[key] = None if None in values else float(np.mean(values))
    return means


def _replayed(run: RunFolder, settings: Settings) -> torch.nn.Module | None:
    """Train from a run's cache by its own schedule; None where it began from weights that are not in the cache."""
    cache = ActivationCache(run.cache)
    try:
        plan = TrainingPlan.of(cache)
        if plan is None or not can_replay(cache):
            return None
        rule = prediction_rule(plan, send_base=settings.loss.send_base)
        return replay(
            cache,
            scores=rule.scores,
            memory_bytes=settings.cache.memory_mib << 20,
            frozen=load_frozen_parts(plan, settings, known_backbones(cache)),
            device=training_device(settings),
        )
    finally:
        cache.close()


def logistic_regression(backbone: Backbone, data: LocalData, contract: TaskContract) -> float:
    """Return the metric of logistic regression (ridge for regression) on the last layer's mean, default strength."""
    train, test = (_last_mean(backbone, samples, contract) for samples in (data.train, data.test))
    if contract.is_regression:
        predicted = Ridge().fit(train, data.train.labels.numpy()).predict(test)
        return measure(torch.from_numpy(predicted).float().unsqueeze(1), data.test.labels, contract)
    fitted = LogisticRegression(max_iter=2000).fit(train, data.train.labels.numpy())
    scores = torch.full((len(test), contract.num_outputs), -1e9)
    probabilities = torch.from_numpy(fitted.predict_proba(test)).float()
    scores[:, torch.from_numpy(np.asarray(fitted.classes_)).long()] = probabilities
    return measure(scores, data.test.labels, contract)


def _last_mean(backbone: Backbone, samples: Samples, contract: TaskContract) -> np.ndarray:
    tokens = tokenize(backbone, samples, contract)
    extracted = backbone.extract(tokens, layers=[backbone.info.depth], pivot="mean")
    return np.asarray(torch.stack(extracted.activations).flatten(1))


def majority(data: LocalData) -> float:
    """Return the metric of always predicting the training rows' most frequent label, or their mean."""
    labels = data.train.labels
    if data.contract.is_regression:
        scores: Tensor = labels.mean().expand(len(data.test), 1)
    else:
        counts = torch.bincount(labels, minlength=data.contract.num_outputs).float()
        scores = counts.expand(len(data.test), -1)
    return measure(scores, data.test.labels, data.contract)


def confusion(scores: Tensor, labels: Tensor, contract: TaskContract) -> list[list[int]]:
    """Return K×K counts of scores [B, K] against labels [B]: rows the true class, columns the predicted one."""
    size = contract.num_outputs
    cells = labels * size + TASKS[contract.kind].predictions(scores)
    counts: list[list[int]] = torch.bincount(cells, minlength=size * size).reshape(size, size).tolist()
    return counts
