"""What secure sums cost the server and a device as the fleet grows, with devices in one process and no backbone.

    python benchmarks/overhead/secure_sums.py --json benchmarks/results/secure_sums.json

A tenth of the devices stops before the masked sums and another twentieth before the unmasking. Groups are of at most
125 devices, and once all 1,000 are one group. Seconds are of one core; bytes are the messages' own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mobillm_flower.privacy.identity import Identity
from mobillm_flower.wire.secure_sums import SecureSumsDevice, SecureSumsServer
from mobillm_flower.wire.secure_sums.graph import num_neighbours

FLEETS = ["125/125", "500/125", "1000/125", "1000/1000"]
DROP = {"masked sums": 0.10, "unmasking": 0.05}


@dataclass
class Cost:
    """One row: a fleet in groups."""

    devices: int
    group: int
    neighbours: int
    vector_bytes: int
    dropped: int
    server_s: float = 0.0
    server_s_a_device: float = 0.0
    device_s: float = 0.0
    upload_bytes: float = 0.0
    download_bytes: float = 0.0
    exact: bool = True


def measure(devices: int, group: int, *, words: int, folder: Path, seed: int = 0) -> Cost:
    """Add up a fleet's random vectors, group after group, and check every sum."""
    cost = Cost(devices, group, num_neighbours(group), 8 * words, 0)
    for first in range(0, devices, group):
        _add_up_group(cost, range(first, first + group), words, folder / str(first), random.Random(seed + first))
    cost.server_s_a_device = cost.server_s / devices
    for name in ("device_s", "upload_bytes", "download_bytes"):
        setattr(cost, name, getattr(cost, name) / devices)
    return cost


def _add_up_group(cost: Cost, numbers: range, words: int, folder: Path, chance: random.Random) -> None:
    identities = {one.pseudonym: one for one in (Identity(i.to_bytes(32, "big")) for i in numbers)}
    vectors = {name: np.full(words, i, np.uint64) for i, name in enumerate(identities)}
    alive = set(identities)
    started = time.perf_counter()
    server = SecureSumsServer(list(identities), run=1, purpose="sums", words=words, bits=64, minimum=3)
    while phase := server.phase:
        gone = set(chance.sample(sorted(alive), round(DROP.get(phase, 0.0) * len(identities))))
        alive -= gone
        cost.dropped += len(gone)
        for name, request in server.requests().items():
            if name not in alive:
                continue
            before = time.perf_counter()
            device = SecureSumsDevice(folder / name, identities[name], run=1)
            reply = device.answer(request, lambda _offer, name=name: vectors[name])  # type: ignore[misc]
            spent = time.perf_counter() - before
            started += spent
            cost.device_s += spent
            cost.upload_bytes += len(reply)
            cost.download_bytes += len(request)
            server.receive(name, reply)
        server.close()
    cost.server_s += time.perf_counter() - started
    cost.exact &= bool(np.all(server.total == sum(int(vectors[name][0]) for name in server.members)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleets", nargs="+", default=FLEETS, help="devices/group")
    parser.add_argument("--words", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    os.fsync = lambda fd: None  # noqa: ARG005 - the devices' disks are not what is measured
    rows = []
    for fleet in chosen.fleets:
        devices, group = map(int, fleet.split("/"))
        with tempfile.TemporaryDirectory() as folder:
            rows.append(asdict(measure(devices, group, words=chosen.words, folder=Path(folder))))
        print(json.dumps(rows[-1]), flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps({"seed": 0, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
