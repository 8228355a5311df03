"""Probes: which architectures, how they are timed, and that a slow device is left alone."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fednas_core.devices import probes
from fednas_core.devices.probes import COUNT, architectures, blank, measure_probes
from fednas_core.spaces.chain import ChainSpace
from fednas_core.spaces.registry import load, names
from fednas_core.spaces.resnet import ResNetSpace

SPACE = ResNetSpace("tiny", 8, (8, 16), (1, 2), (1.0, 2.0), (0.5, 1.0), 1, image_size=8, in_channels=1)
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", names())
def test_probes_spread_over_macs_and_genes(name: str) -> None:
    space = load(name)
    archs = architectures(space)
    assert archs == architectures(space) and len(set(archs)) == len(archs)
    assert archs[:2] == (space.smallest, space.largest) and 20 <= len(archs) <= COUNT
    macs = np.log(sorted(space.cost(arch).macs for arch in archs))
    gaps = [high - low for low, high in pairwise(macs)]
    assert max(gaps) < 0.35 * (macs[-1] - macs[0]), "no wide gap in MACs"
    rows = np.stack([space.encode(arch) for arch in archs])
    if isinstance(space, ChainSpace):
        columns = rows
    else:
        columns = np.hstack([rows[:, : len(space.stages)], rows[:, -len(space.stages) - 1 :]])  # depths and widths
    for column in columns.T:
        assert len(np.unique(column)) >= min(3, column.max() + 1), "every gene varies"


def test_every_probe_says_how_it_was_measured() -> None:
    found = measure_probes(SPACE, CPU)
    assert [probe.arch for probe in found] == list(architectures(SPACE))
    for probe in found:
        assert 0 < probe.p10_ms <= probe.median_ms <= probe.p90_ms
        assert (probe.batch, probe.threads, probe.torch) == (1, torch.get_num_threads(), str(torch.__version__))
        assert probe.repeats >= 3


def fake(monkeypatch: pytest.MonkeyPatch, ms_per_mac: float) -> dict[str, float]:
    """Let networks take exactly so long, on a clock of their own; return what passed, by the sum and by passes."""
    spent = {"s": 0.0, "passes": 0.0}

    def passes(network: nn.Module, image: torch.Tensor, count: int) -> list[float]:
        ms = ms_per_mac * sum(p.numel() for p in network.parameters())
        spent["s"] += count * ms / 1e3
        spent["passes"] += count
        return [ms] * count

    monkeypatch.setattr(probes, "passes", passes)
    monkeypatch.setattr(time, "perf_counter", lambda: spent["s"])
    return spent


def test_a_fast_device_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = fake(monkeypatch, 1e-7)
    found = measure_probes(SPACE, CPU)
    assert {probe.repeats for probe in found} == {21} and spent["s"] < 1.0


def test_a_slow_device_takes_no_longer_than_eight_of_its_slowest_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = SPACE.cost(SPACE.largest).params
    spent = fake(monkeypatch, 2_000 / largest)  # two seconds a pass
    found = measure_probes(SPACE, CPU)
    assert {SPACE.smallest, SPACE.largest} <= {probe.arch for probe in found}
    assert len(found) >= 10 and spent["s"] < 8 * 2 + 2 and all(probe.repeats <= 2 for probe in found)


def test_an_even_slower_device_measures_the_ends_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, 1.0)
    monkeypatch.setattr(probes, "SLOW_PASSES", 0)
    found = measure_probes(SPACE, CPU)
    assert [(probe.arch, probe.repeats) for probe in found] == [(SPACE.smallest, 1), (SPACE.largest, 1)]


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_a_blank_network_is_the_real_one_without_weights_of_its_own(norm: str) -> None:
    space = ResNetSpace("t", 8, (8, 16), (1, 2), (1.0, 2.0), (0.5, 1.0), 1, image_size=8, norm=norm)  # type: ignore[arg-type]
    weights = torch.zeros(space.cost(space.largest).params)
    network, real = blank(space, space.smallest, weights), space.build(space.smallest)
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    storages = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    assert storages == {weights.untyped_storage().data_ptr()} and not network.training
    with torch.inference_mode():
        assert torch.isfinite(network(torch.full((1, 3, 8, 8), 0.5))).all()
