from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.method import CLIENTS, plan, replies, tell
from contracts.samples import answer, supernet_of, toy_space

from fednas_core.base.errors import RunError
from fednas_core.base.seeding import derive
from fednas_core.base.values import State
from fednas_core.devices.info import ClientInfo
from fednas_core.methods.fedavg import Everyone, Schedule, SupernetAveraging
from fednas_core.methods.method import Assignment
from fednas_core.subnets.weightings import ByExamples, MaxNet
from fednas_core.training.settings import TrainSettings

SPACE = toy_space()


def averaging(weighting: ByExamples | MaxNet | None = None) -> SupernetAveraging:
    weighting = weighting or ByExamples()
    return SupernetAveraging(
        SPACE, supernet_of(SPACE), Everyone(SPACE.largest), weighting, Schedule(3, lambda round: TrainSettings(), 7)
    )


def test_a_full_plan_is_federated_averaging_by_hand() -> None:
    method = averaging()
    for round in range(2):
        answers = replies(plan(method, round), round)
        examples = {client.name: client.examples for client in CLIENTS}
        total = sum(examples.values())
        wanted = {
            name: sum(examples[r.client] / total * r.weights[name].double().numpy() for r in answers)
            for name in answers[0].weights
        }
        tell(method, round, answers)
        for name, tensor in method.weights().items():
            np.testing.assert_allclose(tensor.numpy(), wanted[name], rtol=1e-5, atol=1e-6)


def test_clients_that_fail_leave_their_share_to_the_others() -> None:
    method = averaging()
    answers = replies(plan(method, 0))[:2]
    tell(method, 0, answers)
    a, b = (client.examples for client in CLIENTS[:2])
    for name, tensor in method.weights().items():
        wanted = (a * answers[0].weights[name].double() + b * answers[1].weights[name].double()) / (a + b)
        np.testing.assert_allclose(tensor.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_max_net_weighs_the_first_largest() -> None:
    method = averaging(MaxNet(0.7, 0.7, 1))
    answers = replies(plan(method, 0))
    tell(method, 0, answers)
    shares = [0.7, 0.075, 0.075, 0.075, 0.075]
    name = "head.weight"
    wanted = sum(share * reply.weights[name].double() for share, reply in zip(shares, answers, strict=True))
    torch.testing.assert_close(method.weights()[name].double(), wanted, rtol=1e-5, atol=1e-6)


def test_seeds_of_clients_come_from_run_round_and_name() -> None:
    orders = plan(averaging(), 2)
    assert {name: order.seed for name, order in orders.items()} == {
        client.name: derive(7, 2, client.name, "train") for client in CLIENTS
    }


def test_the_supernet_is_trained_in_place() -> None:
    supernet = supernet_of(SPACE)
    method = SupernetAveraging(
        SPACE, supernet, Everyone(SPACE.smallest), ByExamples(), Schedule(3, lambda round: TrainSettings(), 7)
    )
    orders = plan(method, 0, CLIENTS[:1])
    ones = {name: torch.ones_like(tensor) for name, tensor in next(iter(orders.values())).weights.items()}
    tell(method, 0, [answer(next(iter(orders.values())), ones)])
    assert method.weights()["head.weight"] is supernet["head.weight"]
    assert (supernet["head.weight"][:, :16] == 1).all() and not (supernet["head.weight"][:, 16:] == 1).any()


def test_everyone_trains_the_same() -> None:
    sampler = Everyone(SPACE.smallest)
    chosen = sampler.assign(0, [ClientInfo("a", 1), ClientInfo("b", 1)], np.random.default_rng(1))
    assert chosen == {"a": Assignment(SPACE.smallest, "largest"), "b": Assignment(SPACE.smallest, "largest")}
    sampler.trained("a", chosen["a"])
    assert sampler.state() == {}
    sampler.restore({})


def test_rows_of_the_summary() -> None:
    method = averaging()
    summary = tell(method, 0, replies(plan(method, 0)))
    cost = SPACE.cost(SPACE.largest)
    row = summary.rows[1]
    assert row == {
        "client": "client-01", "role": "largest", "tier": "", "macs": cost.macs, "params": cost.params,
        "examples": 21, "loss": 2.0, "accuracy": 0.5, "client_macs": 1000, "seconds": 0.1,
        "bytes_up": 400, "bytes_down": 400,
    }  # fmt: skip


def test_restoring_keeps_the_tensors_of_the_supernet() -> None:
    method = averaging()
    held = method.weights()["head.bias"]
    method.restore(State({n: torch.full_like(t, 2.0) for n, t in method.weights().items()}, {"sampler": {}}))
    assert (held == 2).all() and method.weights()["head.bias"] is held


@pytest.mark.parametrize("round", [0, 5])
def test_an_empty_round_has_no_rows(round: int) -> None:
    method = averaging()
    plan(method, round)
    assert tell(method, round, []).rows == ()


@pytest.mark.parametrize(
    "state",
    [
        State({}, {"sampler": {}}),
        State({"head.bias": torch.zeros(3)}, {"sampler": {}}),
        State({**supernet_of(SPACE), "head.bias": torch.zeros(4)}, {"sampler": {}}),
        State(supernet_of(SPACE), {}),
    ],
    ids=["empty", "too few", "another shape", "no sampler"],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(state: State) -> None:
    method = averaging()
    before = {n: t.clone() for n, t in method.weights().items()}
    with pytest.raises(RunError, match="the checkpoint does not fit the settings"):
        method.restore(state)
    assert all(torch.equal(t, before[n]) for n, t in method.weights().items())
