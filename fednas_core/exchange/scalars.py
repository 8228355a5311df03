"""Parameters and results as JSON: frozen dataclasses of scalars, whose types say what may come in.

What comes in may be anybody's: a field that is missing, unknown or of another type is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fednas_core.base.errors import ReplyError
from fednas_core.exchange.orders import Scalars

S = TypeVar("S", bound=Scalars)
MOST = 2**63
SHOWN = 80


def told(value: Scalars) -> dict[str, object]:
    """Return a dataclass of scalars as a JSON object; `read` is the inverse."""
    return asdict(value)


def read(kind: type[S], found: object, where: str) -> S:
    """Return the dataclass of a JSON value; raise `ReplyError`, naming the field below `where`, what is no such."""
    hints = _hints(kind)
    if not isinstance(found, Mapping):
        raise ReplyError(f"{where}: found {shown(found)}, allowed are {', '.join(hints) or 'no fields'}")
    for name in sorted(found.keys() ^ hints.keys()):
        there = f"{'no' if name in hints else 'the'} field {shown(name)}"
        raise ReplyError(f"{where}: found {there}, allowed are {', '.join(hints) or 'none'}")
    return kind(**{name: _value(hint, found[name], f"{where}.{name}") for name, hint in hints.items()})


def scalar(kind: type[Any], value: object, where: str) -> Any:
    """Return text, a whole number from 0, a finite number or a truth value; raise `ReplyError` for anything else."""
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    allowed = {str: "text", int: "a whole number from 0", float: "a finite number", bool: "true or false"}
    low = 0 if kind is int else -MOST
    if type(value) is not kind or (isinstance(value, (int, float)) and not low <= value < MOST):
        raise ReplyError(f"{where}: found {shown(value)}, allowed {allowed[kind]}")
    return value


def shown(value: object) -> str:
    """Return a value for an error's text, shortened."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


@lru_cache(maxsize=64)
def _hints(kind: type[Any]) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _value(hint: Any, value: object, where: str) -> Any:
    if is_dataclass(hint):
        return read(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ReplyError(f"{where}: found {shown(value)}, allowed is a list")
        return tuple(_value(get_args(hint)[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    return scalar(hint, value, where)
