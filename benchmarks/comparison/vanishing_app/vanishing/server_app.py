"""The strategy that is measured, by its name in the settings."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from mobillm_flower import load_settings, make_strategy
from mobillm_flower.config import run_folder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run it to its end."""
    settings = load_settings(context.run_config)
    strategy = make_strategy(settings, run_path=run_folder(settings, context.run_id))
    strategy.start(grid, ArrayRecord())
