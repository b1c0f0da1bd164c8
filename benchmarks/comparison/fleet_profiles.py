"""What the devices of a simulated fleet are: kinds of devices with their sources, and the world that they are in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """A kind of device.

    Parameters
    ----------
    name : str
        What it is.
    gflops : float
        Peak of float32 operations, thousand million a second.
    memory_gib : float
        Its memory.
    up_mbit, down_mbit : float
        Median of its link.
    source : str
        Where the figures are from.
    """

    name: str
    gflops: float
    memory_gib: float
    up_mbit: float
    down_mbit: float
    source: str


_MODULES = "NVIDIA, Jetson modules, https://developer.nvidia.com/embedded/jetson-modules"
_A76 = "two 128-bit pipelines, 16 operations a cycle: Arm, Cortex-A76 Software Optimization Guide, PJDOC-466751330-7215"
_FIXED = (
    "link: mean of fixed broadband in August 2020, Ookla, "
    "https://telecomtalk.info/india-gains-four-spots-fixed-broadband-index-drops/297716/"
)
_MOBILE = (
    "link: median of 5G in the third quarter of 2021, Ookla, "
    "https://www.zdnet.com/article/speedtest-finds-global-5g-speeds-slowing-in-2021/"
)
PROFILES = (
    Profile(
        "Jetson TX2",
        666.0,
        8.0,
        44.1,
        84.3,
        f"256 Pascal cores at 1.30 GHz (Max-N), 8 GB: {_MODULES}; NVIDIA, Jetson TX2 data sheet 1.1; {_FIXED}",
    ),
    Profile(
        "Jetson Xavier NX",
        845.0,
        8.0,
        44.1,
        84.3,
        f"384 Volta cores at 1.1 GHz, 8 GB: NVIDIA, Jetson Xavier NX data sheet DA-09366-001; {_MODULES}; {_FIXED}",
    ),
    Profile(
        "Jetson AGX Xavier",
        1410.0,
        32.0,
        44.1,
        84.3,
        f"512 Volta cores at 1.377 GHz, 32 GB: {_MODULES}; NVIDIA, Jetson Linux Developer Guide, power modes; {_FIXED}",
    ),
    Profile(
        "Raspberry Pi 5",
        153.6,
        8.0,
        44.1,
        84.3,
        "four Cortex-A76 at 2.4 GHz, 8 GB: Raspberry Pi, Raspberry Pi 5 product brief, "
        f"https://datasheets.raspberrypi.com/rpi5/raspberry-pi-5-product-brief.pdf; {_A76}; {_FIXED}",
    ),
    Profile(
        "phone (Snapdragon 855)",
        161.6,
        8.0,
        21.1,
        166.1,
        "one core at 2.84 and three at 2.42 GHz, derived from the Cortex-A76: "
        f"https://9to5google.com/2018/12/05/qualcomm-snapdragon-855-specs/; {_A76}; 8 GB as in many phones; {_MOBILE}",
    ),
)
"""Devices of a fleet, in equal shares."""


@dataclass(frozen=True)
class World:
    """What is modelled.

    Parameters
    ----------
    gflops : float
        Thousand million operations a second of matrix products on the machine that the costs were measured on.
    efficiency : float
        Share of a device's peak that it reaches in the same work.
    memory_share : float
        Share of a device's memory that training may take above the model; a device with too little takes no part.
    on_s, off_s : float
        Mean length of the exponential periods in which a device is there, and is not; work goes on where it was.
    deadline_s : float
        How long a synchronous round waits for the devices that it chose. A late one finishes its work before it is
        chosen again; with answers of fewer than half of them a round does not count.
    latency_s : float
        Of a message and its answer, beside their bytes.
    limit_s : float
        When a simulation is given up.
    profiles : sequence of Profile
        In equal shares.
    """

    gflops: float
    efficiency: float = 0.25
    memory_share: float = 0.1
    on_s: float = 3600.0
    off_s: float = 7200.0
    deadline_s: float = 600.0
    latency_s: float = 0.05
    limit_s: float = 30 * 86400.0
    profiles: Sequence[Profile] = PROFILES
