"""How far a reply moved, measured against the others: what is usual, what is refused, what is clipped.

The norm of an update is the root mean square over its coordinates, so that small subnets compare with large ones.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fednas_core.base.errors import ReplyError

ENOUGH = 3
"""Replies whose median says what is usual; fewer are judged together with the rounds before."""


def update_norm(tensors: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> float:
    """Return the root mean square of what a client changed, to six digits: the same wherever it is computed.

    A reply without tensors has changed nothing: 0.
    """
    total, count = 0.0, 0
    for name, tensor in tensors.items():
        total += float(torch.linalg.vector_norm(tensor - sent[name])) ** 2
        count += tensor.numel()
    return float(f"{math.sqrt(total / max(1, count)):.6g}")


def usual_norm(norms: Collection[float], before: float | None) -> float | None:
    """Return the norm that replies are measured by: the (lower) median of the cohort's; None if nothing tells it.

    Fewer than `ENOUGH` norms count together with what was usual `before`; without that they say nothing.
    """
    if len(norms) >= ENOUGH:
        return statistics.median_low(norms)
    return None if before is None else statistics.median_low([*norms, before])


def check_norm(client: str, norm: float, usual: float | None, outlier: float) -> None:
    """Raise `ReplyError` if a norm is more than `outlier` times the usual one (0: any is allowed)."""
    if outlier and usual and norm > outlier * usual:
        raise ReplyError(
            f"client {client}: its update is {norm / usual:.4g} times the cohort's median, allowed is up to "
            f"{outlier:g} times (merge.outlier)"
        )


def clip_share(clip: float, norm: float, usual: float | None) -> float:
    """Return the share of an update that norm clipping leaves: ``min(1, clip·usual/norm)``; 1 if `clip` is 0."""
    return min(1.0, clip * usual / norm) if clip and usual and norm else 1.0


def shorten(tensors: Mapping[str, Tensor], sent: Mapping[str, Tensor], share: float) -> None:
    """Leave only a share of an update, in place: ``w + share·(w_k − w)``."""
    if tensors:
        torch._foreach_lerp_(list(tensors.values()), [sent[name] for name in tensors], 1 - share)
