"""Replies in a fixed order: what arrives early waits, so that sums come out the same to the last bit in every run.

Only the few replies that overtake a slow client wait at all; more than `IN_MEMORY` of them wait on disk, so that one
straggler among a thousand clients costs the server no memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from fednas_core.protocol import ClientId, Failure, TrainReport

IN_MEMORY = 8


def in_order(answers: Iterable[TrainReport | Failure], order: Sequence[ClientId]) -> Iterator[TrainReport | Failure]:
    """Yield the answers in the order of their clients in `order`; answers of other clients, and second ones, are lost.

    A client that has not answered when `answers` ends appears as a `Failure`.
    """
    with tempfile.TemporaryDirectory(prefix="fednas-replies-") as folder:
        early: dict[ClientId, Callable[[], TrainReport | Failure]] = {}
        awaited, position = set(order), 0
        for answer in answers:
            if answer.client not in awaited:
                continue
            awaited.discard(answer.client)
            if answer.client == order[position]:
                yield answer
                position += 1
            else:
                early[answer.client] = _kept(answer, Path(folder), len(early) >= IN_MEMORY)
            while position < len(order) and order[position] in early:
                yield early.pop(order[position])()
                position += 1
        for client in order[position:]:
            yield early.pop(client)() if client in early else Failure(client, "gave no answer")


def _kept(answer: TrainReport | Failure, folder: Path, on_disk: bool) -> Callable[[], TrainReport | Failure]:
    if isinstance(answer, Failure) or not on_disk:
        return lambda: answer
    path = folder / f"{answer.client}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in answer.tensors.items()}, str(path))
    light = replace(answer, tensors={})

    def fetch() -> TrainReport:
        tensors = load_file(str(path))
        path.unlink()
        return replace(light, tensors=tensors)

    return fetch
