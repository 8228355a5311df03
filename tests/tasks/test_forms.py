"""What the orders of every task and the answers to them look like on the wire, and what no client can have found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.samples import with_result

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.settings import read
from fednas_core.engine import local
from fednas_core.engine.collect import answered
from fednas_core.engine.local import LocalFleet
from fednas_core.exchange.orders import WEIGHTS, Answer, Order, Scalars
from fednas_core.exchange.results import Kept, Tested
from fednas_core.exchange.schema import credible
from fednas_core.exchange.wire import Packet, pack_answer, pack_order, read_answer, read_order
from fednas_core.methods.method import request
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import subnet
from fednas_core.tasks.bench import space_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.install import Handover
from fednas_core.tasks.moments import MOMENTS
from fednas_core.tasks.personal import Adaptation
from fednas_core.tasks.registry import FORMS, clients_of, perform
from fednas_core.tasks.task import NoParams
from fednas_core.training.settings import DistilSettings, SandwichSettings, TrainSettings

Head = dict[str, Any]
TRAIN = TrainSettings(lr=0.02, precision="fp32")
PARAMS: Mapping[str, Scalars] = {
    "subnet": TRAIN,
    "sandwich": SandwichSettings(TRAIN, inner=1, ends=True, distill=True, floor=(0,)),
    "moments": NoParams(),
    "trial": Adaptation(TRAIN, calibrate=True),
    "teach": NoParams(),
    "distil": DistilSettings(TRAIN, soft=0.7, temperature=3.0),
    "install": Handover(Adaptation(TRAIN, calibrate=False), forget=False, trained="deepfednas, 2 rounds"),
}


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "space.norm": "batch", "data.holdout": 0.2})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(state=str(tmp_path / "state"))


def order_of(config: RunConfig, task: str, round: int = 3) -> Order:
    space = space_of(config)
    state = subnet(space, space.smallest, initial_weights(space, 1)).state_dict()
    wanted = FORMS[task].sends(space, space.smallest)
    channels = {channel: {name: state[name] for name in shapes} for channel, shapes in wanted.items()}
    return Order("client-01", round, task, space.smallest, channels, PARAMS[task], 7, run="run-1")


def done(config: RunConfig, home: Home, task: str) -> tuple[Order, Answer]:
    """An order of a task, and what the client answers that has a teacher if it needs one."""
    if task == "distil":
        perform(order_of(config, "teach", round=2), config, 1, home)
    order = order_of(config, task)
    return order, perform(order, config, 1, home)


def check(answer: Answer, order: Order, config: RunConfig) -> None:
    """Judge an answer as the server does."""
    credible(answer, order, clients_of(config)[1], FORMS[order.task], limit=1e9)


def respelt(packet: Packet, part: str, change: Callable[[Head], object]) -> Packet:
    """The packet with its parameters or its result changed."""
    head = json.loads(packet.head)
    changed = change(head[part])
    return replace(packet, head=json.dumps(head | {part: head[part] if changed is None else changed}))


def without(*names: str) -> Callable[[Head], object]:
    return lambda found: {name: value for name, value in found.items() if name not in names}


def having(**values: Any) -> Callable[[Head], object]:
    return lambda found: {**found, **values}


def test_every_task_is_tested_here() -> None:
    assert PARAMS.keys() == FORMS.keys()


@pytest.mark.parametrize("task", FORMS)
def test_what_a_task_takes_and_gives_is_what_its_form_says(config: RunConfig, home: Home, task: str) -> None:
    order, answer = done(config, home, task)
    received = read_order(pack_order(order, FORMS[task], config.wire), FORMS, space_of(config), config.wire)
    assert replace(received, channels={}) == replace(order, channels={})
    assert received.params == PARAMS[task]
    for name, tensor in order.weights.items():
        assert torch.equal(received.weights[name], tensor)
    assert answer.client == order.client and type(answer.result) is FORMS[task].result
    back = read_answer(pack_answer(answer, order, FORMS[task], config.wire), order, FORMS[task], config.wire)
    check(back, order, config)
    assert replace(back, channels={}) == replace(answer, channels={})
    assert back.channels.keys() == answer.channels.keys() == FORMS[task].returns(order).keys()
    for channel, tensors in answer.channels.items():
        assert list(back.channels[channel]) == list(tensors)
        assert all(torch.equal(back.channels[channel][name], tensor) for name, tensor in tensors.items())


# -- orders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "change", "told"),
    [
        ("subnet", without("lr"), "params: found no field 'lr', allowed are epochs, batch, lr"),
        ("subnet", having(colour=1), "params: found the field 'colour', allowed are epochs, batch"),
        ("subnet", having(lr="fast"), "params.lr: found 'fast', allowed a finite number"),
        ("subnet", having(epochs=-1), "params.epochs: found -1, allowed a whole number from 0"),
        ("subnet", having(epochs=1.5), "params.epochs: found 1.5, allowed a whole number from 0"),
        ("moments", having(images=3), "params: found the field 'images', allowed are none"),
        ("teach", lambda found: [], r"params: found \[\], allowed are no fields"),
        ("sandwich", without("train"), "params: found no field 'train', allowed are train, inner"),
        ("sandwich", having(train={}), "params.train: found no field 'augment'"),
        ("sandwich", having(floor=2), "params.floor: found 2, allowed is a list"),
        ("sandwich", having(floor=[0, None]), r"params.floor\[1\]: found None, allowed a whole number from 0"),
        ("distil", having(soft=float("nan")), "params.soft: found nan, allowed a finite number"),
        ("trial", having(calibrate=1), "params.calibrate: found 1, allowed true or false"),
        ("install", having(adapt="as you like"), "params.adapt: found 'as you like', allowed are fit, calibrate"),
    ],
)
def test_parameters_of_another_form_are_refused_by_name(
    config: RunConfig, task: str, change: Callable[[Head], object], told: str
) -> None:
    packet = respelt(pack_order(order_of(config, task), FORMS[task], config.wire), "params", change)
    with pytest.raises(ReplyError, match=told):
        read_order(packet, FORMS, space_of(config), config.wire)


def test_an_order_of_a_task_that_is_not_known_is_refused(config: RunConfig) -> None:
    packet = pack_order(order_of(config, "trial"), FORMS["trial"], config.wire)
    for task, shown in (("dance", "'dance'"), ("", "''")):
        other = replace(packet, head=json.dumps(json.loads(packet.head) | {"task": task}))
        with pytest.raises(ReplyError, match=f"task {shown} is not known here: allowed are subnet, sandwich, moments"):
            read_order(other, FORMS, space_of(config), config.wire)


# -- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "change", "told"),
    [
        ("subnet", without("loss"), "result: found no field 'loss', allowed are loss, accuracy"),
        ("subnet", having(tested=3), "result: found the field 'tested', allowed are loss, accuracy"),
        ("subnet", having(accuracy="good"), "result.accuracy: found 'good', allowed a finite number"),
        ("subnet", lambda found: "good", "result: found 'good', allowed are loss, accuracy"),
        ("sandwich", having(loss=float("inf")), "result.loss: found inf, allowed a finite number"),
        ("distil", having(loss=1e300), "result.loss: found 1e.300, allowed a finite number"),
        ("moments", having(images=3.0), "result.images: found 3.0, allowed a whole number from 0"),
        ("moments", without("images"), "result: found no field 'images'"),
        ("trial", having(tested=-1), "result.tested: found -1, allowed a whole number from 0"),
        ("trial", having(held_out=0.0), "result.held_out: found 0.0, allowed true or false"),
        ("teach", having(kept=1.0), "result: found the field 'kept', allowed are none"),
        ("install", without("latency_ms"), "result: found no field 'latency_ms', allowed are loss"),
        ("install", having(latency_ms=float("nan")), "result.latency_ms: found nan, allowed a finite number"),
        ("install", having(latency_ms=None), "result.latency_ms: found None, allowed a finite number"),
        ("install", having(fits=1), "result.fits: found 1, allowed true or false"),
    ],
)
def test_a_result_of_another_form_is_refused_by_client_and_name(
    config: RunConfig, home: Home, task: str, change: Callable[[Head], object], told: str
) -> None:
    order, answer = done(config, home, task)
    packet = respelt(pack_answer(answer, order, FORMS[task], config.wire), "result", change)
    with pytest.raises(ReplyError, match=f"client client-01: {told}"):
        read_answer(packet, order, FORMS[task], config.wire)


@pytest.mark.parametrize(
    ("task", "changes", "told"),
    [
        ("subnet", {"accuracy": 9e18}, r"accuracy: found 9e\+18, allowed a number from 0 to 1"),
        ("subnet", {"loss": -0.5}, "loss: found -0.5, allowed a finite number from 0"),
        ("sandwich", {"accuracy": -0.01}, "accuracy: found -0.01, allowed a number from 0 to 1"),
        ("distil", {"loss": -1.0}, "loss: found -1.0, allowed a finite number from 0"),
        ("trial", {"accuracy": 9e18}, r"accuracy: found 9e\+18, allowed a number from 0 to 1"),
        ("trial", {"tested": 10**9}, r"tested: found 1000000000, allowed 0 to the \d+ that it said it has"),
        ("install", {"tested": 10**9}, r"tested: found 1000000000, allowed 0 to the \d+ that it said it has"),
        ("install", {"accuracy": 1.5}, "accuracy: found 1.5, allowed a number from 0 to 1"),
        ("install", {"latency_ms": -1.0}, "latency_ms: found -1.0, allowed a finite number from 0"),
        ("moments", {"images": 0}, r"images: found 0, allowed 1 to the \d+ that it said it has"),
        ("moments", {"images": 10**9}, r"images: found 1000000000, allowed 1 to the \d+ that it said it has"),
    ],
)
def test_what_a_client_cannot_have_found_is_refused(
    config: RunConfig, home: Home, task: str, changes: dict[str, Any], told: str
) -> None:
    order, answer = done(config, home, task)
    boast, form = with_result(answer, **changes), FORMS[task]
    received = read_answer(pack_answer(boast, order, form, config.wire), order, form, config.wire)
    with pytest.raises(ReplyError, match=told):
        check(received, order, config)


def test_tested_are_at_most_all_images_that_a_client_has(config: RunConfig, home: Home) -> None:
    order, answer = done(config, home, "trial")
    client = clients_of(config)[1]
    assert client.held_out and isinstance(answer.result, Tested)
    check(with_result(answer, tested=client.examples + client.held_out), order, config)
    with pytest.raises(ReplyError, match=f"tested: found .*, allowed 0 to the {client.examples + client.held_out}"):
        check(with_result(answer, tested=client.examples + client.held_out + 1), order, config)


def test_a_result_of_another_task_is_refused(config: RunConfig, home: Home) -> None:
    order, answer = done(config, home, "trial")
    with pytest.raises(ReplyError, match="found a result of Kept, allowed Tested"):
        check(replace(answer, result=Kept()), order, config)


# -- channels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "allowed"), [("trial", "none"), ("subnet", WEIGHTS), ("moments", MOMENTS)])
def test_channels_that_a_task_does_not_return_are_refused(
    config: RunConfig, home: Home, task: str, allowed: str
) -> None:
    order, answer = done(config, home, task)
    with pytest.raises(ReplyError, match=f"channels: found .*diary, allowed {allowed}"):
        check(replace(answer, channels={**answer.channels, "diary": {}}), order, config)
    if answer.channels:
        with pytest.raises(ReplyError, match=f"channels: found none, allowed {allowed}"):
            check(replace(answer, channels={}), order, config)


def test_buffers_that_a_task_does_not_return_are_refused(config: RunConfig, home: Home) -> None:
    for task in ("trial", "subnet", "moments"):
        order, answer = done(config, home, task)
        packet = pack_answer(answer, order, FORMS[task], config.wire)
        more = replace(packet, buffers={**packet.buffers, "diary.float32": bytes(8)})
        none = replace(packet, buffers={})
        for wrong in (more, none) if packet.buffers else (more,):
            with pytest.raises(ReplyError, match=r"client client-01: arrays: found \[.*\], allowed \[.*\]"):
                read_answer(wrong, order, FORMS[task], config.wire)


# -- and the others go on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("latency_ms"), "result: found no field 'latency_ms', allowed are loss, accuracy, tested"),
        (having(latency_ms=float("nan")), "result.latency_ms: found nan, allowed a finite number"),
        (having(accuracy=9e18), "accuracy: found 9e+18, allowed a number from 0 to 1"),
    ],
)
def test_an_install_that_tells_no_latency_is_refused_and_others_are_handed_over(
    tiny_pairs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: Callable[[Head], object], told: str
) -> None:
    config = read({**tiny_pairs, "wire.up": "fp16"})  # lossy, so that answers pass through packets in this process too
    space, pack = space_of(config), local.pack_with_feedback

    def spoilt(answer: Answer, *given: Any) -> Packet:
        packet = pack(answer, *given)
        return respelt(packet, "result", change) if answer.client == "client-01" else packet

    monkeypatch.setattr(local, "pack_with_feedback", spoilt)
    module = subnet(space, space.smallest, initial_weights(space, 1))
    names = [client.name for client in clients_of(config)]
    requests = [request(config.rounds, name, "install", space.smallest) for name in names]
    with closing(LocalFleet(config)) as fleet:
        answers, failures = answered(config, fleet, requests, lambda arch: module.state_dict(), "run-1")
    assert [answer.client for answer in answers] == [name for name in names if name != "client-01"]
    ((failure),) = failures
    assert (failure.client, failure.reason[: len(told)]) == ("client-01", told)
