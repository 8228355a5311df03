"""How a training split spreads over clients, and the part of it that the server keeps to validate."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fednas_core.config import DataConfig
from fednas_core.data.sources import Dataset, Origin, draw
from fednas_core.errors import DataError
from fednas_core.seeding import derive, stream

Indices = NDArray[np.int64]
_HANDFUL = 10
_ATTEMPTS = 10


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
    rest goes to ``config.clients`` clients through a partitioner of flwr-datasets, seeded from `seed`:

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
        return Split(validation, _spread("NaturalIdPartitioner", rest, owners[rest], partition_by="label"))
    if len(rest) < config.clients:
        raise DataError(
            f"data.clients = {config.clients}, but {len(rest)} training examples are left after validation: "
            "lower data.clients, or raise data.examples if it is set"
        )
    if config.partition == "iid":
        shuffled = stream(seed, "data.partition").permutation(rest)
        return Split(validation, _spread("IidPartitioner", shuffled, y[shuffled], num_partitions=config.clients))
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
    choices: dict[str, Any] = {"num_partitions": config.clients, "partition_by": "label"}
    if config.partition == "dirichlet":
        least = max(1, min(_HANDFUL, len(rest) // (4 * config.clients)))
        kind = "DirichletPartitioner"
        choices |= {"alpha": config.alpha, "min_partition_size": least, "self_balancing": True}
        advice = (
            f"data.alpha = {config.alpha} with data.clients = {config.clients} left a client fewer than {least} of "
            f"{len(rest)} examples in every draw: raise data.alpha or lower data.clients"
        )
    else:
        each = config.classes_per_client
        if each > classes:
            raise DataError(f"data.classes-per-client = {each}, but there are {classes} classes: set {classes} or less")
        kind = "PathologicalPartitioner"
        choices |= {"num_classes_per_partition": each, "class_assignment_mode": "first-deterministic"}
        advice = (
            f"data.clients = {config.clients} with data.classes-per-client = {each} do not fit {len(rest)} examples of "
            f"{classes} classes: either a class would belong to no client (set data.clients to {classes} or more, or "
            f"raise data.classes-per-client) or to more clients than it has examples (lower data.clients)"
        )
    reason: ValueError | None = None
    for attempt in range(_ATTEMPTS):
        choices["seed"] = derive(seed, "data.partition", attempt)
        try:
            parts = _spread(kind, rest, labels, **choices)
        except ValueError as error:  # the partitioners' word for a draw that does not fit
            reason = error
            continue
        if np.array_equal(np.sort(np.concatenate(parts)), rest):
            return parts
    raise DataError(advice) from reason


def _spread(kind: str, index: Indices, label: NDArray[Any], **choices: Any) -> tuple[Indices, ...]:
    """Return the parts, sorted, into which the partitioner `kind` divides `index`; `label` is the column it goes by.

    The table exists in memory only. The partitioners' warnings and progress bars are kept from the terminal.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from datasets import Dataset as Table

        partitioner = getattr(_partitioners(), kind)(**choices)
        partitioner.dataset = Table.from_dict({"index": index, "label": label})
        tables = [partitioner.load_partition(number) for number in range(partitioner.num_partitions)]
        parts = [np.asarray(table.with_format("numpy")["index"][:], dtype=np.int64) for table in tables]
    return tuple(np.sort(part) for part in parts)


def _partitioners() -> ModuleType:
    """Return the partitioners of flwr-datasets without running its package, which imports plots along.

    Those bring scipy, pandas and seaborn: a second for each client process.
    """
    name = "flwr_datasets"
    spec = None if name in sys.modules else find_spec(name)
    if spec is not None:
        sys.modules[name] = module_from_spec(spec)
    try:
        return import_module(f"{name}.partitioner")
    finally:
        if spec is not None:
            del sys.modules[name]
