"""What a node's own configuration says: which clients it serves, and what is true of its device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fednas_core.base.errors import ConfigError
from fednas_core.base.values import ClientId
from fednas_core.tasks.home import Home

Scalar = str | int | float | bool


def serves(node_config: Mapping[str, Scalar], names: Sequence[ClientId]) -> list[tuple[ClientId, int]]:
    """Return name and number of each client that a node serves; `names` are those of all clients, by number.

    ``partition-id`` of ``num-partitions`` nodes serves every client whose number is its own modulo theirs, so that a
    federation of any size plays all clients; without ``num-partitions`` it serves that one client. ``name`` stands for
    one client under a name of its own. Raises `ConfigError`.
    """
    first = _number(node_config, "partition-id")
    step = _number(node_config, "num-partitions", len(names))
    own = node_config.get("name")
    if first >= len(names):
        return []
    if own is not None:
        return [(str(own), first)]
    return [(names[index], index) for index in range(first, len(names), max(1, step))]


def own_name(node_config: Mapping[str, Scalar]) -> ClientId:
    """Return the name of a device that brings its own data; raise `ConfigError` if it has none."""
    name = node_config.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(
            "--node-config name: a device with data of its own ('data') needs a name of its own, e.g. 'name=\"ward-3\"'"
        )
    return name


def home_of(node_config: Mapping[str, Scalar]) -> Home:
    """Return what a node says of its device: ``threads``, ``state``, ``models``, ``data``, ``budget``, ``disclose``.

    Raises `ConfigError` naming the key.
    """
    texts = {key: node_config.get(key, "") for key in ("state", "models", "data", "budget")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ConfigError(f'--node-config {key}: found {value!r}, allowed text in quotes, e.g. {key}="…"')
    threads = _number(node_config, "threads", 1)
    if not threads:
        raise ConfigError("--node-config threads: found 0, allowed a whole number from 1, e.g. 'threads=4'")
    disclose = node_config.get("disclose", True)
    if not isinstance(disclose, bool):
        raise ConfigError(f"--node-config disclose: found {disclose!r}, allowed true or false, e.g. 'disclose=false'")
    state, models, data, budget = (str(value) for value in texts.values())
    return Home(threads, state, models, data, budget, disclose)


def _number(node_config: Mapping[str, Scalar], key: str, default: int | None = None) -> int:
    value = node_config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        found = "nothing" if value is None else repr(value)
        raise ConfigError(f"--node-config {key}: found {found}, allowed a whole number from 0, e.g. '{key}=0'")
    return value
