from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fednas_core.base.errors import DataError
from fednas_core.data.own import read_own
from fednas_core.data.sources import Facts

FACTS = Facts("set", 8, 1, ("cat", "dog", "owl"), (0.5,), (0.25,))


def npz(path: Path, **arrays: np.ndarray) -> str:  # type: ignore[type-arg]
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def images(n: int, side: int = 8, channels: int = 1) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(n).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def test_an_archive_need_not_hold_every_class(tmp_path: Path) -> None:
    x = images(5)
    train, test = read_own(npz(tmp_path / "a.npz", x_train=x, y_train=np.array([2, 2, 0, 2, 0])), FACTS)
    assert test is None and train.y.tolist() == [2, 2, 0, 2, 0]
    np.testing.assert_array_equal(train.x.permute(0, 2, 3, 1).numpy(), x)


def test_an_archive_may_hold_a_test_split_and_larger_images(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "a.npz",
        x_train=images(3, 16),
        y_train=np.array([0, 1, 2]),
        x_test=images(2),
        y_test=np.array([1, 1]),
    )
    train, test = read_own(path, FACTS)
    assert train.x.shape == (3, 1, 8, 8) and test is not None and test.x.shape == (2, 1, 8, 8)
    mean = images(3, 16)[0].reshape(8, 2, 8, 2).mean((1, 3))
    assert np.abs(train.x[0, 0].numpy() - mean).max() <= 0.5


def test_a_folder_is_numbered_as_the_server_numbers_classes(tmp_path: Path) -> None:
    for split, name, count in (("train", "owl", 2), ("train", "cat", 1), ("test", "owl", 1)):
        folder = tmp_path / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(images(1, 10)[0, :, :, 0]).save(folder / f"{i}.png")
    train, test = read_own(str(tmp_path), FACTS)
    assert train.y.tolist() == [0, 2, 2] and train.x.shape == (3, 1, 8, 8)
    assert test is not None and test.y.tolist() == [2]


def test_a_folder_of_classes_is_all_training_images(tmp_path: Path) -> None:
    (tmp_path / "owl").mkdir()
    Image.fromarray(images(1, 10)[0, :, :, 0]).save(tmp_path / "owl" / "0.png")
    train, test = read_own(str(tmp_path), FACTS)
    assert test is None and train.y.tolist() == [2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": images(2)}, "lacks x_train or y_train; it holds x_train"),
        ({"x_train": images(2), "y_train": np.array([0, 3])}, "allowed are 0 to 2, the run's classes cat, dog, owl"),
        ({"x_train": images(2), "y_train": np.array([0, -1])}, "labels from -1 to 0"),
        (
            {"x_train": images(2, 8, 3), "y_train": np.array([0, 1])},
            "8 × 8 pixels in 3 channels: the run's have 8 × 8 in 1",
        ),
        ({"x_train": images(2, 6), "y_train": np.array([0, 1])}, "6 × 6 pixels .* smaller ones not enlarged"),
        ({"x_train": images(2).astype(float), "y_train": np.array([0, 1])}, "expected uint8"),
        ({"x_train": images(2), "y_train": np.array([0, 1, 1])}, r"expected integers \(2,\)"),
    ],
)
def test_data_that_do_not_fit_the_run_are_refused(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_own(npz(tmp_path / "a.npz", **arrays), FACTS)  # type: ignore[arg-type]


def test_a_folder_of_another_class_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a folder nor an .npz file"):
        read_own(str(tmp_path / "none"), FACTS)
    with pytest.raises(DataError, match="has no class folders"):
        read_own(str(tmp_path), FACTS)
    (tmp_path / "train" / "cow").mkdir(parents=True)
    Image.fromarray(images(1)[0, :, :, 0]).save(tmp_path / "train" / "cow" / "0.png")
    with pytest.raises(DataError, match="folders for cow: allowed are the run's classes cat, dog, owl"):
        read_own(str(tmp_path), FACTS)
    with pytest.raises(DataError, match="is not a file"):
        read_own(str(tmp_path / "gone.npz"), FACTS)
