from __future__ import annotations

from typing import Any

import pytest
from contracts.method import MethodContract
from contracts.samples import supernet_of, toy_space

from fednas_core.base.config import RunConfig, TrainConfig
from fednas_core.base.errors import ArchError, ConfigError
from fednas_core.base.settings import read
from fednas_core.methods.catalogue import METHODS
from fednas_core.methods.fedavg import SupernetAveraging, fixed_arch
from fednas_core.methods.registry import make, max_net, path_of, searched_by
from fednas_core.methods.setup import Setup, scheduled
from fednas_core.methods.superfednas import TrackingSandwich
from fednas_core.subnets.weightings import ByExamples, MaxNet, Uniform
from fednas_core.tasks.bench import is_personal, personal_parts
from fednas_core.training.settings import train_settings

SPACE = toy_space(widths=(0.5, 1.0, 1.5), expansions=(0.25, 0.5, 1.0))


def method_of(**pairs: Any) -> SupernetAveraging:
    config = read({"rounds": 6, "sample.budgets": 8, **{key.replace("__", "."): v for key, v in pairs.items()}})
    space = SPACE.with_personal(personal_parts(config, SPACE)) if is_personal(config) else SPACE
    return make(Setup(config, space, path_of(config, space, space.cost(space.largest).macs), supernet_of(space, 1)))


class TestEveryMethod(MethodContract):
    @pytest.fixture(
        params=[
            {"method": "fedavg"},
            {"method": "fedavg", "sample.arch": str(SPACE.smallest)},
            {"method": "superfednas"},
            {"method": "superfednas", "sample.between": "uniform"},
            {"method": "superfednas", "sample.between": "mac-matched", "sample.weigh": "examples"},
            {"method": "deepfednas"},
            {"method": "deepfednas", "sample.between": "uniform"},
            {"method": "deepfednas", "sample.between": "range-matched"},
            {"method": "deepfednas", "sample.between": "mac-matched"},
            {"method": "deepfednas", "sample.range-share": 0.5},
            {"method": "deepfednas", "sample.stratify": True, "sample.weigh": "examples"},
            {"method": "fedper"},
            {"method": "deepfednas", "personal.layers": "head"},
            {"method": "superfednas", "personal.arch": True, "personal.blocks": 1},
        ],
        ids=lambda pairs: "-".join(str(v)[:13] for v in pairs.values()),
    )
    def make(self, request: pytest.FixtureRequest) -> Any:
        return lambda: method_of(**request.param)


def test_every_choice_of_the_settings_is_a_method_with_a_source() -> None:
    assert set(METHODS) == {"fedavg", "superfednas", "deepfednas", "fedsup", "efedsup", "fedper", "fednas", "ddc"}
    for name, entry in METHODS.items():
        assert entry.title and entry.source
        assert read({"method": name}).method == name


def test_weightings_of_the_methods() -> None:
    assert isinstance(method_of(method="fedavg").weighting, ByExamples)
    assert method_of(method="superfednas", **{"sample.beta-start": 0.9}).weighting == MaxNet(0.9, 0.0, 5)
    assert isinstance(method_of(method="deepfednas").sampler, TrackingSandwich)
    for name in ("fedavg", "fedsup", "efedsup", "fedper"):
        assert method_of(method=name).weighting == ByExamples()
        assert method_of(method=name, **{"sample.weigh": "uniform"}).weighting == Uniform()
    for name in ("superfednas", "deepfednas"):
        for weigh in ("auto", "uniform", "examples"):
            rule = method_of(method=name, **{"sample.weigh": weigh}).weighting
            assert isinstance(rule, MaxNet) and rule.by_examples == (weigh == "examples")


@pytest.mark.parametrize(
    ("pairs", "by"),
    [
        ({"method": "superfednas"}, "accuracy"),
        ({"method": "superfednas", "search.by": "fitness"}, "fitness"),
        ({"method": "superfednas", "personal.layers": "head"}, "fitness"),
        ({"method": "deepfednas"}, "fitness"),
        ({"method": "deepfednas", "search.by": "accuracy"}, "accuracy"),
        ({"method": "efedsup"}, "fitness"),
        ({"method": "superfednas", "personal.arch": True}, None),
        ({"method": "fedavg"}, None),
        ({"method": "fednas", "search.by": "fitness"}, None),
    ],
)
def test_what_networks_are_searched_by(pairs: dict[str, Any], by: str | None) -> None:
    config = read(pairs)
    assert searched_by(config, SPACE.with_personal(personal_parts(config, SPACE))) == by


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ({"method": "fednas"}, "compete while they train"),
        ({"method": "ddc"}, "compete while they train"),
        ({"method": "fedavg"}, "trains one network only"),
        ({"method": "superfednas", "personal.blocks": 1}, "layers are personal"),
        ({"method": "superfednas", "personal.arch": True}, "each client keeps to a network of its own"),
    ],
)
def test_measured_accuracy_is_refused_where_nothing_can_be_measured(pairs: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=rf"'search.by' = 'accuracy' does not go with .*{why}.*allowed are auto"):
        method_of(**pairs, **{"search.by": "accuracy"})


@pytest.mark.parametrize(
    ("rounds", "share", "decay"), [(1500, 0.8, 1200), (2000, 0.8, 1600), (1, 0.01, 1), (10, 1.0, 10)]
)
def test_decay_is_a_share_of_all_rounds(rounds: int, share: float, decay: int) -> None:
    rule = max_net(
        read({"rounds": rounds, "sample.beta-decay": share, "sample.beta-start": 0.9, "sample.beta-end": 0.1})
    )
    assert rule == MaxNet(0.9, 0.1, decay, False)


def test_the_learning_rate_is_constant_or_falls_along_half_a_cosine() -> None:
    constant = scheduled(read({"train.lr": 0.2, "rounds": 8, "train.schedule": "constant"}))
    assert constant(0) == constant(7) == train_settings(TrainConfig(lr=0.2))
    falling = scheduled(read({"train.lr": 0.2, "rounds": 8, "train.schedule": "cosine", "train.batch": 5}))
    rates = [falling(round).lr for round in range(8)]
    assert rates[0] == 0.2 and rates[4] == pytest.approx(0.1) and 0 < rates[7] < 0.01
    assert rates == sorted(rates, reverse=True) and falling(3).batch == 5


def test_the_architecture_of_fedavg() -> None:
    assert fixed_arch(RunConfig(), SPACE) == SPACE.largest
    config = read({"method": "fedavg", "sample.arch": str(SPACE.smallest)})
    assert fixed_arch(config, SPACE) == SPACE.smallest
    with pytest.raises(ConfigError, match=r"'sample.arch' is not JSON .*an example: \{"):
        fixed_arch(read({"sample.arch": "largest"}), SPACE)
    with pytest.raises(ArchError, match=r"needed are d, e and w"):
        fixed_arch(read({"sample.arch": "[1, 2]"}), SPACE)
    with pytest.raises(ArchError, match=r"gene d\[0\] of space 'toy' is 7, allowed: 0 to 1"):
        fixed_arch(read({"sample.arch": '{"d": [7, 0], "e": [1, 1, 1, 1], "w": [0, 0, 0]}'}), SPACE)


def test_the_path_reaches_down_to_the_poorest_device() -> None:
    low = SPACE.cost(SPACE.smallest).macs
    path = path_of(read({"sample.budgets": 8}), SPACE, low)
    assert len(path) == 8 and path[-1].arch == SPACE.largest
    assert path[0].cost.macs <= low and path[0].arch == SPACE.smallest
    assert [row.cost.macs for row in path] == sorted(row.cost.macs for row in path)
