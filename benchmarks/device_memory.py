"""Memory of a device that measures itself, trains a network of 1 M MACs, and is handed one to keep.

    python benchmarks/device_memory.py [--limit MB]

The settings are those of the demo in containers. A process that has imported what Flower starts for each message
answers three of a server, one after the other: for its profile, to train, to take over a model. Like on a device, it
hands each to a process below it.

All of them are in one control group (version 1 or 2, made here by hand, which needs root):

- `peak_mb`: the most that the kernel charged to it: memory of their own, and pages of files that they were the first to
  read. Files of this Python are dropped from the page cache before, except what other processes have mapped at the
  time, which is charged to nobody here. The kernel takes file pages back where memory is short.
- `own_mb`: the most of it that was their own and no file's, sampled every 10 ms: what nobody takes back.

`--limit` caps the group, as a container does: what does not fit is killed, and `ended` says so. The smallest limit
under which it ends well is what such a device needs. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import options, show

ROOT = Path(__file__).parents[1]
GROUPS = Path("/sys/fs/cgroup")
STEPS = ("profile", "train", "hand-over")
MACS = 1_000_000


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


def forget_files() -> None:
    """Drop the files of this Python from the page cache, as far as nobody has mapped them."""
    for folder in sorted({path for path in sys.path if path and Path(path).is_dir()}):
        for path in Path(folder).rglob("*"):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class Group:
    """A control group for memory: its folder, and what its files and the row of its own memory are called."""

    folder: Path
    limit: str
    peak: str
    own: str

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def own_bytes(self) -> int:
        rows = dict(line.split() for line in self.read("memory.stat").splitlines())
        return int(rows[self.own])


@contextmanager
def group(limit_mb: int) -> Iterator[Group]:
    """Make a control group and yield it; raise `SystemExit` where that is not permitted."""
    name = f"fednas-{os.getpid()}"
    kinds = (
        Group(GROUPS / "memory" / name, "memory.limit_in_bytes", "memory.max_usage_in_bytes", "rss"),
        Group(GROUPS / name, "memory.max", "memory.peak", "anon"),
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


def measure(limit_mb: int) -> dict[str, Any]:
    """Run the device's processes in a group and return what they took."""
    with tempfile.TemporaryDirectory() as scratch, group(limit_mb) as made:
        file = Path(scratch) / "messages"
        macs = messages(file)
        forget_files()
        program = f'echo $$ > {made.folder}/cgroup.procs; exec "$@"'
        command = ["sh", "-c", program, "sh", sys.executable, __file__, "--device", str(file)]
        start, own = time.monotonic(), 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                own = max(own, made.own_bytes())
                time.sleep(0.01)
            rows = [json.loads(text) for text in process.stdout or ()]
        problems = [row["error"] for row in rows if row["error"]]
        died = signal.Signals(-process.returncode).name if process.returncode < 0 else ""
        return {
            "macs": macs,
            "seconds": time.monotonic() - start,
            "limit_mb": limit_mb or None,
            "peak_mb": int(made.read(made.peak)) / 1e6,
            "own_mb": own / 1e6,
            "ended": "; ".join([*problems, died] if died else problems) or "well",
            "model_kept": (Path(scratch) / "models" / "phone" / "model.onnx").is_file(),
        }


def main() -> None:
    import torch

    told = options(__doc__, limit={"type": int, "default": 0}, device={"type": Path})
    if told.device:
        return device(told.device)
    show({"benchmark": "device_memory", "torch": torch.__version__, **measure(told.limit)})
    return None


if __name__ == "__main__":
    main()
