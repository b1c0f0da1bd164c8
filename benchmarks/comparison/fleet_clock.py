"""Fleets on a simulated clock: when a target is reached, and for how many bytes. Everything in it is modelled.

Measured is what one device's work costs, how many bytes it sends, how long the server trains, and how good the model is
after each round: all replayed from the JSON of `python -m benchmarks cost-to-target`. Modelled are the devices' speed,
memory, links and presence, from the figures in `fleet_profiles`, and that

- a round of a peer with as many devices as in the measured run is as good as the measured round;
- side-tuning is as good as measured once as many devices have sent their samples: nothing depends on who was first;
- every device has the mean number of samples of the measured run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from benchmarks.comparison.fleet_profiles import World
from mobillm_flower.evaluation.compare.cells import SIDE_TUNING
from mobillm_flower.evaluation.compare.cost_to_target import Link

_QUORUM = 0.5
_LOOK_AGAIN_S = 60.0
_SPEED_SPREAD, _LINK_SPREAD = 0.3, 0.5  # standard deviations of the logarithms


@dataclass(frozen=True)
class Recorded:
    """A method of a measured run, a device's share on average.

    Parameters
    ----------
    name : str
        The method.
    metrics : mapping
        Metric by number of rounds.
    devices : int
        That take part in a round, or are heard once.
    samples : float
        Of a device in a round.
    bytes_up, bytes_down : float
        Of a device in a round.
    last_down : float
        What every device gets in the end.
    seconds_a_sample : float
        Of a device, on the machine at hand.
    peak_bytes : float
        Of a device above the loaded model.
    server_seconds : float
        Of a round.
    messages : int
        To a device in a round.
    """

    name: str
    metrics: Mapping[int, float]
    devices: int
    samples: float
    bytes_up: float
    bytes_down: float
    last_down: float
    seconds_a_sample: float
    peak_bytes: float
    server_seconds: float
    messages: int

    def rounds_to(self, target: float) -> int | None:
        """Return after how many rounds the target is reached, or None."""
        return next((number for number, metric in sorted(self.metrics.items()) if metric >= target), None)


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to.

    Parameters
    ----------
    seconds : float or None
        Until the server's model reaches the target; None: it does not.
    bytes_up, bytes_down : float
        Of the whole fleet, with the last download of every device.
    rounds : int
        Rounds that count.
    answers, lost : int
        Devices' answers that were used; those that came too late.
    too_small : int
        Devices without the memory.
    """

    seconds: float | None
    bytes_up: float
    bytes_down: float
    rounds: int
    answers: int
    lost: int
    too_small: int


class Presence:
    """When a device is there: exponential periods, drawn from a seed, in the long run's balance from the start."""

    def __init__(self, on_s: float, off_s: float, seed: Sequence[int]) -> None:
        draw = np.random.default_rng(seed)
        self._periods = self._drawn(draw, on_s, off_s)
        self.start, self.end = next(self._periods)

    @staticmethod
    def _drawn(draw: np.random.Generator, on_s: float, off_s: float) -> Iterator[tuple[float, float]]:
        """Yield from when to when it is there."""
        now = 0.0 if draw.random() * (on_s + off_s) < on_s else draw.exponential(off_s)
        while True:
            end = now + draw.exponential(on_s)
            yield now, end
            now = end + (draw.exponential(off_s) if off_s else 0.0)

    def here(self, now: float) -> bool:
        """Whether it is there; `now` never goes back."""
        while self.end <= now:
            self.start, self.end = next(self._periods)
        return self.start <= now

    def finish(self, now: float, seconds: float) -> float:
        """Return when so many seconds of work that begins now are done; from then on `now` is no earlier."""
        self.here(now)
        now = max(now, self.start)
        while now + seconds > self.end:
            seconds -= self.end - now
            self.start, self.end = next(self._periods)
            now = self.start
        return now + seconds


@dataclass(frozen=True)
class Device:
    """A device of a fleet.

    Parameters
    ----------
    slowdown : float
        How many times as long as on the measured machine it computes.
    memory_bytes : float
        What training may take.
    link : Link
        Its link.
    presence : Presence
        When it is there.
    """

    slowdown: float
    memory_bytes: float
    link: Link
    presence: Presence

    def seconds(self, recorded: Recorded, latency_s: float) -> float:
        """Return how long its part of a round takes."""
        computing = self.slowdown * recorded.seconds_a_sample * recorded.samples
        sending = self.link.seconds(recorded.bytes_up, recorded.bytes_down)
        return computing + sending + latency_s * recorded.messages


def make_fleet(size: int, world: World, seed: int) -> list[Device]:
    """Draw a fleet: profiles in turns, speeds and links log-normal around their medians."""
    draw = np.random.default_rng([seed, size])
    speeds, links = np.exp(_SPEED_SPREAD * draw.normal(size=size)), np.exp(_LINK_SPREAD * draw.normal(size=size))
    fleet = []
    for i in range(size):
        profile = world.profiles[i % len(world.profiles)]
        fleet.append(
            Device(
                world.gflops / (world.efficiency * profile.gflops * float(speeds[i])),
                world.memory_share * profile.memory_gib * 2**30,
                Link(profile.up_mbit * float(links[i]), profile.down_mbit * float(links[i])),
                Presence(world.on_s, world.off_s, [seed, size, i]),
            )
        )
    return fleet


def simulate(recorded: Recorded, fleet: Sequence[Device], world: World, *, target: float, seed: int) -> Outcome:
    """Simulate a method on a fleet until a target, with rounds, or without where it is side-tuning."""
    able = [device for device in fleet if device.memory_bytes >= recorded.peak_bytes]
    too_small, rounds = len(fleet) - len(able), recorded.rounds_to(target)
    if rounds is None or len(able) < recorded.devices:
        return Outcome(None, 0.0, 0.0, 0, 0, 0, too_small)
    env = simpy.Environment()
    run: _Run
    if recorded.name in SIDE_TUNING:
        run = _Asynchronous(env, recorded, able, world)
    else:
        run = _Synchronous(env, recorded, able, world, rounds, np.random.default_rng([seed, len(fleet), 1]))
    over = env.process(run.events())
    env.run(until=over | env.timeout(world.limit_s))
    down = run.bytes_down + recorded.last_down * len(fleet)
    seconds = float(env.now) if over.triggered else None
    return Outcome(seconds, run.bytes_up, down, run.rounds, run.answers, run.lost, too_small)


class _Run(ABC):
    """What both ways have: the clock, the devices, and what is counted."""

    def __init__(self, env: simpy.Environment, recorded: Recorded, devices: Sequence[Device], world: World) -> None:
        self.env, self.recorded, self.devices, self.world = env, recorded, devices, world
        self.bytes_up = self.bytes_down = 0.0
        self.rounds = self.answers = self.lost = 0

    @abstractmethod
    def events(self) -> Generator[simpy.Event, Any, None]:
        """Yield what is waited for, until the target is reached."""

    def working(self, device: Device, seconds: float) -> simpy.Event:
        """Return the event at which a device has worked for so long."""
        return self.env.timeout(device.presence.finish(self.env.now, seconds) - self.env.now)

    def answered(self) -> None:
        """Count an answer that came in time."""
        self.answers += 1
        self.bytes_up += self.recorded.bytes_up


class _Synchronous(_Run):
    def __init__(
        self,
        env: simpy.Environment,
        recorded: Recorded,
        devices: Sequence[Device],
        world: World,
        needed: int,
        draw: np.random.Generator,
    ) -> None:
        super().__init__(env, recorded, devices, world)
        self._needed, self._draw = needed, draw

    def events(self) -> Generator[simpy.Event, Any, None]:
        while self.rounds < self._needed:
            chosen = self._choose()
            if len(chosen) < self.recorded.devices:
                yield self.env.timeout(_LOOK_AGAIN_S)
                continue
            answers = [self.working(one, one.seconds(self.recorded, self.world.latency_s)) for one in chosen]
            self.bytes_down += self.recorded.bytes_down * len(answers)
            yield simpy.AllOf(self.env, answers) | self.env.timeout(self.world.deadline_s)
            came = sum(answer.processed for answer in answers)
            for _ in range(came):
                self.answered()
            self.lost += len(answers) - came
            self.rounds += came >= _QUORUM * len(answers)
            yield self.env.timeout(self.recorded.server_seconds)

    def _choose(self) -> list[Device]:
        """Draw devices that are there."""
        chosen: list[Device] = []
        for i in self._draw.permutation(len(self.devices)):
            if len(chosen) == self.recorded.devices:
                break
            if self.devices[i].presence.here(self.env.now):
                chosen.append(self.devices[i])
        return chosen


class _Asynchronous(_Run):
    def events(self) -> Generator[simpy.Event, Any, None]:
        uploads = [self.env.process(self._upload(device)) for device in self.devices]
        self._enough = self.env.event()
        yield self._enough
        self.rounds = 1
        for upload in uploads:  # those that are still at it are told to stop
            if upload.is_alive:
                upload.interrupt()
        yield self.env.timeout(self.recorded.server_seconds)

    def _upload(self, device: Device) -> Generator[simpy.Event, Any, None]:
        """Compute, then send; what is sent when enough is there is lost, and counted as sent."""
        sending = device.link.seconds(self.recorded.bytes_up, 0.0)
        try:
            yield self.working(device, device.seconds(self.recorded, self.world.latency_s) - sending)
        except simpy.Interrupt:
            return
        try:
            yield self.working(device, sending)
        except simpy.Interrupt:
            self.lost += 1
            self.bytes_up += self.recorded.bytes_up
            return
        self.answered()
        if self.answers == self.recorded.devices:
            self._enough.succeed()
