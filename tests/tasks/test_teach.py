from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError, TaskError
from fednas_core.base.settings import read
from fednas_core.exchange.orders import WEIGHTS, Order
from fednas_core.exchange.results import Kept
from fednas_core.exchange.wire import pack_order, read_order
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import shapes_of, subnet
from fednas_core.subnets.packing import pack, unpack
from fednas_core.tasks.bench import space_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.registry import FORMS
from fednas_core.tasks.site import site_of
from fednas_core.tasks.store import Store
from fednas_core.tasks.task import NoParams, Work
from fednas_core.tasks.teach import DEVICE, PURPOSE, teach, teacher_of

FOREVER = float("inf")


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "space.norm": "batch"})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(state=str(tmp_path / "state"))


def order_of(config: RunConfig, seed: int = 1, **changes: Any) -> Order:
    """An order to keep the largest network, with batch statistics that are not those it began with."""
    space = space_of(config)
    module = subnet(space, space.largest, initial_weights(space, seed))
    site = site_of(config, 1)
    module.train()(site.prepare(site.train.x))
    state, names = module.state_dict(), shapes_of(space, space.largest, statistics=True)
    tensors = {name: state[name] for name in names}
    order = Order("client-01", 3, "teach", space.largest, {WEIGHTS: tensors}, NoParams(), 0, run="run-1")
    return replace(order, **changes)


def give(config: RunConfig, home: Home, order: Order) -> Work[Kept]:
    return teach(order, NoParams(), site_of(config, 1, home), FOREVER)


def asked(config: RunConfig, home: Home, round: int, run: str = "run-1") -> Any:
    """What a client finds that has an order of `round`."""
    order = Order("client-02", round, "distil", space_of(config).smallest, {}, NoParams(), 0, run=run)
    return teacher_of(order, site_of(config, 2, home))


def files(home: Home) -> list[Path]:
    return [path for path in Path(home.state).rglob("*") if path.is_file()]


def test_nothing_is_computed_and_the_result_says_that_it_is_kept(config: RunConfig, home: Home) -> None:
    assert give(config, home, order_of(config)) == Work(Kept(), macs=0, channels={})


def test_the_teacher_is_the_orders_network_as_it_is_used(config: RunConfig, home: Home) -> None:
    order = order_of(config)
    packet = pack_order(order, FORMS["teach"], config.wire)
    give(config, home, read_order(packet, FORMS, space_of(config), config.wire))
    kept = asked(config, home, 4)
    found = kept.module.state_dict()
    assert kept.arch == order.arch and not kept.module.training
    assert any(name.endswith("running_var") for name in order.weights)
    assert all(torch.equal(found[name], tensor) for name, tensor in order.weights.items())
    x = site_of(config, 1).prepare(site_of(config, 1).train.x[:4])
    wanted = subnet(space_of(config), order.arch, initial_weights(space_of(config), 1))
    wanted.load_state_dict(order.weights, strict=False)
    assert torch.equal(kept.module(x), wanted.eval()(x))


def test_all_clients_of_a_device_share_one_file_written_once(
    config: RunConfig, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[int] = []
    save = Store.save
    monkeypatch.setattr(Store, "save", lambda self, *given: (saves.append(given[3]), save(self, *given))[1])
    order = order_of(config)
    for number in range(5):
        give(config, home, replace(order, client=f"client-{number:02d}"))
    give(config, home, replace(order, client="client-07", round=6))  # one that joined later
    assert saves == [3] and len(files(home)) == 1
    assert torch.equal(asked(config, home, 9).module.head.weight, order.weights["head.weight"])


def test_another_teacher_is_written_and_each_round_finds_its_own(config: RunConfig, home: Home) -> None:
    first, second = order_of(config), order_of(config, seed=2, round=6)
    for order in (first, second):
        give(config, home, order)
    for round, order in ((4, first), (6, first), (7, second), (20, second)):
        assert torch.equal(asked(config, home, round).module.head.weight, order.weights["head.weight"])


def test_a_round_lived_again_gives_the_same_teacher(config: RunConfig, home: Home) -> None:
    order = order_of(config)
    for _ in range(2):
        give(config, home, order)
        give(config, home, order_of(config, seed=2, round=6))
        assert torch.equal(asked(config, home, 5).module.head.weight, order.weights["head.weight"])
    assert len(files(home)) == 2


def test_a_damaged_teacher_is_written_anew(config: RunConfig, home: Home) -> None:
    order = order_of(config)
    give(config, home, order)
    (file,) = files(home)
    file.write_bytes(b"nothing")
    give(config, home, order)
    assert torch.equal(asked(config, home, 4).module.head.weight, order.weights["head.weight"])


def test_the_teacher_is_read_once_a_round(config: RunConfig, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    load = Store.load
    give(config, home, order_of(config))
    monkeypatch.setattr(Store, "load", lambda self, *given: (loads.append(given[3]), load(self, *given))[1])
    one, same = asked(config, home, 4), asked(config, home, 4)
    assert one is same and loads == [4]


@pytest.mark.parametrize(("round", "run"), [(3, "run-1"), (9, "run-2")])
def test_a_device_without_a_teacher_says_so_until_it_has_one(
    config: RunConfig, home: Home, round: int, run: str
) -> None:
    give(config, home, order_of(config))
    with pytest.raises(TaskError, match=f"no teacher of run {run}: it joined later, .* sends it before the next round"):
        asked(config, home, round, run)
    give(config, home, order_of(config, round=round - 1, run=run))
    assert asked(config, home, round, run).arch == space_of(config).largest


def test_clients_that_save_at_the_same_time_all_succeed(config: RunConfig, home: Home) -> None:
    """The store clears unfinished files away, of other processes as well; tensors are views of one buffer, as sent."""
    order = order_of(config)
    sizes = {name: tuple(tensor.shape) for name, tensor in order.weights.items()}
    order = replace(order, channels={WEIGHTS: unpack(pack(order.weights), sizes)})
    for round in range(20):
        with ThreadPoolExecutor(8) as pool:
            given = [replace(order, client=f"c{number}", round=round, run=f"run-{round}") for number in range(8)]
            done = list(pool.map(lambda one: give(config, home, one).result, given))
        assert done == [Kept()] * 8
        assert torch.equal(
            asked(config, home, round + 1, f"run-{round}").module.head.weight, order.weights["head.weight"]
        )


def test_a_device_that_cannot_keep_it_says_why(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the device's private state cannot be kept in"):
        give(config, Home(state=str(tmp_path / "file" / "state")), order_of(config))


def test_the_teacher_is_apart_from_what_a_client_of_that_name_keeps(config: RunConfig, home: Home) -> None:
    give(config, home, order_of(config, client=DEVICE))
    assert [path.name.startswith(PURPOSE) for path in files(home)] == [True]
