"""A group of devices that add up vectors under masks, in this process, each with a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobillm_flower.privacy.identity import Identity
from mobillm_flower.wire.secure_sums import SecureSumsDevice, SecureSumsServer

RUN = 7
Tamper = Callable[[str, str, bytes], bytes]
"""(phase, pseudonym, request) -> the request that the device gets."""


class SecureGroup:
    """Devices with vectors of random words; a device is made anew for each message, as a ClientApp is."""

    def __init__(
        self, folder: Path, size: int, *, words: int = 6, bits: int = 64, minimum: int = 3, seed: int = 0
    ) -> None:
        generator = np.random.default_rng(seed)
        self.folder, self.words, self.bits, self.minimum = folder, words, bits, minimum
        self.identities = {
            one.pseudonym: one for one in (Identity(bytes([i % 256, i // 256]) * 16) for i in range(size))
        }
        self.names = sorted(self.identities)
        kind = np.uint32 if bits == 32 else np.uint64
        self.vectors: dict[str, NDArray[np.unsignedinteger]] = {
            name: generator.integers(0, 2**bits, words, dtype=kind) for name in self.names
        }

    def device(self, name: str, *, minimum: int = 3, across_runs: bool = False, run: int = RUN) -> SecureSumsDevice:
        return SecureSumsDevice(
            self.folder / name, self.identities[name], run=run, minimum=minimum, across_runs=across_runs
        )

    def answer(self, name: str, request: bytes) -> bytes:
        return self.device(name).answer(request, lambda _offer: self.vectors[name])

    def server(self, names: list[str] | None = None, *, purpose: str = "sums", run: int = RUN) -> SecureSumsServer:
        return SecureSumsServer(
            self.names if names is None else names,
            run=run,
            purpose=purpose,
            words=self.words,
            bits=self.bits,
            minimum=self.minimum,
        )

    def run_phase(
        self, server: SecureSumsServer, *, dropped: frozenset[str] = frozenset(), tamper: Tamper | None = None
    ) -> None:
        phase = server.phase
        for name, request in server.requests().items():
            if name not in dropped:
                sent = request if tamper is None else tamper(phase, name, request)
                server.receive(name, self.answer(name, sent))
        server.close()

    def add_up(
        self, server: SecureSumsServer, dropped: Mapping[str, frozenset[str]] | None = None, until: str = ""
    ) -> SecureSumsServer:
        """Run the phases up to `until`, leaving out who has dropped by a phase."""
        gone: frozenset[str] = frozenset()
        while server.phase and server.phase != until:
            gone |= (dropped or {}).get(server.phase, frozenset())
            self.run_phase(server, dropped=gone)
        return server

    def sum_of(self, names: tuple[str, ...] | list[str]) -> NDArray[np.unsignedinteger]:
        total = np.zeros_like(self.vectors[self.names[0]])
        for name in names:
            total += self.vectors[name]
        return total
