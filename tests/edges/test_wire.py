from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from edges.conftest import PARAMS, make_order_of
from torch import Tensor

from fednas_core.base.config import RunConfig, WireConfig
from fednas_core.base.errors import ArchError, ReplyError
from fednas_core.exchange import results
from fednas_core.exchange import wire as wire_module
from fednas_core.exchange.orders import WEIGHTS, Answer, Order
from fednas_core.exchange.wire import Flat, Packet, lossless, pack_answer, pack_order, read_answer, read_order
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.packing import pack, shapes
from fednas_core.tasks.bench import space_of
from fednas_core.tasks.moments import MOMENTS
from fednas_core.tasks.registry import FORMS
from fednas_core.training.settings import TrainSettings

PLAIN = WireConfig()
FORM = FORMS["subnet"]
NAMES = {
    "fp32": "weights.float32",
    "fp16": "weights.float16",
    "bf16": "weights.bfloat16",
    "int8": "weights.int8",
    "topk": "weights.topk",
}
UP = [WireConfig(up=up, keep=keep) for up, keep in (*((name, 0.1) for name in NAMES), ("topk", 0.01))]  # type: ignore[arg-type]


@pytest.fixture
def space(config: RunConfig) -> ResNetSpace:
    return space_of(config)


@pytest.fixture
def normed(config: RunConfig) -> RunConfig:
    """Networks with batch norm, whose statistics travel where they are used."""
    return replace(config, space=replace(config.space, norm="batch"))


def values(order: Order) -> int:
    return sum(tensor.numel() for tensor in order.weights.values())


def report_to(order: Order, step: float = 1.0) -> Answer:
    tensors = {name: tensor + step for name, tensor in order.weights.items()}
    return Answer(
        order.client,
        order.round,
        order.arch,
        {WEIGHTS: tensors},
        results.Trained(1.5, 0.25),
        40,
        10**12,
        0.5,
        bytes_down=0,
        bytes_up=0,
    )


def change(report: Answer, order: Order) -> Tensor:
    return pack(report.weights) - pack(order.weights)


@pytest.mark.parametrize("task", FORMS)
@pytest.mark.parametrize("changes", [{}, {"budget": "2M+8MB", "run": "r-1", "trains": False, "trained": True}])
def test_an_order_survives_the_wire(normed: RunConfig, task: str, changes: dict[str, Any]) -> None:
    order, space = replace(make_order_of(task, normed, "client-00"), **changes), space_of(normed)
    back = read_order(pack_order(order, FORMS[task], PLAIN), FORMS, space, PLAIN)
    assert replace(back, channels={}) == replace(order, channels={})
    assert list(back.channels) == list(order.channels) == [WEIGHTS]
    assert list(back.weights) == list(order.weights)
    for name, tensor in order.weights.items():
        assert torch.equal(back.weights[name], tensor)
        back.weights[name].zero_()  # writable, and not the sender's memory
    assert any(bool(tensor.any()) for tensor in order.weights.values())


def test_without_loss_the_payload_is_the_tensors_themselves(order: Order) -> None:
    raw = b"".join(tensor.numpy().tobytes() for tensor in order.weights.values())
    assert dict(pack_order(order, FORM, PLAIN).buffers) == {"weights.float32": raw}
    report = report_to(order)
    raw = b"".join(tensor.numpy().tobytes() for tensor in report.weights.values())
    assert dict(pack_answer(report, order, FORM, PLAIN).buffers) == {"weights.float32": raw}
    assert lossless(PLAIN) and not lossless(WireConfig(down="bf16")) and not lossless(WireConfig(up="topk"))


def test_views_of_the_supernet_travel(order: Order, space: ResNetSpace) -> None:
    plan = space.plan(space.smallest)
    tensors = {name: order.weights[name][region] for name, region in plan.items()}
    sliced = replace(order, arch=space.smallest, channels={WEIGHTS: tensors})
    packet = pack_order(sliced, FORM, PLAIN)
    assert packet.size == 4 * sum(map(prod, shapes(plan).values())) == space.cost(space.smallest).bytes
    back = read_order(packet, FORMS, space, PLAIN)
    assert all(torch.equal(back.weights[n], order.weights[n][region]) for n, region in plan.items())


@pytest.mark.parametrize(("down", "bits", "error"), [("fp16", 16, 2**-11), ("bf16", 16, 2**-8), ("int8", 8, 1 / 126)])
def test_weights_travel_in_fewer_bytes(order: Order, space: ResNetSpace, down: Any, bits: int, error: float) -> None:
    wire = WireConfig(down=down)
    packet = pack_order(order, FORM, wire)
    assert list(packet.buffers) == [NAMES[down]]
    assert packet.size == pytest.approx(values(order) * bits / 8, rel=0.06)  # the channels of the tiny space are short
    back = read_order(packet, FORMS, space, wire)
    for name, tensor in order.weights.items():
        assert (back.weights[name] - tensor).abs().max() <= 1.01 * error * tensor.abs().max(), name
        assert back.weights[name].dtype == torch.float32
    assert read_answer(pack_answer(report_to(back), back, FORM, wire), order, FORM, wire).bytes_down == packet.size
    if down == "int8":  # rounded anew for every client and round, and always alike
        assert packet == pack_order(order, FORM, wire)
        assert packet.buffers != pack_order(replace(order, round=1), FORM, wire).buffers
        assert packet.buffers != pack_order(replace(order, client="client-01"), FORM, wire).buffers


def test_a_model_delivered_for_good_travels_exactly(normed: RunConfig) -> None:
    form, wire, result = FORMS["trial"], WireConfig(down="int8", up="int8"), results.Tested(1.5, 0.25, 4, True)
    order, space = make_order_of("trial", normed, "client-00"), space_of(normed)
    assert any(name.endswith("running_mean") for name in order.weights)
    packet = pack_order(order, form, wire)
    back = read_order(packet, FORMS, space, wire)
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in order.weights.items())
    answer = pack_answer(replace(report_to(back), channels={}, result=result), back, form, wire)
    report = read_answer(answer, order, form, wire)
    assert (report.channels, report.result) == ({}, result)
    assert (report.bytes_down, report.bytes_up) == (packet.size, 0) == (4 * values(order), 0)
    with pytest.raises(ReplyError, match=r"arrays: found \['int8'\], allowed \[\]"):
        read_answer(Packet(answer.head, {"int8": b"1"}), order, form, wire)


def test_a_channel_that_is_not_to_be_trained_travels_exactly(normed: RunConfig) -> None:
    form, wire = FORMS["moments"], WireConfig(down="int8", up="topk")
    order, space = make_order_of("moments", normed, "client-00"), space_of(normed)
    sums = {name: torch.rand(shape) for name, shape in form.returns(order)[MOMENTS].items()}
    assert sums
    back = read_order(pack_order(order, form, wire), FORMS, space, wire)
    sent = replace(report_to(order), channels={MOMENTS: sums}, result=results.Summed(40))
    packet = pack_answer(sent, back, form, wire)
    assert list(packet.buffers) == ["moments.float32"]
    found = read_answer(packet, order, form, wire)
    assert list(found.channels) == [MOMENTS] and found.result == results.Summed(40)
    assert all(torch.equal(found.channels[MOMENTS][name], tensor) for name, tensor in sums.items())


@pytest.mark.parametrize("channels", [{}, {"more": {}}, {"more": {"n": torch.zeros(3)}}])
def test_channels_that_the_task_does_not_return_are_refused(order: Order, channels: dict[str, Any]) -> None:
    """Whoever makes them, and however they come: the sender's own code, or a buffer that nobody asked for."""
    report = report_to(order)
    other = replace(report, channels={**report.channels, **channels} if channels else {})
    told = f"channels: found {sorted(other.channels)}, allowed ['weights']"
    with pytest.raises(ReplyError, match=re.escape(told)):
        pack_answer(other, order, FORM, PLAIN)
    packet = pack_answer(report, order, FORM, PLAIN)
    forged = {**packet.buffers, "more.float32": b"1234"} if channels else {}
    with pytest.raises(ReplyError, match=re.escape(f"arrays: found {sorted(forged)}, allowed ['weights.float32']")):
        read_answer(Packet(packet.head, forged), order, FORM, PLAIN)


def asked(order: Order, **changes: Any) -> Packet:
    """The packet of an order with other fields in its head."""
    packet = pack_order(order, FORMS[order.task], PLAIN)
    return Packet(json.dumps(json.loads(packet.head) | changes), packet.buffers)


@pytest.mark.parametrize("task", ["juggle", "", None, ["subnet"]])
def test_an_order_of_an_unknown_task_is_refused(order: Order, space: ResNetSpace, task: object) -> None:
    told = f"task {task!r} is not known here: allowed are subnet, sandwich, moments, trial, teach, distil, install"
    with pytest.raises(ReplyError, match=re.escape(told)):
        read_order(asked(order, task=task), FORMS, space, PLAIN)


@pytest.mark.parametrize(
    ("task", "params", "told"),
    [
        ("teach", {"lr": 0.1}, "params: found the field 'lr', allowed are none"),
        ("teach", None, "params: found None, allowed are no fields"),
        ("subnet", {**asdict(TrainSettings()), "steps": 3}, "params: found the field 'steps', allowed are epochs,"),
        ("subnet", {"epochs": 2}, "params: found no field 'augment', allowed are epochs, batch,"),
        ("subnet", {**asdict(TrainSettings()), "lr": "fast"}, "params.lr: found 'fast', allowed a finite number"),
        ("trial", {"fit": {}, "calibrate": True}, "params.fit: found no field 'augment', allowed are epochs,"),
        ("trial", {"fit": None, "calibrate": True}, "params.fit: found None, allowed are epochs,"),
        ("trial", {"fit": asdict(TrainSettings()), "calibrate": 1}, "params.calibrate: found 1, allowed true or false"),
        ("sandwich", {**asdict(PARAMS["sandwich"]), "floor": 3}, "params.floor: found 3, allowed is a list"),
        ("sandwich", {**asdict(PARAMS["sandwich"]), "floor": [0, -1]}, "params.floor[1]: found -1, allowed a"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused_by_name(
    config: RunConfig, space: ResNetSpace, task: str, params: object, told: str
) -> None:
    order = make_order_of(task, config, "client-00")
    with pytest.raises(ReplyError, match=re.escape(told)):
        read_order(asked(order, params=params), FORMS, space, PLAIN)


def test_a_report_survives_the_wire_and_its_bytes_are_counted_here(order: Order) -> None:
    sent = replace(report_to(order), bytes_down=1, bytes_up=10**15)
    back = read_answer(pack_answer(sent, order, FORM, PLAIN), order, FORM, PLAIN)
    assert (back.bytes_down, back.bytes_up) == (4 * values(order), 4 * values(order))
    for item in fields(Answer):
        if item.name not in ("channels", "bytes_down", "bytes_up"):
            assert getattr(back, item.name) == getattr(sent, item.name), item.name
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in sent.weights.items())


@pytest.mark.parametrize(("up", "size", "error"), [("fp16", 2, 0.001), ("bf16", 2, 0.004), ("int8", 1.06, 0.02)])
def test_changes_travel_in_fewer_bytes(order: Order, space: ResNetSpace, up: Any, size: float, error: float) -> None:
    """What the client changed in the weights it received is added to the server's own, exact ones."""
    wire = WireConfig(down="int8", up=up)
    received = read_order(pack_order(order, FORM, wire), FORMS, space, wire)
    noise = torch.Generator().manual_seed(3)
    moved = {n: t + 1e-3 * torch.randn(t.shape, generator=noise) for n, t in received.weights.items()}
    sent = replace(report_to(received), channels={WEIGHTS: moved})
    packet = pack_answer(sent, received, FORM, wire)
    assert packet.size <= size * values(order)
    back = read_answer(packet, order, FORM, wire)
    assert back.bytes_up == packet.size
    wanted = change(sent, received)
    assert (change(back, order) - wanted).norm() < error * wanted.norm() + 1e-6
    assert {n: t.shape for n, t in back.weights.items()} == {n: t.shape for n, t in order.weights.items()}


def test_what_topk_leaves_out_stays_in_the_residual(order: Order) -> None:
    wire = WireConfig(up="topk", keep=0.1)
    generator = torch.Generator().manual_seed(3)
    residual = 0.01 * torch.randn(values(order), generator=generator)
    moved = {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in order.weights.items()}
    sent = replace(report_to(order), channels={WEIGHTS: moved})
    total = change(sent, order) + residual
    packet = pack_answer(sent, order, FORM, wire, {WEIGHTS: residual})
    applied = change(read_answer(packet, order, FORM, wire), order)
    assert packet.size <= (0.2 + 0.125) * values(order) + 16
    assert int((applied.abs() > 1e-6).sum()) == pytest.approx(0.1 * values(order), abs=2)
    assert torch.allclose(applied + residual, total, atol=1e-6)
    assert applied.abs()[applied.abs() > 1e-6].min() >= residual.abs().max() - 1e-4  # the largest went


def test_the_tensors_of_a_report_must_be_those_of_the_order(order: Order) -> None:
    report = report_to(order)
    fewer = {n: t for n, t in report.weights.items() if n != "head.bias"}
    for tensors in (fewer, {**report.weights, "head.bias": torch.zeros(3)}):
        with pytest.raises(ReplyError, match="tensor 'head.bias': found (None|\\(3,\\)), allowed \\(10,\\)"):
            pack_answer(replace(report, channels={WEIGHTS: tensors}), order, FORM, PLAIN)
    with pytest.raises(ReplyError, match="tensor 'more': found \\(3,\\), allowed None"):
        pack_answer(replace(report, channels={WEIGHTS: {**report.weights, "more": torch.zeros(3)}}), order, FORM, PLAIN)


def test_another_space_on_the_device_is_noticed(order: Order, space: ResNetSpace) -> None:
    packet = pack_order(order, FORM, PLAIN)
    with pytest.raises(ReplyError, match="the search space 'tiny' of this device .* give both the same preset file"):
        read_order(packet, FORMS, replace(space, stem=16), PLAIN)
    with pytest.raises(ArchError):
        read_order(packet, FORMS, replace(space, widths=(1.0,)), PLAIN)


def trained(**changes: object) -> dict[str, object]:
    """The result of an answer to train, some of its fields others or unknown."""
    return {"loss": 1.5, "accuracy": 0.25, **changes}


def spoiled(order: Order, wire: WireConfig = PLAIN, **changes: Any) -> Packet:
    packet = pack_answer(report_to(order), order, FORM, wire)
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
        ({"seconds": float("inf")}, "seconds: found inf"),
        ({"fresh": 1}, "fresh: found 1, allowed true or false"),
        ({"result": None}, "result: found None, allowed are loss, accuracy"),
        ({"result": [1.0]}, "result: found [1.0], allowed are loss, accuracy"),
        ({"result": {}}, "result: found no field 'accuracy', allowed are loss, accuracy"),
        ({"result": trained(loss=float("nan"))}, "result.loss: found nan, allowed a finite number"),
        ({"result": trained(loss=-float("inf"))}, "result.loss: found -inf, allowed a finite number"),
        ({"result": trained(loss="low")}, "result.loss: found 'low'"),
        ({"result": trained(loss=None)}, "result.loss: found None"),
        ({"result": trained(loss=10**40)}, "result.loss: found 1000"),
        ({"result": trained(accuracy=True)}, "result.accuracy: found True"),
        ({"result": trained(accuracy=1e19)}, "result.accuracy: found 1e+19, allowed a finite number"),
        ({"result": trained(latency_ms=3.0)}, "result: found the field 'latency_ms', allowed are loss, accuracy"),
        ({"result": trained(**{"x" * 101: 1.0})}, "result: found the field 'xxx"),
        ({"result": trained(**{"two\nlines": 1.0})}, r"result: found the field 'two\nlines', allowed are"),
        ({"result": trained(**{"../x": 1.0})}, "result: found the field '../x'"),
        ({"layouts": "all"}, "layouts: found 'all', allowed {'weights': '"),
        ({"layouts": None}, "layouts: found None, allowed {'weights': '"),
        ({"layouts": {}}, "layouts: found {}, allowed {'weights': '"),
        ({"layouts": {"weights": []}}, "layouts: found {'weights': []}, allowed {'weights': '"),
        ({"layouts": {"weights": [["head.weight", "float32", [10**12]]]}}, "layouts: found {'weights': [['head.w"),
        ({"note": "x" * 100_000}, "head: found"),
    ],
)
@pytest.mark.parametrize("wire", [PLAIN, WireConfig(up="int8")])
def test_a_wrong_field_is_refused_by_name(order: Order, wire: WireConfig, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ReplyError, match=f"client {order.client}: ") as caught:
        read_answer(spoiled(order, wire, **changes), order, FORM, wire)
    assert told in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("head", ["", "[1]", "null", "{", "[" * 2000, '{"a": ' + "9" * 1500 + "}"])
def test_a_head_that_is_no_object_is_refused(order: Order, head: str) -> None:
    with pytest.raises(ReplyError, match="head: found|loss|examples|client: found"):
        read_answer(Packet(head, {}), order, FORM, PLAIN)


@pytest.mark.parametrize("what", ["name", "shape", "order", "codec"])
def test_a_buffer_laid_out_in_another_way_is_refused(order: Order, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a client would send it whose network has other tensors of the same size in all."""
    rows = {"a": (4, 2), "b": (2, 4)}
    other = {
        "name": {"a": (4, 2), "c": (2, 4)},
        "shape": {"a": (2, 4), "b": (4, 2)},
        "order": {"b": (2, 4), "a": (4, 2)},
    }
    mine = replace(order, channels={WEIGHTS: {name: torch.zeros(shape) for name, shape in rows.items()}})
    theirs = replace(order, channels={WEIGHTS: {n: torch.zeros(shape) for n, shape in other.get(what, rows).items()}})
    codec = WireConfig(up="bf16" if what == "codec" else "fp16")
    told = "layouts: found {'weights': '.*'}, allowed {'weights': '"
    if what == "codec":
        told = "arrays: found \\['weights.bfloat16'\\], allowed \\['weights.float16'\\]"
    packet = pack_answer(report_to(theirs), theirs, FORM, codec)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(ReplyError, match=told):
        read_answer(packet, mine, FORM, WireConfig(up="fp16"))


@pytest.mark.parametrize("wire", UP, ids=lambda wire: f"{wire.up}-{wire.keep}")
@pytest.mark.parametrize("change", ["short", "long", "none", "other", "extra", "empty"])
def test_wrong_buffers_are_refused_before_anything_is_allocated(
    order: Order, wire: WireConfig, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packet = pack_answer(report_to(order), order, FORM, wire)
    name = NAMES[wire.up]
    data = packet.buffers[name]
    buffers = {
        "short": {name: data[:-4]},
        "long": {name: data + b"\0" * 400},
        "none": {},
        "other": {"object": data},
        "extra": {name: data, "float64": b"\0" * 8},
        "empty": {name: b""},
    }[change]
    for allocates in ("empty", "zeros"):
        monkeypatch.setattr(torch, allocates, lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(ReplyError, match="array"):
        read_answer(Packet(packet.head, buffers), order, FORM, wire)


INT32, BITMAP = WireConfig(up="topk", keep=0.01), WireConfig(up="topk", keep=0.1)


def forged(order: Order, wire: WireConfig, at: int, data: Any) -> Packet:
    """A packet whose buffer holds other bytes from byte `at` on."""
    packet = pack_answer(report_to(order), order, FORM, wire)
    buffer = bytearray(packet.buffers[NAMES[wire.up]])
    raw = np.asarray(data).tobytes()
    end = at + len(raw) if at >= 0 else len(buffer) + at + len(raw)
    buffer[end - len(raw) : end] = raw
    return Packet(packet.head, {NAMES[wire.up]: bytes(buffer)})


FORGED = {
    "an infinite step": (WireConfig(up="int8"), 0, np.uint16(0x7F80), "step that is negative or not finite"),
    "a step that is no number": (WireConfig(up="int8"), 2, np.uint16(0x7FC0), "step that is negative or not finite"),
    "a negative step": (WireConfig(up="int8"), 0, np.uint16(0xBF80), "step that is negative or not finite"),
    "an entry twice": (INT32, 0, np.int32([5, 5]), "entries out of range or order"),
    "entries in no order": (INT32, 0, np.int32([7, 5]), "entries out of range or order"),
    "an entry before the first": (INT32, 0, np.int32([-1]), "entries out of range or order"),
    "an entry from the end": (INT32, 0, np.int32([-(2**31)]), "entries out of range or order"),
    "too many entries": (BITMAP, 0, np.uint8([255] * 1000), "entries, allowed"),
    "too few entries": (BITMAP, 0, np.uint8([0] * 1000), "entries, allowed"),
    "an infinite value": (BITMAP, -2, np.float16([np.inf]), "values that are not finite"),
    "a value that is no number": (INT32, -2, np.float16([np.nan]), "values that are not finite"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_buffer_is_refused(order: Order, case: str) -> None:
    wire, at, data, told = FORGED[case]
    with pytest.raises(ReplyError, match=f"client {order.client}: (int8|topk): found .*{told}"):
        read_answer(forged(order, wire, at, data), order, FORM, wire)


def test_an_entry_beyond_the_last_is_refused(order: Order) -> None:
    kept = max(1, round(0.01 * values(order)))
    with pytest.raises(ReplyError, match="entries out of range or order, allowed 0 to"):
        read_answer(forged(order, INT32, 4 * (kept - 1), np.int32([values(order)])), order, FORM, INT32)


def test_bits_beyond_the_last_entry_are_refused(order: Order) -> None:
    """A bitmap is padded to whole words: an entry moved into the padding leaves the count as it was."""
    order = replace(order, channels={WEIGHTS: {"a": torch.zeros(10)}})
    wire = WireConfig(up="topk", keep=1.0)
    with pytest.raises(ReplyError, match="topk: found 10 entries, allowed 10 of 10"):
        read_answer(forged(order, wire, 0, np.uint8([0xFF, 0x05])), order, FORM, wire)


@pytest.mark.parametrize("up", ["fp16", "bf16"])
def test_values_that_are_no_numbers_reach_the_judge_of_the_round(order: Order, up: Any) -> None:
    """Dense values are judged where all replies are: with the name of the tensor."""
    wire = WireConfig(up=up)
    report = read_answer(forged(order, wire, -2, np.uint16(0x7FFF)), order, FORM, wire)
    assert not torch.isfinite(report.weights["head.bias"]).all()


@pytest.mark.parametrize("up", ["fp16", "bf16", "int8", "topk"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_training_that_diverged_is_said_by_the_client(order: Order, up: Any, value: float) -> None:
    report = report_to(order)
    report.weights["head.bias"][3] = value
    residual = torch.ones(values(order))
    with pytest.raises(ReplyError, match="found values too large or not finite, .*training has diverged"):
        pack_answer(report, order, FORM, WireConfig(up=up), {WEIGHTS: residual})
    assert bool((residual == 1).all())


def test_a_dtype_that_cannot_travel_is_refused(order: Order) -> None:
    with pytest.raises(ReplyError, match=r"tensor 'n': found torch.int64, allowed torch.float32"):
        pack_order(replace(order, channels={WEIGHTS: {"n": torch.from_numpy(np.arange(3))}}), FORM, PLAIN)


@pytest.mark.parametrize("down", ["fp32", "fp16", "int8"])
def test_a_head_is_small(order: Order, down: Any) -> None:
    packet = pack_order(order, FORM, WireConfig(down=down))
    assert len(packet.head) < 700
    assert isinstance(packet.buffers[NAMES[down]], Flat) and 20 * len(packet.head) < wire_module.HEAD_LIMIT
