from __future__ import annotations

import itertools
import random
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contracts.method import CLIENTS, plan, replies, tell
from contracts.samples import supernet_of, toy_space

from fednas_core.base.errors import RunError
from fednas_core.engine.waiting import WaitingRoom
from fednas_core.exchange.orders import WEIGHTS, Answer
from fednas_core.methods.fedavg import Everyone, Schedule, SupernetAveraging
from fednas_core.subnets.packing import pack, shapes, unpack
from fednas_core.subnets.weightings import ByExamples
from fednas_core.training.settings import TrainSettings

SPACE = toy_space()


def method() -> SupernetAveraging:
    return SupernetAveraging(
        SPACE, supernet_of(SPACE), Everyone(SPACE.largest), ByExamples(), Schedule(3, lambda round: TrainSettings(), 7)
    )


def answers() -> tuple[list[str], list[Answer]]:
    """The names of a cohort, and its replies as backends hand them over: each a view of one flat tensor."""
    orders = plan(method(), 0)
    flat = [
        replace(r, channels={WEIGHTS: unpack(pack(r.weights), shapes(SPACE.plan(r.arch)))}) for r in replies(orders)
    ]
    return list(orders), flat


def test_any_arrival_gives_the_same_weights_to_the_bit() -> None:
    names, reports = answers()
    reference: dict[str, torch.Tensor] | None = None
    for arrival in itertools.islice(itertools.permutations(reports), 0, 120, 7):
        one = method()
        plan(one, 0)
        with closing(WaitingRoom(one.weights())) as room:
            for report in arrival:
                room.admit(report)
            told = tell(one, 0, room.called(names))
        assert len(told.rows) == len(CLIENTS)
        if reference is None:
            reference = {name: tensor.clone() for name, tensor in one.weights().items()}
        assert all(torch.equal(tensor, reference[name]) for name, tensor in one.weights().items())


def test_replies_come_out_as_they_went_in_and_in_the_order_asked_for() -> None:
    names, reports = answers()
    random.Random(3).shuffle(reports)
    by_name = {report.client: report for report in reports}
    room = WaitingRoom(supernet_of(SPACE))
    for report in reports:
        room.admit(report)
    called = []
    for report in room.called(names[1:]):
        called.append(report.client)
        original = by_name[report.client]
        assert replace(report, channels={}) == replace(original, channels={})
        assert list(report.weights) == list(original.weights)
        assert all(torch.equal(report.weights[n], original.weights[n]) for n in original.weights)
    assert called == names[1:]
    room.close()


def test_what_waits_belongs_to_the_room_and_what_is_called_to_the_caller() -> None:
    supernet = supernet_of(SPACE)
    large = {name: torch.cat([tensor] * 9) for name, tensor in supernet.items()}
    _, (first, second, *_) = answers()
    for room in (WaitingRoom(large), WaitingRoom({"a": torch.zeros(1)})):  # all in memory, all on disk
        wanted = {name: tensor.clone() for name, tensor in first.weights.items()}
        mine = replace(first, channels={WEIGHTS: {name: tensor.clone() for name, tensor in first.weights.items()}})
        room.admit(mine)
        room.admit(second)
        for tensor in mine.weights.values():
            tensor.fill_(7.0)
        (called,) = room.called([first.client])
        assert all(torch.equal(called.weights[name], wanted[name]) for name in wanted)
        for tensor in called.weights.values():
            tensor.fill_(8.0)
        (other,) = room.called([second.client])
        assert all(torch.equal(other.weights[name], second.weights[name]) for name in wanted)
        room.close()


def test_tensors_that_do_not_lie_side_by_side_may_wait_too() -> None:
    _, (report, *_) = answers()
    scattered = replace(report, channels={WEIGHTS: {n: t.clone() for n, t in reversed(report.weights.items())}})
    room = WaitingRoom({"a": torch.zeros(1)})
    room.admit(scattered)
    (called,) = room.called([report.client])
    assert list(called.weights) == list(scattered.weights)
    assert all(torch.equal(called.weights[name], tensor) for name, tensor in report.weights.items())


def test_nothing_is_left_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, reports = answers()
    room = WaitingRoom({"a": torch.zeros(1)})
    for report in reports:
        room.admit(report)
        assert list(tmp_path.iterdir()) == []  # the file has no name: it goes even with a process that is killed
    room.close()


def test_a_disk_that_takes_no_more_is_said_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    _, (report, *_) = answers()
    room = WaitingRoom({"a": torch.zeros(1)})
    with pytest.raises(RunError, match=r"replies wait in .*missing.* TMPDIR; the rounds before are safe, resume"):
        room.admit(report)
