"""Limits: whose budget is whose, what is refused, and that what is allowed keeps the budget."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.base.errors import ConfigError
from fednas_core.devices.budgets import Allowance, Budget, budget_texts, parse_budget, parse_budgets
from fednas_core.devices.footprint import Room, training_bytes
from fednas_core.devices.info import ClientInfo, Probe, Profile
from fednas_core.devices.latency_model import LatencyModel
from fednas_core.devices.limits import client_budget_texts, limits
from fednas_core.devices.probes import architectures
from fednas_core.spaces.registry import load

SPACE = load("small")
LARGEST = SPACE.cost(SPACE.largest)
BUDGETS = {"phone": "1M", "tablet": "30%+2MB"}


def client(name: str, budget: str = "", slow: float | None = None) -> ClientInfo:
    """A client whose device, if it measured itself, takes `slow` ms a million MACs and 0.05 ms for anything."""
    if slow is None:
        return ClientInfo(name, 10, None, budget)
    times = [(arch, 0.05 + slow * SPACE.cost(arch).macs / 1e6) for arch in architectures(SPACE)]
    probes = tuple(Probe(arch, ms, ms, ms, 21, 1, 1, "2.14") for arch, ms in times)
    return ClientInfo(name, 10, Profile(4, 1000, "fp32", 1e9, 1.0, probes=probes), budget)


def test_the_device_has_the_first_word_then_budgets_are_dealt_in_turn() -> None:
    clients = [client("client-03"), client("client-00", "2M"), client("client-02"), client("client-01")]
    texts = client_budget_texts(BUDGETS, clients, "phone, tablet ,max")
    assert list(texts.items()) == [
        ("client-00", "2M"),
        ("client-01", "30%+2MB"),
        ("client-02", "max"),
        ("client-03", "1M"),
    ]


def test_who_is_away_does_not_change_the_budgets_of_others() -> None:
    everyone = [client(f"client-{i:02d}") for i in range(9)]
    whole = client_budget_texts(BUDGETS, everyone, "phone,tablet,500k,max")
    assert client_budget_texts(BUDGETS, everyone[4:], "phone,tablet,500k,max").items() <= whole.items()


def test_names_without_a_number_go_by_position() -> None:
    texts = client_budget_texts(BUDGETS, [client("zoe"), client("adam"), client("mia")], "phone,max")
    assert texts == {"adam": "1M", "mia": "max", "zoe": "1M"}


def test_without_any_budget_there_is_no_limit() -> None:
    assert limits(SPACE, BUDGETS, [client("a"), client("b")], "") == {"a": None, "b": None}


def test_every_kind_of_budget_becomes_a_limit() -> None:
    clients = [client("client-0"), client("client-1"), client("client-2", "0.3Mparams"), client("client-3", "1ms", 1.0)]
    found = limits(SPACE, BUDGETS, clients, "phone,tablet")
    assert list(found) == ["client-0", "client-1", "client-2", "client-3"]
    for name, limit in found.items():
        assert isinstance(limit, Allowance) and limit.budget.device == name
        assert limit.allows(SPACE.smallest) and not limit.allows(SPACE.largest)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("phone,,max", "entry 2 is empty"),
        ("phone,", "entry 2 is empty"),
        (
            "phone,desktop",
            r"entry 'desktop': allowed are a device of 'budgets' \(phone, tablet\), max, a number above 0",
        ),
        ("0M", "entry '0M'"),
        ("phone=1M", "entry 'phone=1M'"),
    ],
)
def test_a_wrong_setting_is_named_whoever_is_there(setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        limits(SPACE, BUDGETS, [client("client-00")], setting)


def test_a_wrong_budget_of_a_device_names_the_client() -> None:
    with pytest.raises(ConfigError, match="client 'edge-7': budget 'fast'"):
        limits(SPACE, {}, [client("edge-7", "fast")], "")


@pytest.mark.parametrize("known", [None, Profile(4, 1000, "fp32", 1e9, 1.0)])
def test_a_latency_that_nobody_measured_is_refused_with_advice(known: Profile | None) -> None:
    with pytest.raises(ConfigError, match=r"client 'x-1' has a budget of 20ms\+8MB.*limit it by MACs"):
        limits(SPACE, {"camera": "20ms+8MB"}, [ClientInfo("x-1", 10, known)], "camera")


def test_an_allowance_that_nobody_could_check_is_refused() -> None:
    with pytest.raises(ConfigError, match="20 ms.*measurements"):
        Allowance(Budget("d", latency_ms=20), SPACE)


def test_a_model_is_fitted_once_for_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    fit = LatencyModel.fit
    monkeypatch.setattr(LatencyModel, "fit", lambda *given: fits.append(1) or fit(*given))
    one = client("a-1", "3ms", 0.123)
    for _ in range(3):
        limits(SPACE, {}, [one, ClientInfo("a-2", 5, one.profile, "4ms")], "")
    assert len(fits) == 1


def test_the_text_of_each_budget() -> None:
    text = "phone=1M, tablet=30%+2MB,camera=20ms"
    assert budget_texts(text) == {"phone": "1M", "tablet": "30%+2MB", "camera": "20ms"}
    assert {b.device: str(b) for b in parse_budgets(text, 10**7)} == {
        "phone": "1 M MACs",
        "tablet": "3 M MACs + 2 MB",
        "camera": "20 ms",
    }
    for wrong in ("phone", "phone=1M,phone=2M", "=1M"):
        with pytest.raises(ConfigError, match="setting 'budgets'"):
            budget_texts(wrong)


shares = st.floats(0.01, 1.2)
kinds = st.sampled_from(["macs", "params", "bytes", "latency_ms"])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A budget of one or two kinds, between a hundredth of the largest network and more than it."""
    parts = []
    for kind in draw(st.lists(kinds, min_size=1, max_size=2, unique=True)):
        share = draw(shares)
        most = {"macs": LARGEST.macs, "params": LARGEST.params, "bytes": LARGEST.bytes, "latency_ms": 20}[kind]
        unit = {"macs": "", "params": "params", "bytes": "B", "latency_ms": "ms"}[kind]
        parts.append(f"{max(1, share * most):.3f}{unit}")
    return "+".join(parts)


@settings(max_examples=80, deadline=None)
@given(texts(), st.sampled_from([0.01, 0.4, 3.0, 20.0]), st.integers(0, 2**32))
def test_whatever_a_limit_allows_keeps_the_budget(text: str, slow: float, seed: int) -> None:
    one = client("client-00", "", slow)
    limit = limits(SPACE, {"this": text}, [one], "this")[one.name]
    budget, rng = parse_budget(text, LARGEST.macs), np.random.default_rng(seed)
    assert limit is not None
    for arch in [SPACE.smallest, SPACE.largest, *(SPACE.sample(rng) for _ in range(8))]:
        cost = SPACE.cost(arch)
        if limit.allows(arch):
            assert cost.macs <= budget.macs and cost.params <= budget.params and cost.bytes <= budget.bytes
            assert 0.05 + slow * cost.macs / 1e6 <= budget.latency_ms
        else:
            assert not budget.allows(cost, 1.2 * (0.05 + slow * cost.macs / 1e6)), "nor is more refused than must be"


@settings(max_examples=80, deadline=None)
@given(texts(), st.data(), st.sampled_from([0.01, 0.4, 3.0]))
def test_allowances_are_monotone(text: str, data: st.DataObject, slow: float) -> None:
    limit: Any = limits(SPACE, {}, [client("client-00", text, slow)], "")["client-00"]
    most = SPACE.encode(SPACE.largest)
    high = np.array([data.draw(st.integers(0, int(n))) for n in most])
    low = np.array([data.draw(st.integers(0, int(n))) for n in high])
    larger, smaller = SPACE.decode(high), SPACE.decode(low)
    if limit.allows(larger):
        assert limit.allows(smaller), "whatever is smaller in every gene fits too"
        grown = {k: getattr(limit.budget, k) * data.draw(st.floats(1, 3)) for k in ("macs", "params", "bytes")}
        wider = Budget("d", **grown, latency_ms=limit.budget.latency_ms * data.draw(st.floats(1, 3)))
        assert Allowance(wider, SPACE, limit.predict_ms).allows(larger), "and under every larger budget"
    assert Allowance(Budget("d"), SPACE).allows(larger) and math.isinf(Budget("d").macs)


def test_a_device_is_given_no_network_that_its_memory_cannot_hold() -> None:
    """With or without a budget of its own; one whose memory holds every network has no other limit for it."""
    needed = training_bytes(SPACE, SPACE.largest, 32) // 1_000_000 + 1
    little = training_bytes(SPACE, SPACE.smallest, 32) // 1_000_000 + 1
    devices = [("a", needed, ""), ("b", little, ""), ("c", little, "50%"), ("d", needed, "50%"), ("e", None, "")]
    told = [ClientInfo(name, 10, Profile(4, mb, "fp32", 1e9, 1.0), budget) for name, mb, budget in devices]
    found: dict[str, Any] = limits(SPACE, {}, told, "", batch=32)
    assert found["a"] is None and found["e"] is None, "memory that holds all, and unknown memory"
    assert found["b"].room == Room(little * 1_000_000, 32) == found["c"].room and found["d"].room is None
    assert not found["b"].allows(SPACE.largest) and found["b"].allows(SPACE.smallest)
    assert limits(SPACE, {}, told, "")["b"] is None, "nobody trains"
    full = [ClientInfo("f", 10, Profile(4, 0, "fp32", 1e9, 1.0))]
    none: dict[str, Any] = limits(SPACE, {}, full, "", batch=32)
    assert not none["f"].allows(SPACE.smallest), "no memory is free, which is not unknown"


@pytest.mark.parametrize("name", ["small", "cifar-light", "fedsup", "mobilenet", "cnn8"])
@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_the_footprint_is_about_what_training_keeps(name: str, norm: Any) -> None:
    """Compared with the tensors that torch saves for the backward pass."""
    space = load(name).with_norm(norm)
    network, batch = space.build(space.largest).train(), 4
    parameters = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(batch, space.in_channels, space.image_size, space.image_size))
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    found = training_bytes(space, space.largest, batch) - 16 * space.cost(space.largest).params
    assert 0.5 * saved < found < 4 * saved
