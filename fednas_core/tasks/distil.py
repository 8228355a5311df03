"""Task ``distil`` (DDC): train the received student from the teacher that the device keeps, and return its tensors."""

from __future__ import annotations

from fednas_core.base.config import RunConfig
from fednas_core.base.values import TRAINING_FACTOR
from fednas_core.exchange.orders import TrainOrder
from fednas_core.subnets.networks import network
from fednas_core.tasks.bench import device_of, ground_of, precision_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.images import epochs_of
from fednas_core.tasks.subnet import Work, shared
from fednas_core.tasks.teach import teacher_of
from fednas_core.training.distil import Teacher, train_student


def distil(order: TrainOrder, config: RunConfig, index: int, home: Home, until: float) -> Work:
    """Train the order's network for its epochs on the client's images, from the teacher of an earlier ``teach`` order.

    ``ddc.soft`` and ``ddc.temperature`` say how. MACs are those of the student's training and the teacher's forward
    passes; `until` is the deadline on the clock of `time.monotonic`. Raises `RunError` if the device has no teacher.
    """
    ground, device = ground_of(config, index, home), device_of(config)
    kept = teacher_of(order, home, ground.space, device)
    student = network(ground.space, order.arch, order.tensors, device)
    teacher = Teacher(kept.module, config.ddc.soft, config.ddc.temperature)
    precision = precision_of(order.settings.precision, device)
    outcome = train_student(student, teacher, epochs_of(order, ground, device), order.settings, precision, until)
    per_image = TRAINING_FACTOR * ground.space.cost(order.arch).macs + ground.space.cost(kept.arch).macs
    return Work(
        tensors=shared(dict(student.named_parameters()), order),
        loss=outcome.loss,
        accuracy=outcome.accuracy,
        macs=outcome.images * per_image,
    )
