"""The probes of a device: a handful of architectures spread over a space, timed in turns."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from fednas_core.base.seeding import stream
from fednas_core.base.values import Arch
from fednas_core.devices.info import Probe
from fednas_core.devices.latency import passes, percentiles
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.packing import shapes, unpack

COUNT = 24
TURNS, LEAST_TURNS = 7, 3
"""Turns of each probe: what else the machine does for a moment hits one turn of many probes, not all of one."""
TURN_PASSES, TURN_MS = 3, 5.0
"""Timed passes of a turn, fewer if they would take longer than `TURN_MS` in all; an untimed one warms the caches."""
SLOW_MS = 40.0
"""A network slower than this has but one pass a turn."""
LIMIT_S, LONGEST_S = 1.5, 4.0
"""Seconds for seven turns, and for three of them where these are slow."""
SLOW_PASSES = 8
"""A slow device has the time of so many passes of the largest network, however long they take."""


def architectures(space: Elastic, count: int = COUNT) -> tuple[Arch, ...]:
    """Return the smallest and the largest architecture, then up to `count` - 2 between them, always the same.

    Each of these has a level of its own between 0 (smallest) and 1 (largest), at which its genes are drawn
    (binomial), so that together they spread over MACs and over every gene; their order is random, so that the first
    few of them do so too.
    """
    rng = stream(0, "probes")
    levels = rng.permutation((np.arange(count - 2) + 0.5) / (count - 2))
    between = [space.decode(rng.binomial(space.gene_choices - 1, level)) for level in levels]
    return tuple(dict.fromkeys([space.smallest, space.largest, *between]))


def measure_probes(
    space: Elastic, device: torch.device, limit_s: float = LIMIT_S, archs: tuple[Arch, ...] | None = None
) -> tuple[Probe, ...]:
    """Time forward passes of one image with torch's present number of threads, the probes taking turns.

    Each has seven turns, or as many as `limit_s` seconds hold; but three where four seconds hold them, or as long as
    eight passes of the largest network take. The smallest and the largest always have one; of the others those are
    left out whose first would end after that time. `archs` are by default those of `architectures`.
    """
    image = torch.full((1, *space.signature.inputs), 0.5, device=device)
    weights = torch.zeros(space.cost(space.largest).params, device=device)
    most = space.cost(space.largest).macs
    passes(blank(space, space.smallest, weights), image, 1)  # the first of a process starts threads and libraries
    networks: dict[Arch, nn.Module] = {}
    times: dict[Arch, list[float]] = {}
    start = time.perf_counter()
    for arch in archs or architectures(space):
        slowest_s = min(times.get(space.largest, [0.0])) / 1e3
        longest_s = max(LONGEST_S, SLOW_PASSES * slowest_s)
        needed_s = slowest_s * space.cost(arch).macs / most
        if arch in (space.smallest, space.largest) or time.perf_counter() - start + needed_s < longest_s:
            networks[arch] = blank(space, arch, weights)
            times[arch] = _turn(networks[arch], image)
    for turn in range(1, TURNS):
        end = start + (longest_s if turn < LEAST_TURNS else limit_s)
        for arch, network in networks.items():
            if time.perf_counter() + times[arch][-1] / 1e3 < end:
                times[arch] += _turn(network, image)
    threads, version = torch.get_num_threads(), str(torch.__version__)
    return tuple(Probe(arch, *percentiles(found), len(found), 1, threads, version) for arch, found in times.items())


def blank(space: Elastic, arch: Arch, weights: torch.Tensor) -> nn.Module:
    """Return the network of `arch` in eval mode, its parameters at the beginning of the flat tensor `weights`.

    Nothing is copied or drawn. Weights of zero are as good as any to be timed: nothing overflows, no number is
    denormal.
    """
    with torch.device("meta"):
        network = space.build(arch)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.to_empty(device=weights.device).reset_running_stats()
    parameters = unpack(weights[: space.cost(arch).params], shapes(space.whole(arch)))
    network.load_state_dict({**dict(network.named_buffers()), **parameters}, assign=True)
    return network.eval()


def _turn(network: nn.Module, image: torch.Tensor) -> list[float]:
    """Return the milliseconds of one to `TURN_PASSES` passes after an untimed one, or of a slow network's only pass."""
    first = passes(network, image, 1)
    return first if first[0] > SLOW_MS else passes(network, image, max(1, min(TURN_PASSES, int(TURN_MS / first[0]))))
