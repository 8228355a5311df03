"""The latency model: how exact, how cautious, what it does with few, disturbed or absurd probes."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.base.errors import ConfigError
from fednas_core.base.values import Arch
from fednas_core.devices.info import Probe
from fednas_core.devices.latency_model import LatencyModel
from fednas_core.devices.probes import architectures
from fednas_core.spaces.layers import Conv
from fednas_core.spaces.registry import load
from fednas_core.spaces.resnet import ResNetSpace

SPACE = load("small")
rng = np.random.default_rng(0)
FRESH = [SPACE.sample(rng) for _ in range(200)]


def truth(space: ResNetSpace, arch: Arch) -> float:
    """A device whose layers cost alike in kind, but not in a straight line of MACs."""
    layers = [layer for layer in space.spec(arch).layers() if isinstance(layer, Conv)]
    return 0.05 + sum(0.01 + layer.macs * (1e-7 if layer.size > 2 else 4e-7) for layer in layers)


def probe(arch: Arch, ms: float, spread: float = 0.0) -> Probe:
    return Probe(arch, ms, ms * (1 - spread), ms * (1 + spread), 21, 1, 1, "2.14")


def model(
    count: int = 24, noise: Callable[[int], float] = lambda i: 1.0, space: ResNetSpace = SPACE, spread: float = 0.0
) -> LatencyModel:
    archs = architectures(space)[:count]
    return LatencyModel.fit(space, [probe(arch, truth(space, arch) * noise(i), spread) for i, arch in enumerate(archs)])


def error(found: LatencyModel) -> float:
    return float(np.median([abs(found.predict_ms(arch) / truth(SPACE, arch) - 1) for arch in FRESH]))


def test_a_device_without_noise_is_predicted_exactly() -> None:
    found = model()
    assert error(found) < 1e-3 and found.error is not None and found.error < 1e-3
    assert found.margin == 0.05 and len(found.held_out) == len(architectures(SPACE))
    assert found.upper_ms(SPACE.largest) == pytest.approx(1.05 * found.predict_ms(SPACE.largest))


@pytest.mark.parametrize(("count", "allowed"), [(3, 0.30), (6, 0.15), (12, 0.15)])
def test_fewer_probes_are_still_useful(count: int, allowed: float) -> None:
    assert error(model(count)) < allowed


def test_noise_is_averaged_and_reported() -> None:
    draw = np.random.default_rng(1).normal(1, 0.08, 24)
    found = model(noise=lambda i: float(draw[i]))
    assert error(found) < 0.08
    assert found.error is not None and 0.02 < found.error < 0.15 and found.margin > 0.06
    above = np.mean([truth(SPACE, arch) > found.upper_ms(arch) for arch in FRESH])
    assert above < 0.1


def test_a_burst_that_hits_a_few_probes_does_not_matter() -> None:
    assert error(model(noise=lambda i: 1.8 if i in (3, 9, 15) else 1.0)) < 0.02


def test_prices_come_from_undisturbed_passes_raised_to_the_usual_median() -> None:
    found = model(spread=0.2)
    assert error(found) < 1e-3, "every median is the same multiple of its 10th percentile"


def test_held_out_errors_are_those_of_models_that_did_not_see_the_probe() -> None:
    found, clean = model(noise=lambda i: 3.0 if i == 5 else 1.0), model()
    wrong = architectures(SPACE)[5]
    assert found.held_out[5] == pytest.approx(truth(SPACE, wrong), rel=0.1), "not drawn towards its own measurement"
    assert found.margin >= clean.margin


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_probes_say_so_and_count_double(count: int) -> None:
    found = model(count)
    assert found.error is None and found.held_out == () and found.margin == 1.0
    for arch in architectures(SPACE)[:count]:
        assert found.predict_ms(arch) >= truth(SPACE, arch) * 0.999, "never faster than what was measured"


def test_no_probes_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs probes"):
        LatencyModel.fit(SPACE, [])


def test_a_prediction_costs_a_small_part_of_making_the_network() -> None:
    """So that a search may ask for ten thousand; both by the processor's time, one after the other."""
    found, draw = model(), np.random.default_rng(2)
    archs = [SPACE.sample(draw) for _ in range(2_000)]
    start = time.process_time()
    for arch in archs[:100]:
        SPACE.build(arch)
    made = time.process_time()
    for arch in archs:
        found.predict_ms(arch)
    assert (time.process_time() - made) / 2_000 < (made - start) / 100 / 2


latencies = st.floats(1e-6, 1e8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 23), latencies, st.floats(0, 0.999)), min_size=1, max_size=24), st.data())
def test_whatever_a_device_claims_predictions_are_finite_and_rise(
    claims: list[tuple[int, float, float]], data: st.DataObject
) -> None:
    archs = architectures(SPACE)
    found = LatencyModel.fit(SPACE, [probe(archs[i % len(archs)], ms, spread) for i, ms, spread in claims])
    most = SPACE.encode(SPACE.largest)
    high = np.array([data.draw(st.integers(0, int(n))) for n in most])
    low = np.array([data.draw(st.integers(0, int(n))) for n in high])
    less, more = found.predict_ms(SPACE.decode(low)), found.predict_ms(SPACE.decode(high))
    assert 0 <= less <= more * (1 + 1e-9) < np.inf
