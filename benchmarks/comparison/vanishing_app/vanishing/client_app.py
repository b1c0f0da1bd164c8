"""The device that a comparison runs, which may vanish on the way."""

import json
import os

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from mobillm_flower import BaselineClient, SideTuningClient, load_settings
from mobillm_flower.clients.baselines import BASELINE_DEVICES

VANISH = "MOBILLM_BENCH_VANISH"
"""JSON: by partition-id, after how many answers to messages of training a device answers nothing any more."""

_COUNTED = "answers"
side_tuning, baseline = SideTuningClient().app, BaselineClient().app
app = ClientApp()


def answer(message: Message, context: Context) -> Message:
    """Hand a message to the ClientApp that `strategy` names, unless the device has vanished."""
    kind, given = message.metadata.message_type, _answers(context)
    most = json.loads(os.environ.get(VANISH, "{}")).get(str(context.node_config.get("partition-id")))
    if most is not None and given >= most and not kind.startswith("query"):
        raise RuntimeError("the device has vanished")
    strategy = load_settings(context.run_config).strategy
    reply = (baseline if strategy in BASELINE_DEVICES else side_tuning)(message, context)
    if kind.startswith("train"):
        context.state[_COUNTED] = ConfigRecord({_COUNTED: given + 1})
    return reply


def _answers(context: Context) -> int:
    record = context.state.get(_COUNTED)
    return int(str(record[_COUNTED])) if isinstance(record, ConfigRecord) else 0


app.train()(answer)
app.train("extract")(answer)
app.evaluate()(answer)
app.query("describe")(answer)
