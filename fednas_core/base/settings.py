"""Settings as flat ``key = value`` pairs: read and checked once, turned back, described.

The keys are those of ``[tool.flwr.app.config]`` in pyproject.toml: section, dot, field with dashes
(``train.weight-decay``); fields of `RunConfig` itself have no section.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fednas_core.base.config import COMPETING, RunConfig
from fednas_core.base.errors import ConfigError

Scalar = str | int | float | bool
Cases = tuple[Mapping[str, tuple[Scalar, ...]], ...]
"""In each case some settings have one of these values; no values stand for all but the default."""


def read(pairs: Mapping[str, Scalar]) -> RunConfig:
    """Return the settings of flat pairs; keys that are absent keep their default.

    Raises `ConfigError` for a key that does not exist (naming the nearest that does), a value of the wrong type, and
    a value out of its range.
    """
    known = set(flatten(RunConfig()))
    for key in pairs:
        if key not in known:
            near = [name for name in sorted(known) if name.rpartition(".")[2] == key]
            near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.7)
            beside = [name for name in sorted(known) if name.partition(".")[0] == key.partition(".")[0]]
            allowed = f"allowed: {', '.join(beside)}" if beside else "`fednas settings` lists all"
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; {allowed}"
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

    `later` says that it may change when a run is resumed. `only` are the cases in which it is read, none: always.
    """

    key: str
    default: Scalar
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    later: bool = False
    only: Cases = ()

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
    return _described(RunConfig(), "", ())


def _described(config: Any, prefix: str, section: Cases) -> list[Setting]:
    rows: list[Setting] = []
    for item in fields(config):
        value, key = getattr(config, item.name), prefix + item.name.replace("_", "-")
        only = item.metadata.get("only", ())
        if is_dataclass(value):
            rows += _described(value, key + ".", only)
        else:
            both = tuple({**outer, **inner} for outer in section for inner in only) or section or only
            rows.append(Setting(key, value, **{**item.metadata, "only": both}))
    return rows


def idle(config: RunConfig, given: Collection[str]) -> list[Setting]:
    """Return the settings among the `given` ones that nothing reads beside the others; not those with their default."""
    values, default = flatten(config), flatten(RunConfig())

    def holds(case: Mapping[str, tuple[Scalar, ...]]) -> bool:
        for key, wanted in case.items():
            value = values[key]
            if not (value in wanted if wanted else value and value != default[key]):
                return False
        return True

    changed = [setting for setting in describe() if setting.key in given and values[setting.key] != setting.default]
    return [setting for setting in changed if setting.only and not any(map(holds, setting.only))]


def refuse_idle(config: RunConfig, given: Collection[str]) -> None:
    """Raise `ConfigError`, naming them, for settings among the `given` ones that are `idle`."""
    values = flatten(config)
    told = [
        f"{setting.key} = {values[setting.key]!r} is read only {' or '.join(map(_case, setting.only))}"
        for setting in idle(config, given)
    ]
    if told:
        raise ConfigError(f"nothing would come of these settings: {'; '.join(told)}. Leave them out, or change that")


def flower_leaves(config: RunConfig, given: Collection[str]) -> str:
    """Return what to say of the settings that Flower does not need, '' if none was given: files serve both backends."""
    told = "setting 'workers' counts the processes of  fednas run : here Flower's nodes do the work"
    return told if "workers" in given and config.workers else ""


def _case(case: Mapping[str, tuple[Scalar, ...]]) -> str:
    """Return a case of `Setting.only` for people."""
    parts = [f"{key} = {'|'.join(map(str, wanted)).lower()}" if wanted else key for key, wanted in case.items()]
    return "with " + " and ".join(parts)


def rounds_known(config: RunConfig) -> int | None:
    """Return how many rounds a run has; None where networks compete, for that follows from what they do."""
    return None if config.method in COMPETING else config.rounds
