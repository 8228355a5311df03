from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contracts.method import CLIENTS, plan, replies
from contracts.samples import supernet_of, toy_space

from fednas_core.aggregation.weightings import ByExamples
from fednas_core.methods.fedavg import Schedule, SupernetAveraging
from fednas_core.methods.superfednas import TrackingSandwich
from fednas_core.protocol import Failure, TrainReport, TrainSettings
from fednas_core.runs import ordering
from fednas_core.runs.ordering import in_order
from fednas_core.subnets.packing import pack, shapes, unpack

SPACE = toy_space()


def method() -> SupernetAveraging:
    sampler = TrackingSandwich(SPACE.largest, lambda rng: SPACE.smallest, SPACE.sample)
    return SupernetAveraging(
        SPACE, supernet_of(SPACE), sampler, ByExamples(), Schedule(3, lambda round: TrainSettings(), 7)
    )


def answers() -> tuple[list[str], list[TrainReport]]:
    """The names of a cohort, and its replies as backends hand them over: each a view of one flat tensor."""
    orders = plan(method(), 0)
    flat = [replace(r, tensors=unpack(pack(r.tensors), shapes(SPACE.plan(r.arch)))) for r in replies(orders)]
    return list(orders), flat


@pytest.mark.parametrize("in_memory", [0, 2, 8])
def test_any_arrival_gives_the_same_weights_to_the_bit(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "IN_MEMORY", in_memory)
    names, reports = answers()
    reference: dict[str, torch.Tensor] | None = None
    for arrival in itertools.islice(itertools.permutations(reports), 0, 120, 7):
        one = method()
        plan(one, 0)
        summary = one.absorb(0, in_order(arrival, names))  # type: ignore[arg-type]
        assert len(summary.clients) == len(CLIENTS)
        if reference is None:
            reference = {name: tensor.clone() for name, tensor in one.weights().items()}
        assert all(torch.equal(tensor, reference[name]) for name, tensor in one.weights().items())


def test_answers_come_in_the_order_asked_for() -> None:
    names, reports = answers()
    random.Random(3).shuffle(reports)
    assert [answer.client for answer in in_order(reports, names)] == names


def test_missing_double_and_unknown_answers() -> None:
    names, reports = answers()
    by_name = {report.client: report for report in reports}
    arrival = [
        Failure("nobody", "unknown"),
        by_name[names[3]],
        Failure(names[3], "changed its mind"),
        by_name[names[1]],
        by_name[names[1]],
        Failure(names[0], "out of memory"),
    ]
    found = list(in_order(arrival, names))
    assert [answer.client for answer in found] == names
    assert found[0] == Failure(names[0], "out of memory")
    assert found[1] is by_name[names[1]] and found[3] is by_name[names[3]]
    assert found[2] == Failure(names[2], "gave no answer") and found[4] == Failure(names[4], "gave no answer")


def test_no_answers_at_all() -> None:
    assert list(in_order([], ["a", "b"])) == [Failure("a", "gave no answer"), Failure("b", "gave no answer")]
    assert list(in_order([Failure("a", "x")], [])) == []


def test_the_first_is_passed_on_before_the_second_arrives() -> None:
    names, reports = answers()
    seen = []

    def arriving() -> Iterator[TrainReport]:
        for report in reports:
            seen.append(report.client)
            yield report

    for count, _ in enumerate(in_order(arriving(), names), start=1):
        assert len(seen) == count


def test_replies_that_overtake_wait_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ordering, "IN_MEMORY", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names, reports = answers()
    late_first = [*reports[1:], reports[0]]
    files_while_waiting = []

    def arriving() -> Iterator[TrainReport]:
        for report in late_first:
            yield report
            files_while_waiting.append(len(list(tmp_path.rglob("*.safetensors"))))

    found = list(in_order(arriving(), names))
    assert max(files_while_waiting) == len(reports) - 2
    assert list(tmp_path.iterdir()) == []
    for answer, report in zip(found, reports, strict=True):
        assert isinstance(answer, TrainReport) and answer.client == report.client and answer.loss == report.loss
        assert all(torch.equal(answer.tensors[n], report.tensors[n]) for n in report.tensors)
