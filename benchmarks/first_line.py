"""The first line that a newcomer types: ten image sets, each trained and exported with its path as the only setting.

The sets are made here, folders and arrays of 16 to 224 pixels, grey and colour, 2 to 100 classes, 30 to 5,000 images,
square and not, with and without test images. Every class is a pattern of its own under noise: there is something to
learn. For each set  fednas run --set data.path=<set>  runs in an empty folder; a line says what the settings came
to, the seconds, and for each device the test accuracy of its model.

    python benchmarks/first_line.py --out first_line.jsonl         # 20 to 40 minutes on two cores
    python benchmarks/first_line.py --quick                        # two rounds each: no result, and marked so

A model has `learnt` if who guesses gets so many of the test images right once in a thousand times at most (`null`:
there are too few for anybody to show it, and it is not judged). Each exported file is run in plain onnxruntime, as its
card says, on the set's test images, or where it has none, on new ones: `tried` is its accuracy there.

Exit status 1 if a run fails, exports a device no model, a model has not learnt or tells another accuracy than it has,
or the exported graph puts out something else than the network.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import options
from PIL import Image

COMMAND = [sys.executable, "-c", "from fednas_core.cli import main; main()"]
CHANCE = 1e-3
"""How often one who guesses may pass for one who has learnt."""
FRESH = 500
"""New images that an exported model is tried on where the set has no test images of its own, at most."""
FLIPS = 0.01
"""Share of the same images that may be classified otherwise: they are made small by other means."""
EXPORT_ERROR = 1e-3
"""Largest difference of a logit between onnxruntime and the network."""
DEVICES = ("phone", "tablet", "workstation")


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


def images(of: Set, seed: int = 0) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
    """Yield uint8 images (height, width, channels) and labels: the pattern of a class, 8×8 enlarged, under noise.

    Another seed gives other images of the same classes.
    """
    patterns = np.random.default_rng(0).integers(0, 256, (of.classes, 8, 8, of.channels), dtype=np.uint8)
    rng = np.random.default_rng(1 + seed)
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


def tests(of: Set, path: Path) -> Iterator[tuple[Image.Image, str]]:
    """Yield the images of a set's own test split with the names of their classes, or if it has none, new images."""
    if not of.test:
        for number, (image, label) in enumerate(images(of, seed=1)):
            if number == FRESH:
                return
            yield Image.fromarray(image.squeeze()), named(of, label)
    elif of.kind == "npz":
        with np.load(path) as arrays:
            for image, label in zip(arrays["x_test"], arrays["y_test"], strict=True):
                yield Image.fromarray(image), named(of, int(label))
    else:
        for file in sorted(path.glob("test/*/*")):
            yield Image.open(file), file.parent.name


def named(of: Set, label: int) -> str:
    """Return the name of a class, as fednas knows it: that of its folder, or its number in an array."""
    return str(label) if of.kind == "npz" else f"class {label}"


def tried(of: Set, path: Path, model: Path) -> tuple[float, int]:
    """Return the accuracy of an exported model in plain onnxruntime, fed as its card says, and on how many images."""
    meta = json.loads((model / "arch.json").read_text(encoding="utf-8"))
    _, channels, size, _ = meta["input"]["shape"]
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    right = count = 0
    for image, label in tests(of, path):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).convert("L" if channels == 1 else "RGB")
        small = square.resize((size, size), Image.Resampling.BOX) if side != size else square
        pixels = np.asarray(small, dtype=np.float32).reshape(1, size, size, channels).transpose(0, 3, 1, 2) / 255
        logits = session.run([meta["output"]["name"]], {meta["input"]["name"]: np.ascontiguousarray(pixels)})[0]
        right += meta["classes"][int(logits[0].argmax())] == label
        count += 1
    return right / count, count


def by_chance(right: int, count: int, classes: int) -> float:
    """Return how probable it is that guessing is right at least so often."""
    share = 1 / classes
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(right, count + 1))


def learnt(accuracy: float, count: int, classes: int) -> bool | None:
    """Whether a model does better than guessing on `count` test images; None if they could not show it."""
    if by_chance(count, count, classes) > CHANCE:
        return None
    return by_chance(round(accuracy * count), count, classes) <= CHANCE


def alike(told: float, found: float, tested: int, count: int, own: bool) -> bool:
    """Whether an accuracy that is told may be that found on `count` images: the very same ones (`own`), or others."""
    if own:
        return abs(told - found) <= max(FLIPS, 1 / count)
    return abs(told - found) <= 4 * math.sqrt(0.25 / tested + 0.25 / count)


def first_line(of: Set, quick: bool) -> dict[str, Any]:
    """Make a set, run the line and return what came of it; `wrong` says what did not."""
    with tempfile.TemporaryDirectory(prefix="first-line-") as place:
        path = make(of, Path(place))
        settings = ["--set", f"data.path={path.name}", *(["--set", "rounds=2"] if quick else [])]
        start = time.monotonic()
        done = subprocess.run([*COMMAND, "run", "--json", *settings], cwd=place, capture_output=True, text=True)
        row: dict[str, Any] = {"set": of.name, "seconds": round(time.monotonic() - start), "guess": 1 / of.classes}
        if quick:
            row["quick"] = "no result: two rounds"
        if done.returncode:
            return row | {"wrong": done.stderr[-1000:] or f"exit status {done.returncode}"}
        lines = done.stderr.splitlines()
        first = next(index for index, line in enumerate(lines) if line.startswith("run "))
        told = re.search(r"([\d,]+) to test", done.stderr)
        if told is None:
            return row | {"wrong": "it does not say how many images test it"}
        tested = int(told[1].replace(",", ""))
        result = json.loads(done.stdout)
        folder, wrong = Path(place, "runs", result["run"], "models"), []
        row |= {"settled": [line[10:] for line in lines[:first]], "tested": tested, "models": {}}
        models = {model["device"]: model for model in result["models"]}
        for device in DEVICES:
            if device not in models or not (folder / device / "model.onnx").is_file():
                wrong.append(f"no model for {device}")
                continue
            accuracy = models[device]["test_accuracy"]
            found, count = tried(of, path, folder / device)
            error = models[device]["export_max_abs_error"]
            judged = learnt(accuracy, tested, of.classes)
            row["models"][device] = {
                "test": accuracy, "tried": found, "on": count, "learnt": judged, "export_error": error
            }  # fmt: skip
            if judged is False and not quick:
                wrong.append(f"{device} guesses")
            if not alike(accuracy, found, tested, count, bool(of.test)):
                wrong.append(f"{device} tells {accuracy:.3f} and has {found:.3f}")
            if not error <= EXPORT_ERROR:
                wrong.append(f"{device}'s graph is off by {error:g}")
        return row | ({"wrong": "; ".join(wrong)} if wrong else {})


def main() -> None:
    """Run all sets, or those that are named."""
    chosen = options(
        __doc__,
        out={"type": Path, "help": "file that receives a JSON line for each set"},
        only={"help": "names of sets, with commas between them"},
    )
    names = chosen.only.split(",") if chosen.only else [of.name for of in SETS]
    if unknown := set(names) - {of.name for of in SETS}:
        sys.exit(f"--only: no set {sorted(unknown)}; there are {', '.join(of.name for of in SETS)}")
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
