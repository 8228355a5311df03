from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import DeadlineError, TaskError
from fednas_core.base.settings import read
from fednas_core.base.values import TRAINING_FACTOR
from fednas_core.exchange.orders import WEIGHTS, Order
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import network, shapes_of, subnet
from fednas_core.subnets.packing import views
from fednas_core.tasks.bench import examples_of, space_of
from fednas_core.tasks.distil import distil
from fednas_core.tasks.home import Home
from fednas_core.tasks.images import epochs_of
from fednas_core.tasks.site import site_of
from fednas_core.tasks.subnet import Work, train_subnet
from fednas_core.tasks.teach import teach
from fednas_core.training.distil import Teacher, train_student
from fednas_core.training.settings import TrainSettings

FOREVER = float("inf")
SETTINGS = TrainSettings(epochs=2, batch=16, lr=0.1, precision="fp32", augment="crop")


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "space.norm": "batch"})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(state=str(tmp_path / "state"))


def taught(config: RunConfig, home: Home) -> torch.nn.Module:
    """Give a teacher to the device after round 3, and return it."""
    space = space_of(config)
    module = subnet(space, space.largest, initial_weights(space, 1))
    state, names = module.state_dict(), shapes_of(space, space.largest, statistics=True)
    tensors = {name: state[name] for name in names}
    order = Order("client-00", 3, "teach", space.largest, {WEIGHTS: tensors}, SETTINGS, 0, run="run-1")
    teach(order, config, 0, home, FOREVER)
    return module.eval()


def order_of(config: RunConfig, **changes: Any) -> Order:
    space = space_of(config)
    tensors = views(initial_weights(space, 2), space.plan(space.smallest))
    order = Order("client-01", 4, "distil", space.smallest, {WEIGHTS: tensors}, SETTINGS, 11, run="run-1")
    return replace(order, **changes)


def done(config: RunConfig, home: Home, order: Order | None = None, until: float = FOREVER) -> Work:
    return distil(order or order_of(config), config, 1, home, until)


def ddc(config: RunConfig, **changes: float) -> RunConfig:
    return replace(config, ddc=replace(config.ddc, **changes))


def test_the_student_is_trained_from_the_teacher_as_the_settings_say(config: RunConfig, home: Home) -> None:
    config = ddc(config, soft=0.9, temperature=2.0)
    teacher, order, ground = taught(config, home), order_of(config), site_of(config, 1)
    student = network(ground.space, order.arch, order.weights)
    epochs = epochs_of(order, ground, torch.device("cpu"))
    outcome = train_student(student, Teacher(teacher, 0.9, 2.0), epochs, SETTINGS)
    work = done(config, home)
    assert (work.loss, work.accuracy) == (outcome.loss, outcome.accuracy)
    assert list(work.weights) == list(order.weights)
    assert all(torch.equal(tensor, student.get_parameter(name)) for name, tensor in work.weights.items())


def test_what_the_teacher_says_matters_and_how_softly(config: RunConfig, home: Home) -> None:
    taught(config, home)
    losses = {done(ddc(config, soft=soft, temperature=t), home).loss for soft, t in ((0.7, 3), (0.3, 3), (0.7, 9))}
    plain = train_subnet(order_of(config), config, 1, home, FOREVER)
    assert len(losses | {plain.loss}) == 4


def test_without_soft_targets_it_is_plain_training_bit_for_bit(config: RunConfig, home: Home) -> None:
    taught(config, home)
    work, plain = done(ddc(config, soft=0.0), home), train_subnet(order_of(config), config, 1, home, FOREVER)
    assert (work.loss, work.accuracy) == (plain.loss, plain.accuracy)
    assert all(torch.equal(tensor, plain.weights[name]) for name, tensor in work.weights.items())


def test_the_teachers_forward_passes_count(config: RunConfig, home: Home) -> None:
    taught(config, home)
    space, images = space_of(config), SETTINGS.epochs * examples_of(config, 1)
    wanted = images * (TRAINING_FACTOR * space.cost(space.smallest).macs + space.cost(space.largest).macs)
    assert done(config, home).macs == wanted


def test_every_answer_to_an_order_is_the_same_and_the_order_stays_as_it_was(config: RunConfig, home: Home) -> None:
    taught(config, home)
    order = order_of(config)
    before = {name: tensor.clone() for name, tensor in order.weights.items()}
    one, two = done(config, home, order), done(config, home, order)
    assert all(torch.equal(tensor, two.weights[name]) for name, tensor in one.weights.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in order.weights.items())
    assert not all(torch.equal(tensor, before[name]) for name, tensor in one.weights.items())


def test_a_device_without_a_teacher_says_so(config: RunConfig, home: Home) -> None:
    with pytest.raises(TaskError, match="this device has no teacher of run run-1"):
        done(config, home)


def test_it_ends_when_the_deadline_passes(config: RunConfig, home: Home) -> None:
    taught(config, home)
    with pytest.raises(DeadlineError, match="after 0 images"):
        done(config, home, until=0.0)
