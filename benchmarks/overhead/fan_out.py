"""What Flower itself costs as the fleet grows, with devices that do nothing.

    .venv/bin/python benchmarks/overhead/fan_out.py --nodes 10 100 1000 --json benchmarks/results/fan_out.json

In a simulation each node is asked once, by `Exchange` as in a run, and answers with about as many bytes as a window of
eight samples has; all nodes share `--actors` processes of Ray. Then a SuperLink is started on this machine and one
node asks it for messages, as an idle SuperNode does every three seconds: the processor time that this takes the
SuperLink bounds how many SuperNodes it can serve.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from flwr.supernode.fleet_http_connection import http_request_response

from mobillm_flower.strategies.exchange import Clock, Exchange

KIND, BYTES = "query.fan_out", 8 * 900
client = ClientApp()


@client.query("fan_out")
def answer(message: Message, _context: Context) -> Message:
    """Answer with a window's bytes."""
    content = RecordDict({"window": ArrayRecord({"payload": Array(np.zeros(BYTES, np.uint8))})})
    return Message(content, reply_to=message)


def measure(nodes: int, actors: int) -> dict[str, float]:
    """Ask each of so many nodes once and return what it took."""
    found: dict[str, float] = {}
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        while len(list(grid.get_node_ids())) < nodes:
            time.sleep(0.1)
        exchange = Exchange(
            grid,
            timeout_s=600.0,
            poll_s=0.1,
            clock=Clock(),
            on_unreachable=lambda _node: None,
            on_late=lambda _node, _kind: False,
        )
        ids = list(grid.get_node_ids())
        for _ in exchange.exchange([Message(RecordDict(), ids[0], KIND)], KIND):
            pass  # the first answer waits for Ray's processes to start
        started = time.perf_counter()
        exchange.push([Message(RecordDict(), node, KIND) for node in ids])
        pushed = time.perf_counter() - started
        replies = sum(not reply.has_error() for reply in exchange.exchange([], KIND))
        seconds = time.perf_counter() - started
        found.update(nodes=nodes, replies=replies, seconds=seconds, push_s=pushed, messages_a_s=replies / seconds)

    resources: Any = {
        "client_resources": {"num_cpus": 1},
        "init_args": {"num_cpus": actors, "include_dashboard": False},
    }
    run_simulation(app, client, num_supernodes=nodes, backend_config=resources)
    return found


def measure_polls(count: int) -> dict[str, float]:
    """Start a SuperLink, look for messages so often as a node, and return what a look costs the SuperLink."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [str(Path(sys.executable).with_name("flower-superlink")), "--insecure", "--host", "127.0.0.1"]
    command += ["--port", address.split(":")[1], "--disable-runtime-dependency-installation", "--isolation", "process"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as superlink:
        try:
            _wait_for(address)
            with http_request_response(address, insecure=True) as (_, receive, *_rest):
                for _ in range(20):
                    receive()
                cpu, started = _cpu_seconds(superlink.pid), time.perf_counter()
                for _ in range(count):
                    assert receive() is None
                cpu, wall = _cpu_seconds(superlink.pid) - cpu, time.perf_counter() - started
        finally:
            superlink.terminate()
    return {"polls": count, "cpu_s_a_poll": cpu / count, "wall_s_a_poll": wall / count}


def _wait_for(address: str) -> None:
    for _ in range(600):
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address.split(":")[0], int(address.split(":")[1]))),
        ):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no SuperLink answers at {address} after 60 s")


def _cpu_seconds(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--polls", type=int, default=1000)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    polls = measure_polls(options.polls)
    rows = [measure(nodes, options.actors) for nodes in options.nodes]
    settings = {"actors": options.actors, "cores": os.cpu_count(), "reply_bytes": BYTES, "flwr": version("flwr")}
    options.json.write_text(
        json.dumps({"settings": settings, "superlink": polls, "simulation": rows}, indent=1) + "\n", "utf-8"
    )


if __name__ == "__main__":
    _main()
