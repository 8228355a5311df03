"""What each client's network may cost, as a `Limit`: the budget that its device names, or one of the run's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from fednas_core.base.errors import ConfigError
from fednas_core.base.values import ClientId
from fednas_core.devices.budgets import ALLOWED, Allowance, parse_budget
from fednas_core.devices.footprint import Room
from fednas_core.devices.info import ClientInfo, Limit, Probe
from fednas_core.devices.latency_model import LatencyModel
from fednas_core.spaces.space import Elastic

_NUMBER = re.compile(r"-([0-9]{1,9})$")


def limits(
    space: Elastic, budgets: Mapping[str, str], clients: Sequence[ClientInfo], client_budgets: str, batch: int = 0
) -> dict[ClientId, Limit | None]:
    """Return the limit of each client, None for one that may be given any network, sorted by name.

    `budgets` are texts by device and `client_budgets` the setting of that name (see `client_budget_texts`). A budget in
    ms is checked by the client's own latency model, on the safe side. Where a device has told its memory, its client is
    given no network that it could not train there in batches of `batch` images (0: nobody trains). Raises `ConfigError`
    for a budget that makes no sense, naming the client or the entry, and for one in ms of a client that measured no
    latencies.
    """
    texts = client_budget_texts(budgets, clients, client_budgets)
    largest = space.cost(space.supernet).macs
    for entry in _entries(client_budgets):
        try:
            parse_budget(budgets.get(entry, entry) or "max", largest)
        except ConfigError as error:
            names = f"a device of 'budgets' ({', '.join(budgets)}), {ALLOWED}" if budgets else ALLOWED
            raise ConfigError(f"setting 'client-budgets': entry {entry!r}: allowed are {names}") from error
    by_name = {client.name: client for client in clients}
    return {
        name: _limit(space, by_name[name], text, _room(space, by_name[name], batch)) for name, text in texts.items()
    }


def client_budget_texts(
    budgets: Mapping[str, str], clients: Sequence[ClientInfo], client_budgets: str
) -> dict[ClientId, str]:
    """Return the text of each client's budget, '' for none, sorted by name.

    It is what its device names; else the entries of `client_budgets` are dealt in turn, each a name of `budgets` or a
    budget: by the number at the end of the client's name, so that it does not depend on who is there, else by its
    position. Raises `ConfigError` for an empty entry.
    """
    entries = _entries(client_budgets)
    found = {}
    for position, client in enumerate(sorted(clients, key=lambda client: client.name)):
        dealt = entries[number_of(client.name, position) % len(entries)]
        text = client.budget.strip() or dealt
        found[client.name] = budgets.get(text, text)
    return found


def number_of(client: ClientId, position: int) -> int:
    """Return the number at the end of a client's name, which does not depend on who is there, else its position."""
    found = _NUMBER.search(client)
    return int(found[1]) if found else position


def _entries(client_budgets: str) -> list[str]:
    entries = [entry.strip() for entry in client_budgets.split(",")]
    if len(entries) > 1 and "" in entries:
        raise ConfigError(f"setting 'client-budgets' = {client_budgets!r}: entry {entries.index('') + 1} is empty")
    return entries


def _room(space: Elastic, client: ClientInfo, batch: int) -> Room | None:
    """Return the memory of a client's device, if it is known and too small for some network of the space."""
    if not batch or client.profile is None or client.profile.memory_mb is None:
        return None
    room = Room(client.profile.memory_mb * 1_000_000, batch)
    return None if room.holds(space, space.supernet) else room


def _limit(space: Elastic, client: ClientInfo, text: str, room: Room | None) -> Limit | None:
    if not text and room is None:
        return None
    try:
        budget = parse_budget(text or "max", space.cost(space.supernet).macs, client.name)
    except ConfigError as error:
        raise ConfigError(f"client '{client.name}': {error}") from error
    if not budget.timed:
        return Allowance(budget, space, room=room)
    if client.profile is None or not client.profile.probes:
        raise ConfigError(
            f"client '{client.name}' has a budget of {text}, but its device measured no latencies: limit it by MACs, "
            "parameters or bytes (2M, 1.5Mparams, 8MB), or let the device measure itself when it joins"
        )
    return Allowance(budget, space, _model(space, client.profile.probes).upper_ms, room)


@lru_cache(maxsize=1024)
def _model(space: Elastic, probes: tuple[Probe, ...]) -> LatencyModel:
    """Return a device's latency model, fitted once however often its clients are asked for."""
    return LatencyModel.fit(space, probes)
