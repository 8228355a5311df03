"""Task ``distil`` (DDC): train the received student from the teacher that the device keeps, and return its tensors."""

from __future__ import annotations

from fednas_core.base.values import TRAINING_FACTOR
from fednas_core.exchange.orders import WEIGHTS, Order
from fednas_core.exchange.results import Trained
from fednas_core.exchange.schema import Schema, trained_weights, weights_of
from fednas_core.subnets.networks import network
from fednas_core.tasks.bench import precision_of
from fednas_core.tasks.images import epochs_of
from fednas_core.tasks.memory import to_train
from fednas_core.tasks.site import Site
from fednas_core.tasks.subnet import shared
from fednas_core.tasks.task import Task, Work
from fednas_core.tasks.teach import teacher_of
from fednas_core.training.distil import Teacher, train_student
from fednas_core.training.settings import DistilSettings


def distil(order: Order, params: DistilSettings, site: Site, until: float) -> Work[Trained]:
    """Train the order's network on the client's images, from the teacher of an earlier ``teach`` order (see `Task`).

    MACs are those of the student's training and the teacher's forward passes. Raises `TaskError` if the device has no
    teacher.
    """
    kept = teacher_of(order, site)
    student = network(site.space, order.arch, order.weights, site.device)
    teacher = Teacher(kept.module, params.soft, params.temperature)
    precision = precision_of(params.train.precision, site.device)
    epochs = epochs_of(params.train, order.seed, site)
    outcome = train_student(student, teacher, epochs, params.train, precision, until)
    per_image = TRAINING_FACTOR * site.space.cost(order.arch).macs + site.space.cost(kept.arch).macs
    trained = shared(dict(student.named_parameters()), order)
    return Work(Trained(outcome.loss, outcome.accuracy), outcome.images * per_image, trained)


TASK = Task(
    Schema(DistilSettings, Trained, weights_of, trained_weights, updates=(WEIGHTS,)),
    distil,
    lambda order, params, site: to_train(order, params.train.batch, site),
)
