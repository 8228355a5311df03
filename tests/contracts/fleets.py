"""Fleets that misbehave, each around one that does not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Fleet, Order

Outcome = Answer | Failure


class Around:
    """A fleet that passes everything through another one; a base for those that do not."""

    def __init__(self, inner: Fleet) -> None:
        self.inner = inner
        self.seen: list[dict[str, Order]] = []

    def clients(self) -> Sequence[ClientInfo]:
        return self.inner.clients()

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Outcome]:
        self.seen.append(dict(orders))
        yield from self.inner.train(orders, more)

    def close(self) -> None:
        self.inner.close()


class Stopping(Around):
    """Is stopped (Ctrl-C) in one round, after some answers."""

    def __init__(
        self, inner: Fleet, round: int, answers: int = 2, stop: type[BaseException] = KeyboardInterrupt
    ) -> None:
        super().__init__(inner)
        self.round, self.answers, self.stop = round, answers, stop

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Outcome]:
        for count, answer in enumerate(super().train(orders, more)):
            if next(iter(orders.values())).round == self.round and count == self.answers:
                raise self.stop
            yield answer


class Shuffled(Around):
    """Answers in another order."""

    def __init__(self, inner: Fleet, key: Callable[[str], object]) -> None:
        super().__init__(inner)
        self.key = key

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Outcome]:
        yield from sorted(super().train(orders, more), key=lambda answer: self.key(answer.client))  # type: ignore[arg-type]


class Hostile(Around):
    """Spoils the answers of some clients, by name, and adds some that nobody asked for."""

    def __init__(self, inner: Fleet, spoil: Mapping[str, Callable[[Answer], Sequence[Outcome]]]) -> None:
        super().__init__(inner)
        self.spoil = spoil

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Outcome]:
        late: list[Outcome] = []
        for answer in super().train(orders, more):
            assert isinstance(answer, Answer)
            if answer.client in self.spoil and answer.weights:  # a figure is a figure
                late += self.spoil[answer.client](answer)
            else:
                yield answer
        yield Failure("stranger", "was never asked")
        yield from late


# -- how a client may spoil its answer -----------------------------------------------------------------------------


def with_tensor(report: Answer, change: Callable[[torch.Tensor], torch.Tensor], name: str = "head.weight") -> Answer:
    return replace(report, channels={WEIGHTS: {**report.weights, name: change(report.weights[name].clone())}})


def fails(report: Answer) -> list[Outcome]:
    return [Failure(report.client, "out of memory")]


def silent(report: Answer) -> list[Outcome]:
    return []


def twice(report: Answer) -> list[Answer]:
    return [report, with_tensor(report, lambda t: t + 5)]


def not_finite(report: Answer) -> list[Answer]:
    return [with_tensor(report, lambda t: t.fill_(math.nan))]


def enormous(report: Answer) -> list[Answer]:
    return [with_tensor(report, lambda t: t + 1e9)]


def reshaped(report: Answer) -> list[Answer]:
    return [with_tensor(report, lambda t: t[:1])]


def incomplete(report: Answer) -> list[Answer]:
    return [replace(report, channels={WEIGHTS: {n: t for n, t in report.weights.items() if n != "head.weight"}})]


def of_the_last_round(report: Answer) -> list[Answer]:
    return [replace(report, round=report.round - 1)]
