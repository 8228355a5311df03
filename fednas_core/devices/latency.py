"""How long one forward pass takes on this machine, measured and not guessed."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of a forward pass: median, 10th and 90th percentile over `repeats`, and how it was measured."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    batch: int
    threads: int
    torch: str
    device: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


def measure(
    module: nn.Module,
    input_shape: Sequence[int],
    repeats: int = 50,
    warmup: int = 5,
    *,
    threads: int = 1,
    limit_s: float = 2.0,
) -> Latency:
    """Time forward passes of one image of `input_shape` (channels, height, width) in inference mode.

    Runs on the module's own device, on a copy in eval mode: neither the module nor torch's thread count is changed
    afterwards. Stops after `repeats` passes or `limit_s` seconds (warm-up included), whichever comes first, but never
    before one pass was timed.
    """
    network = copy.deepcopy(module).eval()
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    image = torch.full((1, *input_shape), 0.5, device=device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            times = _timed(lambda: network(image), max(1, repeats), warmup, limit_s)
    finally:
        torch.set_num_threads(before)
    return Latency(*percentiles(times), len(times), 1, threads, torch.__version__, device_name(device))


@torch.inference_mode()
def passes(network: nn.Module, image: torch.Tensor, count: int) -> list[float]:
    """Return the milliseconds of `count` forward passes of a network as it is."""
    return _timed(lambda: network(image), count, 0, math.inf)


def percentiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return median, 10th and 90th percentile of one or more numbers."""
    ordered = sorted(times)
    p10, p90 = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    return statistics.median(ordered), p10, p90


def device_name(device: torch.device) -> str:
    """Return ``cpu`` or the name of the accelerator, e.g. ``cuda (NVIDIA H200)``."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished what was asked of it (the CPU always has)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(forward: Callable[[], torch.Tensor], repeats: int, warmup: int, limit_s: float) -> list[float]:
    """Return the milliseconds of up to `repeats` calls, after up to `warmup` untimed ones."""
    end = time.perf_counter() + limit_s
    for _ in range(warmup):
        synchronize(forward().device)
        if time.perf_counter() > end:
            break
    times: list[float] = []
    while len(times) < repeats and not (times and time.perf_counter() > end):
        start = time.perf_counter_ns()
        synchronize(forward().device)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times
