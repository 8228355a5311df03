"""Frozen dataclasses as JSON objects: written by their fields, and read back with the type of each value checked.

A field that has a default is left out of the object where it holds that. Its metadata may say otherwise how it stands
there: `INLINE`, `APART`, `ASIDE` or ``measured(prefix)``. Types are numbers, texts, truth values, literals, None beside
one of them, ``object`` for whatever JSON can hold, and tuples, mappings from text, and dataclasses of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
Read = Callable[[object, Sequence[str]], object]
"""Takes a JSON value and the names of the metrics that it holds; raises `FieldError`."""

INLINE: Mapping[str, object] = {"inline": True}
"""The keys of the field's object or mapping stand among the others."""
APART: Mapping[str, object] = {"apart": True}
"""The field is not read, for its type alone does not tell how: whoever does gets its default."""
ASIDE: Mapping[str, object] = {**APART, "unwritten": True}
"""The field is neither written nor read."""
PLAIN: Mapping[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
}


class FieldError(ValueError):
    """A field is missing or of another type; `path` leads to it from the outside in."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(f"field '{path}' {problem}" if path else problem)
        self.problem, self.path = problem, path

    def within(self, name: str) -> FieldError:
        """Return the error with a step in front of its path."""
        return FieldError(self.problem, name + ("." if self.path else "") + self.path)


def measured(prefix: str) -> Mapping[str, object]:
    """Return the metadata of a field of metrics: each stands among the other keys, with a prefix before its name."""
    return {"prefix": prefix}


def to_json(value: object) -> object:
    """Return a value as JSON has it: dataclasses and mappings as objects, tuples as lists."""
    if is_dataclass(value):
        return object_of(value)
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    return value


def object_of(value: object) -> dict[str, object]:
    """Return the JSON object of a dataclass."""
    found: dict[str, object] = {}
    for one in fields(cast(Any, value)):
        part, how = getattr(value, one.name), one.metadata
        if "unwritten" in how or (_optional(one) and part == _default(one)):
            continue
        if "prefix" in how:
            found |= {how["prefix"] + name: number for name, number in part.items()}
        elif "inline" in how:
            found |= cast(dict[str, object], to_json(part))
        else:
            found[one.name] = to_json(part)
    return found


def from_json(kind: type[T], found: object, metrics: Sequence[str] = ()) -> T:
    """Return the dataclass of a JSON object; `metrics` are the names of those that its measured fields hold.

    Keys that the dataclass has no field for are passed over. Raises `FieldError`, naming the field.
    """
    if not isinstance(found, Mapping):
        raise FieldError(f"holds {_short(found)}, needed is an object")
    given: dict[str, object] = {}
    for one, read, own in _parts(cast(Any, kind)):
        prefix = one.metadata.get("prefix")
        keys = own if prefix is None else tuple(prefix + name for name in metrics)
        if _optional(one) and not any(key in found for key in keys):
            continue
        if prefix is not None:
            given[one.name] = {name: _at(prefix + name, found, read, metrics) for name in metrics}
        elif "inline" in one.metadata:
            given[one.name] = read(found, metrics)
        else:
            given[one.name] = _at(one.name, found, read, metrics)
    return kind(**given)


@cache
def _parts(kind: type) -> tuple[tuple[Field[Any], Read, tuple[str, ...]], ...]:
    """Return the fields of a dataclass that are read: how each is, and the keys under which it stands."""
    hints, parts = get_type_hints(kind), []
    for one in fields(kind):
        if "apart" in one.metadata:
            continue
        hint = hints[one.name]
        keys: tuple[str, ...] = (one.name,)
        if "prefix" in one.metadata:
            hint = get_args(hint)[1]
        elif "inline" in one.metadata:
            hint = next(part for part in (get_args(hint) or (hint,)) if part is not NoneType)
            keys = tuple(inner.name for inner in fields(hint))
        parts.append((one, _reader(hint), keys))
    return tuple(parts)


def _at(name: str, found: Mapping[str, object], read: Read, metrics: Sequence[str]) -> object:
    """Return what stands under a key."""
    if name not in found:
        raise FieldError("is missing", name)
    try:
        return read(found[name], metrics)
    except FieldError as error:
        raise error.within(name) from None


@cache
def _reader(hint: Any) -> Read:
    """Return what reads a value of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in PLAIN:
        return _plain(*PLAIN[hint])
    if hint is object:
        return lambda found, metrics: found
    if origin in (Union, UnionType) and len(inner) == 2 and NoneType in inner:
        read = _reader(next(part for part in inner if part is not NoneType))
        return lambda found, metrics: None if found is None else read(found, metrics)
    if origin is Literal:
        return _one_of(inner)
    if origin is tuple and inner[1:] == (...,):
        return _listed(_reader(inner[0]))
    if origin is Mapping and inner[0] is str:
        return _mapped(_reader(inner[1]))
    if is_dataclass(hint):
        return lambda found, metrics: from_json(cast(type, hint), found, metrics)
    raise TypeError(f"a record cannot hold {hint}")


def _plain(allowed: tuple[type, ...], words: str) -> Read:
    def read(found: object, metrics: Sequence[str]) -> object:
        if not isinstance(found, allowed) or (isinstance(found, bool) and bool not in allowed):
            raise FieldError(f"holds {_short(found)}, needed is {words}")
        return found

    return read


def _one_of(allowed: tuple[object, ...]) -> Read:
    def read(found: object, metrics: Sequence[str]) -> object:
        if found not in allowed:
            raise FieldError(f"holds {_short(found)}, needed is one of {', '.join(map(repr, allowed))}")
        return found

    return read


def _listed(read: Read) -> Read:
    def all_of(found: object, metrics: Sequence[str]) -> object:
        if not isinstance(found, list | tuple):
            raise FieldError(f"holds {_short(found)}, needed is a list")
        parts = []
        for number, part in enumerate(found):
            try:
                parts.append(read(part, metrics))
            except FieldError as error:
                raise error.within(str(number)) from None
        return tuple(parts)

    return all_of


def _mapped(read: Read) -> Read:
    def all_of(found: object, metrics: Sequence[str]) -> object:
        if not isinstance(found, Mapping):
            raise FieldError(f"holds {_short(found)}, needed is an object")
        return {key: _at(key, found, read, metrics) for key in found}

    return all_of


def _default(one: Field[Any]) -> object:
    return one.default if one.default_factory is MISSING else one.default_factory()


def _optional(one: Field[Any]) -> bool:
    return one.default is not MISSING or one.default_factory is not MISSING


def _short(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 60 else text[:59] + "…"
