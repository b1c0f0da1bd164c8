"""The device of the strategy that is measured: forward only, or a baseline's that trains."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from mobillm_flower import BaselineClient, SideTuningClient, load_settings
from mobillm_flower.clients.baselines import BASELINE_DEVICES

side_tuning, baseline = SideTuningClient().app, BaselineClient().app
app = ClientApp()


def answer(message: Message, context: Context) -> Message:
    """Hand a message to the ClientApp that `strategy` names."""
    strategy = load_settings(context.run_config).strategy
    return (baseline if strategy in BASELINE_DEVICES else side_tuning)(message, context)


app.train()(answer)
for part in ("extract", "sum", "secure_sum"):
    app.train(part)(answer)
app.evaluate()(answer)
app.evaluate("held_out")(answer)
app.query("describe")(answer)
