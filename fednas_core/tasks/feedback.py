"""A client's answer on its way out: packed as the settings say, with error feedback where entries are left out.

What ``topk`` does not send is kept on the device and added to the client's next change, so that nothing is lost but
time (Seide et al., 2014; Karimireddy et al., 2019, algorithm 1). A client trains another subnet every round: its
residual has the supernet's shapes, and a round touches the regions of its own subnet.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.values import State
from fednas_core.exchange.orders import TrainOrder, TrainReport
from fednas_core.exchange.wire import Packet, pack_report
from fednas_core.spaces.space import Space
from fednas_core.subnets.packing import pack, shapes, unpack, views
from fednas_core.tasks.home import Home
from fednas_core.tasks.store import repeats, store_of

PURPOSE = "residual"
"""The name of the residual in the client's private state."""


def pack_answer(report: TrainReport, order: TrainOrder, config: RunConfig, space: Space, home: Home) -> Packet:
    """Return the packet of the report on an order as the client received it, a network of `space`.

    With ``topk`` a residual is taken from and left in the private state of the device, `home`.

    Raises `RunError` if the residual cannot be kept, `ReplyError` if the change cannot travel: the residual of the
    round before then stays.
    """
    if config.wire.up != "topk" or order.returns != "weights":
        return pack_report(report, order, config.wire)
    store, plan, whole = store_of(home), space.plan(order.arch), shapes(space.plan(space.supernet))
    before = store.load(order.run, order.client, PURPOSE, order.round + repeats(config))
    residual = _fitting(before, {name: whole[name] for name in plan})
    mine = views(residual, plan)
    flat = pack(mine)
    packet = pack_report(report, order, config.wire, flat)
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
