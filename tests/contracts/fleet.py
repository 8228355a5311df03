"""What every way of reaching clients promises: tests to inherit with fixtures `fleet` and `orders`."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import replace

import torch

from fednas_core.base.values import Arch
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Fleet, Order
from fednas_core.exchange.results import Trained
from fednas_core.subnets.packing import shapes


def reports(fleet: Fleet, orders: Mapping[str, Order]) -> dict[str, Answer | Failure]:
    answers = list(fleet.train(orders))
    assert len({answer.client for answer in answers}) == len(answers), "a client answered twice"
    return {answer.client: answer for answer in answers}


class FleetContract:
    """Inherit and give fixtures `fleet` and `orders` (at least two, all of which a healthy client can carry out)."""

    def test_clients_are_sorted_by_name_and_have_examples(self, fleet: Fleet) -> None:
        clients = fleet.clients()
        assert [client.name for client in clients] == sorted({client.name for client in clients})
        assert clients and all(client.examples > 0 for client in clients)

    def test_every_order_is_answered_once(self, fleet: Fleet, orders: Mapping[str, Order]) -> None:
        answers = reports(fleet, orders)
        assert set(answers) == set(orders)
        examples = {client.name: client.examples for client in fleet.clients()}
        for name, answer in answers.items():
            assert isinstance(answer, Answer), answer
            order = orders[name]
            assert (answer.client, answer.round, answer.arch) == (order.client, order.round, order.arch)
            wanted = {name: tuple(tensor.shape) for name, tensor in order.weights.items()}
            assert {name: tuple(tensor.shape) for name, tensor in answer.weights.items()} == wanted
            assert all(tensor.dtype == torch.float32 for tensor in answer.weights.values())
            assert any(not torch.equal(answer.weights[n], order.weights[n]) for n in wanted), "nothing was trained"
            size = 4 * sum(tensor.numel() for tensor in order.weights.values())
            assert (answer.bytes_down, answer.bytes_up) == (size, size)
            assert answer.examples == examples[name]
            assert answer.macs > 0 and answer.seconds > 0
            assert isinstance(answer.result, Trained)
            assert answer.result.loss > 0 and 0 <= answer.result.accuracy <= 1

    def test_training_leaves_the_supernet_alone(self, fleet: Fleet, orders: Mapping[str, Order]) -> None:
        before = {name: {n: t.clone() for n, t in order.weights.items()} for name, order in orders.items()}
        reports(fleet, orders)
        for name, order in orders.items():
            assert all(torch.equal(order.weights[n], t) for n, t in before[name].items())

    def test_the_same_orders_give_the_same_tensors(self, fleet: Fleet, orders: Mapping[str, Order]) -> None:
        one, two = reports(fleet, orders), reports(fleet, dict(reversed(orders.items())))
        for name in orders:
            a, b = one[name], two[name]
            assert isinstance(a, Answer) and isinstance(b, Answer)
            assert (a.result, a.macs) == (b.result, b.macs)
            assert all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)

    def test_an_answer_does_not_change_when_others_arrive(self, fleet: Fleet, orders: Mapping[str, Order]) -> None:
        kept = []
        for answer in fleet.train(orders):
            assert isinstance(answer, Answer)
            kept.append((answer, {name: tensor.clone() for name, tensor in answer.weights.items()}))
        reports(fleet, dict(reversed(orders.items())))
        for answer, tensors in kept:
            assert all(torch.equal(answer.weights[name], tensor) for name, tensor in tensors.items())

    def test_a_round_that_was_given_up_does_not_spoil_the_next(self, fleet: Fleet, orders: Mapping[str, Order]) -> None:
        whole = reports(fleet, orders)
        answers = fleet.train(orders)
        next(answers)
        if isinstance(answers, Generator):
            answers.close()
        again = reports(fleet, dict(reversed(orders.items())))
        for name in orders:
            a, b = whole[name], again[name]
            assert isinstance(a, Answer) and isinstance(b, Answer)
            assert all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)

    def test_an_order_that_cannot_be_carried_out_is_a_failure_with_its_reason(
        self, fleet: Fleet, orders: Mapping[str, Order]
    ) -> None:
        first, *others = orders
        answers = reports(fleet, {**orders, first: replace(orders[first], task="dance")})
        failure = answers[first]
        assert isinstance(failure, Failure)
        assert "'dance' is not known" in failure.reason and "\n" not in failure.reason
        assert all(isinstance(answers[name], Answer) for name in others)

    def test_orders_added_on_the_way_are_carried_out_too(self, fleet: Fleet, orders: Mapping[str, Order]) -> None:
        more: deque[Order] = deque()
        first, *others = orders
        answers = []
        for answer in fleet.train({first: orders[first]}, more):
            answers.append(answer.client)
            if others:
                more.append(orders[others.pop()])
        assert sorted(answers) == sorted(orders)

    def test_no_orders_no_answers(self, fleet: Fleet) -> None:
        assert list(fleet.train({})) == []


def orders_for(
    archs: Mapping[str, Arch], plan: Mapping[str, Mapping[str, tuple[slice, ...]]], order: Order
) -> dict[str, Order]:
    """One order per client, like `order`, for its architecture; initial values are drawn from the client's number."""
    out = {}
    for i, (client, arch) in enumerate(archs.items()):
        generator = torch.Generator().manual_seed(i)
        tensors = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes(plan[client]).items()}
        out[client] = replace(order, client=client, arch=arch, channels={WEIGHTS: tensors}, seed=100 + i)
    return out
