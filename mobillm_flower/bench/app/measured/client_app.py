"""The device of the strategy that is measured: forward only, or a peer's that trains."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from mobillm_flower import PeerClient, SideTuningClient, load_settings
from mobillm_flower.clients.baselines import PEER_DEVICES

side_tuning, peer = SideTuningClient().app, PeerClient().app
app = ClientApp()


def answer(message: Message, context: Context) -> Message:
    """Hand a message to the ClientApp that `strategy` names."""
    strategy = load_settings(context.run_config).strategy
    return (peer if strategy in PEER_DEVICES else side_tuning)(message, context)


app.train()(answer)
app.train("extract")(answer)
app.evaluate()(answer)
app.query("describe")(answer)
