"""A client's answer on its way out: packed as the settings say, with error feedback where entries are left out.

What ``topk`` does not send is kept on the device and added to the client's next change, so that nothing is lost but
time (Seide et al., 2014; Karimireddy et al., 2019, algorithm 1). A client trains another subnet every round: its
residual has the supernet's shapes, and a round touches the regions of its own subnet.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fednas_core.base.config import WireConfig
from fednas_core.base.values import State
from fednas_core.exchange.orders import WEIGHTS, Answer, Order
from fednas_core.exchange.wire import Form, Packet, pack_answer
from fednas_core.subnets.packing import pack, shapes, unpack, views
from fednas_core.tasks.site import Site

PURPOSE = "residual"
"""The name of the residual in the client's private state."""


def pack_with_feedback(answer: Answer, order: Order, form: Form, wire: WireConfig, site: Site) -> Packet:
    """Return the packet of the answer to an order as the client received it.

    With ``topk`` a residual is taken from and left in the private state of the site's device. Raises `RunError` if it
    cannot be kept, `ReplyError` if the change cannot travel: the residual of the round before then stays.
    """
    if wire.up != "topk" or WEIGHTS not in form.updates:
        return pack_answer(answer, order, form, wire)
    store, space = site.store, site.space
    plan, whole = space.plan(order.arch), shapes(space.plan(space.supernet))
    before = store.load(order.run, order.client, PURPOSE, order.round + site.repeats)
    residual = _fitting(before, {name: whole[name] for name in plan})
    mine = views(residual, plan)
    flat = pack(mine)
    packet = pack_answer(answer, order, form, wire, {WEIGHTS: flat})
    torch._foreach_copy_(list(mine.values()), list(unpack(flat, shapes(plan)).values()))
    store.save(order.run, order.client, PURPOSE, order.round, State(residual))
    return packet


def _fitting(before: State | None, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the residual of the last time, with zeros for tensors that no subnet of this client has had yet."""
    kept = {} if before is None else dict(before.tensors)
    for name, shape in wanted.items():
        if name not in kept or tuple(kept[name].shape) != shape:
            kept[name] = torch.zeros(shape)
    return kept
