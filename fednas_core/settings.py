"""Settings as flat ``key = value`` pairs: read and checked once, turned back, described.

The keys are those of ``[tool.flwr.app.config]`` in pyproject.toml: section, dot, field with dashes
(``train.weight-decay``); fields of `RunConfig` itself have no section.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
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


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting; `choices` are empty and `low` and `high` None where there is no such rule.

    `later` says that it may change when a run is resumed.
    """

    key: str
    default: Scalar
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    later: bool = False

    @property
    def type(self) -> str:
        """The name of its type: text, int, float or bool."""
        return "text" if isinstance(self.default, str) else type(self.default).__name__

    @property
    def allowed(self) -> str:
        """The values that it can have, for people."""
        if self.choices:
            return " | ".join(self.choices)
        if isinstance(self.default, bool):
            return "true | false"
        if self.low is None:
            return self.type
        return f"{self.type} ≥ {self.low:g}" if self.high is None else f"{self.type} {self.low:g} … {self.high:g}"


def describe() -> list[Setting]:
    """Return every setting, in order: what documentation and the command line show."""
    return _described(RunConfig(), "")


def _described(config: Any, prefix: str) -> list[Setting]:
    rows: list[Setting] = []
    for item in fields(config):
        value, key = getattr(config, item.name), prefix + item.name.replace("_", "-")
        rows += _described(value, key + ".") if is_dataclass(value) else [Setting(key, value, **item.metadata)]
    return rows


def rounds_known(config: RunConfig) -> int | None:
    """Return how many rounds a run has; None where networks compete, for that follows from what they do."""
    return None if config.method in COMPETING else config.rounds
