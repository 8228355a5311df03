"""Settings as flat ``key = value`` pairs: read and checked once, turned back, described.

The keys are those of ``[tool.flwr.app.config]`` in pyproject.toml: section, dot, field with dashes
(``train.weight-decay``); fields of `RunConfig` itself have no section.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fednas_core.config import COMPETING, RunConfig
from fednas_core.errors import ConfigError

Scalar = str | int | float | bool


def read(pairs: Mapping[str, Scalar]) -> RunConfig:
    """Return the settings of flat pairs; keys that are absent keep their default.

    Raises `ConfigError` for a key that does not exist (naming the nearest that does), a value of the wrong type, and
    a value out of its range.
    """
    known = set(flatten(RunConfig()))
    for key in pairs:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
            beside = [name for name in sorted(known) if name.partition(".")[0] == key.partition(".")[0]]
            hint = f"; did you mean '{near[0]}'?" if near else f"; allowed: {', '.join(beside or sorted(known))}"
            raise ConfigError(f"unknown setting '{key}'{hint}")
    config = _read(RunConfig, pairs, "")
    assert isinstance(config, RunConfig)
    return config


def _read(kind: type[Any], pairs: Mapping[str, Scalar], prefix: str) -> Any:
    values: dict[str, Any] = {}
    defaults = kind()
    for item in fields(kind):
        key, default = prefix + item.name.replace("_", "-"), getattr(defaults, item.name)
        if is_dataclass(default):
            values[item.name] = _read(type(default), pairs, key + ".")
        elif key in pairs:
            values[item.name] = _checked(key, pairs[key], default, item.metadata)
    return kind(**values)


def _checked(key: str, value: Any, default: Scalar, rule: Mapping[str, Any]) -> Scalar:
    wanted: type[Scalar] = type(default)
    names = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"setting '{key}' = {value!r}: allowed is {names[wanted]}")
    if "choices" in rule and value not in rule["choices"]:
        raise ConfigError(f"setting '{key}' = {value!r}: allowed are {', '.join(rule['choices'])}")
    low, high = rule.get("low"), rule.get("high")
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"from {low} to {high}" if low is not None and high is not None else f"at least {low}"
        raise ConfigError(f"setting '{key}' = {value!r}: allowed is {span}")
    checked: Scalar = value
    return checked


def flatten(config: Any, prefix: str = "") -> dict[str, Scalar]:
    """Return the flat pairs of settings: ``read(flatten(config)) == config``."""
    pairs: dict[str, Scalar] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        key = prefix + item.name.replace("_", "-")
        pairs.update(flatten(value, key + ".") if is_dataclass(value) else {key: value})
    return pairs


def describe() -> list[tuple[str, Scalar, str]]:
    """Return (key, default, help) of every setting, in order: what documentation and the command line show."""
    return _described(RunConfig(), "")


def _described(config: Any, prefix: str) -> list[tuple[str, Scalar, str]]:
    rows: list[tuple[str, Scalar, str]] = []
    for item in fields(config):
        value, key = getattr(config, item.name), prefix + item.name.replace("_", "-")
        if is_dataclass(value):
            rows += _described(value, key + ".")
        else:
            rows.append((key, value, item.metadata["help"]))
    return rows


def rounds_known(config: RunConfig) -> int | None:
    """Return how many rounds a run has; None where networks compete, for that follows from what they do."""
    return None if config.method in COMPETING else config.rounds
