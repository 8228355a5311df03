"""How training examples spread over clients: cover, shape, determinism, and every way it cannot be done."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.base.config import DataConfig
from fednas_core.base.errors import DataError
from fednas_core.base.seeding import derive, stream
from fednas_core.data.partitions import Split, split
from fednas_core.data.sources import Dataset, Images, load


def dataset(labels: np.ndarray, groups: np.ndarray | None = None) -> Dataset:
    x = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    images = Images(x, torch.from_numpy(labels.astype(np.int64)), groups)
    return Dataset("made", images, images, tuple(str(c) for c in np.unique(labels)), (0.5,), (0.25,))


def balanced(classes: int, each: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(classes), each))


def check(result: Split, n: int, clients: int) -> None:
    arrays = [result.validation, *result.clients]
    assert len(result.clients) == clients
    assert all(array.dtype == np.int64 and (np.diff(array) > 0).all() and len(array) > 0 for array in arrays)
    assert np.array_equal(np.sort(np.concatenate(arrays)), np.arange(n))


def test_default_digits_leave_every_client_something(capfd: pytest.CaptureFixture[str]) -> None:
    config = DataConfig(clients=10)
    data = load(config)
    for seed in range(12):
        result = split(data, config, seed)
        check(result, 1438, 10)
        assert len(result.validation) == 144
        assert min(map(len, result.clients)) >= 10
    assert capfd.readouterr() == ("", "")


def test_validation_is_stratified_and_the_same_for_every_partition() -> None:
    config = DataConfig(clients=10)
    data = load(config)
    y = data.train.y.numpy()
    kept = [split(data, replace(config, partition=kind), 3).validation for kind in ("iid", "dirichlet", "classes")]
    assert np.array_equal(kept[0], kept[1]) and np.array_equal(kept[0], kept[2])
    assert np.abs(np.bincount(y[kept[0]]) - 0.1 * np.bincount(y)).max() <= 1
    assert not np.array_equal(kept[0], split(data, config, 4).validation)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["iid", "dirichlet", "classes"]),
    clients=st.integers(1, 12),
    alpha=st.sampled_from([0.3, 1.0, 100.0]),
    share=st.sampled_from([0.01, 0.1, 0.5]),
    seed=st.integers(0, 2**40),
)
def test_parts_are_disjoint_and_cover_everything(
    kind: str, clients: int, alpha: float, share: float, seed: int
) -> None:
    config = DataConfig(partition=kind, clients=clients, alpha=alpha, validation=share, classes_per_client=3)
    data = dataset(balanced(3, 80))
    check(split(data, config, seed), 240, clients)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "classes", "column"])
def test_same_arguments_same_split_other_seed_another(kind: str) -> None:
    labels = balanced(4, 50)
    owners = np.array(["ann", "bob", "cyd", "dan", "eve"])[np.arange(200) % 5]
    config = DataConfig(source="npz", partition=kind, clients=5, column="owner")
    first, again = (split(dataset(labels, owners), config, 9) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.clients, again.clients, strict=True))
    other = split(dataset(labels, owners), config, 10)
    assert any(not np.array_equal(a, b) for a, b in zip(first.clients, other.clients, strict=True))


def test_a_split_is_made_once_in_a_process() -> None:
    data, config = dataset(balanced(4, 50)), DataConfig(clients=4)
    assert split(data, config, 1) is split(data, config, 1)


def test_golden_split() -> None:
    """The numbers that seed 1 draws; they must not change with versions, or resumed runs would mix their clients."""
    data, config = dataset(np.arange(60) % 3), DataConfig(clients=3, validation=0.1)
    result = split(data, config, 1)
    assert result.validation.tolist() == [0, 7, 14, 29, 36, 40]
    assert [part.tolist()[:5] for part in result.clients] == [[2, 3, 5, 8, 11], [1, 4, 6, 9, 10], [23, 26, 32, 33, 35]]


def by_flwr_datasets(kind: str, index: np.ndarray, label: np.ndarray, **choices: Any) -> list[np.ndarray] | None:
    """The parts of `index` by a partitioner of flwr-datasets; None where it says that a draw does not fit."""
    import datasets
    from flwr_datasets import partitioner

    made = getattr(partitioner, kind)(**choices)
    made.dataset = datasets.Dataset.from_dict({"index": index, "label": label})
    try:
        parts = [made.load_partition(number)["index"][:] for number in range(made.num_partitions)]
    except ValueError:
        return None
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["iid", "dirichlet", "classes", "column"])
def test_parts_are_those_of_flwr_datasets(kind: str) -> None:
    """Run by run the same images at the same client, whether Flower's own partitioners divide them or these."""
    rng = np.random.default_rng(7)
    equal = 0
    for trial in range(25):
        clients, classes, alpha = int(rng.integers(1, 12)), int(rng.integers(2, 6)), float(rng.choice([0.02, 0.3, 5]))
        labels, each = rng.integers(0, classes, 120), int(rng.integers(1, classes + 1))
        labels[:classes] = np.arange(classes)
        owners = rng.permutation(np.array(["ann", "Bob", "cyd", "dan", "é"])[np.arange(120) % 5])
        config = DataConfig(partition=kind, clients=clients, alpha=alpha, classes_per_client=each, column="owner")
        config = replace(config, clients=5) if kind == "column" else config
        found: Split | None = None
        with contextlib.suppress(DataError):
            found = split(dataset(labels, owners), config, trial)
        kept = np.setdiff1d(np.arange(120), found.validation) if found else np.arange(0)
        y, many = labels[kept], {"num_partitions": clients, "partition_by": "label"}
        wanted: list[np.ndarray] | None = None
        for attempt in range(10):
            many["seed"] = derive(trial, "data.partition", attempt)
            if found is None or (wanted and np.array_equal(np.sort(np.concatenate(wanted)), kept)):
                break
            if kind == "iid":
                kept = stream(trial, "data.partition").permutation(kept)
                wanted = by_flwr_datasets("IidPartitioner", kept, labels[kept], num_partitions=clients)
                kept = np.sort(kept)
            elif kind == "column":
                wanted = by_flwr_datasets("NaturalIdPartitioner", kept, owners[kept], partition_by="label")
            elif kind == "dirichlet":
                more = {"alpha": alpha, "min_partition_size": max(1, min(10, len(kept) // (4 * clients)))}
                wanted = by_flwr_datasets("DirichletPartitioner", kept, y, **many, **more, self_balancing=True)
            else:
                more = {"num_classes_per_partition": each, "class_assignment_mode": "first-deterministic"}
                wanted = by_flwr_datasets("PathologicalPartitioner", kept, y, **many, **more)
        if found:
            assert wanted and all(map(np.array_equal, found.clients, wanted)), (trial, config)
            equal += 1
    assert equal >= 8


def test_iid_is_even() -> None:
    data, config = dataset(np.sort(balanced(10, 300))), DataConfig(partition="iid", clients=7)
    result = split(data, config, 2)
    sizes = [len(part) for part in result.clients]
    assert max(sizes) - min(sizes) <= 1
    counts = np.stack([np.bincount(data.train.y.numpy()[part], minlength=10) for part in result.clients])
    assert counts.min() > 15 and counts.max() < 70  # 38.6 expected of each class


def test_alpha_sets_how_uneven_classes_are() -> None:
    data = dataset(balanced(10, 300))

    def unevenness(alpha: float) -> float:
        parts = split(data, DataConfig(alpha=alpha, clients=10), 5).clients
        shares = np.stack([np.bincount(data.train.y.numpy()[part], minlength=10) / len(part) for part in parts])
        return float(shares.max(1).mean())

    assert unevenness(0.1) > 0.45 > unevenness(1.0) > 0.18 > unevenness(100.0)


def test_classes_per_client() -> None:
    data, config = dataset(balanced(10, 60)), DataConfig(partition="classes", clients=20, classes_per_client=2)
    held = [set(data.train.y.numpy()[part]) for part in split(data, config, 3).clients]
    assert all(len(classes) == 2 and index % 10 in classes for index, classes in enumerate(held))


def test_fewer_clients_than_classes_still_hold_every_class() -> None:
    data, config = dataset(balanced(6, 40)), DataConfig(partition="classes", clients=4, classes_per_client=4)
    check(split(data, config, 0), 240, 4)


def test_column_gives_one_client_per_value_and_none_is_empty() -> None:
    owners = np.array([7] * 1 + [3] * 2 + [11] * 97)  # rare owners keep their examples from the server
    data = dataset(balanced(2, 50), owners)
    for seed in range(8):
        result = split(data, DataConfig(partition="column", column="owner", clients=3, validation=0.5), seed)
        check(result, 100, 3)
        assert [set(owners[part].tolist()) for part in result.clients] == [{3}, {7}, {11}]
    check(split(data, DataConfig(partition="column", column="owner", clients=0), 0), 100, 3)


BAD = [
    (DataConfig(clients=200), r"data.clients = 200, but 180 training examples"),
    (DataConfig(clients=150, alpha=0.01), r"data.alpha = 0.01 with data.clients = 150 .*raise data.alpha"),
    (DataConfig(alpha=0.001, clients=50), r"data.alpha = 0.001"),
    (
        DataConfig(partition="classes", clients=10, classes_per_client=5),
        r"data.classes-per-client = 5, but there are 4 classes",
    ),
    (DataConfig(partition="classes", clients=3, classes_per_client=1), r"data.clients = 3 .*set data.clients to 4"),
    (DataConfig(partition="classes", clients=170, classes_per_client=2), r"lower data.clients"),
    (DataConfig(partition="column", column="owner", clients=7), r"data.clients = 7, .*'owner' names 5 .* = 5"),
]


@pytest.mark.parametrize(("config", "message"), BAD)
def test_what_cannot_be_done_names_the_setting(config: DataConfig, message: str) -> None:
    data = dataset(balanced(4, 50), np.arange(200) % 5)
    with pytest.raises(DataError, match=message):
        split(data, config, 0)


def test_column_without_owners_and_validation_of_nothing() -> None:
    with pytest.raises(DataError, match="data.column"):
        split(dataset(balanced(2, 5)), DataConfig(partition="column", clients=2), 0)
    with pytest.raises(DataError, match="data.validation = 0.01 of 10"):
        split(dataset(balanced(2, 5)), DataConfig(partition="iid", clients=2, validation=0.01), 0)
    with pytest.raises(DataError, match="more than one example each"):
        owners = np.arange(10)
        split(dataset(balanced(2, 5), owners), DataConfig(partition="column", column="id", clients=10), 0)


def test_no_network_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a split must not connect anywhere")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for kind in ("iid", "dirichlet", "classes"):
        check(split(dataset(balanced(4, 50)), DataConfig(partition=kind, clients=4), 0), 200, 4)
