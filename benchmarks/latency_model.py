"""The latency model of this machine on networks that were no probes of it.

    python benchmarks/latency_model.py [--quick] [--spaces small,cifar-light,cifar-quarter] [--threads 1]

Several times in turn the machine makes its profile, as a device does when it joins, a model is fitted to the probes,
and random networks of the space are timed: half drawn uniformly, half spread from the smallest to the largest. Prints
a table on stderr and one line of JSON: for each space the median and the 90th percentile of the relative error, the
median that the model itself expected, that of a straight line through the probes' MACs for comparison, the share of
networks slower than the model's upper bound, and the seconds of a profile.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

import numpy as np
import torch
from common import options, show, space

from fednas_core.base.values import Arch
from fednas_core.devices.info import Probe
from fednas_core.devices.latency_model import LatencyModel
from fednas_core.devices.probes import measure_probes
from fednas_core.devices.profile import profile
from fednas_core.spaces.resnet import ResNetSpace

TRUTH_S = 12.0
"""Seconds for the networks of one turn: seven times each where they suffice."""
COLUMNS = ("median", "p90", "expected", "macs_only", "above_upper", "profile_s")


def fresh(space: ResNetSpace, probes: tuple[Probe, ...], count: int, rng: np.random.Generator) -> tuple[Arch, ...]:
    known = {probe.arch for probe in probes}
    found: dict[Arch, None] = {}
    while len(found) < count:
        between = space.decode(rng.binomial(space.gene_choices - 1, rng.random()))
        found |= dict.fromkeys(arch for arch in (space.sample(rng), between) if arch not in known)
    return tuple(found)[:count]


def line(space: ResNetSpace, probes: tuple[Probe, ...], archs: list[Arch]) -> np.ndarray:
    """Return the predictions of intercept and slope over MACs, fitted in relative error."""
    times = np.array([probe.median_ms for probe in probes])
    table = np.array([[1.0, space.cost(probe.arch).macs] for probe in probes])
    prices = np.linalg.lstsq(table / times[:, None], np.ones(len(times)), rcond=None)[0]
    return np.array([[1.0, space.cost(arch).macs] for arch in archs]) @ prices


def measured(space: ResNetSpace, turns: int, count: int, threads: int) -> dict[str, float]:
    errors, plain, above, expected, seconds = [], [], [], [], []
    rng = np.random.default_rng(1)
    for _ in range(turns):
        start = time.perf_counter()
        found = profile(space, threads=threads)
        seconds.append(time.perf_counter() - start)
        model = LatencyModel.fit(space, found.probes)
        expected.append(model.error)
        truth = measure_probes(space, torch.device("cpu"), TRUTH_S, fresh(space, found.probes, count, rng))
        times = np.array([probe.median_ms for probe in truth])
        archs = [probe.arch for probe in truth]
        errors += np.abs(np.array([model.predict_ms(arch) for arch in archs]) / times - 1).tolist()
        plain += np.abs(line(space, found.probes, archs) / times - 1).tolist()
        above += (times > [model.upper_ms(arch) for arch in archs]).tolist()
    values = (np.median(errors), np.percentile(errors, 90), np.median(expected), np.median(plain), np.mean(above))
    return dict(zip(COLUMNS, (*map(float, values), statistics.median(seconds)), strict=True))


def main() -> None:
    default = {"default": "small,cifar-light,cifar-quarter"}
    chosen = options(__doc__, spaces=default, threads={"type": int, "default": 1})
    torch.set_num_threads(chosen.threads)
    rows = {}
    print(f"{'space':18}" + "".join(f"{name:>13}" for name in COLUMNS) + f"{'load':>8}", file=sys.stderr)
    for name in chosen.spaces.split(","):
        rows[name] = measured(space(name, "group"), *((1, 20) if chosen.quick else (5, 40)), chosen.threads)
        cells = [f"{value:13.1%}" for value in list(rows[name].values())[:-1]] + [f"{rows[name]['profile_s']:13.2f}"]
        print(f"{name:18}" + "".join(cells) + f"{os.getloadavg()[0]:8.1f}", file=sys.stderr, flush=True)
    show({"benchmark": "latency_model", "relative_error": rows})


if __name__ == "__main__":
    main()
