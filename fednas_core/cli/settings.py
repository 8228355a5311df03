"""Settings as a user gives them on the command line: a preset or TOML file, and single ``key=value`` pairs on top."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednas_core.base.errors import ConfigError
from fednas_core.base.paths import expanded

if TYPE_CHECKING:
    from fednas_core.base.config import RunConfig

PRESETS = Path(__file__).parents[1] / "methods" / "presets"

Config = Annotated[
    str | None,
    typer.Option("--config", "--preset", "-c", help="A preset's name (see `fednas presets`) or a TOML file."),
]
Pairs = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting (see `fednas settings`); may be repeated."),
]


@dataclass(frozen=True, slots=True)
class Deviation:
    """A setting of a preset that is not the original's.

    `published` is the original's value as TOML, '' where the original states none; `why` may be ''.
    """

    preset: str
    key: str
    here: str
    published: str
    why: str


_SECTION = re.compile(r"\[([\w-]+)\]")
_MARKED = re.compile(r"([\w-]+) = (.+?)  # (?:published: ([^;]+)|ours)(?:; (.+))?")


def deviations(preset: str) -> list[Deviation]:
    """Return the settings of a preset that its file marks as not the original's, in their order.

    A mark is the comment ``# published: <the original's value>; <why>``, or ``# ours; <why>`` where the original states
    no value. It is a comment because Flower reads presets too, and refuses keys that are no settings.
    """
    found, section = [], ""
    for line in (PRESETS / f"{preset}.toml").read_text(encoding="utf-8").splitlines():
        if named := _SECTION.fullmatch(line):
            section = named[1] + "."
        elif marked := _MARKED.fullmatch(line):
            key, here, published, why = marked.groups(default="")
            found.append(Deviation(preset, section + key, here, published, why))
    return found


def presets() -> list[tuple[str, str]]:
    """Return (name, first comment line) of every preset."""
    found = []
    for path in sorted(PRESETS.glob("*.toml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found.append((path.stem, first.lstrip("# ")))
    return found


def gather(config: str | None, pairs: Sequence[str] | None) -> dict[str, Any]:
    """Return the flat settings of a file or preset, overridden by ``key=value`` pairs; they are not yet checked.

    Raises `ConfigError` for a file that cannot be read and a pair without ``=``.
    """
    return {**(_from_file(config) if config else {}), **dict(_pair(text) for text in pairs or ())}


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a TOML table with nested tables as flat pairs: ``{"data": {"alpha": 1.0}}`` as ``data.alpha``."""
    pairs: dict[str, Any] = {}
    for key, value in table.items():
        pairs.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return pairs


def check_space(config: RunConfig) -> None:
    """Raise `ConfigError` if the search space that is named does not exist: before anything is started for it."""
    from fednas_core.spaces.registry import load

    if config.space.name != "auto":
        load(config.space.name)


def _from_file(config: str) -> dict[str, Any]:
    path = expanded(config) if config.endswith(".toml") else PRESETS / f"{config}.toml"
    if not path.is_file():
        names = ", ".join(name for name, _ in presets())
        raise ConfigError(f"--config {config}: there is no such file or preset; presets: {names}; or name a .toml file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {config}: is not valid TOML ({error})") from error
    if isinstance(table.get("settings"), Mapping):  # the config.toml of a run: run the same again
        table = table["settings"]
    return flat(table)


def _pair(text: str) -> tuple[str, Any]:
    from fednas_core.base.settings import describe

    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise ConfigError(f"--set {text!r}: allowed is KEY=VALUE, e.g. --set rounds=10")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key, value
    wants_text = any(setting.key == key and setting.type == "text" for setting in describe())
    if set(parsed) != {"value"} or (wants_text and not isinstance(parsed["value"], str)):
        return key, value
    return key, parsed["value"]
