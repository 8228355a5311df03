"""What settings that are left open come to: for images of every kind, with the path as the only setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, DataError, FednasError, InfeasibleError
from fednas_core.base.paths import anchored
from fednas_core.base.settings import flatten, read, refuse_idle
from fednas_core.devices.budgets import parse_budgets
from fednas_core.engine.defaults import settled
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.methods.catalogue import METHODS
from fednas_core.tasks.bench import dataset_of, space_of, split_of

PUBLISHED = {"budgets": "phone=1M,tablet=2M,workstation=max", "data.source": "digits", "data.clients": 10}
USUAL = {**PUBLISHED, "data.image-size": 0, "train.epochs": 5, "space.name": "small"}


def folder(root: Path, count: int, classes: int, size: tuple[int, int], colour: bool = True, split: str = "") -> Path:
    """Images of `size` pixels, (width, height), `count` in all."""
    rng = np.random.default_rng(0)
    shape = (size[1], size[0], 3) if colour else (size[1], size[0])
    for number in range(count):
        place = root / split / f"class {number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{number}.png")
    return root


def archive(root: Path, count: int, classes: int, shape: tuple[int, ...]) -> Path:
    root.mkdir(exist_ok=True)
    x = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    np.savez(root / "own.npz", x_train=x, y_train=np.arange(count) % classes)
    return root / "own.npz"


def chosen(pairs: dict[str, Any]) -> dict[str, Any]:
    return flatten(settle(read(pairs)))


def test_the_digits_run_as_published() -> None:
    """The example of the README: what the run is made of, and nothing to remark on it."""
    found = settled(read({}))
    assert USUAL.items() <= flatten(found.config).items() and found.told() == ""
    assert chosen({"method": "ddc"})["space.name"] == "cnn8"
    assert settled(found.config) == replace(found, choices=())


@pytest.mark.parametrize("method", METHODS)
def test_what_settings_came_to_can_be_run_again(method: str) -> None:
    """The ``config.toml`` of a run is a file of settings: nothing in it is refused, or comes to something else."""
    once = settle(read({"method": method}))
    refuse_idle(read(flatten(once)), flatten(once))
    assert settle(read(flatten(once))) == once


def test_what_the_method_decides_is_named() -> None:
    own = ("sample.weigh", "sample.between", "search.by", "personal.layers", "evaluate-clients", "contest.iterations")
    wanted = {
        "deepfednas": ("uniform", "path", "fitness", "", 0, 0),
        "superfednas": ("uniform", "uniform", "accuracy", "", 0, 0),
        "fedper": ("examples", "auto", "auto", "head", 100, 0),
        "ddc": ("examples", "auto", "auto", "", 0, 25),
        "fednas": ("examples", "auto", "auto", "", 0, 12),
    }
    for method, values in wanted.items():
        found = chosen({"method": method})
        assert tuple(found[key] for key in own) == values, method


@pytest.mark.parametrize("make", [
    lambda root: archive(root, 30, 2, (16, 16)),
    lambda root: folder(root, 100, 10, (32, 32)),
    lambda root: folder(root, 60, 5, (224, 180)),
    lambda root: archive(root, 200, 10, (28, 28)),
    lambda root: folder(folder(root, 200, 100, (64, 48), False, "train"), 100, 100, (64, 48), False, "val"),
    lambda root: archive(root, 150, 7, (48, 72, 3)),
    lambda root: archive(root, 7600, 100, (20, 16, 3)),
    lambda root: folder(root, 33, 3, (8, 300)),
    lambda root: archive(root, 10, 2, (64, 64, 3)),
    lambda root: archive(root, 12, 6, (17, 17)),
])  # fmt: skip
def test_any_images_with_the_path_as_the_only_setting(make: Any, tmp_path: Path) -> None:
    config = settle(read({"data.path": str(make(tmp_path / "images"))}))
    space, data, parts = space_of(config), dataset_of(config), split_of(config)
    assert data.train.x.shape[2:] == data.test.x.shape[2:] == (config.data.image_size,) * 2
    assert 8 <= config.data.image_size <= 32 and 2 <= config.data.clients <= 10
    assert min(map(len, parts.clients)) >= 1 and len(parts.validation) and len(data.test.y)
    assert set(data.train.y.tolist()) == set(range(len(data.classes)))
    least, most = (space.cost(arch).macs for arch in (space.smallest, space.largest))
    phone, tablet, workstation = parse_budgets(config.budgets, most)
    assert least <= phone.macs <= tablet.macs <= workstation.macs and most < 40e6
    assert len(data.train.y) * config.train.epochs <= max(7_500, len(data.train.y))
    assert "auto" not in (config.data.source, config.space.name, config.budgets)


def test_what_follows_from_the_images_is_told(tmp_path: Path) -> None:
    """32×32 images in colour, for which a phone's 1M MACs are less than the smallest network takes."""
    path = folder(tmp_path / "images", 60, 3, (32, 40))
    found = settled(read({"data.path": str(path)}))
    told = found.told().splitlines()
    assert told[0].startswith("settled   data.source = folder")
    for part in (
        "data.image-size = 32: that is the side of",
        "data.clients = 4: for 43 training images",
        "space.name = cifar-light: small with a stride",
        "budgets = phone=15%,tablet=35%,workstation=max:",
    ):
        assert any(part in line for line in told), part  # fmt: skip
    folder(path, 3, 3, (9, 9), split="class 0")
    assert "data.image-size = 9: that is the side of '" in settled(read({"data.path": str(path)})).told()


@pytest.mark.parametrize(
    ("pairs", "error", "words"),
    [
        ({"budgets": "phone=1M,pc=max"}, InfeasibleError, ["'budgets': device 'phone'", "takes 1,292,672", "allowed"]),
        ({"data.image-size": 64}, DataError, ["data.image-size to 32"]),
        ({"data.clients": 500}, DataError, ["data.clients = 500"]),
        ({"data.source": "npz"}, DataError, ["data.path", "is not a file"]),
        ({"space.name": "vgg99"}, ConfigError, ["'vgg99'"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_win_or_are_refused_by_name(
    pairs: dict[str, Any], error: type[FednasError], words: list[str], tmp_path: Path
) -> None:
    path = str(folder(tmp_path / "images", 60, 3, (32, 32)))
    with pytest.raises(error) as caught:
        settle(read({"data.path": path, **pairs}))
    for word in words:
        assert word in str(caught.value)


def test_settings_win(tmp_path: Path) -> None:
    given = {
        "budgets": "pc=max", "data.image-size": 16, "data.clients": 3, "space.name": "cnn", "train.epochs": 2,
        "data.path": str(folder(tmp_path / "images", 60, 3, (32, 32))),
    }  # fmt: skip
    assert given.items() <= chosen(given).items()


def test_images_of_a_few_pixels_are_refused_unless_asked_for(tmp_path: Path) -> None:
    path = str(archive(tmp_path, 30, 2, (5, 5)))
    with pytest.raises(DataError, match="5 pixels a side.*set data.image-size = 5"):
        settle(read({"data.path": path}))
    assert chosen({"data.path": path, "data.image-size": 5})["data.image-size"] == 5


def test_paths_are_below_the_folder_where_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "images", 40, 2, (8, 8))
    monkeypatch.chdir(tmp_path)
    found = settle(read({"data.path": "images", "output": "out"}))
    assert (found.data.path, found.output) == (str(tmp_path / "images"), str(tmp_path / "out"))
    config = RunConfig(output="~/runs", space=replace(RunConfig().space, name="own.toml"))
    placed = anchored(config, Path("/somewhere"))
    assert placed.output == str(Path.home() / "runs") and placed.space.name == "/somewhere/own.toml"
    assert placed.data.path == ""
    with pytest.raises(ConfigError, match=r"'data.path': the path /x/caf\\xe9 is not UTF-8"):
        anchored(read({"data.path": "caf\udce9"}), Path("/x"))
    with pytest.raises(DataError, match="absent': there is no such file or folder"):
        settle(read({"data.path": "absent"}))


def test_own_images_train_and_are_exported(tmp_path: Path) -> None:
    path = folder(tmp_path / "images", 40, 2, (32, 32))
    (path / "class 0").rename(path / 'caf\udce9 <b>\n"x"')
    said: list[str] = []
    config = settle(
        read({"data.path": str(path), "output": str(tmp_path), "rounds": 1, "workers": 1, "train.epochs": 1}),
        announce=said.append,
    )
    run = conduct(config, LocalFleet(config), said.append)
    models = {file.parent.name for file in (run.path / "models").glob("*/model.onnx")}
    assert models == {"phone", "tablet", "workstation"} and run.config() == config
    assert said[0].startswith("settled   ")
    assert "<b>" not in (run.path / "report.html").read_text(encoding="utf-8")
