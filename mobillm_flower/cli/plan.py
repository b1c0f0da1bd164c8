"""`mobillm plan`: what a run would cost a device, before anything is spent."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobillm_flower.cli.options import AsJson, Config, DownMbit, UpMbit
from mobillm_flower.cli.output import print_rows, say_json

if TYPE_CHECKING:
    from mobillm_flower.config import Settings


def plan(
    app: Annotated[
        Path | None, typer.Argument(metavar="[APP]", help="A Flower app, whose settings and data are read.")
    ] = None,
    config: Config = None,
    samples: Annotated[int, typer.Option(min=0, help="Training samples of the fleet; 0: those of the data.")] = 0,
    tokens: Annotated[int, typer.Option(min=0, help="Tokens of each sample; 0: as the data have.")] = 0,
    loss_tokens: Annotated[
        int, typer.Option(min=0, help="Language modelling: tokens in the loss of each sample; 0: as the data have.")
    ] = 0,
    labels: Annotated[int, typer.Option(min=0, help="Labels; 0: those of the data.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that FedLoRA would take, one pass each.")] = 15,
    up_mbit: UpMbit = 10.0,
    down_mbit: DownMbit = 50.0,
    gflops: Annotated[float, typer.Option(min=0, help="A device's GFLOP/s; 0: this machine's, measured.")] = 0.0,
    memory_mib: Annotated[float, typer.Option(min=0, help="A device's memory for model and work, MiB.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Predict bytes, memory, operations and time of side-tuning and of FedLoRA, and recommend one of them."""
    from mobillm_flower.config import load_settings
    from mobillm_flower.evaluation.compare.cost_to_target import Link
    from mobillm_flower.evaluation.plan import Workload, even_bytes, forecast, measured_gflops, sample_lengths
    from mobillm_flower.launch import gathered, read_app
    from mobillm_flower.tasks import load_central_data, make_contract
    from mobillm_flower.tasks.task import predicts_tokens

    words = list(config or [])
    with ExitStack() as stack:
        if app is None:
            settings = load_settings(overrides=words)
        else:
            flower_app = read_app(app)
            settings = flower_app.settings([*words, *stack.enter_context(gathered(flower_app, words))])
        per_token = predicts_tokens(settings)
        data = None if samples and tokens and (loss_tokens if per_token else labels) else load_central_data(settings)
    contract = data.contract if data is not None and not labels else make_contract(settings, [*range(labels)])
    work = Workload(
        num_samples=samples or (0 if data is None else len(data.train)),
        num_devices=max(1, settings.data.num_devices),
        **sample_lengths(settings, data, tokens=tokens, loss_tokens=loss_tokens if per_token else 0),
        rounds=rounds,
        link=Link(up_mbit=up_mbit, down_mbit=down_mbit),
        gflops=gflops or measured_gflops(),
        memory_mib=memory_mib,
    )
    costs = forecast(settings, contract, work)
    runs = _runs(settings)
    if as_json:
        about = {"samples": work.num_samples, "devices": work.num_devices, "gflops": work.gflops, "memory_plan": runs}
        say_json({**about, **costs.to_dict()})
        return
    ours, lora = costs.side_tuning, costs.fed_lora
    rows = [
        ["memory above the model, MB", f"{ours.peak_bytes / 1e6:,.0f}", f"{lora.peak_bytes / 1e6:,.0f}"],
        ["the model, fp32, MB", f"{ours.model_bytes / 1e6:,.0f}", f"{lora.model_bytes / 1e6:,.0f}"],
        ["computing, GFLOP", f"{ours.flops / 1e9:,.0f}", f"{lora.flops / 1e9:,.0f}"],
        ["up, MB", f"{ours.bytes_up / 1e6:,.2f}", f"{lora.bytes_up / 1e6:,.2f}"],
        ["down, MB", f"{ours.bytes_down / 1e6:,.2f}", f"{lora.bytes_down / 1e6:,.2f}"],
        ["modelled device seconds", f"{ours.device_seconds:,.0f}", f"{lora.device_seconds:,.0f}"],
        ["modelled wall seconds", f"{ours.wall_seconds:,.0f}", f"{lora.wall_seconds:,.0f}"],
        ["the server's cache, MB", f"{costs.cache_bytes / 1e6:,.1f}", "–"],
    ]
    title = f"A device of {work.num_devices:,}, {work.num_samples / work.num_devices:,.0f} samples each"
    print_rows(title, ["cost", "side-tuning", f"FedLoRA, {rounds} rounds"], rows, headed=True)
    typer.echo(f"\n{even_bytes(costs, 'FedLoRA')}")
    if runs:
        typer.echo(f"The backbone on the device: {runs}.")
    typer.echo(f"Recommended: {costs.recommended}: {costs.reasons[0]}.")


def _runs(settings: Settings) -> str | None:
    """Return how the backbone would run within its memory budget, as if this process were the device's."""
    from mobillm_flower.backbones import plan_memory

    named = settings.backbone
    if not named.memory_budget_mib:
        return None
    return str(
        plan_memory(
            named.name,
            budget_mib=named.memory_budget_mib,
            revision=named.revision,
            layers=named.layers,
            precision=named.precision.value,
            token_budget=named.token_budget,
            max_length=settings.task.max_length,
        )
    )
