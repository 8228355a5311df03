"""Fleets that misbehave, each around one that does not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import Failure, Fleet, TrainOrder, TrainReport

Answer = TrainReport | Failure


class Around:
    """A fleet that passes everything through another one; a base for those that do not."""

    def __init__(self, inner: Fleet) -> None:
        self.inner = inner
        self.seen: list[dict[str, TrainOrder]] = []

    def clients(self) -> Sequence[ClientInfo]:
        return self.inner.clients()

    def train(self, orders: Mapping[str, TrainOrder], more: deque[TrainOrder] | None = None) -> Iterator[Answer]:
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

    def train(self, orders: Mapping[str, TrainOrder], more: deque[TrainOrder] | None = None) -> Iterator[Answer]:
        for count, answer in enumerate(super().train(orders, more)):
            if next(iter(orders.values())).round == self.round and count == self.answers:
                raise self.stop
            yield answer


class Shuffled(Around):
    """Answers in another order."""

    def __init__(self, inner: Fleet, key: Callable[[str], object]) -> None:
        super().__init__(inner)
        self.key = key

    def train(self, orders: Mapping[str, TrainOrder], more: deque[TrainOrder] | None = None) -> Iterator[Answer]:
        yield from sorted(super().train(orders, more), key=lambda answer: self.key(answer.client))  # type: ignore[arg-type]


class Hostile(Around):
    """Spoils the answers of some clients, by name, and adds some that nobody asked for."""

    def __init__(self, inner: Fleet, spoil: Mapping[str, Callable[[TrainReport], Sequence[Answer]]]) -> None:
        super().__init__(inner)
        self.spoil = spoil

    def train(self, orders: Mapping[str, TrainOrder], more: deque[TrainOrder] | None = None) -> Iterator[Answer]:
        late: list[Answer] = []
        for answer in super().train(orders, more):
            assert isinstance(answer, TrainReport)
            if answer.client in self.spoil and answer.tensors:  # a figure is a figure
                late += self.spoil[answer.client](answer)
            else:
                yield answer
        yield Failure("stranger", "was never asked")
        yield from late


# -- how a client may spoil its answer -----------------------------------------------------------------------------


def with_tensor(
    report: TrainReport, change: Callable[[torch.Tensor], torch.Tensor], name: str = "head.weight"
) -> TrainReport:
    return replace(report, tensors={**report.tensors, name: change(report.tensors[name].clone())})


def fails(report: TrainReport) -> list[Answer]:
    return [Failure(report.client, "out of memory")]


def silent(report: TrainReport) -> list[Answer]:
    return []


def twice(report: TrainReport) -> list[Answer]:
    return [report, with_tensor(report, lambda t: t + 5)]


def not_finite(report: TrainReport) -> list[Answer]:
    return [with_tensor(report, lambda t: t.fill_(math.nan))]


def enormous(report: TrainReport) -> list[Answer]:
    return [with_tensor(report, lambda t: t + 1e9)]


def reshaped(report: TrainReport) -> list[Answer]:
    return [with_tensor(report, lambda t: t[:1])]


def incomplete(report: TrainReport) -> list[Answer]:
    return [replace(report, tensors={n: t for n, t in report.tensors.items() if n != "head.weight"})]


def of_the_last_round(report: TrainReport) -> list[Answer]:
    return [replace(report, round=report.round - 1)]
