"""What a device measures of itself once, in well under a second, and sends to the server."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from fednas_core.devices.latency import measure, synchronize
from fednas_core.protocol import Profile
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.values import Arch

BATCH = 16
THROUGHPUT_LIMIT_S = 0.3
LATENCY_LIMIT_S = 0.5


def profile(space: ResNetSpace, device: torch.device | str = "cpu") -> Profile:
    """Measure this machine: cores this process may use, free memory, precision, throughput and latency.

    The global random state and torch's thread count stay as they are. A pass that has begun is always finished, so a
    slow device exceeds the limits by at most two training steps and two forward passes.
    """
    device = torch.device(device)
    largest = _network(space, space.largest, device)
    shape = (space.in_channels, space.image_size, space.image_size)
    latency = measure(largest, shape, repeats=20, warmup=2, limit_s=LATENCY_LIMIT_S)
    return Profile(
        cores=available_cores(),
        memory_mb=available_memory_mb(),
        precision="bf16" if native_bf16(device) else "fp32",
        macs_per_second=_macs_per_second(space, device),
        latency_ms=latency.median_ms,
    )


def native_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether `device` computes bfloat16 in hardware: AVX-512 BF16 or AMX on a CPU, Ampere or later on CUDA."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_mb(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the memory that is free for use in MB (10⁶ bytes); 0 where the system does not tell."""
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // 1_000_000
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES")
        return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000
    except (AttributeError, ValueError, OSError):
        return 0


def _network(space: ResNetSpace, arch: Arch, device: torch.device) -> nn.Module:
    """Return the network with plain constant weights: no random numbers are drawn, no time is spent on drawing them."""
    with torch.device("meta"):
        network = space.build(arch)
    network = network.to_empty(device=device)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0 / max(1, parameter[0].numel()))
        for buffer in network.buffers():
            buffer.fill_(1)
    return network.train()


def _middle(space: ResNetSpace) -> Arch:
    """Return the architecture whose every gene is the middle one of its choices."""
    return space.decode((space.gene_choices - 1) // 2)


def _macs_per_second(space: ResNetSpace, device: torch.device) -> float:
    """Return training throughput: of the middle network, or of the smallest where a step of the middle takes long."""
    end = time.perf_counter() + THROUGHPUT_LIMIT_S
    rate = 0.0
    for arch in (space.smallest, _middle(space)):
        macs = 3 * BATCH * space.cost(arch).macs
        if rate and time.perf_counter() + 2 * macs / rate > end:
            break
        network = _network(space, arch, device)
        _step(space, network, device)
        best, steps = _step(space, network, device), 1
        while steps < 5 and time.perf_counter() + best < end:
            best, steps = min(best, _step(space, network, device)), steps + 1
        rate = macs / best
    return rate


def _step(space: ResNetSpace, network: nn.Module, device: torch.device) -> float:
    """Return the seconds of one forward and backward pass of `BATCH` images."""
    images = torch.full((BATCH, space.in_channels, space.image_size, space.image_size), 0.5, device=device)
    labels = torch.zeros(BATCH, dtype=torch.int64, device=device)
    synchronize(device)
    start = time.perf_counter()
    torch.autograd.backward(functional.cross_entropy(network(images), labels))
    synchronize(device)
    return time.perf_counter() - start
