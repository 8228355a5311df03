"""The latency model in mobile spaces: depthwise convolutions, squeeze-excite and resolutions have their prices."""

from __future__ import annotations

import numpy as np
import pytest
from contracts.mobile import toy_mobile

from fednas_core.base.values import Arch
from fednas_core.devices.info import Probe
from fednas_core.devices.latency_model import LatencyModel
from fednas_core.devices.probes import architectures
from fednas_core.spaces.layers import Conv, Depthwise, SqueezeExcite
from fednas_core.spaces.mobilenet import MobileNetSpace
from fednas_core.spaces.registry import load

SPACES = {"mobilenet": load("mobilenet"), "fedsup": load("fedsup")}


def truth(space: MobileNetSpace, arch: Arch) -> float:
    """A device on which a depthwise multiply-accumulate takes ten times as long as an ordinary one."""
    total = 0.05
    for layer in space.layers(arch):
        if isinstance(layer, Conv):
            total += 0.01 + 1e-7 * layer.macs
        elif isinstance(layer, Depthwise):
            total += 0.02 + 1e-6 * layer.macs
        elif isinstance(layer, SqueezeExcite):
            total += 0.03 + 1e-7 * layer.channels * layer.size**2
    return total


def fitted(space: MobileNetSpace, count: int = 24) -> LatencyModel:
    archs = architectures(space)[:count]
    probes = [Probe(arch, ms, ms, ms, 21, 1, 1, "2.14") for arch in archs for ms in [truth(space, arch)]]
    return LatencyModel.fit(space, probes)


@pytest.mark.parametrize("name", SPACES)
def test_a_device_without_noise_is_predicted(name: str) -> None:
    space, rng = SPACES[name], np.random.default_rng(0)
    found = fitted(space)
    errors = [abs(found.predict_ms(arch) / truth(space, arch) - 1) for arch in (space.sample(rng) for _ in range(200))]
    assert np.median(errors) < 0.01 and found.error is not None and found.error < 0.02


def test_sizes_have_prices_of_their_own_only_where_there_is_one_resolution() -> None:
    elastic, fixed = fitted(SPACES["mobilenet"]), fitted(SPACES["fedsup"])
    assert {size for _, size in elastic.prices} == {0}
    assert {size for _, size in fixed.prices} == {0, 2, 4, 8, 16}
    kinds = {"layers", "macs", "activations", "parameters", "depthwise layers", "depthwise macs", "squeeze layers"}
    assert {what for what, _ in elastic.prices} == {"network", *kinds}


def test_a_depthwise_multiply_accumulate_costs_what_it_costs() -> None:
    prices = fitted(SPACES["mobilenet"]).prices
    assert prices["depthwise macs", 0] == pytest.approx(1e-6, rel=0.2)
    assert prices["macs", 0] == pytest.approx(1e-7, rel=0.2)


@pytest.mark.parametrize("count", [2, 8, 24])
@pytest.mark.parametrize("space", [toy_mobile(), load("mobilenet"), load("fedsup")], ids=["toy", "mobilenet", "fedsup"])
def test_predictions_rise_with_every_gene(space: MobileNetSpace, count: int) -> None:
    found, rng = fitted(space, count), np.random.default_rng(3)
    for _ in range(30):
        high = rng.integers(0, space.gene_choices)
        low = rng.integers(0, high + 1)
        less, more = found.predict_ms(space.decode(low)), found.predict_ms(space.decode(high))
        assert 0 <= less <= more * (1 + 1e-9)


def test_a_larger_kernel_takes_longer_even_by_a_single_probe() -> None:
    space = load("mobilenet")
    found, genes = fitted(space, 1), space.smallest.to_json()
    larger = space.arch({**genes, "k": [1, *genes["k"][1:]]})
    assert (
        found.predict_ms(larger)
        > found.predict_ms(space.smallest)
        == pytest.approx(truth(space, space.smallest), rel=0.1)
    )
