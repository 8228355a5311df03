"""Reads users' own images: an ``.npz`` file or a folder of image files. Every defect is a `DataError` naming its place.

Nothing is unpickled: an ``.npz`` file that holds objects is refused.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fednas_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings of image files, as torchvision's ImageFolder knows them."""


class Arrays(NamedTuple):
    """A data set as arrays: images uint8 (n, size, size, channels), labels int64 (n,) from 0 to len(classes) − 1.

    `groups` (n_train,) of integers or text names the owner of each training example, if the source knows it.
    """

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]
    groups: NDArray[Any] | None = None


def read_npz(path: Path, column: str = "") -> Arrays:
    """Return the arrays x_train, y_train, x_test and y_test of the file `path`.

    x: uint8 (n, size, size) or (n, size, size, channels); y: integers (n,) from 0 without gaps. `column` names one
    more array (n_train,) of integers or text, under this name or with ``_train`` behind it. Raises `DataError`.
    """
    archive = open_npz(path)
    wanted = ["x_train", "y_train", "x_test", "y_test"]
    key = column if column in archive else f"{column}_train"
    missing = [name for name in [*wanted, *([key] if column else [])] if name not in archive]
    if missing:
        raise DataError(f"'{path}' lacks {', '.join(missing)}; it holds {', '.join(archive) or 'nothing'}")
    x_train, y_train, x_test, y_test = (archive[name] for name in wanted)
    groups = archive[key] if column else None
    x_train, x_test = npz_images(path, "x_train", x_train), npz_images(path, "x_test", x_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(f"'{path}': images are {x_train.shape[1:]} in x_train but {x_test.shape[1:]} in x_test")
    y_train = npz_labels(path, "y_train", y_train, len(x_train))
    y_test = npz_labels(path, "y_test", y_test, len(x_test))
    count = _classes(path, y_train, y_test)
    if groups is not None:
        groups = _npz_groups(path, key, groups, len(x_train))
    return Arrays(x_train, y_train, x_test, y_test, tuple(str(label) for label in range(count)), groups)


def open_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return all arrays of an ``.npz`` file; raise `DataError` if it is none."""
    if not path.is_file():
        raise DataError(f"data.path '{path}' is not a file: for data.source 'npz' it names the .npz file")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"'{path}' holds a single array: write it with numpy.savez(path, x_train=…, y_train=…, …)")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"'{path}' cannot be read as .npz ({error}): write it with numpy.savez, with arrays of numbers, not objects"
        ) from error


def npz_images(path: Path, name: str, x: NDArray[Any]) -> NDArray[np.uint8]:
    """Return images of an ``.npz`` file as uint8 (n, size, size, channels); raise `DataError`."""
    where = f"'{path}': {name} is {x.dtype} {x.shape}"
    if x.dtype != np.uint8:
        nan = " and holds NaN" if x.dtype.kind == "f" and bool(np.isnan(x).any()) else ""
        raise DataError(f"{where}{nan}: expected uint8, 0 to 255 (0-to-1 images: (255 * x).round().astype('uint8'))")
    if x.ndim not in (3, 4) or 0 in x.shape or x.shape[1] != x.shape[2]:
        raise DataError(f"{where}: expected at least one image, (n, size, size) or (n, size, size, channels)")
    return x if x.ndim == 4 else x.reshape(*x.shape, 1)


def npz_labels(path: Path, name: str, y: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Return labels of an ``.npz`` file as int64 (n,); raise `DataError`."""
    if y.dtype.kind not in "iu" or y.shape != (n,):
        nan = " and holds NaN" if y.dtype.kind == "f" and bool(np.isnan(y).any()) else ""
        raise DataError(f"'{path}': {name} is {y.dtype} {y.shape}{nan}: expected integers ({n},), one for each image")
    return y.astype(np.int64)


def _npz_groups(path: Path, name: str, groups: NDArray[Any], n: int) -> NDArray[Any]:
    if groups.dtype.kind not in "iuU" or groups.shape != (n,):
        raise DataError(
            f"'{path}': data.column '{name}' is {groups.dtype} {groups.shape}: "
            f"expected integers or text ({n},), one for each training image"
        )
    return groups


def _classes(path: Path, y_train: NDArray[np.int64], y_test: NDArray[np.int64]) -> int:
    """Return the number of classes; every label from 0 to the largest must occur among the training examples."""
    found = np.unique(y_train)
    if found[0] != 0 or found[-1] != len(found) - 1:
        raise DataError(
            f"'{path}': y_train holds {len(found)} different labels from {found[0]} to {found[-1]}: "
            "expected 0, 1, 2 … without gaps (numpy.unique(y, return_inverse=True)[1] makes them so)"
        )
    if len(found) < 2:
        raise DataError(f"'{path}': y_train holds a single class: expected at least two")
    if y_test.min() < 0 or y_test.max() >= len(found):
        raise DataError(
            f"'{path}': y_test holds labels from {y_test.min()} to {y_test.max()}: allowed are 0 to {len(found) - 1}, "
            "those of y_train"
        )
    return len(found)


def read_folder(path: Path, size: int = 0) -> Arrays:
    """Return the images under ``path/train/<class>/`` and ``path/test/<class>/`` (ImageFolder's layout, any depth).

    Classes are numbered in the order of their names. The first image decides whether the set is grey or colour. Each
    image is cut to its central square and averaged down to `size` pixels (0: the shorter side of the first image).
    Raises `DataError` for missing or empty folders, class sets that differ, files that cannot be read, images smaller
    than the size, and colour images in a grey set.
    """
    files = {split: image_files(path, split) for split in ("train", "test")}
    if set(files["train"]) != set(files["test"]):
        odd = sorted(set(files["train"]) ^ set(files["test"]))
        raise DataError(f"'{path}': train and test must hold the same classes; only one of them has {', '.join(odd)}")
    classes = tuple(files["train"])
    if len(classes) < 2:
        raise DataError(f"'{path}' holds a single class, {classes[0]}: expected at least two folders in train and test")
    with _open(files["train"][classes[0]][0]) as first:
        grey, size = _is_grey(first), size or min(first.size)
    x_train, y_train = _read_split(files["train"], size, grey)
    x_test, y_test = _read_split(files["test"], size, grey)
    return Arrays(x_train, y_train, x_test, y_test, classes)


def image_files(path: Path, split: str) -> dict[str, list[Path]]:
    """Return the image files of each class, both in the order of their names."""
    folder = path / split
    if not folder.is_dir():
        raise DataError(f"'{folder}' is not a folder: data.source 'folder' expects {folder}/<class>/<image files>")
    files = {
        entry.name: sorted(file for file in entry.rglob("*") if file.suffix.lower() in SUFFIXES)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not files:
        raise DataError(f"'{folder}' has no class folders: expected {folder}/<class>/<image files>")
    for name, members in files.items():
        if not members:
            allowed = ", ".join(sorted(SUFFIXES))
            raise DataError(f"'{folder / name}' holds no images: expected files ending in {allowed}")
    return files


def _read_split(files: dict[str, list[Path]], size: int, grey: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    y = np.repeat(np.arange(len(files), dtype=np.int64), [len(members) for members in files.values()])
    x = np.empty((len(y), size, size, 1 if grey else 3), dtype=np.uint8)
    for row, file in zip(x, (file for members in files.values() for file in members), strict=True):
        row[:] = pixels(file, size, grey)
    return x, y


def _open(file: Path) -> Image:
    from PIL import Image as pil

    try:
        image = pil.open(file)
        image.load()
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
        raise DataError(f"'{file}' cannot be read as an image ({error}): replace or remove it") from error
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise DataError(f"'{file}' has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits")
    return image


def _is_grey(image: Image) -> bool:
    return image.mode in ("1", "L", "LA", "La")


def pixels(file: Path, size: int, grey: bool) -> NDArray[np.uint8]:
    """Return the central square of an image, averaged down: uint8 (size, size, channels)."""
    from PIL.Image import Resampling

    with _open(file) as image:
        if grey and not _is_grey(image):
            raise DataError(f"'{file}' is in colour but the first image of the set is grey: convert one or the other")
        side = min(image.size)
        if side < size:
            raise DataError(
                f"'{file}' is {image.width} × {image.height} pixels, smaller than {size}: images are never enlarged; "
                f"set data.image-size to {side} or less"
            )
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert("L" if grey else "RGB").crop((left, top, left + side, top + side))
        # whole squares are averaged; where the sides do not divide, BILINEAR widens with the factor (antialiased)
        small = square.resize((size, size), Resampling.BILINEAR) if side % size else square.reduce(side // size)
        return np.asarray(small, dtype=np.uint8).reshape(size, size, -1)
