"""Starting and watching runs."""

from mobillm_flower.launch.app import App, read_app
from mobillm_flower.launch.own_rows import gathered
from mobillm_flower.launch.run import RunOutcome, run_app, run_on

__all__ = ["App", "RunOutcome", "gathered", "read_app", "run_app", "run_on"]
