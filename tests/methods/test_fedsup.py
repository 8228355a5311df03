from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.method import CLIENTS, MethodContract, plan, replies, tell
from contracts.mobile import toy_mobile
from contracts.samples import supernet_of, toy_space

from fednas_core.base.errors import ConfigError
from fednas_core.base.settings import read
from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.devices.info import ClientInfo
from fednas_core.methods.fedavg import Schedule, SupernetAveraging
from fednas_core.methods.fedsup import Broadcast, fedsup, role_of
from fednas_core.methods.method import Assignment
from fednas_core.search.within import within
from fednas_core.subnets.merge import DampedMerge, Merging
from fednas_core.subnets.weightings import ByExamples
from fednas_core.training.settings import TrainSettings

SPACE = toy_space()


def method_of(space: Any = SPACE, rule: str = "overlap") -> SupernetAveraging:
    sampler, weighting = fedsup(read({"method": "fedsup"}), space, ())
    supernet = supernet_of(space)
    merge: Merging | None = DampedMerge(supernet) if rule == "damped" else None
    schedule = Schedule(6, lambda round: TrainSettings(), 7, "sandwich")
    return SupernetAveraging(space, supernet, sampler, weighting, schedule, merge)


class TestFedSup(MethodContract):
    @pytest.fixture(params=["damped", "mobile", "personal"])
    def make(self, request: pytest.FixtureRequest) -> Any:
        space = {"mobile": toy_mobile(), "personal": SPACE.with_personal(["head"])}.get(request.param, SPACE)
        return lambda: method_of(space, request.param)


def limited(name: str, **limits: float) -> ClientInfo:
    return ClientInfo(name, 10, limit=Allowance(Budget("d", **limits), SPACE))


def test_everybody_gets_the_supernet_and_trains_its_subnets() -> None:
    method = method_of()
    orders = plan(method, 0)
    assert {order.arch for order in orders.values()} == {SPACE.largest}
    assert {order.task for order in orders.values()} == {"sandwich"}
    assert method.weighting == ByExamples()


def test_a_device_gets_the_largest_network_within_its_limit() -> None:
    half = SPACE.cost(SPACE.largest).macs / 2
    clients = [
        limited("a", macs=half),
        limited("b", params=SPACE.cost(SPACE.smallest).params),
        limited("c", macs=10),
        ClientInfo("d", 10),
        limited("e"),
    ]
    chosen = Broadcast(SPACE).assign(0, clients, np.random.default_rng(0))
    assert chosen["d"] == chosen["e"] == Assignment(SPACE.largest, "largest")
    assert SPACE.cost(chosen["b"].arch) == SPACE.cost(SPACE.smallest)
    assert chosen["a"] == Assignment(within(SPACE, SPACE.largest, clients[0].limit) or SPACE.smallest, "between")
    assert SPACE.cost(chosen["a"].arch).macs <= half
    assert "c" not in chosen


def test_the_sampler_remembers_nothing() -> None:
    sampler = Broadcast(SPACE)
    sampler.trained("a", Assignment(SPACE.largest, "largest"))
    sampler.restore(sampler.state())
    assert sampler.state() == {}


def test_roles() -> None:
    roles = [role_of(SPACE, arch) for arch in (SPACE.largest, SPACE.smallest, SPACE.sample(np.random.default_rng(2)))]
    assert roles == ["largest", "smallest", "between"]


@pytest.mark.parametrize("rule", ["overlap", "damped"])
def test_without_limits_both_merges_are_federated_averaging_to_the_bit(rule: str) -> None:
    method, plain = method_of(rule=rule), method_of()
    answers = replies(plan(method, 0))
    plan(plain, 0)
    tell(method, 0, answers)
    tell(plain, 0, answers)
    total = sum(client.examples for client in CLIENTS)
    examples = {client.name: client.examples / total for client in CLIENTS}
    for name, tensor in method.weights().items():
        assert torch.equal(tensor, plain.weights()[name])
        wanted = sum(examples[reply.client] * reply.weights[name].double() for reply in answers)
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)


def lines_of_code(path: str) -> int:
    """Lines that are neither blank, comment nor docstring."""
    import ast

    source = Path(path).read_text()
    texts = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    skipped = {line for text in texts for line in range(text.lineno, (text.end_lineno or text.lineno) + 1)}
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in skipped for i, line in lines)


@pytest.mark.parametrize(
    "file", ["methods/fedsup", "methods/efedsup", "methods/fedper", "tasks/sandwich", "tasks/personal"]
)
def test_a_method_fits_on_a_page(file: str) -> None:
    root = Path(__file__).parents[2] / "fednas_core"
    assert lines_of_code(str(root / f"{file}.py")) <= 80


def test_a_step_that_trains_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sample.inner' = 0 and 'sample.sandwich' = false leave no network"):
        fedsup(read({"method": "fedsup", "sample.inner": 0, "sample.sandwich": False}), SPACE, ())
