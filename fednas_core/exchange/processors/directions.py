"""Which way replies move, measured against the others': what a liar of ordinary length cannot hide.

The cosine of a client's update with the sum of the others' over the coordinates it covers, all made equally long so
that nobody shouts. Related: FLTrust (Cao et al., NDSS 2021), whose reference is an update that the server trains
itself; here it is that of everyone else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fednas_core.base.errors import ReplyError
from fednas_core.base.values import ClientId, Plan
from fednas_core.subnets.packing import views

Update = tuple[ClientId, Plan, Mapping[str, Tensor]]
"""A client's update: its name, where it lies in the supernet, and tensors whose root mean square is 1."""


def to_direction(tensors: Mapping[str, Tensor], sent: Mapping[str, Tensor], norm: float) -> None:
    """Turn a reply into its update divided by its norm (see `update_norm`), in place."""
    parts = list(tensors.values())
    if not parts:
        return
    torch._foreach_sub_(parts, [sent[name] for name in tensors])
    torch._foreach_div_(parts, norm)


def alignments(updates: Callable[[], Iterable[Update]], supernet: Mapping[str, Tensor]) -> dict[ClientId, float]:
    """Return each update's cosine with the sum of the others', from -1 to 1; 0 where nobody else covers anything.

    `updates` gives those of the cohort, one by one and as often as asked. Takes the memory of one more supernet.
    """
    total = {name: torch.zeros_like(tensor) for name, tensor in supernet.items()}
    for _, plan, update in updates():
        if plan:
            torch._foreach_add_(list(views(total, plan).values()), [update[name] for name in plan])
    cosines = {}
    for client, plan, update in updates():
        dot, own, others = 0.0, 0.0, 0.0
        for name, part in views(total, plan).items():
            rest = part - update[name]
            dot += float((rest * update[name]).sum())
            own += float(update[name].square().sum())
            others += float(rest.square().sum())
        cosines[client] = dot / math.sqrt(own * others) if own * others else 0.0
    return cosines


def check_direction(client: str, cosine: float, opposed: float) -> None:
    """Raise `ReplyError` if an update points against the others': its cosine is below ``-opposed``."""
    if cosine < -opposed:
        raise ReplyError(
            f"client {client}: its update points against the cohort's: cosine {cosine:.2f} with that of the others, "
            f"allowed is from {-opposed:g} (merge.opposed)"
        )
