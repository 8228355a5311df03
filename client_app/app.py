"""The ClientApp: turns a message into a task, keeps the deadline and says what the device can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client_app.records import Request, read_request, reply_content
from client_app.settings import home_of, own_name, serves
from fednas_core.base.config import RunConfig
from fednas_core.base.errors import DeadlineError, FednasError, RoomError, RunError
from fednas_core.base.fingerprint import fingerprint
from fednas_core.base.settings import read
from fednas_core.data.sources import Facts
from fednas_core.devices.info import Profile
from fednas_core.devices.profile import profile, to_json
from fednas_core.exchange.wire import Packet, read_order
from fednas_core.tasks.bench import client_names, device_of, examples_of, held_of, space_of
from fednas_core.tasks.feedback import pack_with_feedback
from fednas_core.tasks.home import Home
from fednas_core.tasks.registry import FORMS, perform
from fednas_core.tasks.site import labels_of, site_of

Result = TypeVar("Result")

GRACE_S = 5.0
"""Seconds after the deadline at which a task that does not end by itself is given up."""
FAILED = 2
"""Flower's code of an error in the ClientApp."""

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Carry out one order."""
    return _answer(message, context, _train)


@app.query("profile")
def describe(message: Message, context: Context) -> Message:
    """Say which clients this node serves, with how many examples each, and what its device measured of itself."""
    return _answer(message, context, lambda request, config, home: _describe(context, config, home))


def _answer(message: Message, context: Context, work: Callable[[Request, RunConfig, Home], Packet]) -> Message:
    """Return the reply of `work`, or an error that says why there is none."""
    torch.set_num_threads(1)
    try:
        request = read_request(message.content)
        _check_code(request.code)
        home = replace(home_of(context.node_config), facts=Facts.from_json(json.loads(request.facts)))
        packet = work(request, read(json.loads(request.settings)), home)
    except RoomError as error:
        reason = f"refused for lack of memory: {error}; give the device a smaller budget (--budget), smaller batches "
        return Message(Error(FAILED, reason + "(train.batch) or more memory"), reply_to=message)
    except FednasError as error:
        return Message(Error(FAILED, str(error)), reply_to=message)
    return Message(reply_content(packet), reply_to=message)


def _check_code(theirs: str) -> None:
    ours = fingerprint()
    if ours.digest != theirs:
        raise RunError(
            f"this client runs the code in {ours.folder}, which differs from the server's: start the SuperLink from a "
            "folder without another fednas (end the one that runs; `fednas simulate` uses one of its own), and install "
            "the same version on every device"
        )


def _train(request: Request, config: RunConfig, home: Home) -> Packet:
    space, wire = site_of(config, request.index, home).space, config.wire
    order = read_order(request.packet, FORMS, space, wire)
    answer = within(config.deadline, lambda: perform(order, config, request.index, home))
    site = site_of(config, request.index, home, order.trains)
    return pack_with_feedback(answer, order, FORMS[order.task], wire, site)


def within(deadline_s: float, work: Callable[[], Result], grace_s: float = GRACE_S) -> Result:
    """Return what `work` returns, or raise `DeadlineError` if it has not ended soon after the deadline.

    `work` keeps the deadline itself; this is for a step that hangs. Its thread cannot be ended and is left behind.
    """
    executor = ThreadPoolExecutor(1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    if not wait([future], deadline_s + grace_s).done:
        raise DeadlineError(
            f"no end {grace_s:g} seconds after the deadline of {deadline_s:g} seconds: a step hangs or is too slow"
        )
    return future.result()


def _describe(context: Context, config: RunConfig, home: Home) -> Packet:
    if home.data:
        mine, everything = (len(site_of(config, 0, home, trains).train.y) for trains in (True, False))
        clients = [(own_name(context.node_config), 0, mine, everything - mine, labels_of(config, 0, home))]
    else:
        served = serves(context.node_config, client_names(config))
        clients = [
            (name, index, examples, held_of(config, index), labels_of(config, index, home))
            for name, index in served
            if (examples := examples_of(config, index))
        ]
    told = {"clients": clients, "profile": to_json(_measured(config, home)), "budget": home.budget}
    return Packet(json.dumps(told), {})


@lru_cache(maxsize=1)
def _measured(config: RunConfig, home: Home) -> Profile:
    return profile(space_of(config, home.facts if home.data else None), device_of(config), home.threads)
