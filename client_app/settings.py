"""What a node's own configuration says: which clients it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fednas_core.errors import ConfigError
from fednas_core.protocol import ClientId

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


def _number(node_config: Mapping[str, Scalar], key: str, default: int | None = None) -> int:
    value = node_config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        found = "nothing" if value is None else repr(value)
        raise ConfigError(f"--node-config {key}: found {found}, allowed a whole number from 0, e.g. '{key}=0'")
    return value
