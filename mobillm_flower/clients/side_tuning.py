"""The forward-only device as a Flower ClientApp (MobiLLM, PAE MobiLLM, Fed MobiLLM)."""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from mobillm_flower.backbones.memory import peak_memory_bytes
from mobillm_flower.clients.device import Device
from mobillm_flower.clients.held_out import tally_held_out
from mobillm_flower.clients.masking import answer_secure_sum, forget_secure_sums, require_plain
from mobillm_flower.clients.own import (
    LoadData,
    check_run,
    device_data,
    device_folder,
    device_policy,
    device_settings,
    is_own,
    note_loader,
    open_folder,
    told,
    trusts_server,
    unexpected,
)
from mobillm_flower.clients.releases import make_window
from mobillm_flower.clients.summing import make_sums
from mobillm_flower.config.compatibility import ANALYTIC
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.sums import Words
from mobillm_flower.errors import MobiLLMError, PolicyRefused
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.privacy.ledger_file import damaged
from mobillm_flower.wire import keys
from mobillm_flower.wire.held_out import open_held_out, pack_tally, purpose_of_tally
from mobillm_flower.wire.masked import open_message, pack_masked, purpose_of
from mobillm_flower.wire.messages import (
    EvaluationRequest,
    open_evaluation,
    open_request,
    pack_description,
    pack_metrics,
    pack_refusal,
)
from mobillm_flower.wire.proof import prove
from mobillm_flower.wire.sums import SumsReply, open_sums_request, pack_sums
from mobillm_flower.wire.window import pack_window

logger = logging.getLogger(__name__)

_OPEN_DEVICES = 64  # a simulation's actor serves several devices in turn


class SideTuningClient:
    """Makes the ClientApp of a forward-only device.

    It answers `query.describe` (what the device is), `train.extract` (the next window of samples), `train.sum` and
    `train.secure_sum` (sums of its samples, in the place of windows), `evaluate` (a side network's metric on the
    device's test data) and `evaluate.held_out` (its predictions of samples that the sums left out, counted). What goes
    wrong on purpose (other settings, refused releases, unusable data) comes back as a reason, not as an exception; an
    unexpected exception is passed on without its message, which could hold sample text.

    Parameters
    ----------
    load_data : callable, optional
        Context -> (train, test), rows with the columns that the settings name: each a `datasets.Dataset`, a
        `pandas.DataFrame`, or dicts; test may be None. By default `data.source` is cut by the node's `partition-id` and
        `num-partitions`.

    Examples
    --------
    >>> client = SideTuningClient()
    >>> app = client.app
    """

    def __init__(self, load_data: LoadData | None = None) -> None:
        self._load_data = load_data
        self._devices: OrderedDict[tuple[str, str], Device] = OrderedDict()
        self.app = ClientApp()
        note_loader(self.app, load_data)
        self.app.train("extract")(self._answer(self._extract))
        self.app.train("sum")(self._answer(self._sum))
        self.app.train("secure_sum")(self._answer(self._secure_sum))
        self.app.evaluate("held_out")(self._answer(self._tally))
        self.app.evaluate()(self._answer(self._evaluate))
        self.app.query("describe")(self._answer(self._describe))

    def _describe(self, device: Device, asked: Message) -> RecordDict:
        return prove(pack_description(device.describe()), device.folder.identity, asked)

    def _extract(self, device: Device, asked: Message) -> RecordDict:
        _require_sums(device, asked=False)
        request = open_request(asked.content)
        device.agree(request.contract, request.spec)
        made = make_window(device, request.spec, held=request.held, size=request.window, max_bytes=request.max_bytes)
        return pack_window(made, spec=request.spec, contract=request.contract)

    def _secure_sum(self, device: Device, asked: Message) -> RecordDict:
        _require_sums(device, asked=True)
        request, message = open_sums_request(asked.content), open_message(asked.content)
        made: list[SumsReply] = []

        def make() -> Words:
            device.agree(request.contract, request.spec)
            made.append(make_sums(device, request.spec, request.sums, held=request.held))
            return made[0].words

        answer = answer_secure_sum(
            device, message, run=asked.metadata.run_id, purpose=lambda: purpose_of(request), make=make
        )
        seconds = made[0].forward_seconds if made else 0.0
        return pack_masked(answer, forward_seconds=seconds, peak_memory_bytes=peak_memory_bytes())

    def _tally(self, device: Device, asked: Message) -> RecordDict:
        _require_sums(device, asked=True)
        content, secure = asked.content, keys.SECURE_SUMS in asked.content

        def make() -> Words:
            request, share = open_held_out(content, device.agree)
            return tally_held_out(device, _model(device, request), share=share, alone=not secure)

        if not secure:
            require_plain(device)
            return pack_tally(make())
        answer = answer_secure_sum(
            device,
            open_message(content),
            run=asked.metadata.run_id,
            purpose=lambda: purpose_of_tally(content),
            make=make,
        )
        return pack_masked(answer, forward_seconds=0.0, peak_memory_bytes=peak_memory_bytes())

    def _sum(self, device: Device, asked: Message) -> RecordDict:
        _require_sums(device, asked=True)
        require_plain(device)
        request = open_sums_request(asked.content)
        device.agree(request.contract, request.spec)
        made = make_sums(device, request.spec, request.sums, held=request.held)
        return pack_sums(made, request=request)

    def _evaluate(self, device: Device, asked: Message) -> RecordDict:
        forget_secure_sums(device, asked.metadata.run_id)
        request = open_evaluation(asked.content, device.agree)
        model = _model(device, request)
        device.folder.ledger.acknowledge(request.held)
        metrics = {keys.NUM_EXAMPLES: float(len(device.test))}
        if len(device.test):
            metrics[request.contract.metric] = device.measure(model)
            if request.columns[2:] == (1,) and request.state and device.exact_metrics:
                metrics[keys.TASK_UNKNOWN] = model.accuracy_among_all(device.test)
        return pack_metrics(metrics)

    def _answer(self, handle: Callable[[Device, Message], RecordDict]) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            try:
                content = handle(self._device(context), message)
            except sqlite3.DatabaseError as error:
                logger.warning("%s", damaged(error))
                content = pack_refusal(told(damaged(error), context))
            except MobiLLMError as error:
                if is_own(context):  # the server is not told all of it
                    logger.warning("%s: %s", type(error).__name__, error)
                content = pack_refusal(told(error, context))
            except Exception as error:
                logger.error(unexpected(error))
                raise RuntimeError(unexpected(error)) from None
            return Message(content, reply_to=message)

        return answer

    def _device(self, context: Context) -> Device:
        settings = device_settings(context)
        check_run(settings, context)
        key = (str(device_folder(settings, context)), f"{settings}{device_policy(context)}")
        if key not in self._devices:
            data = device_data(settings, context, self._load_data)
            owned = open_folder(settings, context)
            self._devices[key] = Device(
                settings, data, owned, partition=_number(context), trusts_server=trusts_server(context)
            )
            if len(self._devices) > _OPEN_DEVICES:
                _, oldest = self._devices.popitem(last=False)
                oldest.folder.close()
        self._devices.move_to_end(key)
        return self._devices[key]


def _model(device: Device, request: EvaluationRequest) -> SideTunedModel:
    """Return the device's backbone with a side network that the server sent."""
    network = None  # a type that sent no sample has its base model
    if request.state:
        network = request.side_config.build()
        network.load_state_dict(dict(request.state))
    return SideTunedModel(
        device.backbone,
        network,
        spec=request.spec,
        contract=request.contract,
        rule=PredictionRule(**request.prediction),
        public_text=device.settings.activations.public_text,
        remembered_in=device.folder.path,
        mixing=device.mixing,
        columns=request.columns[:2],
    )


def _require_sums(device: Device, *, asked: bool) -> None:
    """Refuse samples where the run that the device agreed to is one of sums, and sums where it is not."""
    strategy = device.settings.strategy
    if asked != (strategy == ANALYTIC):
        what = ("samples", "sums")[asked]
        raise PolicyRefused(f"this device takes part in a run with strategy={strategy}, and the server asks for {what}")


def _number(context: Context) -> int:
    """Return a device's partition-id, or 0 where it has none."""
    number = str(context.node_config.get("partition-id", 0))
    return int(number) if number.isdecimal() else 0
