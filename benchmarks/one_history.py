"""Do the same settings give one history? Every method in every preset of a search space, several times, in bf16.

    python benchmarks/one_history.py --out history.jsonl               # resumes what is in the file
    python benchmarks/one_history.py --out history.jsonl --spaces small --methods fedavg ddc

Ten runs of two rounds; three of one round of 64 images where the largest network has more than three million
parameters. Images are digits of one pixel unless `--size` says otherwise. The runs of a combination are in two fresh
processes, whose memory malloc (glibc) fills with different values before it hands it out: whoever reads what nobody
wrote tells another story. The digest of a run covers its settings, events, candidates, choices, weights and accuracies:
everything but clocks, what is measured by them, and names (see `left.py`).

Exit status 1 if a combination has more than one digest or was not run in both processes, or if a process failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from common import read, stored
from left import digest
from safetensors.torch import save_file

from fednas_core.base.errors import FednasError
from fednas_core.base.settings import Scalar
from fednas_core.engine import evaluation as selection
from fednas_core.engine import run as experiment
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct
from fednas_core.export.bundle import Exported, ExportInput
from fednas_core.methods.catalogue import METHODS
from fednas_core.spaces.registry import load, names
from fednas_core.spaces.space import Signature

FILLS = (0, 128)
"""What malloc fills memory with (0: it does not): one process each. 128 means the byte 0x7f, 3·10³⁸ as a float."""
LARGE = 3_000_000
"""Parameters above which a preset has fewer and shorter runs."""
BASE: dict[str, Scalar] = {
    "train.precision": "bf16", "train.epochs": 1, "train.batch": 8, "data.clients": 6, "data.partition": "iid",
    "budgets": "half=50%,all=max", "sample.budgets": 6, "workers": 1, "evaluate-every": 1,
    "contest.iterations": 2, "contest.candidates": 2, "contest.finish": 1, "fednas.rounds-min": 1,
    "fednas.rounds-max": 1, "ddc.rounds": 1,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines: what is there is not run again")
    parser.add_argument("--spaces", nargs="+", default=names(), choices=names(), metavar="SPACE")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--size", type=int, default=1, help="height and width of the images in pixels")
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill is not None:
        work(options)
        return 0
    jobs = [(space, fill) for space in options.spaces for fill in FILLS]
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda job: process(options, *job), jobs))
    wrong = show(stored(options.out)) or any(codes)
    return int(wrong)


def process(options: argparse.Namespace, space: str, fill: int) -> int:
    """Run the combinations of one space in a process whose memory is filled; return its exit status."""
    arguments = ["--out", str(options.out), "--size", str(options.size), "--fill", str(fill), "--spaces", space]
    environment = {**os.environ, "GLIBC_TUNABLES": f"glibc.malloc.perturb={fill}:glibc.malloc.tcache_count=0"}
    command = [sys.executable, __file__, *arguments, "--methods", *options.methods]
    return subprocess.run(command, env=environment, check=False).returncode


def work(options: argparse.Namespace) -> None:
    """Run the combinations of one space that are not in the file, and add what came of them."""
    torch.set_num_threads(1)
    # nine tenths of such a run make pages and ONNX of what the digest covers anyway
    experiment.write_report = lambda folder: None  # type: ignore[assignment]
    selection.export = only_weights
    known = {(row["method"], row["space"], row["size"], row["fill"]) for row in stored(options.out)}
    for space, method in ((space, method) for space in options.spaces for method in options.methods):
        if (method, space, options.size, options.fill) in known:
            continue
        row = {"method": method, "space": space, "size": options.size, "fill": options.fill}
        row |= digests(method, space, options.size, options.fill)
        with options.out.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(row, file=sys.stderr, flush=True)


def digests(method: str, space: str, size: int, fill: int) -> dict[str, Any]:
    """Return the digests of a combination's runs in this process, or why there is no such run."""
    largest = load(space).for_data(Signature((1, size, size), 10))
    large = largest.cost(largest.largest).params > LARGE
    sizes = {"rounds": 1, "data.examples": 64, "install": False} if large else {"rounds": 2, "data.examples": 120}
    found = []
    for _ in range((1 + bool(fill)) if large else 5):
        with tempfile.TemporaryDirectory() as folder:
            given = {**BASE, **sizes, "method": method, "space.name": space, "data.image-size": size, "output": folder}
            config = read(given)
            try:
                with closing(LocalFleet(config)) as fleet:
                    found.append(digest(conduct(config, fleet, lambda text: None)))
            except FednasError as error:
                return {"refused": str(error)}
    return {"digests": found}


def only_weights(item: ExportInput, folder: Path) -> Exported:
    """Write the weights of a delivered model, and nothing else of it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(item.module.state_dict(), folder / f"{item.device}.safetensors")
    return Exported(folder, 0.0, 0, {})


def show(rows: Sequence[dict[str, Any]]) -> int:
    """Print a line for each combination; return 1 if any has more than one digest, or misses one of its processes."""
    together = defaultdict[tuple[str, str, int], list[dict[str, Any]]](list)
    for row in rows:
        together[row["space"], row["method"], row["size"]].append(row)
    several = 0
    for (space, method, size), found in sorted(together.items()):
        counts = {text: list(every(found)).count(text) for text in sorted(set(every(found)))}
        missing = len(found) < len(FILLS)
        several |= len(counts) > 1 or missing
        words = ", ".join(f"{text} × {count}" for text, count in counts.items())
        note = "HALF: " if missing else "SEVERAL: " if len(counts) > 1 else ""
        print(f"{space:18} {method:12} {size}×{size}  {note}{words}")
    return several


def every(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the digests of a combination, or its refusals."""
    for row in rows:
        yield from row.get("digests", [f"refused ({row.get('refused')})"])


if __name__ == "__main__":
    sys.exit(main())
