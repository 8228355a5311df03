"""Whether a device still has what the rounds before an order left there."""

from __future__ import annotations

from fednas_core.exchange.orders import Order
from fednas_core.tasks import feedback, personal
from fednas_core.tasks.site import Site
from fednas_core.tasks.task import AnyTask


def lost(order: Order, task: AnyTask, up: str, site: Site) -> bool:
    """Whether a client that has trained in the run lacks private state that its order builds on.

    Training builds on a residual where ``topk``, the wire's way `up`, leaves entries out, and on private layers if
    there are any; what tests or uses a network, on these alone.
    """
    purposes = []
    if site.space.personal and task.personal:
        purposes.append(personal.PURPOSE)
    if up == "topk" and task.schema.updates:
        purposes.append(feedback.PURPOSE)
    before = order.round + site.repeats
    return order.trained and any(
        site.store.load(order.run, order.client, purpose, before) is None for purpose in purposes
    )
