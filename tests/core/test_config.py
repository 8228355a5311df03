from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.config import RunConfig
from fednas_core.errors import ConfigError
from fednas_core.protocol import TrainSettings
from fednas_core.settings import describe, flatten, read

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
    settings = read({"train.epochs": 5, "train.momentum": 0.9, "train.label-smoothing": 0.1}).train.settings()
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


def test_a_setting_like_no_other_lists_them_all() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'qqqq'; allowed: budgets, calibrate, .*workers"):
        read({"qqqq": 1})
