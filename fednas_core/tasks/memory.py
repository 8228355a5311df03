"""How much memory a task takes."""

from __future__ import annotations

from fednas_core.devices.footprint import inference_bytes, training_bytes
from fednas_core.exchange.orders import Order
from fednas_core.tasks.site import Site
from fednas_core.training.evaluate import EVAL_BATCH


def to_train(order: Order, batch: int, site: Site) -> tuple[int, str]:
    """Return the bytes that training the order's network takes, and what takes them."""
    return training_bytes(site.space, order.arch, batch), f"training it in batches of {batch}"


def to_use(order: Order, params: object, site: Site) -> tuple[int, str]:
    """Return the bytes that using the order's network takes, and what takes them."""
    return inference_bytes(site.space, order.arch, EVAL_BATCH), "using it"
