from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.settings import describe, flatten, flower_leaves, read, refuse_idle
from fednas_core.cli.settings import gather, presets
from fednas_core.training.settings import TrainSettings, train_settings

DEFAULTS = flatten(RunConfig())


def test_nothing_given_means_the_defaults() -> None:
    assert read({}) == RunConfig() and read(DEFAULTS) == RunConfig()


@given(
    rounds=st.integers(1, 10**6),
    lr=st.floats(0, 100),
    norm=st.sampled_from(["none", "group", "batch"]),
    stratify=st.booleans(),
    output=st.text(max_size=20),
)
def test_settings_survive_being_flattened(rounds: int, lr: float, norm: str, stratify: bool, output: str) -> None:
    pairs = {"rounds": rounds, "train.lr": lr, "space.norm": norm, "sample.stratify": stratify, "output": output}
    config = read(pairs)
    assert read(flatten(config)) == config
    assert {key: flatten(config)[key] for key in pairs} == pairs


def test_whole_numbers_are_numbers() -> None:
    config = read({"train.lr": 1, "deadline": 5})
    assert config.train.lr == 1.0 and isinstance(config.train.lr, float) and isinstance(config.deadline, float)


def test_settings_are_hashable_and_frozen() -> None:
    assert hash(read({})) == hash(RunConfig())
    with pytest.raises(AttributeError):
        RunConfig().rounds = 3  # type: ignore[misc]


def test_the_settings_that_travel_with_an_order() -> None:
    settings = train_settings(read({"train.epochs": 5, "train.momentum": 0.9, "train.label-smoothing": 0.1}).train)
    assert isinstance(settings, TrainSettings)
    assert (settings.epochs, settings.momentum, settings.label_smoothing) == (5, 0.9, 0.1)


def test_every_setting_is_described() -> None:
    rows = describe()
    assert {row.key: row.default for row in rows} == DEFAULTS
    assert len(rows) == len(DEFAULTS) and all(row.help for row in rows)


@pytest.mark.parametrize("key", sorted(DEFAULTS))
def test_every_setting_refuses_another_type_naming_itself(key: str) -> None:
    wrong: Any = 3 if isinstance(DEFAULTS[key], str) else "three"
    with pytest.raises(ConfigError, match=rf"'{key}' = {wrong!r}: allowed is"):
        read({key: wrong})


@pytest.mark.parametrize(
    ("key", "near"), [("round", "rounds"), ("train.learning-rate", "train.lr"), ("data.alhpa", "data.alpha")]
)
def test_an_unknown_setting_names_its_neighbour(key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting '{key}'") as caught:
        read({key: 1})
    assert near in str(caught.value)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("qqqq", "`fednas settings` lists all"),
        ("data.qqqq", "allowed: data.alpha, .*data.validation"),
        ("lr", "did you mean 'ddc.lr' or 'fednas.lr' or 'train.lr'"),
        ("epochs", "did you mean 'personal.epochs' or 'train.epochs'"),
    ],
)
def test_a_setting_that_does_not_exist_names_those_that_are_meant(key: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting '{key}'; {told}"):
        read({key: 1})


# -- settings that nothing reads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairs",
    [
        {"data.partition": "iid", "data.alpha": 0.1},
        {"data.classes-per-client": 3},
        {"data.column": "who"},
        {"method": "fedavg", "ddc.rounds": 3},
        {"method": "ddc", "fednas.drop": 0.1},
        {"method": "fednas", "sample.tiers": "min,max"},
        {"method": "deepfednas", "sample.arch": "{}"},
        {"method": "ddc", "contest.loss": 0.1},
        {"sample.population": 9},
        {"sample.sort": True},
        {"search.population": 9},
        {"method": "superfednas", "search.by": "fitness", "search.images": 9},
        {"stale.rate": 0.1},
        {"wire.up": "int8", "wire.keep": 0.5},
        {"calibrate": "federated"},
        {"space.norm": "batch", "calibration-passes": 1},
        {"merge.trim": 0.1},
        {"personal.epochs": 1},
        {"personal.layers": "", "personal.epochs": 1},
        {"method": "superfednas", "sample.range-share": 0.9},
        {"sample.between": "uniform", "sample.range-share": 0.9},
    ],
    ids=lambda pairs: "-".join(pairs),
)
def test_a_setting_that_nothing_reads_is_refused_by_name(pairs: dict[str, Any]) -> None:
    key = list(pairs)[-1]
    with pytest.raises(ConfigError, match=rf"{key} = .* is read only with .*"):
        refuse_idle(read(pairs), pairs)
    refuse_idle(read(pairs), {other: pairs[other] for other in pairs if other != key})


@pytest.mark.parametrize(
    "pairs",
    [
        {"data.partition": "iid", "data.alpha": 1.0},
        {"data.alpha": 0.1},
        {"method": "superfednas", "search.population": 9},
        {"search.by": "accuracy", "search.population": 9},
        {"method": "ddc", "contest.own": True, "contest.loss": 0.1},
        {"sample.shrink": "d", "sample.sort": True},
        {"method": "fedper", "personal.epochs": 1},
        {"personal.blocks": 1, "personal.epochs": 1},
        {"space.norm": "batch", "calibrate": "federated", "calibration-passes": 1},
        *(gather(name, None) for name, _ in presets()),
    ],
)
def test_a_setting_that_is_read_is_not(pairs: dict[str, Any]) -> None:
    refuse_idle(read(pairs), pairs)


def test_processes_of_another_backend_are_said_to_be_none_of_flowers() -> None:
    refuse_idle(read({"workers": 2}), ["workers"])
    assert "'workers'" in flower_leaves(read({"workers": 2}), ["workers"])
    assert not flower_leaves(read({"workers": 2}), []) and not flower_leaves(read({}), ["workers"])


def test_what_a_setting_needs_are_values_that_others_can_have() -> None:
    rows = {row.key: row for row in describe()}
    for row in rows.values():
        for key, wanted in ((key, wanted) for case in row.only for key, wanted in case.items()):
            assert all(read({key: value}) for value in wanted) and key in rows, row.key
