"""FedPer's correctness tests: where a client's own layers are, and where they are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.seeding import derive
from fednas_core.base.settings import read
from fednas_core.base.values import Arch
from fednas_core.exchange.orders import WEIGHTS, Answer, Order
from fednas_core.exchange.results import Installed, Tested, Trained
from fednas_core.export.bundle import load_bundle
from fednas_core.methods.catalogue import METHODS
from fednas_core.methods.fedper import fedper
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import views
from fednas_core.tasks.bench import client_images, examples_of, space_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.install import Handover
from fednas_core.tasks.personal import PURPOSE, Adaptation, completed, ready
from fednas_core.tasks.registry import perform
from fednas_core.tasks.site import site_of
from fednas_core.tasks.store import store_of
from fednas_core.training.settings import TrainSettings, train_settings

FOREVER = float("inf")
SETTINGS = TrainSettings(epochs=1, batch=16, lr=0.1, precision="fp32")


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "method": "fedper", "data.holdout": 0.2})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(state=str(tmp_path / "state"))


def order_of(config: RunConfig, round: int = 0, arch: Arch | None = None, **changes: Any) -> Order:
    space = space_of(config)
    chosen = arch or space.largest
    tensors = views(initial_weights(space, 1), space.plan(chosen))
    params = {"trial": adaptation(config), "install": Handover(adaptation(config), False, "fedper, 2 rounds")}
    given = params.get(changes.get("task", ""), SETTINGS)
    order = Order("client-01", round, "subnet", chosen, {WEIGHTS: tensors}, given, 5 + round, run="run-1")
    return replace(order, **changes)


def adaptation(config: RunConfig, epochs: int | None = None) -> Adaptation:
    """How clients fit layers of their own: for as many epochs as the settings say, or for `epochs`."""
    fit = replace(train_settings(config.train), epochs=config.personal.epochs if epochs is None else epochs)
    return Adaptation(fit, calibrate=False)


def loss(report: Answer) -> float:
    assert isinstance(report.result, Trained | Tested)
    return report.result.loss


def head(config: RunConfig, home: Home, round: int) -> dict[str, torch.Tensor]:
    """What the device kept before a round; nothing if it has no state."""
    state = store_of(home).load("run-1", "client-01", PURPOSE, round)
    return dict(state.tensors) if state else {}


def test_neither_order_nor_answer_holds_the_head(config: RunConfig, home: Home) -> None:
    order = order_of(config)
    report = perform(order, config, 1, home)
    assert list(report.weights) == list(order.weights)
    assert not [name for name in report.weights if name.startswith("head")]
    shared = space_of(config).cost(order.arch).params - sum(t.numel() for t in head(config, home, 1).values())
    assert sum(t.numel() for t in report.weights.values()) == shared


def test_both_parts_are_trained_together(config: RunConfig, home: Home) -> None:
    space = space_of(config)
    first = initial_weights(space, derive(config.seed, "client-01", PURPOSE))
    order = order_of(config)
    report = perform(order, config, 1, home)
    kept = head(config, home, 1)
    assert set(kept) == {"head.weight", "head.bias"}
    assert not torch.equal(kept["head.weight"], first["head.weight"])
    assert not torch.equal(report.weights["stem.weight"], order.weights["stem.weight"])


def test_a_head_goes_on_where_it_was_left_also_in_another_process(config: RunConfig, home: Home) -> None:
    perform(order_of(config, 0), config, 1, home)
    once = head(config, home, 1)
    tensors, own = completed(order_of(config, 1), site_of(config, 1, Home(state=home.state)))
    assert torch.equal(tensors["head.weight"], once["head.weight"]) and torch.equal(own["head.bias"], once["head.bias"])
    perform(order_of(config, 1), config, 1, home)
    assert not torch.equal(head(config, home, 2)["head.weight"], once["head.weight"])


def test_a_device_that_lost_its_layers_says_so(config: RunConfig, home: Home) -> None:
    assert not perform(order_of(config, 0), config, 1, home).fresh, "a newcomer has lost nothing"
    assert not perform(order_of(config, 1, trained=True), config, 1, home).fresh
    lost = replace(home, state=home.state + "-lost")
    for task in ("trial", "subnet"):
        assert perform(order_of(config, 1, task=task, trained=True), config, 1, lost).fresh
    assert not perform(order_of(config, 2, trained=True), config, 1, lost).fresh, "it has begun anew"


def test_a_round_lived_again_starts_from_the_same_head(config: RunConfig, home: Home) -> None:
    perform(order_of(config, 0), config, 1, home)
    first = perform(order_of(config, 1), config, 1, home)
    again = perform(order_of(config, 1), config, 1, home)
    assert all(torch.equal(tensor, again.weights[name]) for name, tensor in first.weights.items())


def test_clients_begin_with_heads_of_their_own(config: RunConfig, home: Home) -> None:
    site = site_of(config, 1, home)
    one, _ = completed(order_of(config), site)
    two, _ = completed(order_of(config, client="client-02"), site)
    same, _ = completed(order_of(config, 3), site)
    assert not torch.equal(one["head.weight"], two["head.weight"])
    assert torch.equal(one["head.weight"], same["head.weight"])


def test_a_subnet_trains_its_region_of_the_head(config: RunConfig, home: Home) -> None:
    space = space_of(config)
    first = initial_weights(space, derive(config.seed, "client-01", PURPOSE))["head.weight"]
    perform(order_of(config, arch=space.smallest), config, 1, home)
    kept = head(config, home, 1)["head.weight"]
    width = space.private(space.smallest)["head.weight"][1].stop
    assert kept.shape == first.shape and width < first.shape[1]
    assert not torch.equal(kept[:, :width], first[:, :width])
    assert torch.equal(kept[:, width:], first[:, width:])


def test_with_no_private_layer_it_is_federated_averaging_bit_for_bit(tiny_pairs: dict[str, Any], home: Home) -> None:
    averaging = read({**tiny_pairs, "method": "fedavg"})
    none = read({**tiny_pairs, "method": "fedper", "personal.layers": ""})
    one, two = (perform(order_of(config), config, 1, home) for config in (averaging, none))
    assert list(one.weights) == list(two.weights)
    assert one.result == two.result and one.examples == two.examples
    assert all(torch.equal(tensor, two.weights[name]) for name, tensor in one.weights.items())
    assert not (Path(home.state)).exists()


def test_with_nothing_shared_it_is_local_training(tiny_pairs: dict[str, Any], home: Home) -> None:
    config = read({**tiny_pairs, "method": "fedper", "personal.layers": "stem,stem_norm,stages,head"})
    report = perform(order_of(config), config, 1, home)
    assert report.weights == {} and report.bytes_up == 0
    assert set(head(config, home, 1)) == set(initial_weights(space_of(config), 0))
    later = [loss(perform(order_of(config, round), config, 1, home)) for round in range(1, 6)]
    assert later[-1] < loss(report)


def test_the_last_blocks_can_stay_as_well(tiny_pairs: dict[str, Any]) -> None:
    config = read({**tiny_pairs, "method": "fedper", "personal.blocks": 2})
    space = space_of(config)
    assert space.personal == ("head", *space.blocks[-2:])
    private, shared = space.private(space.largest), space.plan(space.largest)
    assert {name for name in private if not name.startswith("head")} == {
        name for name in initial_weights(space, 0) if name.startswith(space.blocks[-2:])
    }
    assert set(private) | set(shared) == set(space.whole(space.largest)) and not set(private) & set(shared)


@pytest.mark.parametrize("method", ["deepfednas", "superfednas", "fedavg"])
def test_any_method_can_have_personal_layers(tiny_pairs: dict[str, Any], method: str) -> None:
    assert space_of(read({**tiny_pairs, "method": method})).personal == ()
    assert space_of(read({**tiny_pairs, "method": method, "personal.layers": "head"})).personal == ("head",)


def test_the_server_averages_one_network_by_examples(config: RunConfig) -> None:
    everyone, weighting = fedper(config, space_of(config), ())
    assert (METHODS["fedper"].personal, everyone.arch) == ("head", space_of(config).largest)
    assert weighting.weights(0, {"a": 10, "b": 30}, None) == {"a": 0.25, "b": 0.75}


def test_layers_that_the_space_has_not_are_named_with_those_it_has(tiny_pairs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no layer 'haed', allowed: stem, .*head, or a part of one, e.g. stages\.1"):
        space_of(read({**tiny_pairs, "personal.layers": "haed"}))


def test_a_share_is_kept_for_testing_half_of_it_for_following(config: RunConfig) -> None:
    whole, site = len(client_images(config, 1).y), site_of(config, 1)
    assert site.held_out and len(site.train.y) == examples_of(config, 1) == whole - round(0.2 * whole)
    assert abs(len(site.validation.y) - len(site.test.y)) <= 1
    assert len(site.train.y) + len(site.validation.y) + len(site.test.y) == whole


def test_a_newcomer_fits_its_head_and_nothing_else(config: RunConfig, home: Home) -> None:
    site, order = site_of(config, 1, home), order_of(config, 4, task="trial")
    few, fitted = (ready(order, adaptation(config, epochs), site, FOREVER) for epochs in (0, 20))
    for name, tensor in fitted.named_parameters():
        moved = not torch.equal(tensor, dict(few.named_parameters())[name])
        assert moved == name.startswith("head"), name
    first, later = (perform(replace(order, params=adaptation(config, n)), config, 1, home) for n in (0, 20))
    assert loss(later) < loss(first)
    assert head(config, home, 9) == {}, "what a trial does is not kept"


def test_a_newcomer_takes_a_network_without_private_layers_as_it_is(config: RunConfig, home: Home) -> None:
    """The last block may be one that a smaller network does not have."""
    config = replace(config, personal=replace(config.personal, layers="", blocks=1))
    space = space_of(config)
    assert space.private(space.largest) and not space.private(space.smallest)
    order = order_of(config, 4, task="trial", arch=space.smallest)
    report = perform(order, config, 1, home)
    assert isinstance(report.result, Tested) and report.result.tested


def test_a_client_that_trained_uses_its_head_as_it_is(config: RunConfig, home: Home) -> None:
    perform(order_of(config, 0), config, 1, home)
    module = ready(order_of(config, 1), adaptation(config), site_of(config, 1, home), FOREVER)
    assert torch.equal(module.state_dict()["head.weight"], head(config, home, 1)["head.weight"])


def test_the_model_that_is_handed_over_has_the_head_inside(config: RunConfig, home: Home, tmp_path: Path) -> None:
    perform(order_of(config, 0), config, 1, home)
    kept = replace(home, models=str(tmp_path / "models"))
    report = perform(order_of(config, 1, task="install"), config, 1, kept)
    found = report.result
    assert isinstance(found, Installed) and found.stored and found.held_out
    model, meta = load_bundle(tmp_path / "models" / "client-01")
    weights = {name.removeprefix("network."): tensor for name, tensor in model.state_dict().items()}
    assert torch.equal(weights["head.weight"], head(config, home, 1)["head.weight"])
    assert meta["space"]["personal"] == ["head"] and json.dumps(meta)
    site = site_of(config, 1)
    right = model(site.test.x.float() / 255).argmax(1) == site.test.y
    assert found.accuracy == pytest.approx(float(right.float().mean()), abs=1e-6)


def test_batch_statistics_of_a_personal_network_are_the_clients_own(tiny_pairs: dict[str, Any], home: Home) -> None:
    config = read({**tiny_pairs, "method": "fedper", "space.norm": "batch", "personal.blocks": 1, "data.holdout": 0.2})
    order = order_of(config, 1, task="trial")
    module = ready(order, adaptation(config), site_of(config, 1, home), FOREVER)
    assert float(module.state_dict()["stem_norm.running_mean"].abs().sum()) > 0
    found = perform(order, config, 1, home).result
    assert isinstance(found, Tested) and found.held_out
