"""The ClientApp of the baselines: a device that trains by itself, or sends the data that it holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from mobillm_flower.clients.baselines.devices import BASELINE_DEVICES, BaselineDevice
from mobillm_flower.clients.own import (
    LoadData,
    check_run,
    device_data,
    device_folder,
    device_settings,
    is_own,
    note_loader,
    promises,
    told,
    unexpected,
)
from mobillm_flower.errors import MobiLLMError, PolicyRefused
from mobillm_flower.wire import keys
from mobillm_flower.wire.baseline_messages import pack_holdings, pack_numbers

_Handle = Callable[[BaselineDevice, RecordDict], RecordDict]
_OPEN_DEVICES = 64


class BaselineClient:
    """Makes the ClientApp of a baseline's device; the setting `strategy` names the baseline, as at the server.

    It answers `query.describe` with the task contract and its number of samples, `train` and `evaluate` with arrays and
    metrics as Flower's own FedAvg expects them.

    Parameters
    ----------
    load_data : callable, optional
        As with `SideTuningClient`.

    Examples
    --------
    >>> app = BaselineClient().app
    """

    def __init__(self, load_data: LoadData | None = None) -> None:
        self._load_data = load_data
        self._devices: OrderedDict[tuple[int, str], BaselineDevice] = OrderedDict()
        self.app = ClientApp()
        note_loader(self.app, load_data)
        self.app.train()(self._answer(lambda device, content: device.train(content)))
        self.app.evaluate()(self._answer(_evaluate))
        self.app.query("describe")(self._answer(_describe))

    def _answer(self, handle: _Handle) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            try:
                return Message(handle(self._device(context), message.content), reply_to=message)
            except MobiLLMError as error:
                if not is_own(context):
                    raise
                raise MobiLLMError(told(error, context)) from None
            except Exception as error:
                raise RuntimeError(unexpected(error)) from None

        return answer

    def _device(self, context: Context) -> BaselineDevice:
        settings = device_settings(context)
        check_run(settings, context)
        if promises(context):
            raise PolicyRefused(
                f"strategy={settings.strategy} promises nothing of the texts that it reads, and this device "
                "does: it takes part in side-tuning only"
            )
        key = (context.node_id, str(settings))
        if key not in self._devices:
            data = device_data(settings, context, self._load_data)
            self._devices[key] = BASELINE_DEVICES[settings.strategy](settings, data, device_folder(settings, context))
            if len(self._devices) > _OPEN_DEVICES:
                self._devices.popitem(last=False)
        self._devices.move_to_end(key)
        return self._devices[key]


def _describe(device: BaselineDevice, _content: RecordDict) -> RecordDict:
    data = device.data
    return pack_holdings(data.contract, num_train=len(data.train), num_test=len(data.test))


def _evaluate(device: BaselineDevice, content: RecordDict) -> RecordDict:
    test = device.data.test
    metrics: dict[str, int | float] = {keys.NUM_EXAMPLES: len(test)}
    if len(test):
        device.load(content)
        metrics[device.data.contract.metric] = device.model.evaluate(test)
    return RecordDict({keys.METRICS: pack_numbers(metrics)})
