"""Task ``trial``: a client tests a network on images of its own, with its own layers if it has any."""

from __future__ import annotations

from fednas_core.exchange.orders import Order
from fednas_core.exchange.results import Tested
from fednas_core.exchange.schema import Schema, network_of
from fednas_core.tasks.images import tested
from fednas_core.tasks.memory import to_use
from fednas_core.tasks.personal import Adaptation, ready
from fednas_core.tasks.site import Site
from fednas_core.tasks.task import Task, Work


def trial(order: Order, params: Adaptation, site: Site, until: float) -> Work[Tested]:
    """Test the order's network on the client's validation images: what networks are followed and chosen by.

    They are all its images if it never trains in the run (see `Task`).
    """
    module = ready(order, params, site, until)
    found = tested(module, site.validation, site.prepare)
    result = Tested(found.loss, found.accuracy, found.images, site.held_out)
    return Work(result, found.images * site.space.cost(order.arch).macs)


TASK = Task(Schema(Adaptation, Tested, network_of), trial, to_use, personal=True)
