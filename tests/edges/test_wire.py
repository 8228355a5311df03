from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.errors import ReplyError
from fednas_core.protocol import TrainOrder, TrainReport
from fednas_core.wire import (
    DTYPES,
    Packet,
    buffers_of,
    layout_of,
    pack_order,
    pack_report,
    read_order,
    read_report,
    tensors_of,
)


def report_to(order: TrainOrder) -> TrainReport:
    tensors = {name: tensor + 1 for name, tensor in order.tensors.items()}
    return TrainReport(order.client, order.round, order.arch, tensors, 40, 1.5, 0.25, 10**12, 0.5, 0, 0)


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(1, 4), max_size=4)), min_size=1, max_size=6
    )
)
def test_any_tensors_come_back_as_they_went(rows: list[tuple[str, list[int]]]) -> None:
    tensors = {f"t{i}": torch.randn(shape).to(DTYPES[dtype]) for i, (dtype, shape) in enumerate(rows)}
    buffers = buffers_of(tensors)
    back = tensors_of(layout_of(tensors), buffers)
    assert list(back) == list(tensors)
    assert set(buffers) == {dtype for dtype, _ in rows}  # one array for each dtype, however many tensors
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
        back[name].zero_()  # writable, and not the sender's memory


def test_an_order_survives_the_wire(order: TrainOrder) -> None:
    back = read_order(pack_order(order))
    for item in fields(TrainOrder):
        if item.name != "tensors":
            assert getattr(back, item.name) == getattr(order, item.name), item.name
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in order.tensors.items())


def test_views_of_a_larger_tensor_travel(order: TrainOrder) -> None:
    whole = torch.arange(30.0).view(5, 6)
    sliced = replace(order, tensors={"a": whole[:3, :2], "b": whole[1:2]})
    packet = pack_order(sliced)
    assert packet.size == (6 + 6) * 4
    assert torch.equal(read_order(packet).tensors["a"], torch.tensor([[0.0, 1.0], [6.0, 7.0], [12.0, 13.0]]))


def test_a_report_survives_the_wire_and_its_bytes_are_counted_here(order: TrainOrder) -> None:
    sent = replace(report_to(order), bytes_down=1, bytes_up=10**15)
    back = read_report(pack_report(sent), order)
    size = sum(tensor.numel() * 4 for tensor in order.tensors.values())
    assert (back.bytes_down, back.bytes_up) == (size, size)
    for item in fields(TrainReport):
        if item.name not in ("tensors", "bytes_down", "bytes_up"):
            assert getattr(back, item.name) == getattr(sent, item.name), item.name
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in sent.tensors.items())


def spoiled(order: TrainOrder, **changes: Any) -> Packet:
    packet = pack_report(report_to(order))
    return Packet(json.dumps(json.loads(packet.head) | changes), packet.buffers)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"client": "somebody"}, "client: found 'somebody'"),
        ({"round": 3}, "round: found 3, allowed 0"),
        ({"arch": {"d": [9]}}, "arch: found"),
        ({"examples": -1}, "examples: found -1, allowed a whole number from 0"),
        ({"examples": 2.5}, "examples: found 2.5"),
        ({"examples": True}, "examples: found True"),
        ({"examples": 10**40}, "examples: found 1000"),
        ({"loss": float("nan")}, "loss: found nan, allowed a finite number"),
        ({"loss": "low"}, "loss: found 'low'"),
        ({"loss": None}, "loss: found None"),
        ({"seconds": float("inf")}, "seconds: found inf"),
        ({"layout": "all"}, "layout: found 'all' tensors"),
        ({"layout": []}, "layout: found 0 tensors"),
        ({"note": "x" * 10_000}, "head: found"),
    ],
)
def test_a_wrong_field_is_refused_by_name(order: TrainOrder, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ReplyError, match=f"client {order.client}: ") as caught:
        read_report(spoiled(order, **changes), order)
    assert told in str(caught.value)


@pytest.mark.parametrize("head", ["", "[1]", "null", "{", "[" * 2000, '{"a": ' + "9" * 1500 + "}"])
def test_a_head_that_is_no_object_is_refused(order: TrainOrder, head: str) -> None:
    with pytest.raises(ReplyError, match="head: found|loss|examples|client: found"):
        read_report(Packet(head, {}), order)


@pytest.mark.parametrize(("column", "value"), [(0, "other.weight"), (1, "float16"), (2, [1, 1, 1, 1]), (2, [10**12])])
def test_a_wrong_layout_names_the_tensor(order: TrainOrder, column: int, value: object) -> None:
    rows: list[list[Any]] = [list(row) for row in layout_of(order.tensors)]
    rows[1][column] = value
    with pytest.raises(ReplyError, match=f"tensor '{list(order.tensors)[1]}': found"):
        read_report(spoiled(order, layout=rows), order)


@pytest.mark.parametrize("change", ["short", "long", "none", "other", "extra"])
def test_wrong_buffers_are_refused_before_anything_is_allocated(
    order: TrainOrder, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packet = pack_report(report_to(order))
    data = packet.buffers["float32"]
    buffers = {
        "short": {"float32": data[:-4]},
        "long": {"float32": data + b"\0" * 400},
        "none": {},
        "other": {"float16": data},
        "extra": {"float32": data, "float64": b"\0" * 8},
    }[change]
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(ReplyError, match="array"):
        read_report(Packet(packet.head, buffers), order)


def test_a_dtype_that_cannot_travel_is_refused() -> None:
    with pytest.raises(ReplyError, match="tensor 'n': found int64, allowed float32, float16, bfloat16"):
        buffers_of({"n": torch.from_numpy(np.arange(3))})
