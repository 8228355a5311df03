"""What every method promises: tests to inherit with a fixture `make` that returns a fresh method at each call."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from contracts.records import recorded
from contracts.samples import answer

from fednas_core.base.seeding import stream
from fednas_core.base.values import State
from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import Answer, Order
from fednas_core.exchange.results import Trained
from fednas_core.methods.method import Ask, Method, Told
from fednas_core.methods.story import ClientRow
from fednas_core.subnets.packing import shapes

CLIENTS = tuple(ClientInfo(f"client-{i:02d}", 20 + 7 * i) for i in range(5))
Make = Callable[[], Method]


def asked(method: Method, round: int, clients: tuple[ClientInfo, ...] = CLIENTS) -> Ask:
    ask = method.ask(round, 0, clients, stream(3, round, "plan"))
    assert ask is not None
    return ask


def orders_of(ask: Ask) -> Mapping[str, Order]:
    return {order.client: order for order in ask.orders}


def plan(method: Method, round: int, clients: tuple[ClientInfo, ...] = CLIENTS) -> Mapping[str, Order]:
    return orders_of(asked(method, round, clients))


def tell(method: Method, round: int, answers: Iterable[Answer]) -> Told:
    """Tell a method what came of the training of a round."""
    return method.tell(Ask(round, ()), answers)


def replies(orders: Mapping[str, Order], seed: int = 0) -> list[Answer]:
    """Answers as of clients that trained: each tensor moved by noise of its own."""
    out = []
    for i, order in enumerate(orders.values()):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        tensors = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in order.weights.items()}
        out.append(answer(order, tensors, examples=20 + i, loss=1.0 + i))
    return out


def by_name(told: Told) -> list[ClientRow]:
    return sorted(told.rows, key=lambda row: row.client)


def live(method: Method, rounds: int) -> None:
    for round in range(rounds):
        tell(method, round, iter(replies(plan(method, round), round)))


def snapshot(method: Method) -> State:
    """The state as a checkpoint would keep it: copied, and through JSON."""
    state = method.state()
    return State({n: t.clone() for n, t in state.tensors.items()}, json.loads(json.dumps(state.data)))


def same_orders(one: Mapping[str, Order], two: Mapping[str, Order]) -> None:
    assert set(one) == set(two)
    for name in one:
        a, b = one[name], two[name]
        assert (a.client, a.round, a.task, a.arch, a.params, a.seed) == (
            b.client, b.round, b.task, b.arch, b.params, b.seed,
        )  # fmt: skip
        assert list(a.weights) == list(b.weights)
        assert all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)


class MethodContract:
    """Inherit and give a fixture `make`; the method ends after `rounds` rounds and trains subnets of `space`."""

    rounds = 6

    def test_every_client_has_an_order_of_its_own(self, make: Make) -> None:
        method = make()
        orders = plan(method, 0)
        assert set(orders) == {client.name for client in CLIENTS}
        assert len({id(order) for order in orders.values()}) == len(CLIENTS)
        assert len({order.seed for order in orders.values()}) == len(CLIENTS)
        for name, order in orders.items():
            assert order.client == name and order.round == 0
            wanted = shapes(method.space.plan(order.arch))  # type: ignore[attr-defined]
            assert {n: tuple(t.shape) for n, t in order.weights.items()} == wanted

    def test_orders_hold_views_of_the_supernet(self, make: Make) -> None:
        method = make()
        for order in plan(method, 0).values():
            for name, tensor in order.weights.items():
                whole = method.weights()[name]
                assert tensor.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()

    def test_the_plan_depends_on_generator_and_state_alone(self, make: Make) -> None:
        same_orders(plan(make(), 0), plan(make(), 0))
        one, two = make(), make()
        live(one, 2)
        live(two, 2)
        same_orders(plan(one, 2), plan(two, 2))

    def test_seeds_differ_between_rounds(self, make: Make) -> None:
        method = make()
        first = {order.seed for order in plan(method, 0).values()}
        tell(method, 0, [])
        assert not first & {order.seed for order in plan(method, 1).values()}

    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_restore_continues_identically(self, make: Make, after: int) -> None:
        method = make()
        live(method, after)
        again = make()
        again.restore(snapshot(method))
        for round in range(after, after + 3):
            orders, others = plan(method, round), plan(again, round)
            same_orders(orders, others)
            assert tell(method, round, replies(orders)) == tell(again, round, replies(others))
        assert snapshot(method).data == snapshot(again).data
        for name, tensor in method.weights().items():
            assert torch.equal(tensor, again.weights()[name])

    def test_the_state_is_that_of_the_moment(self, make: Make) -> None:
        method = make()
        live(method, 1)
        data = copy.deepcopy(method.state().data)
        snapshot_ = snapshot(method)
        live(method, 2)
        assert snapshot_.data == data

    def test_a_round_without_replies_changes_no_weight(self, make: Make) -> None:
        method = make()
        before = {n: t.clone() for n, t in method.weights().items()}
        sampler = snapshot(method).data
        plan(method, 0)
        summary = tell(method, 0, iter(()))
        assert summary.rows == () and not summary.story
        assert all(torch.equal(t, before[n]) for n, t in method.weights().items())
        assert snapshot(method).data == sampler

    def test_missing_replies_are_no_obstacle(self, make: Make) -> None:
        method = make()
        summary = tell(method, 0, replies(plan(method, 0))[1:3])
        assert len(summary.rows) == 2
        plan(method, 1)

    def test_second_and_unknown_replies_are_passed_over(self, make: Make) -> None:
        one, two = make(), make()
        answers = replies(plan(one, 0))
        clean = tell(one, 0, answers)
        plan(two, 0)
        stranger = answer(next(iter(plan(make(), 0).values())), client="stranger", loss=1e9)
        dirty = tell(two, 0, [stranger, *(reply for reply in answers for _ in range(2)), stranger])
        assert clean == dirty
        assert all(torch.equal(t, two.weights()[n]) for n, t in one.weights().items())
        assert snapshot(one).data == snapshot(two).data

    def test_a_reply_of_the_last_round_is_too_late(self, make: Make) -> None:
        method = make()
        first = replies(plan(method, 0))
        tell(method, 0, first[:-1])
        summary = tell(method, 1, [first[-1]])
        assert summary.rows == ()

    def test_order_of_replies_is_irrelevant(self, make: Make) -> None:
        one, two = make(), make()
        answers = replies(plan(one, 0))
        plan(two, 0)
        assert by_name(tell(one, 0, answers)) == by_name(tell(two, 0, reversed(answers)))
        for name, tensor in one.weights().items():
            torch.testing.assert_close(tensor, two.weights()[name], rtol=1e-5, atol=1e-6)
        assert snapshot(one).data == snapshot(two).data

    def test_what_everybody_trains_is_federated_averaging(self, make: Make) -> None:
        """A full plan, or the part of the supernet that lies in everybody's: the mean of all, weighted."""
        method: Any = make()
        orders = plan(method, 0)
        answers = {reply.client: reply for reply in replies(orders)}
        shares = {name: weight for name, (_, _, weight) in method._open.items()}
        assert sum(shares.values()) == pytest.approx(1) and set(shares) == set(answers)
        tell(method, 0, answers.values())
        whole = {name: torch.zeros_like(tensor) for name, tensor in method.weights().items()}
        cover = {name: torch.zeros_like(tensor) for name, tensor in method.weights().items()}
        for name, reply in answers.items():
            for tensor, region in method.space.plan(reply.arch).items():
                whole[tensor][region] += shares[name] * reply.weights[tensor]
                cover[tensor][region] += 1
        common = {name: count == len(answers) for name, count in cover.items()}
        assert any(bool(part.any()) for part in common.values())
        for name, part in common.items():
            torch.testing.assert_close(method.weights()[name][part], whole[name][part], rtol=1e-5, atol=1e-6)

    def test_a_row_tells_of_each_answer(self, make: Make) -> None:
        method = make()
        answers = replies(plan(method, 0))
        rows = {row.client: row for row in tell(method, 0, answers).rows}
        assert set(rows) == {reply.client for reply in answers}
        for reply in answers:
            row, result = rows[reply.client], reply.result
            assert isinstance(result, Trained)
            assert (row.examples, row.loss, row.metrics) == (reply.examples, result.loss, {"accuracy": result.accuracy})
            assert (row.bytes_up, row.bytes_down, row.client_macs) == (400, 400, 1000)
            assert json.loads(json.dumps(recorded(row))) == recorded(row)

    def test_a_round_has_an_end(self, make: Make) -> None:
        method = make()
        tell(method, 0, replies(plan(method, 0)))
        turns = [method.ask(0, turn, CLIENTS, stream(3, 0, "plan", turn)) for turn in range(1, 4)]
        assert turns[-1] is None

    def test_a_cohort_of_one(self, make: Make) -> None:
        method = make()
        orders = plan(method, 0, CLIENTS[2:3])
        (reply,) = replies(orders)
        tell(method, 0, [reply])
        for name, region in method.space.plan(reply.arch).items():  # type: ignore[attr-defined]
            assert torch.equal(method.weights()[name][region], reply.weights[name])

    def test_500_rounds_of_limited_devices_never_exceed_a_budget(self, make: Make) -> None:
        """Every kind of budget, devices as slow as they come, cohorts that change."""
        method, rng = make(), np.random.default_rng(7)
        space: Any = method.space  # type: ignore[attr-defined]
        largest = space.cost(space.largest)
        orders_given = 0
        for round in range(500):
            clients = []
            for i in range(int(rng.integers(1, 5))):
                kind, share = (
                    rng.choice(["macs", "params", "bytes", "latency_ms", "none"]),
                    float(rng.uniform(0.02, 1.1)),
                )
                slow = float(rng.uniform(1e-6, 1e-4))  # ms a MAC
                most = slow * largest.macs if kind == "latency_ms" else getattr(largest, kind, 1.0)
                budget = Budget("d") if kind == "none" else Budget("d", **{str(kind): share * most})
                predict = lambda arch, slow=slow: slow * space.cost(arch).macs + 0.001  # noqa: E731
                clients.append(ClientInfo(f"client-{i:02d}", 10, limit=Allowance(budget, space, predict)))
            ask = method.ask(round, 0, clients, rng)
            assert ask is not None
            orders = orders_of(ask)
            for client in clients:
                if client.name in orders:
                    assert client.limit is not None and client.limit.allows(orders[client.name].arch)
            tell(method, round, [])
            orders_given += len(orders)
        assert orders_given > 100

    def test_done_after_its_rounds(self, make: Make) -> None:
        method = make()
        assert [method.done(round) for round in range(self.rounds + 2)] == [False] * self.rounds + [True] * 2

    def test_the_order_of_the_cohort_is_that_of_names(self, make: Make) -> None:
        one, two = make(), make()
        ask, other = (m.ask(0, 0, c, np.random.default_rng(1)) for m, c in ((one, CLIENTS), (two, CLIENTS[::-1])))
        assert ask is not None and other is not None
        same_orders(orders_of(ask), orders_of(other))
