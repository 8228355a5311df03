"""What a device measures of itself once, in a second or two, and sends to the server."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from fednas_core.base.errors import ArchError
from fednas_core.base.values import Arch
from fednas_core.devices.containers import available_cores, granted_memory
from fednas_core.devices.info import Probe, Profile
from fednas_core.devices.latency import device_name, synchronize
from fednas_core.devices.probes import blank, measure_probes
from fednas_core.spaces.space import Elastic

BATCH = 16
PROBES_LIMIT = 200
"""A profile with more probes than this is refused."""
NAME_LIMIT = 100
"""Characters of the longest text in a profile, the name of an accelerator."""
THROUGHPUT_LIMIT_S = 0.3


def profile(space: Elastic, device: torch.device | str = "cpu", threads: int = 1) -> Profile:
    """Measure this machine: cores and memory that this process may use, precision, throughput and probes.

    Computes with `threads`; the global random state and torch's number of threads stay as they are. A pass that has
    begun is always finished, so a slow device exceeds the limits of time, by a few passes of the largest network at
    most.
    """
    device, before = torch.device(device), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        probes = measure_probes(space, device)
        macs_per_second = _macs_per_second(space, device)
    finally:
        torch.set_num_threads(before)
    free = available_memory()
    return Profile(
        cores=available_cores(),
        memory_mb=None if free is None else free // 1_000_000,
        precision="bf16" if native_bf16(device) else "fp32",
        macs_per_second=macs_per_second,
        latency_ms=next(probe.median_ms for probe in probes if probe.arch == space.largest),
        threads=threads,
        device=device_name(device),
        probes=probes,
    )


def to_json(found: Profile) -> dict[str, Any]:
    """Return a profile as a JSON object; `from_json` is the inverse."""
    probes = [_shallow(probe) | {"arch": probe.arch.to_json()} for probe in found.probes]
    return _shallow(found) | {"probes": probes}


def _shallow(value: Probe | Profile) -> dict[str, Any]:
    """Return the fields of a value; `asdict` copies what is in them, which takes a thousand profiles ten seconds."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def from_json(space: Elastic, told: Mapping[str, Any]) -> Profile:
    """Return the profile of a JSON object that anybody may have made.

    Raises `ValueError`, `KeyError` or `TypeError` for anything that is not a plausible profile of `space`.
    """
    if not isinstance(told["probes"], list) or len(told["probes"]) > PROBES_LIMIT:
        raise ValueError(f"probes: allowed is a list of at most {PROBES_LIMIT}")
    return Profile(
        cores=_whole(told, "cores", 1, 1e6),
        memory_mb=None if told["memory_mb"] is None else _whole(told, "memory_mb", 0, 1e9),
        precision=_text(told, "precision"),
        macs_per_second=_number(told, "macs_per_second", 1, 1e18),
        latency_ms=_milliseconds(told, "latency_ms"),
        threads=_whole(told, "threads", 1, 1e6),
        device=_text(told, "device"),
        probes=tuple(_probe(space, probe) for probe in told["probes"]),
    )


def _probe(space: Elastic, told: Mapping[str, Any]) -> Probe:
    try:
        arch = space.arch(told["arch"])
    except (ArchError, OverflowError) as error:
        raise ValueError(f"a probe's architecture: {error}") from None
    p10, median, p90 = (_milliseconds(told, key) for key in ("p10_ms", "median_ms", "p90_ms"))
    if not p10 <= median <= p90:
        raise ValueError(f"a probe's percentiles are out of order: {p10:g}, {median:g}, {p90:g} ms")
    repeats, batch, threads = (_whole(told, key, 1, 1e6) for key in ("repeats", "batch", "threads"))
    return Probe(arch, median, p10, p90, repeats, batch, threads, _text(told, "torch"))


def _number(told: Mapping[str, Any], key: str, low: float, high: float) -> float:
    value = told[key]
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{key}: found {str(value)[:NAME_LIMIT]}, allowed is a number from {low:g} to {high:g}")
    return float(value)


def _milliseconds(told: Mapping[str, Any], key: str) -> float:
    return _number(told, key, 1e-6, 1e8)


def _whole(told: Mapping[str, Any], key: str, low: float, high: float) -> int:
    value = _number(told, key, low, high)
    if not value.is_integer():
        raise ValueError(f"{key}: found {value}, allowed is a whole number")
    return int(value)


def _text(told: Mapping[str, Any], key: str) -> str:
    value = told[key]
    if not isinstance(value, str) or len(value) > NAME_LIMIT or not value.isprintable():
        raise ValueError(f"{key}: allowed is a text of at most {NAME_LIMIT} printable characters")
    return value


def native_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether `device` computes bfloat16 in hardware: AVX-512 BF16 or AMX on a CPU, Ampere or later on CUDA."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes of memory that are free on the machine and within the limit of this process's container.

    None where the system does not tell.
    """
    told = [free for free in (_free_memory(meminfo), granted_memory()) if free is not None]
    return min(told, default=None)


def _free_memory(meminfo: Path) -> int | None:
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES")
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _middle(space: Elastic) -> Arch:
    """Return the architecture whose every gene is the middle one of its choices."""
    return space.decode((space.gene_choices - 1) // 2)


def _macs_per_second(space: Elastic, device: torch.device) -> float:
    """Return training throughput: of the middle network, or of the smallest where a step of the middle takes long."""
    end = time.perf_counter() + THROUGHPUT_LIMIT_S
    rate = 0.0
    for arch in (space.smallest, _middle(space)):
        macs = 3 * BATCH * space.cost(arch).macs
        if rate and time.perf_counter() + 2 * macs / rate > end:
            break
        best, steps = math.inf, 0
        while steps < 6 and (steps < 2 or time.perf_counter() + best < end):
            best, steps = min(best, _step(space, arch, device)), steps + 1
        rate = macs / best
    return rate


def _step(space: Elastic, arch: Arch, device: torch.device) -> float:
    """Return the seconds of one forward and backward pass of `BATCH` images."""
    network = blank(space, arch, torch.zeros(space.cost(arch).params, device=device)).train()
    images = torch.full((BATCH, *space.signature.inputs), 0.5, device=device)
    labels = torch.zeros(BATCH, dtype=torch.int64, device=device)
    synchronize(device)
    start = time.perf_counter()
    torch.autograd.backward(functional.cross_entropy(network(images), labels))
    synchronize(device)
    return time.perf_counter() - start
