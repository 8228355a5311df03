"""What a container grants a process, read from Linux control groups, version 2 or 1: a share of cores, memory.

Without torch: supervisors and whoever only hands messages over ask here too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, granted_cores() or cores)


def granted_cores(mount: Path = MOUNT, own: Path = OWN) -> int | None:
    """Return the number of cores that the quota amounts to, rounded up, at least 1; None where there is no quota."""
    quotas = [_share(_text(folder / "cpu.max").split()) for folder in _folders(mount, own, "")]
    for folder in _folders(mount, own, "cpu"):
        quotas.append(_share([_text(folder / f"cpu.cfs_{key}_us") for key in ("quota", "period")]))
    least = min(quotas, default=math.inf)
    return max(1, math.ceil(least)) if least < math.inf else None


def granted_memory(mount: Path = MOUNT, own: Path = OWN) -> int | None:
    """Return the bytes that may still be used (file cache counts as free); None where nothing limits them."""
    left = []
    for controller, limit, usage, prefix in (
        ("", "memory.max", "memory.current", ""),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        for folder in _folders(mount, own, controller):
            most = _number(_text(folder / limit))
            if most < _UNLIMITED:
                stat = _text(folder / "memory.stat")
                files = _value(stat, f"{prefix}inactive_file") + _value(stat, f"{prefix}active_file")
                used = _number(_text(folder / usage) or "0") - files
                left.append(max(0, int(most - used)))
    return min(left, default=None)


def memory_limit(mount: Path = MOUNT, own: Path = OWN) -> int | None:
    """Return the bytes that this process's container may use in all; None where nothing limits them."""
    most = [
        _number(_text(folder / name))
        for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes"))
        for folder in _folders(mount, own, controller)
    ]
    return min((int(limit) for limit in most if limit < _UNLIMITED), default=None)


def out_of_memory_kills(mount: Path = MOUNT, own: Path = OWN, machine: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes the system has ended for lack of memory: a count that only means something by rising.

    It counts those of this process's group, of the groups above it and of the machine, some of them more than once.
    """
    files = [machine]
    for controller, name in (("", "memory.events"), ("memory", "memory.oom_control")):
        files += [folder / name for folder in _folders(mount, own, controller)]
    return int(sum(_value(_text(file), "oom_kill") for file in files))


_UNLIMITED = 2.0**60
"""Version 1 says "no limit" by a number of bytes near the greatest of 64 bits."""


def _folders(mount: Path, own: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of those above it: version 2 for controller '', else version 1."""
    root = mount / controller
    for line in _text(own).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controller in controllers.split(","):
            group = PurePosixPath(path)
            for part in (group, *group.parents):
                yield root / str(part).lstrip("/")
            return
    yield root


def _share(quota: list[str]) -> float:
    """Return cores from ``[quota, period]`` in microseconds; infinity for ``max``, -1 or anything else."""
    if len(quota) != 2:
        return math.inf
    most, period = map(_number, quota)
    return most / period if most > 0 and 0 < period < math.inf else math.inf


def _number(text: str) -> float:
    text = text.strip()
    return float(text) if text.lstrip("-").isdecimal() else math.inf


def _value(table: str, key: str) -> float:
    found = (line.split() for line in table.splitlines())
    return next((_number(parts[1]) for parts in found if len(parts) == 2 and parts[0] == key), 0.0)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
