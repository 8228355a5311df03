"""How a training split spreads over clients, and the part of it that the server keeps to validate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fednas_core.base.config import DataConfig
from fednas_core.base.errors import DataError
from fednas_core.base.seeding import derive, stream
from fednas_core.data.sources import Dataset, Origin, draw

Indices = NDArray[np.int64]
_HANDFUL = 10
_ATTEMPTS = 10
_DRAWS = 11
"""Draws from the Dirichlet distribution with one seed, as many as flwr-datasets makes."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Positions in the training split, sorted int64: the server's `validation` part and one array for each client.

    No two share an example, and together they hold every example. Where a data set holds some classes of another, a
    client may be left without any.
    """

    validation: Indices
    clients: tuple[Indices, ...]


def split(dataset: Dataset, config: DataConfig, seed: int) -> Split:
    """Return how the training examples are spread. The same arguments give the same split (and, in a process, object).

    The validation part is drawn first, each class in proportion, and does not depend on how the rest is spread. The
    rest goes to ``config.clients`` clients, each part to the last example that of flwr-datasets' partitioner of the
    same seed (which would bring pandas, pyarrow and 100 MB into every client's process):

    - iid: at random, in equal numbers;
    - dirichlet: each class in shares drawn from a symmetric Dirichlet(alpha) (Yurochkin et al. 2019,
      arXiv:1905.12022). As in their code, a client that has reached the mean number gets nothing of later classes,
      and draws that leave a client fewer than a handful of examples (10, or a quarter of the mean if that is less)
      are repeated;
    - classes: each client holds examples of `classes_per_client` classes, client i of class i (modulo their number);
    - column: one client for each different value of the data set's column, in the order of the values.
      ``config.clients`` must be their number (or 0); every client keeps at least one example.

    A data set that holds some classes of another is not spread anew: every part is that of the whole, less the images
    of other classes. So whoever holds an image, or holds it out, is the same in a run on all classes.

    Raises `DataError`, which names the setting to change, where that cannot be.
    """
    if dataset.origin is None:
        return _split(dataset, config, seed)
    return _within(dataset.origin, config, seed)


@lru_cache(maxsize=4)
def _within(origin: Origin, config: DataConfig, seed: int) -> Split:
    whole = _split(origin.whole, replace(config, only=""), seed)
    found = Split(origin.within(whole.validation), tuple(map(origin.within, whole.clients)))
    if not len(found.validation) or not any(map(len, found.clients)):
        raise DataError(
            f"data.only = '{config.only}' leaves {len(found.validation)} images to validate and "
            f"{sum(map(len, found.clients))} to the clients: name more classes, or raise data.validation or "
            "data.examples"
        )
    return found


@lru_cache(maxsize=4)
def _split(dataset: Dataset, config: DataConfig, seed: int) -> Split:
    y = dataset.train.y.numpy()
    owners = _owners(dataset, config) if config.partition == "column" else None
    validation = _validation(y, owners, config.validation, seed)
    rest = np.setdiff1d(np.arange(len(y), dtype=np.int64), validation, assume_unique=True)
    if owners is not None:
        mine = owners[rest]
        return Split(validation, tuple(rest[mine == owner] for owner in np.unique(mine)))
    if len(rest) < config.clients:
        raise DataError(
            f"data.clients = {config.clients}, but {len(rest)} training examples are left after validation: "
            "lower data.clients, or raise data.examples if it is set"
        )
    if config.partition == "iid":
        shuffled = stream(seed, "data.partition").permutation(rest)
        return Split(validation, tuple(map(np.sort, np.array_split(shuffled, config.clients))))
    return Split(validation, _drawn(rest, y[rest], config, seed))


def _owners(dataset: Dataset, config: DataConfig) -> NDArray[Any]:
    owners = dataset.train.groups
    if owners is None:
        raise DataError("data.partition 'column' needs data.source 'npz' and data.column, the array that names owners")
    count = len(np.unique(owners))
    if config.clients not in (0, count):
        raise DataError(
            f"data.clients = {config.clients}, but data.column '{config.column}' names {count} clients: "
            f"set data.clients = {count}"
        )
    return owners


def _validation(y: Indices, owners: NDArray[Any] | None, share: float, seed: int) -> Indices:
    """Return the sorted positions that the server keeps: `share` of each class, never an owner's last example."""
    rng = stream(seed, "data.validation")
    free = np.arange(len(y), dtype=np.int64)
    if owners is not None:
        order = rng.permutation(len(y))
        kept = order[np.unique(owners[order], return_index=True)[1]]
        free = np.setdiff1d(free, kept, assume_unique=True)
    count = min(round(share * len(y)), len(free))
    if count < 1:
        raise DataError(
            f"data.validation = {share} of {len(y)} training examples leaves the server none to validate on: "
            "raise data.validation, or give the clients more than one example each"
        )
    return free[draw(y[free], count, rng)]


def _drawn(rest: Indices, labels: Indices, config: DataConfig, seed: int) -> tuple[Indices, ...]:
    """Return the parts of partition 'dirichlet' or 'classes', drawn anew until every example has a client."""
    classes = len(np.unique(labels))
    least = max(1, min(_HANDFUL, len(rest) // (4 * config.clients)))
    each = config.classes_per_client
    if config.partition == "dirichlet":
        advice = (
            f"data.alpha = {config.alpha} with data.clients = {config.clients} left a client fewer than {least} of "
            f"{len(rest)} examples in every draw: raise data.alpha or lower data.clients"
        )
    else:
        if each > classes:
            raise DataError(f"data.classes-per-client = {each}, but there are {classes} classes: set {classes} or less")
        advice = (
            f"data.clients = {config.clients} with data.classes-per-client = {each} do not fit {len(rest)} examples of "
            f"{classes} classes: either a class would belong to no client (set data.clients to {classes} or more, or "
            f"raise data.classes-per-client) or to more clients than it has examples (lower data.clients)"
        )
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(derive(seed, "data.partition", attempt))
        if config.partition == "dirichlet":
            parts = _by_dirichlet(labels, config.clients, config.alpha, least, rng)
        else:
            parts = _by_classes(labels, config.clients, each, rng)
        if parts and np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(rest))):
            return tuple(rest[np.sort(part)] for part in parts)
    raise DataError(advice)


def _by_dirichlet(
    labels: Indices, clients: int, alpha: float, least: int, rng: np.random.Generator
) -> list[Indices] | None:
    """Return positions for each client, none with fewer than `least`; None if no draw is like that."""
    for _ in range(_DRAWS):
        parts = [np.empty(0, np.int64)] * clients
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            shares = rng.dirichlet(np.full(clients, alpha))
            shares[[len(part) > len(labels) / clients for part in parts]] = 0.0
            with np.errstate(invalid="ignore"):  # all shares may be 0 for a tiny alpha: the last client has it all
                cuts = (np.cumsum(shares / np.cumsum(shares)[-1]) * len(rows)).astype(np.int64)[:-1]
            parts = [np.append(part, more) for part, more in zip(parts, np.split(rows, cuts), strict=True)]
        if min(map(len, parts)) >= least:
            return parts
    return None


def _by_classes(labels: Indices, clients: int, each: int, rng: np.random.Generator) -> list[Indices] | None:
    """Return positions for each client, of `each` classes; None if a class has fewer examples than clients."""
    classes = np.unique(labels)
    held = []
    for client in range(clients):
        mine = {int(classes[client % len(classes)])}
        while len(mine) < each:
            mine.add(int(rng.choice(classes, size=1)[0]))
        held.append(mine)
    parts = [np.empty(0, np.int64)] * clients
    for label in classes:
        rows, holders = np.flatnonzero(labels == label), [number for number, mine in enumerate(held) if label in mine]
        if len(holders) > len(rows):
            return None
        for holder, share in zip(holders, np.array_split(rows, max(1, len(holders))), strict=False):
            parts[holder] = np.append(parts[holder], share)
    return parts
