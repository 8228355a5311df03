"""Whether a device still has what the rounds before an order left there."""

from __future__ import annotations

from fednas_core.base.config import RunConfig
from fednas_core.exchange.orders import TrainOrder
from fednas_core.tasks import feedback, personal
from fednas_core.tasks.bench import is_personal
from fednas_core.tasks.home import Home
from fednas_core.tasks.store import repeats, store_of


def lost(order: TrainOrder, config: RunConfig, home: Home) -> bool:
    """Whether a client that has trained in the run lacks private state that its order builds on.

    Training builds on a residual where ``topk`` leaves entries out, and on private layers if there are any; what tests
    or uses a network, on these alone.
    """
    purposes = []
    if is_personal(config) and order.task in ("subnet", "sandwich", "trial", "install"):
        purposes.append(personal.PURPOSE)
    if config.wire.up == "topk" and order.returns == "weights":
        purposes.append(feedback.PURPOSE)
    before = order.round + repeats(config)
    return order.trained and any(
        store_of(home).load(order.run, order.client, purpose, before) is None for purpose in purposes
    )
