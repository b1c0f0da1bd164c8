"""Evaluation on the devices, and by the caller's own function at the server."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from mobillm_flower.core.side_networks import state_for
from mobillm_flower.errors import PacketRejected
from mobillm_flower.runs import events
from mobillm_flower.strategies.averages import Average
from mobillm_flower.strategies.run_state import RunState
from mobillm_flower.tasks.metrics import RANGES
from mobillm_flower.wire import keys
from mobillm_flower.wire.messages import EvaluationRequest, open_metrics, pack_evaluation
from mobillm_flower.wire.window import record_bytes

_ROUNDING = 1e-6  # of a correlation


class Evaluation:
    """Sends the side network to devices and averages what they measure.

    Parameters
    ----------
    codec : str
        How the side network's values are encoded for the way down.
    """

    def __init__(self, codec: str) -> None:
        self._codec, self._devices = codec, 0  # how many devices the last average is of

    def requests(self, run: RunState, arrays: ArrayRecord, config: ConfigRecord) -> Iterator[Message]:
        """Yield the side network, with the asking type's alignment alone, for each device.

        A device whose type sent no sample gets none and evaluates its base model. The request also shows what the
        server holds, so that a device can empty its outbox.
        """
        state = arrays.to_torch_state_dict()
        trained = run.cache.rows().names("backbone")
        busy = run.exchange.busy_nodes
        for device in run.fleet:
            if device.record.dropped or device.node_id in busy:
                continue
            backbone = device.description.backbone.fingerprint
            held = run.cache.held(device.description.pseudonym)
            known = state if backbone in trained else {}
            request = network_request(run, backbone, known, held=held, codec=self._codec)
            yield run.connections.message(device, pack_evaluation(request), keys.EVALUATE, config)

    def average(self, run: RunState, replies: Iterable[Message], server_round: int) -> MetricRecord | None:
        """Average the devices' metrics by their number of test samples; log those of each backbone type."""
        most = _most_weights(run)
        everyone, by_type = Average(), defaultdict(Average)  # type: Average, dict[str, Average]
        for reply in replies:
            device = run.connections.sender(reply)
            if device is None:
                continue
            try:
                content = run.fleet.content(device, reply)
                if content is None:
                    continue
                metrics = open_metrics(
                    content,
                    metric=run.plan.contract.metric,
                    num_test=device.description.num_test,
                    bounds=_bounds(run.plan.contract.metric),
                    task_unknown=run.plan.tasks is not None and run.plan.tasks.may_be_unknown,
                )
            except PacketRejected as error:
                run.fleet.strike(device, error)
                continue
            device.record.bytes_up += record_bytes(content)
            weight = min(metrics.pop(keys.NUM_EXAMPLES), most[device.node_id])
            everyone.add(weight, metrics)
            by_type[device.description.backbone.fingerprint].add(weight, metrics)
        if not everyone.weight:
            return None
        record = MetricRecord({**everyone.values(), keys.NUM_EXAMPLES: int(everyone.weight)})
        self._devices = everyone.count
        trained = run.cache.rows().names("backbone")
        for name, average in sorted(by_type.items()):
            if average.weight:
                _log_type(run, server_round, name, average, trained=name in trained)
        return record

    def note(self, run: RunState, server_round: int, metrics: MetricRecord) -> None:
        """Log what `aggregate_evaluate` returned, also what a strategy of one's own adds."""
        run.result.evaluate_metrics_clientapp[server_round] = metrics
        run.folder.append(events.Evaluation.of(server_round, dict(metrics), devices=self._devices))

    def at_the_server(self, run: RunState, server_round: int) -> None:
        """Call the caller's own function, where there is one."""
        function = run.own_evaluation.function
        if function is None:
            return
        metrics = function(server_round, run.arrays())
        if metrics is not None:
            run.result.evaluate_metrics_serverapp[server_round] = metrics
            run.folder.append(events.ServerEvaluation(server_round, dict(metrics)))


def network_request(
    run: RunState, backbone: str, state: Mapping[str, Tensor], *, held: frozenset[bytes], codec: str
) -> EvaluationRequest:
    """Return the side network's request to devices of a backbone type; parameters as of `EvaluationRequest`."""
    tasks = run.plan.tasks
    columns = (*tasks.columns_of(tasks.names[-1]), int(tasks.may_be_unknown)) if tasks else ()
    return EvaluationRequest(
        contract=run.plan.contract,
        spec=run.plan.specs[backbone],
        side_config=run.plan.side_config.only(backbone),
        prediction=dataclasses.asdict(run.rule),
        state=state_for(state, backbone) if state else {},
        held=held,
        codec=codec,
        columns=columns,
    )


def _most_weights(run: RunState) -> dict[int, float]:
    """Return what each device counts at most in an average, by node, in proportion to the samples of it that are held.

    Nobody can check how many test samples a device has. Its share of them to those that are held may be twice the
    fleet's median.
    """
    counts, devices = run.samples_held(), list(run.fleet)
    held = {device.node_id: max(1, counts.get(device.description.pseudonym, 0)) for device in devices}
    ratios = [device.description.num_test / held[device.node_id] for device in devices]
    typical = max(1.0, 2 * statistics.median(ratios)) if ratios else 1.0
    return {node: typical * count for node, count in held.items()}


def _bounds(metric: str) -> tuple[float, float]:
    low, high = RANGES.get(metric, (-1e15, 1e15))
    return low - _ROUNDING, high + _ROUNDING


def _log_type(run: RunState, round_: int, fingerprint: str, average: Average, *, trained: bool) -> None:
    """Log what the devices of one backbone type measured."""
    backbone = run.fleet.backbones[fingerprint]
    event = events.TypeEvaluation(
        round=round_,
        type=fingerprint[:12],
        backbone=backbone.name,
        layers=backbone.depth,
        width=backbone.width,
        trained=trained,
        num_examples=int(average.weight),
        devices=average.count,
        metrics=average.values(),
    )
    run.folder.append(event)
