"""Search spaces by name, or from a TOML file of a user's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from fednas_core.errors import ConfigError
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.spaces.space import SearchSpace

PRESETS = Path(__file__).parent / "presets"
KINDS: Mapping[str, type[ResNetSpace]] = {"resnet": ResNetSpace}
"""The families of networks by the field ``kind`` of a preset, ``resnet`` if it has none."""


def names() -> list[str]:
    """Return the names of the spaces that come with fednas."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load(name_or_path: str) -> SearchSpace:
    """Return the space of that name, or the one described in a TOML file; raise `ConfigError` if there is none."""
    path = Path(name_or_path) if name_or_path.endswith(".toml") else PRESETS / f"{name_or_path}.toml"
    if not path.is_file():
        raise ConfigError(
            f"space = {name_or_path!r}: no such search space; use one of {', '.join(names())}, "
            "or the path of a TOML file like those in fednas_core/spaces/presets/"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"space = {name_or_path!r}: {path} is not valid TOML ({error})") from error
    return from_table(table, path.stem)


def from_table(table: dict[str, Any], name: str) -> SearchSpace:
    """Return the space that a TOML table or JSON object describes; raise `ConfigError` naming a wrong field."""
    table = {"name": name, **table}
    kind = table.pop("kind", "resnet")
    if kind not in KINDS:
        raise ConfigError(f"search space '{name}': kind = {kind!r}, allowed: {', '.join(KINDS)}")
    known = {field.name: field for field in fields(KINDS[kind])}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ConfigError(f"search space '{name}': unknown field {unknown[0]!r}, allowed: {', '.join(known)}")
    missing = [key for key, field in known.items() if field.default is MISSING and key not in table]
    if missing:
        raise ConfigError(f"search space '{name}': field {missing[0]!r} is missing")
    values: dict[str, Any] = {}
    for key, value in table.items():
        values[key] = _typed(name, key, str(known[key].type), value)
    return KINDS[kind](**values)


def _typed(space: str, key: str, annotation: str, value: object) -> object:
    if annotation.startswith("tuple["):
        inner = annotation[len("tuple[") :].split(",")[0]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"search space '{space}': {key} = {value!r}, allowed: a list of numbers")
        return tuple(_typed(space, key, inner, item) for item in value)
    if annotation in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"search space '{space}': {key} holds {value!r}, allowed: a number")
        if annotation == "int" and not float(value).is_integer():
            raise ConfigError(f"search space '{space}': {key} holds {value!r}, allowed: a whole number")
        return int(value) if annotation == "int" else float(value)
    return str(value)
