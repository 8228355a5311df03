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
from fednas_core.exchange.results import Trained
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import network, shapes_of, subnet
from fednas_core.subnets.packing import views
from fednas_core.tasks.bench import examples_of, space_of
from fednas_core.tasks.distil import distil
from fednas_core.tasks.home import Home
from fednas_core.tasks.images import epochs_of
from fednas_core.tasks.site import site_of
from fednas_core.tasks.subnet import train_subnet
from fednas_core.tasks.task import NoParams, Work
from fednas_core.tasks.teach import teach
from fednas_core.training.distil import Teacher, train_student
from fednas_core.training.settings import DistilSettings, TrainSettings

FOREVER = float("inf")
SETTINGS = TrainSettings(epochs=2, batch=16, lr=0.1, precision="fp32", augment="crop")
LESSON = DistilSettings(SETTINGS, soft=0.7, temperature=3.0)


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
    order = Order("client-00", 3, "teach", space.largest, {WEIGHTS: tensors}, NoParams(), 0, run="run-1")
    teach(order, NoParams(), site_of(config, 0, home), FOREVER)
    return module.eval()


def order_of(config: RunConfig) -> Order:
    space = space_of(config)
    tensors = views(initial_weights(space, 2), space.plan(space.smallest))
    return Order("client-01", 4, "distil", space.smallest, {WEIGHTS: tensors}, LESSON, 11, run="run-1")


def done(config: RunConfig, home: Home, until: float = FOREVER, **changes: float) -> Work[Trained]:
    return distil(order_of(config), replace(LESSON, **changes), site_of(config, 1, home), until)


def plainly(config: RunConfig, home: Home) -> Work[Trained]:
    return train_subnet(order_of(config), SETTINGS, site_of(config, 1, home), FOREVER)


def test_the_student_is_trained_from_the_teacher_as_the_settings_say(config: RunConfig, home: Home) -> None:
    teacher, order, site = taught(config, home), order_of(config), site_of(config, 1)
    student = network(site.space, order.arch, order.weights)
    outcome = train_student(student, Teacher(teacher, 0.9, 2.0), epochs_of(SETTINGS, order.seed, site), SETTINGS)
    work = done(config, home, soft=0.9, temperature=2.0)
    assert work.result == Trained(outcome.loss, outcome.accuracy)
    assert list(work.channels) == [WEIGHTS] and list(work.channels[WEIGHTS]) == list(order.weights)
    assert all(torch.equal(tensor, student.get_parameter(name)) for name, tensor in work.channels[WEIGHTS].items())


def test_what_the_teacher_says_matters_and_how_softly(config: RunConfig, home: Home) -> None:
    taught(config, home)
    given = ((0.7, 3.0), (0.3, 3.0), (0.7, 9.0))
    losses = {done(config, home, soft=soft, temperature=t).result.loss for soft, t in given}
    assert len(losses | {plainly(config, home).result.loss}) == 4


def test_without_soft_targets_it_is_plain_training_bit_for_bit(config: RunConfig, home: Home) -> None:
    taught(config, home)
    work, plain = done(config, home, soft=0.0), plainly(config, home)
    assert work.result == plain.result
    assert all(torch.equal(tensor, plain.channels[WEIGHTS][name]) for name, tensor in work.channels[WEIGHTS].items())


def test_the_teachers_forward_passes_count(config: RunConfig, home: Home) -> None:
    taught(config, home)
    space, images = space_of(config), SETTINGS.epochs * examples_of(config, 1)
    wanted = images * (TRAINING_FACTOR * space.cost(space.smallest).macs + space.cost(space.largest).macs)
    assert done(config, home).macs == wanted


def test_every_answer_to_an_order_is_the_same_and_the_order_stays_as_it_was(config: RunConfig, home: Home) -> None:
    taught(config, home)
    order, site = order_of(config), site_of(config, 1, home)
    before = {name: tensor.clone() for name, tensor in order.weights.items()}
    one, two = (distil(order, LESSON, site, FOREVER).channels[WEIGHTS] for _ in range(2))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in order.weights.items())
    assert not all(torch.equal(tensor, before[name]) for name, tensor in one.items())


def test_a_device_without_a_teacher_says_so(config: RunConfig, home: Home) -> None:
    with pytest.raises(TaskError, match="this device has no teacher of run run-1"):
        done(config, home)


def test_it_ends_when_the_deadline_passes(config: RunConfig, home: Home) -> None:
    taught(config, home)
    with pytest.raises(DeadlineError, match="after 0 images"):
        done(config, home, until=0.0)
