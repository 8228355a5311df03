"""What every way of reaching clients promises: tests to inherit with fixtures `fleet` and `orders`."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import replace

import torch

from fednas_core.base.values import Arch
from fednas_core.exchange.orders import Failure, Fleet, TrainOrder, TrainReport
from fednas_core.subnets.packing import shapes


def reports(fleet: Fleet, orders: Mapping[str, TrainOrder]) -> dict[str, TrainReport | Failure]:
    answers = list(fleet.train(orders))
    assert len({answer.client for answer in answers}) == len(answers), "a client answered twice"
    return {answer.client: answer for answer in answers}


class FleetContract:
    """Inherit and give fixtures `fleet` and `orders` (at least two, all of which a healthy client can carry out)."""

    def test_clients_are_sorted_by_name_and_have_examples(self, fleet: Fleet) -> None:
        clients = fleet.clients()
        assert [client.name for client in clients] == sorted({client.name for client in clients})
        assert clients and all(client.examples > 0 for client in clients)

    def test_every_order_is_answered_once(self, fleet: Fleet, orders: Mapping[str, TrainOrder]) -> None:
        answers = reports(fleet, orders)
        assert set(answers) == set(orders)
        examples = {client.name: client.examples for client in fleet.clients()}
        for name, answer in answers.items():
            assert isinstance(answer, TrainReport), answer
            order = orders[name]
            assert (answer.client, answer.round, answer.arch) == (order.client, order.round, order.arch)
            wanted = {name: tuple(tensor.shape) for name, tensor in order.tensors.items()}
            assert {name: tuple(tensor.shape) for name, tensor in answer.tensors.items()} == wanted
            assert all(tensor.dtype == torch.float32 for tensor in answer.tensors.values())
            assert any(not torch.equal(answer.tensors[n], order.tensors[n]) for n in wanted), "nothing was trained"
            size = 4 * sum(tensor.numel() for tensor in order.tensors.values())
            assert (answer.bytes_down, answer.bytes_up) == (size, size)
            assert answer.examples == examples[name]
            assert answer.macs > 0 and answer.seconds > 0 and answer.loss > 0 and 0 <= answer.accuracy <= 1

    def test_training_leaves_the_supernet_alone(self, fleet: Fleet, orders: Mapping[str, TrainOrder]) -> None:
        before = {name: {n: t.clone() for n, t in order.tensors.items()} for name, order in orders.items()}
        reports(fleet, orders)
        for name, order in orders.items():
            assert all(torch.equal(order.tensors[n], t) for n, t in before[name].items())

    def test_the_same_orders_give_the_same_tensors(self, fleet: Fleet, orders: Mapping[str, TrainOrder]) -> None:
        one, two = reports(fleet, orders), reports(fleet, dict(reversed(orders.items())))
        for name in orders:
            a, b = one[name], two[name]
            assert isinstance(a, TrainReport) and isinstance(b, TrainReport)
            assert (a.loss, a.accuracy, a.macs) == (b.loss, b.accuracy, b.macs)
            assert all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)

    def test_an_answer_does_not_change_when_others_arrive(self, fleet: Fleet, orders: Mapping[str, TrainOrder]) -> None:
        kept = []
        for answer in fleet.train(orders):
            assert isinstance(answer, TrainReport)
            kept.append((answer, {name: tensor.clone() for name, tensor in answer.tensors.items()}))
        reports(fleet, dict(reversed(orders.items())))
        for answer, tensors in kept:
            assert all(torch.equal(answer.tensors[name], tensor) for name, tensor in tensors.items())

    def test_a_round_that_was_given_up_does_not_spoil_the_next(
        self, fleet: Fleet, orders: Mapping[str, TrainOrder]
    ) -> None:
        whole = reports(fleet, orders)
        answers = fleet.train(orders)
        next(answers)
        if isinstance(answers, Generator):
            answers.close()
        again = reports(fleet, dict(reversed(orders.items())))
        for name in orders:
            a, b = whole[name], again[name]
            assert isinstance(a, TrainReport) and isinstance(b, TrainReport)
            assert all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)

    def test_an_order_that_cannot_be_carried_out_is_a_failure_with_its_reason(
        self, fleet: Fleet, orders: Mapping[str, TrainOrder]
    ) -> None:
        first, *others = orders
        answers = reports(fleet, {**orders, first: replace(orders[first], task="dance")})
        failure = answers[first]
        assert isinstance(failure, Failure)
        assert "'dance' is not known" in failure.reason and "\n" not in failure.reason
        assert all(isinstance(answers[name], TrainReport) for name in others)

    def test_orders_added_on_the_way_are_carried_out_too(self, fleet: Fleet, orders: Mapping[str, TrainOrder]) -> None:
        more: deque[TrainOrder] = deque()
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
    archs: Mapping[str, Arch], plan: Mapping[str, Mapping[str, tuple[slice, ...]]], order: TrainOrder
) -> dict[str, TrainOrder]:
    """One order per client, like `order`, for its architecture; initial values are drawn from the client's number."""
    out = {}
    for i, (client, arch) in enumerate(archs.items()):
        generator = torch.Generator().manual_seed(i)
        tensors = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes(plan[client]).items()}
        out[client] = replace(order, client=client, arch=arch, tensors=tensors, seed=100 + i)
    return out
