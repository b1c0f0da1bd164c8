"""Starting and watching runs."""

from mobillm_flower.launch.app import App, read_app
from mobillm_flower.launch.run import RunOutcome, run_app, run_on

__all__ = ["App", "RunOutcome", "read_app", "run_app", "run_on"]
