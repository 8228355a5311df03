"""Setting ``data.only``: a run that knows some of the classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fednas_core.base.config import DataConfig
from fednas_core.base.errors import DataError
from fednas_core.base.settings import flatten, read
from fednas_core.data.sources import facts, load
from fednas_core.tasks.bench import client_images, client_names, space_of, validation_images
from fednas_core.tasks.registry import clients_of
from fednas_core.tasks.site import site_of

ALL = DataConfig()


def test_nothing_said_is_all() -> None:
    whole = load(ALL)
    assert load(replace(ALL, only="  ")).classes == whole.classes == tuple("0123456789")
    assert torch.equal(load(replace(ALL, only=" ")).train.x, whole.train.x)


@pytest.mark.parametrize("only", ["3,8", "8,3", " 7 , 0,  2 ", "0,1,2,3,4,5,6,7,8,9"])
def test_images_are_those_of_the_classes_and_labelled_by_their_place(only: str) -> None:
    names = tuple(name.strip() for name in only.split(","))
    whole, part = load(ALL), load(replace(ALL, only=only))
    assert part.classes == names == facts(part).classes and (part.mean, part.std) == (whole.mean, whole.std)
    for split in ("train", "test"):
        theirs, mine = getattr(whole, split), getattr(part, split)
        assert len(mine.y) == sum(int((theirs.y == int(name)).sum()) for name in names)
        for place, name in enumerate(names):
            assert torch.equal(mine.x[mine.y == place], theirs.x[theirs.y == int(name)])


def test_a_name_said_twice_counts_once() -> None:
    assert load(replace(ALL, only="4,5,4")).classes == ("4", "5")


@pytest.mark.parametrize(
    ("only", "reason"),
    [
        ("3,cat", "there is no class 'cat'; allowed are two or more of 0, 1, 2"),
        ("10,1", "there is no class '10'"),
        ("3", "one is too few"),
        ("3,3", "one is too few"),
        ("3,", "there is no class ''"),
    ],
)
def test_what_makes_no_sense_is_refused(only: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"setting 'data.only' = {only!r}: {reason}"):
        load(replace(ALL, only=only))


def test_examples_are_those_of_the_run_on_all_classes() -> None:
    whole, part = (load(replace(ALL, only=only, examples=50)) for only in ("", "6,1"))
    assert torch.bincount(part.train.y).tolist() == [5, 5]
    assert torch.equal(part.train.x[part.train.y == 0], whole.train.x[whole.train.y == 6])


def test_who_owns_an_example_is_not_forgotten(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(1), tmp_path / "wards.npz"
    y = rng.integers(0, 3, 60)
    x = np.broadcast_to((10 * y)[:, None, None], (60, 4, 4)).astype(np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, ward=y * 100)
    given = DataConfig(source="npz", path=str(path), partition="column", column="ward")
    names = load(given).classes
    part = load(replace(given, only=f"{names[2]},{names[1]}"))
    assert part.train.groups is not None
    assert np.array_equal(part.train.groups, np.where(part.train.y.numpy() == 0, 200, 100))
    assert set(part.train.x.unique().tolist()) == {10, 20}


def test_everything_of_a_run_is_restricted(tiny_pairs: dict[str, Any]) -> None:
    config = read({**tiny_pairs, "data.only": "2,5,9", "data.examples": 90})
    assert space_of(config).classes == 3
    labels = [validation_images(config).y, *(client_images(config, i).y for i in range(len(client_names(config))))]
    assert sum(len(y) for y in labels) == 27 and set(torch.cat(labels).tolist()) == {0, 1, 2}


def test_clients_without_any_of_the_classes_take_no_part(tiny_pairs: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "wards.npz"
    y = np.repeat(np.arange(4), 40)
    x = np.zeros((160, 8, 8), dtype=np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, ward=y)
    mine = {"data.source": "npz", "data.path": str(path), "data.partition": "column", "data.column": "ward"}
    whole = read({**tiny_pairs, **mine, "data.examples": 0})
    first, second = load(whole.data).classes[:2]
    part = read({**flatten(whole), "data.only": f"{first},{second}"})
    assert client_names(part) == client_names(whole) == [client.name for client in clients_of(whole)]
    assert [client.name for client in clients_of(part)] == ["client-00", "client-01"]
    with pytest.raises(DataError, match="names 4 clients: set data.clients = 4"):
        client_names(read({**flatten(part), "data.clients": 2}))


# -- split first, restricted afterwards ----------------------------------------------------------------------------


def pictures(images: Any, names: tuple[str, ...]) -> set[tuple[str, bytes]]:
    """Images with the names of their classes: what stays the same wherever they lie and however they are numbered."""
    return {(names[int(y)], x.numpy().tobytes()) for x, y in zip(images.x, images.y, strict=True)}


SPREADS: dict[str, dict[str, Any]] = {
    "iid": {"data.partition": "iid"},
    "dirichlet": {"data.alpha": 0.3},
    "classes": {"data.partition": "classes", "data.classes-per-client": 3},
    "fewer examples": {"data.examples": 700},
    "held out": {"data.holdout": 0.3},
    "held out, by classes": {"data.holdout": 0.1, "data.partition": "classes"},
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("spread", SPREADS)
def test_every_part_is_that_of_the_run_on_all_classes_less_the_others(spread: str, seed: int) -> None:
    """So nobody tests on what somebody trains on in the run on all classes, and nobody holds out what it trains on."""
    pairs: dict[str, Any] = {"seed": seed, "data.clients": 10, **SPREADS[spread]}
    whole, part = read(pairs), read({**pairs, "data.only": "7,0,4"})
    names, few = load(whole.data).classes, load(part.data).classes

    def kept(images: Any) -> set[tuple[str, bytes]]:
        return {one for one in pictures(images, names) if one[0] in few}

    assert pictures(validation_images(part), few) == kept(validation_images(whole))
    assert pictures(load(part.data).test, few) == kept(load(whole.data).test)
    assert client_names(part) == client_names(whole)
    there = {client.name: client for client in clients_of(part)}
    for index, name in enumerate(client_names(whole)):
        assert pictures(client_images(part, index), few) == kept(client_images(whole, index))
        theirs = site_of(whole, index)
        expected = kept(theirs.train), kept(theirs.test) if theirs.held_out else set()
        assert (name in there) == bool(expected[0])
        if name in there:
            mine = site_of(part, index)
            found = pictures(mine.train, few), pictures(mine.test, few) if mine.held_out else set()
            assert found == expected
            assert (there[name].examples, there[name].held_out) == (len(mine.train.y), len(expected[1]))


def test_classes_that_leave_nobody_anything_are_refused(tiny_pairs: dict[str, Any]) -> None:
    few = {**tiny_pairs, "data.examples": 60, "data.validation": 0.05}
    first, second = sorted(set(range(10)) - set(validation_images(read(few)).y.tolist()))[:2]
    config = read({**few, "data.only": f"{first},{second}"})
    with pytest.raises(DataError, match="leaves 0 images to validate .*: name more classes, or raise"):
        client_names(config)
