"""What runs on a device."""

from mobillm_flower import SideTuningClient


class Client(SideTuningClient):
    """A class of this package, so that whoever unpickles it imports the package, and with it the parts."""


app = Client().app
