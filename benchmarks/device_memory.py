"""Memory of a device that measures itself, trains a network of 1 M MACs, and is handed one to keep.

    python benchmarks/device_memory.py [--most MB] [--limit MB]

The settings are those of the demo in containers. A process that has imported what Flower starts for each message
answers three of a server, one after the other: for its profile, to train, to take over a model. Like on a device, it
hands each to a process below it. The messages are made by another process, which has ended by then.

All of them are in one control group (version 1 or 2, made here by hand, which needs root). The kernel charges a page of
a file to whoever reads it first, so they run from a copy of the packages that nobody else has read or mapped:

- `peak_mb`: the most that was charged to the group: memory of their own, and the files of the packages.
- `own_mb`: the most of it that was their own and no file's, sampled every 10 ms: what nobody takes back.
- `mapped_mb`: the most of it that was files mapped into them, and `resident_mb` what the largest of them said that it
  had mapped. If much of that is charged to nobody, the measurement is void.

`--limit` caps the group, as a container does: what does not fit is killed, and `ended` says so. The kernel takes file
pages back where memory is short: the smallest limit under which it ends well is what such a device needs.

Prints one line of JSON. Exit status 1 unless it ended well, the model was kept, all memory was charged, and the peak is
at most `--most` MB (10⁶ bytes).
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = Path(sysconfig.get_paths()["purelib"])
GROUPS = Path("/sys/fs/cgroup")
STEPS = ("profile", "train", "hand-over")
MACS = 1_000_000
MOST_MB = 400
LARGE = 1_000_000
"""Bytes above which a file of a package is copied only if a device maps it."""
CHARGED = 0.9
"""Share of the mapped files that has to be charged; the rest is the C library and Python, which all have mapped."""


def messages(file: Path) -> int:
    """Write a server's three messages to `file`; return the MACs of the network in them."""
    from flwr.supercore.task_identity import TaskIdentity

    from fednas_core.base.settings import read
    from fednas_core.cli.settings import flat
    from fednas_core.devices.budgets import Allowance, Budget
    from fednas_core.devices.info import ClientInfo
    from fednas_core.engine.collect import completed
    from fednas_core.exchange.orders import WEIGHTS, Order
    from fednas_core.exchange.wire import Packet, pack_order
    from fednas_core.methods.method import request as asking
    from fednas_core.search.within import within
    from fednas_core.spaces.networks import initial_weights
    from fednas_core.subnets.packing import views
    from fednas_core.tasks.bench import space_of
    from fednas_core.tasks.registry import FORMS
    from fednas_core.training.settings import train_settings
    from server_app.records import Request, request

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    config = read(flat(tomllib.loads((ROOT / "docker/demo.toml").read_text(encoding="utf-8"))))
    space = space_of(config)
    arch = within(space, space.largest, Allowance(Budget("phone", macs=MACS), space))
    assert arch is not None
    tensors = views(initial_weights(space, 0), space.plan(arch))
    sent = [request(Request(Packet("{}", {}), config, 0), 1, "query.profile")]
    training = Order("phone", 0, "subnet", arch, {WEIGHTS: tensors}, train_settings(config.train), 0, run="one")
    installing = completed(asking(0, "phone", "install", arch), config, ClientInfo("phone", 1), tensors, "one")
    for order in (training, installing):
        packet = pack_order(order, FORMS[order.task], config.wire)
        sent.append(request(Request(packet, config, 0), 1, "train"))
    file.write_bytes(pickle.dumps(sent))
    return space.cost(arch).macs


def device(file: Path) -> None:
    """Answer the messages as the process does that Flower starts; print a line of JSON after each."""
    import flwr.supernode.cli.flwr_clientapp  # noqa: F401  what that process imports
    from flwr.app import Context, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from client_app.front import app

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    folders = {"state": str(file.parent / "state"), "models": str(file.parent / "models")}
    node = {"partition-id": 0, "num-partitions": 4, "name": "phone", **folders}
    for step, message in zip(STEPS, pickle.loads(file.read_bytes()), strict=True):
        reply = app(message, Context(1, 1, node, RecordDict(), {}))
        print(json.dumps({"step": step, "error": reply.error.reason if reply.has_error() else ""}), flush=True)


def copied(mapped: set[Path], target: Path) -> None:
    """Copy the packages, of their large files those that are `mapped`, and drop the copy from the page cache."""

    def unneeded(folder: str, names: list[str]) -> list[str]:
        paths = [Path(folder, name) for name in names]
        return [path.name for path in paths if not path.is_dir() and path not in mapped and large(path)]

    shutil.copytree(PACKAGES, target, ignore=unneeded, dirs_exist_ok=True)
    os.sync()  # a page that is not on the disk cannot be dropped
    for path in target.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def large(path: Path) -> bool:
    """Whether a file is one that is only copied where it is mapped; links to nothing are not copied at all."""
    return not path.exists() or path.stat().st_size > LARGE


@dataclass(frozen=True, slots=True)
class Group:
    """A control group for memory: its folder, and what its files and the row of its own memory are called."""

    folder: Path
    limit: str
    peak: str
    own: str
    mapped: str

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def charged(self) -> tuple[int, int]:
        """Return the bytes charged now that are the processes' own, and those of files that they have mapped."""
        rows = dict(line.split() for line in self.read("memory.stat").splitlines())
        return int(rows[self.own]), int(rows[self.mapped])

    def mapped_by(self) -> tuple[int, set[Path]]:
        """Return the most bytes of files that one of the processes has mapped, and the packages' files among them."""
        most, paths = 0, set[Path]()
        for number in self.read("cgroup.procs").split():
            try:
                status = Path("/proc", number, "status").read_text().splitlines()
                maps = Path("/proc", number, "maps").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            most = max([most, *(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))])
            paths |= {Path(line.split(maxsplit=5)[5]) for line in maps if f" {PACKAGES}" in line}
        return most, paths


@contextmanager
def group(limit_mb: int) -> Iterator[Group]:
    """Make a control group and yield it; raise `SystemExit` where that is not permitted."""
    name = f"fednas-{os.getpid()}"
    kinds = (
        Group(GROUPS / "memory" / name, "memory.limit_in_bytes", "memory.max_usage_in_bytes", "rss", "mapped_file"),
        Group(GROUPS / name, "memory.max", "memory.peak", "anon", "file_mapped"),
    )
    for made in kinds:
        try:
            made.folder.mkdir()
        except OSError:
            continue
        try:
            if (made.folder / made.peak).exists():
                if limit_mb:
                    (made.folder / made.limit).write_text(str(limit_mb * 1_000_000))
                yield made
                return
        finally:
            made.folder.rmdir()
    raise SystemExit("no control group for memory can be made here: be root, on Linux, outside a container")


@dataclass(frozen=True, slots=True)
class Taken:
    """What a device took in bytes, how it ended, and the files of packages that it had mapped."""

    peak: int
    own: int
    mapped: int
    resident: int
    ended: str
    kept: bool
    seconds: float
    files: frozenset[Path]


def take(sent: Path, packages: Path, limit_mb: int) -> Taken:
    """Run the device's processes in a group, from a folder of packages, and return what they took."""
    with tempfile.TemporaryDirectory() as scratch, group(limit_mb) as made:
        file = Path(shutil.copy(sent, scratch))
        program = f'echo $$ > {made.folder}/cgroup.procs; exec "$@"'
        command = ["sh", "-c", program, "sh", sys.executable, __file__, "--device", str(file)]
        environment = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        start, own, mapped, resident, files = time.monotonic(), 0, 0, 0, set[Path]()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            while process.poll() is None:
                found, paths = made.mapped_by()
                charged = made.charged()
                own, mapped = max(own, charged[0]), max(mapped, charged[1])
                resident, files = max(resident, found), files | paths
                time.sleep(0.01)
            rows = [json.loads(text) for text in process.stdout or ()]
        problems = [row["error"] for row in rows if row["error"]]
        if process.returncode:
            code = process.returncode
            problems.append(signal.Signals(-code).name if code < 0 else f"exit status {code}")
        return Taken(
            peak=int(made.read(made.peak)),
            own=own,
            mapped=mapped,
            resident=resident,
            ended="; ".join(problems) or "well",
            kept=(Path(scratch) / "models" / "phone" / "model.onnx").is_file(),
            seconds=time.monotonic() - start,
            files=frozenset(files),
        )


def measure(most_mb: int, limit_mb: int) -> dict[str, Any]:
    """Run a device once to see which files it maps, then from a copy of the packages, and return what it took."""
    with tempfile.TemporaryDirectory(prefix="fednas-device-") as scratch:
        sent, packages = Path(scratch) / "messages", Path(scratch) / "packages"
        command = [sys.executable, __file__, "--messages", str(sent)]
        made = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
        copied({*take(sent, PACKAGES, 0).files}, packages)
        taken = take(sent, packages, limit_mb)
        row = {
            "macs": int(made.stdout.split()[-1]),
            "seconds": round(taken.seconds, 1),
            "limit_mb": limit_mb or None,
            "peak_mb": taken.peak / 1e6,
            "own_mb": taken.own / 1e6,
            "mapped_mb": taken.mapped / 1e6,
            "resident_mb": taken.resident / 1e6,
            "ended": taken.ended,
            "model_kept": taken.kept,
        }
        return row | {"wrong": wrong(taken, most_mb)}


def wrong(taken: Taken, most_mb: int) -> list[str]:
    """Return what is wrong with a measurement, or with what was measured."""
    found = [] if taken.ended == "well" else [f"it ended with: {taken.ended}"]
    found += [] if taken.kept else ["the model was not kept"]
    if taken.mapped < CHARGED * taken.resident:
        found.append("void: files that it has mapped are charged to others")
    if taken.peak > most_mb * 1e6:
        found.append(f"its peak is above {most_mb} MB")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=MOST_MB, metavar="MB", help="the peak that is allowed")
    parser.add_argument("--limit", type=int, default=0, metavar="MB", help="cap the group (0: do not)")
    for name in ("--device", "--messages"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.device:
        device(told.device)
        return 0
    if told.messages:
        print(messages(told.messages))
        return 0
    from importlib.metadata import version

    row = {"benchmark": "device_memory", "torch": version("torch"), **measure(told.most, told.limit)}
    print(json.dumps(row, ensure_ascii=False))
    return int(bool(row["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
