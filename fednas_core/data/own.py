"""A device's own images: read where they lie, fitted to what the server says of everybody's, and never sent."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fednas_core.base.errors import DataError
from fednas_core.base.paths import expanded
from fednas_core.data.files import (
    image_files,
    labelled,
    npz_images,
    npz_labels,
    open_npz,
    read_images,
    shown,
    split_folders,
)
from fednas_core.data.sources import Facts, Images, as_images

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


@lru_cache(maxsize=8)
def read_own(path: str, facts: Facts) -> tuple[Images, Images | None]:
    """Return the training images of a device and, if it has any, its test images.

    `path` is an ``.npz`` file with ``x_train`` and ``y_train`` (labels: positions in ``facts.classes``) and perhaps
    ``x_test`` and ``y_test``, or a folder as `read_folder` knows it: ``train/<class>/`` and perhaps ``test/<class>/``,
    or just ``<class>/``. A device need not hold every class, but no other than those of the run; images larger than the
    run's are averaged down.

    Raises `DataError` naming file or folder, what was found and what is allowed.
    """
    place = expanded(path)
    if place.suffix == ".npz":
        splits = _from_npz(place, facts)
    elif place.is_dir():
        splits = [_from_folder(folder, facts) for folder in split_folders(place) if folder]
    else:
        raise DataError(f"'{shown(place)}' is neither a folder nor an .npz file: the node's 'data' names one of them")
    found = [_fitted(place, split, facts) for split in splits]
    return found[0], found[1] if len(found) > 1 else None


def _from_npz(path: Path, facts: Facts) -> list[Labelled]:
    arrays = open_npz(path)
    if not {"x_train", "y_train"} <= set(arrays):
        raise DataError(f"'{path}' lacks x_train or y_train; it holds {', '.join(arrays) or 'nothing'}")
    splits = []
    for split in ("train", "test"):
        if {f"x_{split}", f"y_{split}"} <= set(arrays):
            x = npz_images(path, f"x_{split}", arrays[f"x_{split}"])
            y = npz_labels(path, f"y_{split}", arrays[f"y_{split}"], len(x))
            if y.min() < 0 or y.max() >= len(facts.classes):
                raise DataError(
                    f"'{path}': y_{split} holds labels from {y.min()} to {y.max()}: allowed are 0 to "
                    f"{len(facts.classes) - 1}, the run's classes {', '.join(facts.classes[:20])}"
                )
            splits.append((x, y))
    return splits


def _from_folder(folder: Path, facts: Facts) -> Labelled:
    files = image_files(folder)
    strange = sorted(set(files) - set(facts.classes))
    if strange:
        raise DataError(
            f"'{shown(folder)}' has folders for {', '.join(strange)}: allowed are the run's classes "
            f"{', '.join(facts.classes[:20])}"
        )
    members, y = labelled(files, facts.classes)
    return read_images(folder, members, facts.size, facts.channels == 1), y


def _fitted(place: Path, split: Labelled, facts: Facts) -> Images:
    x, y = split
    if x.shape[3] != facts.channels or x.shape[1] < facts.size:
        raise DataError(
            f"'{place}' holds images of {x.shape[1]} × {x.shape[2]} pixels in {x.shape[3]} channels: the run's have "
            f"{facts.size} × {facts.size} in {facts.channels}; larger ones are averaged down, smaller ones not enlarged"
        )
    return as_images(x, y, facts.size)
