"""Reads users' own images: an ``.npz`` file or a folder of image files. Every defect is a `DataError` naming its place.

Nothing is unpickled: an ``.npz`` file that holds objects is refused.
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fednas_core.base.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings of image files, as torchvision's ImageFolder knows them."""
TEST = ("test", "val", "valid", "validation")
"""Names of the folder beside ``train`` that holds the test images; the first of them that is there."""
LITTER = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that systems leave among a user's files; like those whose name begins with a dot, they hold no images."""
BROKEN = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, SyntaxError, TypeError, ValueError),
    *(struct.error, zlib.error),
)
"""What Pillow's decoders raise for damaged files."""
MOST_TOLD = 10
"""Of so many unusable images at most, the names are told."""


class Arrays(NamedTuple):
    """A data set as arrays: images uint8 (n, size, size, channels), labels int64 (n,) from 0 to len(classes) − 1.

    The test arrays are empty where the source names no test images. `groups` (n_train,) of integers or text names the
    owner of each training example, if the source knows it.
    """

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]
    groups: NDArray[Any] | None = None


def read_npz(path: Path, column: str = "") -> Arrays:
    """Return the arrays x_train and y_train, and x_test and y_test if there are any, of the file `path`.

    x: uint8 (n, height, width) or (n, height, width, channels), cut to their central squares; y: integers (n,) from 0
    without gaps. `column` names one more array (n_train,) of integers or text, under this name or with ``_train``
    behind it. Raises `DataError`.
    """
    archive = open_npz(path)
    wanted = ["x_train", "y_train"]
    tested = "x_test" in archive or "y_test" in archive
    key = column if column in archive else f"{column}_train"
    needed = [*wanted, *(["x_test", "y_test"] if tested else []), *([key] if column else [])]
    missing = [name for name in needed if name not in archive]
    if missing:
        raise DataError(
            f"'{path}' lacks {', '.join(missing)}; it holds {', '.join(archive) or 'nothing'}. Write it with "
            "numpy.savez(path, x_train=…, y_train=…, x_test=…, y_test=…), the last two being optional"
        )
    groups = archive[key] if column else None
    x_train = npz_images(path, "x_train", archive["x_train"])
    x_test = npz_images(path, "x_test", archive["x_test"]) if tested else x_train[:0]
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(f"'{path}': images are {x_train.shape[1:]} in x_train but {x_test.shape[1:]} in x_test")
    y_train = npz_labels(path, "y_train", archive["y_train"], len(x_train))
    y_test = npz_labels(path, "y_test", archive["y_test"], len(x_test)) if tested else y_train[:0]
    count = _classes(path, y_train, y_test)
    if groups is not None:
        groups = _npz_groups(path, key, groups, len(x_train))
    return Arrays(x_train, y_train, x_test, y_test, tuple(str(label) for label in range(count)), groups)


def open_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return all arrays of an ``.npz`` file; raise `DataError` if it is none."""
    if not path.is_file():
        raise DataError(f"data.path '{shown(path)}' is not a file: for data.source 'npz' it names the .npz file")
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
    """Return the central squares of an ``.npz`` file's images: uint8 (n, size, size, channels). Raises `DataError`."""
    where = f"'{path}': {name} is {x.dtype} {x.shape}"
    if x.dtype != np.uint8:
        nan = " and holds NaN" if x.dtype.kind == "f" and bool(np.isnan(x).any()) else ""
        raise DataError(f"{where}{nan}: expected uint8, 0 to 255 (0-to-1 images: (255 * x).round().astype('uint8'))")
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise DataError(f"{where}: expected at least one image, (n, height, width) or (n, height, width, channels)")
    x = x if x.ndim == 4 else x.reshape(*x.shape, 1)
    if x.shape[1] <= 4 < x.shape[3]:
        raise DataError(f"{where}: expected channels last, (n, height, width, channels): {name}.transpose(0, 2, 3, 1)")
    height, width = x.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[:, top : top + side, left : left + side]


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
    if len(y_test) and (y_test.min() < 0 or y_test.max() >= len(found)):
        raise DataError(
            f"'{path}': y_test holds labels from {y_test.min()} to {y_test.max()}: allowed are 0 to {len(found) - 1}, "
            "those of y_train"
        )
    return len(found)


def read_folder(path: Path, size: int = 0) -> Arrays:
    """Return the images below ``path/train/<class>/`` and ``path/test/<class>/``, or below ``path/<class>/``.

    Of the latter, and of the former without test images, the test arrays are empty. Classes are numbered in the order
    of their folders' names. The set is grey if every image is. Each image is turned upright as its EXIF data say, laid
    on white where it is transparent, cut to its central square and averaged down to `size` pixels (0: the shortest side
    of all). Of an animation or a file of many pages the first image counts.

    Raises `DataError` for missing or empty folders, a class of which only test images are there, and, all at once, for
    files that cannot be read and images smaller than the size.
    """
    train_folder, test_folder = split_folders(path)
    train = image_files(train_folder)
    test = image_files(test_folder) if test_folder else {}
    if strange := sorted(set(test) - set(train)):
        raise DataError(
            f"'{shown(path)}': {shown(test_folder)} has images of {', '.join(strange)}, but {shown(train_folder)} of "
            f"{', '.join(list(train)[:100])} only: a class needs images to train on"
        )
    if len(train) < 2:
        raise DataError(
            f"'{shown(path)}' holds a single class, {', '.join(train)}: expected at least two folders in "
            f"{shown(train_folder)}"
        )
    classes = tuple(train)
    (train_files, y_train), (test_files, y_test) = (labelled(files, classes) for files in (train, test))
    files = [*train_files, *test_files]
    heads = [head for head in map(_head, files) if head]
    grey, size = all(head.grey for head in heads), size or min((head.side for head in heads), default=1)
    x = read_images(path, files, size, grey)
    count = len(train_files)
    return Arrays(x[:count], y_train, x[count:], y_test, classes)


def shortest_side(path: Path) -> tuple[int, Path]:
    """Return the shortest side, in pixels, of all images that `read_folder` would read, and a file that has it.

    Only the files' heads are read. Raises `DataError` as `read_folder` does for its folders, and if no file is one.
    """
    folders = [folder for folder in split_folders(path) if folder]
    files = [file for folder in folders for members in image_files(folder).values() for file in members]
    found = [(head.side, file) for file in files if (head := _head(file))]
    if not found:
        read_images(path, files, 1, False)  # says what is wrong with them
        raise DataError(f"'{shown(path)}' holds no image that can be read")
    return min(found)


def split_folders(path: Path) -> tuple[Path, Path | None]:
    """Return the folder that holds the classes of the training images, and that of the test images if there is one.

    They are ``train`` and one of `TEST`, in any case of letters; without a ``train`` of class folders it is `path`
    itself. Raises `DataError` if that is no folder.
    """
    if not path.is_dir():
        raise DataError(
            f"data.path '{shown(path)}' is not a folder: expected {shown(path)}/<class>/<image files>, or "
            f"{shown(path)}/train/<class>/<image files> and the same with test"
        )
    named = {entry.name.lower(): entry for entry in _folders(path)}
    train = named.get("train")
    if train is None or any(_is_image(entry) for entry in train.iterdir()):  # images: a class of trains
        return path, None
    return train, next((named[name] for name in TEST if name in named), None)


def image_files(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of each class below a folder of class folders, both in the order of their names.

    A class is named as `readable` writes its folder's name. Hidden files and folders, and `LITTER`, hold no images.
    Raises `DataError` for a folder without classes, a class without images and two classes of one name.
    """
    files: dict[str, list[Path]] = {}
    for entry in _folders(folder):
        name = readable(entry.name)
        if name in files:
            raise DataError(f"'{shown(folder)}' holds two folders whose names read {name}: rename one of them")
        files[name] = _images(entry)
    if not files:
        raise DataError(f"'{shown(folder)}' has no class folders: expected {shown(folder)}/<class>/<image files>")
    for name, members in files.items():
        if not members:
            allowed = ", ".join(sorted(SUFFIXES))
            raise DataError(f"'{shown(folder)}/{name}' holds no images: expected files ending in {allowed}")
    return files


def labelled(files: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the files of all classes and their labels (n,)."""
    labels = [classes.index(name) for name, members in files.items() for _ in members]
    return [file for members in files.values() for file in members], np.array(labels, dtype=np.int64)


def read_images(path: Path, files: Sequence[Path], size: int, grey: bool) -> NDArray[np.uint8]:
    """Return images as `pixels` does, uint8 (n, size, size, channels).

    Raises one `DataError` for all that cannot be used; `path` is the folder that they are of.
    """
    x = np.empty((len(files), size, size, 1 if grey else 3), dtype=np.uint8)
    wrong = []
    for row, file in zip(x, files, strict=True):
        try:
            row[:] = pixels(file, size, grey)
        except DataError as error:
            wrong.append(str(error))
    if len(wrong) == 1:
        raise DataError(wrong[0])
    if wrong:
        more = [f"… and {len(wrong) - MOST_TOLD} more"] if len(wrong) > MOST_TOLD else []
        lines = [f"{len(wrong)} of {len(files)} images in '{shown(path)}' cannot be used:", *wrong[:MOST_TOLD], *more]
        raise DataError("\n  ".join(lines))
    return x


def pixels(file: Path, size: int, grey: bool) -> NDArray[np.uint8]:
    """Return the central square of an image, averaged down: uint8 (size, size, channels). Raises `DataError`."""
    from PIL import Image as pil
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with _silence(), pil.open(file) as opened:
            opened.load()
            image = _on_white(ImageOps.exif_transpose(opened))
        deep = image.mode in ("I", "F") or image.mode.startswith("I;")
        if not deep and not (grey and not _is_grey(image)):
            image = image.convert("L" if grey else "RGB")
    except (*BROKEN, pil.DecompressionBombError) as error:
        why = "not an image of a known kind" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"'{shown(file)}' cannot be read as an image ({why}): replace or remove it") from error
    if deep:
        raise DataError(f"'{shown(file)}' has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits")
    if grey and image.mode != "L":
        raise DataError(f"'{shown(file)}' is in colour, but the images of this run are grey: convert it")
    side = min(image.size)
    if side < size:
        raise DataError(
            f"'{shown(file)}' is {image.width} × {image.height} pixels, smaller than {size}: images are never "
            f"enlarged; set data.image-size to {side} or less"
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    # whole squares are averaged; where the sides do not divide, BILINEAR widens with the factor (antialiased)
    small = square.resize((size, size), pil.Resampling.BILINEAR) if side % size else square.reduce(side // size)
    return np.asarray(small, dtype=np.uint8).reshape(size, size, -1)


def readable(name: str) -> str:
    """Return a file's name as text that every terminal, page and model can hold.

    Bytes that are not UTF-8 and characters that cannot be printed, such as line breaks, are written as escapes.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(path: Path | None) -> str:
    """Return a path for a message, its names as `readable` writes them."""
    return readable(str(path))


class _Head(NamedTuple):
    """What the head of an image file tells: its shorter side in pixels, and whether it is without colour."""

    side: int
    grey: bool


def _head(file: Path) -> _Head | None:
    """Return the head of an image file, None if that cannot be read."""
    from PIL import Image as pil

    try:
        with _silence(), pil.open(file) as image:
            return _Head(min(image.size), _is_grey(image))
    except (*BROKEN, pil.DecompressionBombError):
        return None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep from the terminal what Pillow remarks on single files: it is none of the user's settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_grey(image: Image) -> bool:
    return image.mode in ("1", "L", "LA", "La")


def _on_white(image: Image) -> Image:
    """Return an image as it looks on a white page; one without transparent pixels as it is."""
    from PIL import Image as pil

    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image
    mode = "LA" if _is_grey(image) else "RGBA"
    page = pil.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page.convert(mode)


def _counts(name: str) -> bool:
    """Whether a file or folder of that name is the user's, and not one that a system hid there."""
    return not name.startswith(".") and name not in LITTER


def _is_image(file: Path) -> bool:
    return _counts(file.name) and file.suffix.lower() in SUFFIXES and not file.is_dir()


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _counts(entry.name)]


def _images(folder: Path) -> list[Path]:
    """Return the image files at any depth below a folder, in the order of their paths; links to folders are left."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _counts(name)]
        found += [file for file in (Path(place, name) for name in names) if _is_image(file)]
    return sorted(found)
