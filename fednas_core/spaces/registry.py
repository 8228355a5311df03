"""Search spaces by name, or from a TOML file of a user's own.

A package of another's registers a kind in the group of entry points ``fednas.spaces``, as ``module:class``: a frozen
dataclass that is a `Space`. Presets are the TOML files in a folder ``presets`` beside its module.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from fednas_core.base.errors import ConfigError
from fednas_core.spaces.space import Space

GROUP = "fednas.spaces"
KINDS: Mapping[str, str] = {
    "resnet": "fednas_core.spaces.resnet:ResNetSpace",
    "mobilenet": "fednas_core.spaces.mobilenet:MobileNetSpace",
    "chain": "fednas_core.spaces.chain:ChainSpace",
}
"""The families of networks by the field ``kind`` of a preset, ``resnet`` if it has none."""


@cache
def kinds() -> Mapping[str, str]:
    """Return where each installed kind of space is defined: fednas' own, which no other replaces, and further ones."""
    from importlib.metadata import entry_points  # with a parser of e-mail: who uses a kind of fednas' own needs none

    return {**KINDS, **{entry.name: entry.value for entry in entry_points(group=GROUP)}, **KINDS}


def presets() -> Mapping[str, Path]:
    """Return the files of the installed presets by name; fednas' own are not replaced by others."""
    return _presets((*KINDS.values(), *kinds().values()))


def _presets(places: Iterable[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for place in places:
        for path in sorted(_folder(place.partition(":")[0]).glob("presets/*.toml")):
            found.setdefault(path.stem, path)
    return found


def _folder(module: str) -> Path:
    """Return where a module lies, which is not imported; a path that does not exist for one that cannot be found."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    return Path(spec.origin).parent if spec and spec.origin else Path(module)


def names() -> list[str]:
    """Return the names of the spaces that are installed."""
    return sorted(presets())


def load(name_or_path: str) -> Space:
    """Return the space of that name, or the one described in a TOML file; raise `ConfigError` if there is none."""
    named = Path(name_or_path) if name_or_path.endswith(".toml") else None
    path = named or _presets(KINDS.values()).get(name_or_path) or presets().get(name_or_path)
    if path is None or not path.is_file():
        raise ConfigError(
            f"space = {name_or_path!r}: no such search space; use one of {', '.join(names())}, "
            "or the path of a TOML file like those in fednas_core/spaces/presets/"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"space = {name_or_path!r}: {path} is not valid TOML ({error})") from error
    return from_table(table, path.stem)


def from_table(table: dict[str, Any], name: str) -> Space:
    """Return the space that a TOML table or JSON object describes; raise `ConfigError` naming a wrong field."""
    table = {"name": name, **table}
    kind = table.pop("kind", "resnet")
    place = KINDS.get(kind) or kinds().get(kind) if isinstance(kind, str) else None
    if place is None:
        raise ConfigError(f"search space '{name}': kind = {kind!r}, allowed: {', '.join(kinds())}")
    try:
        cls = resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        where = f"{place!r} of entry point {kind!r} in group {GROUP!r}"
        raise ConfigError(f"search space '{name}': {where} cannot be imported: {error}") from error
    space: Space = _made(cls, table, name, "")
    return space


def _made(cls: type[Any], table: Mapping[str, Any], space: str, where: str) -> Any:
    """Return the dataclass that a table describes; `where` says where the table is, e.g. ``stages[0].``."""
    known = {field.name: field for field in fields(cls)}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ConfigError(f"search space '{space}': unknown field {where + unknown[0]!r}, allowed: {', '.join(known)}")
    missing = [key for key, field in known.items() if field.default is MISSING and key not in table]
    if missing:
        raise ConfigError(f"search space '{space}': field {where + missing[0]!r} is missing")
    kinds = get_type_hints(cls)
    return cls(**{key: _typed(space, where + key, kinds[key], value) for key, value in table.items()})


def _typed(space: str, key: str, kind: Any, value: object) -> object:
    """Return a value of TOML or JSON as a field of type `kind` holds it."""

    def refuse(allowed: str) -> NoReturn:
        raise ConfigError(f"search space '{space}': {key} holds {value!r}, allowed: {allowed}")

    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            tables = is_dataclass(get_args(kind)[0])
            allowed = "tables" if tables else "a list of numbers"
            raise ConfigError(f"search space '{space}': {key} = {value!r}, allowed: {allowed}")
        inner = get_args(kind)[0]
        names = (f"{key}[{i}]" if is_dataclass(inner) else key for i in range(len(value)))
        return tuple(_typed(space, name, inner, item) for name, item in zip(names, value, strict=True))
    if isinstance(kind, type) and is_dataclass(kind):
        return _made(kind, value, space, f"{key}.") if isinstance(value, Mapping) else refuse("a table")
    if kind is bool:
        return value if isinstance(value, bool) else refuse("true or false")
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            refuse("a number")
        if kind is int and not float(value).is_integer():
            refuse("a whole number")
        return kind(value)
    return str(value)
