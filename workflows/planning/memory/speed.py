"""Estimate the speed of a way to spread a training, to rank ways and machines.

A step takes the longer of arithmetic and collectives, which overlap, and then the time of offloading: weights over the
bus for each gather, gradients back, and AdamW on the host, which reads and writes its numbers in ten passes. Latency,
stragglers and reading data are left out, so the estimate is too fast for large machines.
"""

from __future__ import annotations

from dataclasses import dataclass

from site_configs.library.site import Site
from workflows.planning.memory.estimate import FLOAT32, Choice, Machine, TrainingSetup
from workflows.planning.memory.model import ModelShape

ARITHMETIC, NETWORK, BUS, HOST = 0.40, 0.50, 0.65, 0.60  # shares of the peaks that training reaches
OFFLOADED_UPDATE_BYTES = 80  # per parameter: read and written by torch's AdamW on CPUs, one operation after another


@dataclass(frozen=True)
class Rates:
    """Peak rates of a machine by data sheet: operations and bytes per second, in one direction.

    Attributes:
        flops: of a device in bfloat16, dense.
        links: between the devices of a node, into one of them.
        network: of a node's adapters together.
        bus: between the host and one device.
        host: of a node's memory.
    """

    flops: float
    links: float
    network: float
    bus: float
    host: float


def rates_of(site: Site) -> Rates | None:
    """Return the peak rates of the machines of the reference paper; None for others.

    Data sheets of the A100 (312 Tflop/s, NVLink 300 GB/s a direction, PCIe 4), MI250X (383 Tflop/s on two devices,
    Infinity Fabric 36 GB/s to the host) and Max 1550 (839 Tflop/s on two tiles, PCIe 5 for both); Slingshot adapters of
    25 GB/s: 2, 4, 4 and 8 a node (facilities' documentation, August 2026).
    """
    known = {
        "polaris": Rates(312e12, 300e9, 50e9, 32e9, 205e9),
        "perlmutter": Rates(312e12, 300e9, 100e9, 32e9, 205e9),
        "frontier": Rates(191.5e12, 100e9, 100e9, 36e9, 205e9),
        "aurora": Rates(419e12, 100e9, 200e9, 32e9, 614e9),
    }
    return next((rates for name, rates in known.items() if name in site.machine.lower()), None)


@dataclass(frozen=True)
class Step:
    """Estimated seconds of one pass at one rank, and the speed of the site."""

    arithmetic_s: float
    collective_s: float
    offload_s: float
    samples_per_s: float  # of the whole site


def estimate(shape: ModelShape, setup: TrainingSetup, machine: Machine, choice: Choice, rates: Rates) -> Step:
    """Return the estimate for samples of the full length."""
    tokens = choice.micro_batch * setup.length
    arithmetic = tokens * operations(shape, choice) / (ARITHMETIC * rates.flops)
    moved = collective_bytes(shape, setup, choice) if machine.ranks > 1 else 0.0
    inside = moved / (NETWORK * rates.links)
    across = moved / (NETWORK * rates.network) if machine.nodes > 1 else 0.0
    collective = max(inside, across)
    offload = offload_s(shape, setup, machine, rates) if choice.offload else 0.0
    seconds = max(arithmetic, collective) + offload
    return Step(arithmetic, collective, offload, machine.ranks * choice.micro_batch / seconds)


def operations(shape: ModelShape, choice: Choice) -> float:
    """Return operations per token: per parameter two forward, two for the inputs' gradients, two for the weights'."""
    passes = (4 if shape.adapted else 6) + (2 if choice.checkpoint else 0)
    return float(passes * shape.parameters)


def collective_bytes(shape: ModelShape, setup: TrainingSetup, choice: Choice) -> float:
    """Return bytes into a device: gradients in float32, twice if every rank gets all of them; gathered weights."""
    gradients = FLOAT32 * shape.trained
    if choice.sharding in ("none", "ddp"):
        return 2.0 * gradients
    gathers = 2 if choice.sharding == "full_shard" else 1
    return float(gathers * setup.compute_bytes * shape.parameters + gradients)


def offload_s(shape: ModelShape, setup: TrainingSetup, machine: Machine, rates: Rates) -> float:
    """Return the seconds of a step that offloading adds: traffic over the bus, and the update on the host."""
    over_bus = (2 * setup.weight_bytes * shape.parameters + FLOAT32 * shape.trained) / machine.ranks
    update = OFFLOADED_UPDATE_BYTES * shape.trained / machine.nodes
    return over_bus / (BUS * rates.bus) + update / (HOST * rates.host)
