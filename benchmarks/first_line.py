"""The first line that a newcomer types: ten image sets, each trained and exported with its path as the only setting.

The sets are made here, folders and arrays of 16 to 224 pixels, grey and colour, 2 to 100 classes, 30 to 5,000 images,
square and not, with and without test images. Every class is a pattern of its own under noise: there is something to
learn. For each set  fednas run --set data.path=<set>  runs in an empty folder; a line says what the settings came
to, the seconds, and the test accuracy of each exported model beside that of guessing. Exit status 1 if a run fails,
exports a device no model, or learns nothing where a hundred images test it.

    python benchmarks/first_line.py --out first_line.jsonl         # 20 to 40 minutes on two cores
    python benchmarks/first_line.py --quick                        # two rounds each: 5 minutes, no accuracy to speak of
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import options
from PIL import Image

COMMAND = [sys.executable, "-c", "from fednas_core.cli import main; main()"]
TESTED = 100
"""Test images from which accuracy is to be above guessing."""


@dataclass(frozen=True, slots=True)
class Set:
    """Images of `height` × `width` pixels in `channels`; `kind` is npz, or the ending of the files of a folder.

    `test` is the share of them in a split of their own, 0 for none; `largest` > 0 lets sizes vary up to that factor.
    """

    name: str
    kind: str
    height: int
    width: int
    channels: int
    classes: int
    images: int
    test: float = 0.0
    largest: float = 1.0


SETS = (
    Set("thirty grey arrays", "npz", 16, 16, 1, 2, 30),
    Set("colour folder", "png", 32, 32, 3, 10, 1000, test=0.2),
    Set("photos", "jpg", 224, 224, 3, 5, 5000),
    Set("grey arrays", "npz", 28, 28, 1, 10, 2000, test=0.2),
    Set("wide grey folder", "png", 48, 64, 1, 100, 1000, test=0.2),
    Set("wide colour arrays", "npz", 48, 72, 3, 7, 500),
    Set("photos of all sizes", "jpg", 60, 80, 3, 3, 120, largest=3.0),
    Set("many small classes", "bmp", 24, 24, 3, 20, 2000),
    Set("sixty grey photos", "jpg", 100, 75, 1, 2, 60, test=0.2),
    Set("a hundred classes of arrays", "npz", 20, 16, 3, 100, 5000, test=0.2),
)


def images(of: Set) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
    """Yield uint8 images (height, width, channels) and labels: the pattern of a class, 8×8 enlarged, under noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (of.classes, 8, 8, of.channels), dtype=np.uint8)
    for number in range(of.images):
        label = number % of.classes
        scale = rng.uniform(1.0, of.largest)
        height, width = round(of.height * scale), round(of.width * scale)
        pattern = Image.fromarray(patterns[label].squeeze()).resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(pattern, dtype=float).reshape(height, width, of.channels)
        noise = rng.normal(0.0, 40.0, pixels.shape)
        yield np.clip(0.6 * pixels + 50 + noise, 0, 255).astype(np.uint8), label


def make(of: Set, root: Path) -> Path:
    """Write a set below `root` and return its path."""
    split = int(of.images * (1 - of.test))
    if of.kind == "npz":
        made = list(images(of))
        x, y = np.stack([image for image, _ in made]), np.array([label for _, label in made])
        x = x[..., 0] if of.channels == 1 else x
        tested = {"x_test": x[split:], "y_test": y[split:]} if of.test else {}
        np.savez(root / "images.npz", x_train=x[:split], y_train=y[:split], **tested)
        return root / "images.npz"
    for number, (image, label) in enumerate(images(of)):
        part = ("train" if number < split else "test") if of.test else "."
        folder = root / "images" / part / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(folder / f"{number}.{of.kind}")
    return root / "images"


def first_line(of: Set, quick: bool) -> dict[str, Any]:
    """Make a set, run the line and return what came of it; `wrong` says what did not."""
    with tempfile.TemporaryDirectory(prefix="first-line-") as place:
        path = make(of, Path(place))
        settings = ["--set", f"data.path={path.name}", *(["--set", "rounds=2"] if quick else [])]
        start = time.monotonic()
        done = subprocess.run([*COMMAND, "run", "--json", *settings], cwd=place, capture_output=True, text=True)
        row: dict[str, Any] = {"set": of.name, "seconds": round(time.monotonic() - start), "guess": 1 / of.classes}
        if done.returncode:
            return row | {"wrong": done.stderr[-1000:] or f"exit status {done.returncode}"}
        lines = done.stderr.splitlines()
        first = next(index for index, line in enumerate(lines) if line.startswith("run "))
        result = json.loads(done.stdout)
        folder = Path(place, "runs", result["run"], "models")
        models = {model["device"]: model for model in result["models"]}
        row |= {
            "settled": [line[10:] for line in lines[:first]],
            "test": {name: model["test_accuracy"] for name, model in models.items()},
            "export_error": max(model["export_max_abs_error"] for model in models.values()),
        }
        missing = {"phone", "tablet", "workstation"} - {file.parent.name for file in folder.glob("*/model.onnx")}
        learnt = max(row["test"].values()) > 1.5 / of.classes
        if missing:
            row["wrong"] = f"no model for {', '.join(sorted(missing))}"
        elif not learnt and not quick and 0.2 * of.images >= TESTED:
            row["wrong"] = "its networks guess"
        return row


def main() -> None:
    """Run all sets, or those that are named."""
    chosen = options(
        __doc__,
        out={"type": Path, "help": "file that receives a JSON line for each set"},
        only={"help": "names of sets, with commas between them"},
    )
    names = chosen.only.split(",") if chosen.only else [of.name for of in SETS]
    wrong = 0
    for of in SETS:
        if of.name not in names:
            continue
        row = first_line(of, chosen.quick)
        wrong += "wrong" in row
        print(json.dumps(row, ensure_ascii=False), flush=True)
        if chosen.out:
            with chosen.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
