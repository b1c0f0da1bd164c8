"""A SuperLink and its SuperNodes, with TLS and registered devices: all on one machine, or one command a machine.

`python examples/deployment/up.py` brings everything up, runs the app, shows its results and takes everything down.
"""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from certificates import make_all
from flower import NAME, check_loopback, connect, door_command, register, superlink_command, supernode_command

from mobillm_flower.errors import MobiLLMError, RunFailed, SettingsError
from mobillm_flower.launch.processes import started
from mobillm_flower.launch.superlink import (
    flower_environment,
    free_port,
    last_error,
    program,
    wait_healthy,
)

CONTROL = "127.0.0.1:8001"
QUICKSTART = Path(__file__).resolve().parents[1] / "quickstart"
Keys = Annotated[Path | None, typer.Option(help="Folder of certificates and keys.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Plaintext; on 127.0.0.1 only.")]
Config = Annotated[list[str] | None, typer.Option("--config", "-c", help="A setting, key=value; several times.")]
Address = Annotated[str, typer.Option(help="The SuperLink's host:port.")]
References = Annotated[bool, typer.Option(help="Measure references afterwards.")]
Devices = Annotated[int, typer.Option(min=1, help="How many devices there are.")]

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.callback(invoke_without_command=True)
def up(
    context: typer.Context,
    devices: Devices = 4,
    folder: Annotated[Path | None, typer.Option(help="For everything; by default runs/deployment-TIME.")] = None,
    flower_app: Annotated[Path, typer.Option("--app", help="The Flower app.")] = QUICKSTART,
    config: Config = None,
    references: References = True,
    insecure: Insecure = False,
) -> None:
    """Bring a fleet up on this machine, run the app on it, show the results, take it down."""
    if context.invoked_subcommand is not None:
        return
    folder = (folder or Path("runs") / time.strftime("deployment-%Y%m%d-%H%M%S")).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = None if insecure else folder / "keys"
    if keys is not None:
        make_all(keys, names=("localhost", "127.0.0.1"), devices=devices)
    inner, address = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    environment = flower_environment()
    cores = max(1, (os.cpu_count() or 1) // devices)
    nodes: dict[Path, subprocess.Popen[bytes]] = {}  # by their logs
    with contextlib.ExitStack() as stack:
        log = folder / "superlink.log"
        command = superlink_command(inner, state=folder, keys=keys)
        superlink = stack.enter_context(started(command, environment, log))
        trusted = None if keys is None else ssl.create_default_context(cafile=str(keys / "ca.crt"))
        wait_healthy(superlink, f"http{'' if insecure else 's'}://{inner}", log, trusted=trusted)
        connection = connect(folder / "flwr", inner, keys=keys)
        typer.echo(f"SuperLink at {inner}{' in plaintext' if insecure else ''}, process {superlink.pid}", err=True)
        if keys is None:
            address = inner
        else:
            door = stack.enter_context(started(door_command(address, inner, keys), environment, folder / "door.log"))
            wait_healthy(door, f"https://{address}", folder / "door.log", trusted=trusted)
        for i in range(devices):
            if keys is not None:
                register(connection, keys / f"device-{i}.pub")
            command = supernode_command(
                address,
                port=free_port(),
                keys=keys,
                number=i,
                node_config=_node_config(i, devices, folder / f"device-{i}"),
            )
            threads = {"OMP_NUM_THREADS": str(cores), **environment}  # they share this machine
            log = folder / f"device-{i}.log"
            nodes[log] = stack.enter_context(started(command, threads, log))
            typer.echo(f"SuperNode {i}, process {nodes[log].pid}", err=True)
        words = [f"run.folder={folder / 'run'}", *(config or [])]
        code = _run(flower_app, folder / "flwr", devices=devices, config=words, references=references, nodes=nodes)
    raise typer.Exit(code)


@app.command()
def certificates(
    keys: Annotated[Path, typer.Option(help="Folder for certificates and keys.")],
    name: Annotated[list[str], typer.Option(help="A host name or IP address of the SuperLink; several times.")],
    devices: Devices = 4,
) -> None:
    """Make an authority, a certificate for the SuperLink, and a key for each device, as far as they are missing."""
    make_all(keys.expanduser(), names=name, devices=devices)
    typer.echo(f"{keys}: ca.crt and device-N.key go to device N; ca.key and server.key to nobody")


@app.command()
def superlink(
    address: Annotated[str, typer.Option(help="host:port that devices reach.")] = "127.0.0.1:8000",
    control: Annotated[str, typer.Option(help="host:port on this machine alone, where runs are submitted.")] = CONTROL,
    keys: Keys = None,
    state: Annotated[Path, typer.Option(help="Folder of its database.")] = Path("superlink"),
    insecure: Insecure = False,
) -> None:
    """Run a SuperLink until it is stopped, and the door that devices reach it by."""
    secured = _secured(keys, insecure)
    state = state.expanduser().resolve()
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    if secured is None:
        _foreground(superlink_command(address, state=state, keys=None))
        return
    check_loopback(control, "--control: whoever reaches it can run any program on the server and on all devices")
    with started(superlink_command(control, state=state, keys=secured), flower_environment()) as inner:
        with started(door_command(address, control, secured), flower_environment()) as door:
            while inner.poll() is None and door.poll() is None:
                time.sleep(0.2)
        raise typer.Exit(inner.poll() or door.poll() or 1)


@app.command()
def supernode(
    superlink: Address,
    device: Annotated[int, typer.Option(min=0, help="Which device this is, from 0; its key is device-N.key.")],
    devices: Devices,
    folder: Annotated[Path, typer.Option(help="The device's own folder: secret, ledger, outbox.")],
    keys: Keys = None,
    port: Annotated[int, typer.Option(help="For its own processes, on this machine.")] = 9094,
    insecure: Insecure = False,
) -> None:
    """Run a SuperNode until it is stopped."""
    node_config = _node_config(device, devices, folder.expanduser().resolve())
    secured = _secured(keys, insecure)
    _foreground(supernode_command(superlink, port=port, keys=secured, number=device, node_config=node_config))


@app.command()
def run(
    devices: Devices,
    superlink: Annotated[
        str, typer.Option(help="The SuperLink's --control (with --insecure, its --address).")
    ] = CONTROL,
    flower_app: Annotated[Path, typer.Option("--app", help="The Flower app.")] = QUICKSTART,
    keys: Keys = None,
    folder: Annotated[Path, typer.Option(help="For Flower's config.toml.")] = Path("flwr"),
    config: Config = None,
    references: References = True,
    insecure: Insecure = False,
) -> None:
    """Register the devices whose public keys are there, run the app, show the results."""
    secured, home = _secured(keys, insecure), folder.expanduser().resolve()
    connection = connect(home, superlink, keys=secured)
    for key in sorted(secured.glob("device-*.pub")) if secured is not None else []:
        register(connection, key)
    raise typer.Exit(_run(flower_app, home, devices=devices, config=config or [], references=references))


def _run(
    flower_app: Path,
    home: Path,
    *,
    devices: int,
    config: list[str],
    references: bool,
    nodes: Mapping[Path, subprocess.Popen[bytes]] | None = None,
) -> int:
    """Run `mobillm run` on the connection in a folder and return its exit code, which tells how the run ended.

    SuperNodes of this machine that end meanwhile are told of; without any that lives, the run is given up.
    """
    words = ["preset=fed", f"data.num-devices={devices}", f"rounds.min-devices={devices}", *config]
    command = [program("mobillm", flower_environment()), "run", str(flower_app), "--superlink", NAME]
    command += ["--flwr-home", str(home), *([] if references else ["--no-references"])]
    command += [part for word in words for part in ("-c", word)]
    alive = dict(nodes or {})
    with started(command, flower_environment()) as process:
        while process.poll() is None:
            for log, node in list(alive.items()):
                if node.poll() is not None:
                    del alive[log]
                    said = last_error(log.read_text("utf-8", "replace"))
                    typer.echo(f"a SuperNode ended with code {node.returncode}: {said}. The log is {log}", err=True)
            if nodes and not alive:
                raise RunFailed("every SuperNode has ended")
            time.sleep(0.2)
        return process.returncode


def _node_config(number: int, devices: int, folder: Path) -> dict[str, str | int]:
    return {"partition-id": number, "num-partitions": devices, "device-folder": str(folder)}


def _secured(keys: Path | None, insecure: bool) -> Path | None:
    """Return the keys' folder, or None where plaintext was asked for."""
    if insecure == (keys is not None):
        raise SettingsError("give either --keys, a folder that `up.py certificates` made, or --insecure")
    return keys.expanduser().resolve() if keys is not None else None


def _foreground(command: list[str]) -> None:
    with started(command, flower_environment()) as process:
        raise typer.Exit(process.wait())


def main() -> None:
    """Run a command; whatever ends it, what was started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except MobiLLMError as error:
        sys.exit(f"error {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
