"""Memory of a device's process that measures itself, trains a network of 1 M MACs, and is handed one to keep.

    python benchmarks/device_memory.py [--limit MB]

The settings are those of the demo in containers. One process, with all imports of what Flower starts for a message,
answers three of a server: for its profile, to train, to take over a model.

- `peak_mb`: the most that the kernel charged to its control group (version 1 or 2, made here by hand, which needs
  root): its own memory, and pages of files that it was the first to read. Files of this Python are dropped from the
  page cache before, except what other processes have mapped at the time, which is charged to nobody here.
- `resident_mb`: the most that was resident at once, mapped files included, whoever first read them. Without a control
  group this is all there is to tell by.
- `own_mb`: the most of it that was its own and not a file's, sampled every 10 ms.

`--limit` caps the group: pages of files are then given back instead of charged, and a process that does not fit dies.
Prints one line of JSON.
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

    from fednas_core.cli.settings import flat
    from fednas_core.devices.budgets import Allowance, Budget
    from fednas_core.protocol import TrainOrder
    from fednas_core.search.within import within
    from fednas_core.settings import read
    from fednas_core.spaces.modules import initial_weights
    from fednas_core.subnets.packing import views
    from fednas_core.tasks.bench import space_of
    from fednas_core.wire import Packet, pack_order
    from server_app.records import Request, request

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    config = read(flat(tomllib.loads((ROOT / "docker/demo.toml").read_text(encoding="utf-8"))))
    space = space_of(config)
    arch = within(space, space.largest, Allowance(Budget("phone", macs=MACS), space))
    assert arch is not None
    tensors = views(initial_weights(space, 0), space.plan(arch))
    sent = [request(Request(Packet("{}", {}), config, 0), 1, "query.profile")]
    for task, returns in (("subnet", "weights"), ("install", "figures")):
        order = TrainOrder("phone", 0, task, arch, tensors, config.train.settings(), 0, returns=returns, run="one")
        sent.append(request(Request(pack_order(order, config.wire), config, 0), 1, "train"))
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
        assert not reply.has_error(), reply.error
        held = {key: int(of(os.getpid(), key) / 1e6) for key in ("RssAnon", "RssFile", "VmHWM")}
        print(json.dumps({"step": step, "own_mb": held["RssAnon"], "files_mb": held["RssFile"]}), flush=True)


def of(pid: int, key: str) -> int:
    """Return bytes of a process's memory by its name in /proc/<pid>/status, 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)


def forget_files() -> None:
    """Drop the files of this Python from the page cache, as far as nobody has mapped them."""
    for folder in sorted({path for path in sys.path if path and Path(path).is_dir()}):
        for path in Path(folder).rglob("*"):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def group(limit_mb: int) -> Iterator[tuple[Path, str] | None]:
    """Make a control group for memory; yield its folder and the name of its peak, None where that is not allowed."""
    kinds = (
        (GROUPS / "memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        (GROUPS, "memory.max", "memory.peak"),
    )
    for mount, most, peak in kinds:
        folder = mount / f"fednas-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / peak).exists():
                if limit_mb:
                    (folder / most).write_text(str(limit_mb * 1_000_000))
                yield folder, peak
                return
        finally:
            folder.rmdir()
    yield None


def measure(limit_mb: int) -> dict[str, Any]:
    """Run the device's process in a group and return what it took."""
    with tempfile.TemporaryDirectory() as scratch, group(limit_mb) as made:
        file = Path(scratch) / "messages"
        macs = messages(file)
        forget_files()
        join = f"echo $$ > {made[0]}/cgroup.procs; " if made else ""
        line = [*map(str, (sys.executable, __file__, "--device", file))]
        start, own, most = time.monotonic(), 0, 0
        with subprocess.Popen(
            ["sh", "-c", f'{join}exec "$@"', "sh", *line], stdout=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None:
                own, most = max(own, of(process.pid, "RssAnon")), max(most, of(process.pid, "VmHWM"))
                time.sleep(0.01)
            rows = [json.loads(text) for text in process.stdout or ()]
        return {
            "macs": macs,
            "seconds": time.monotonic() - start,
            "limit_mb": limit_mb or None,
            "peak_mb": int((made[0] / made[1]).read_text()) / 1e6 if made else None,
            "resident_mb": most / 1e6,
            "own_mb": own / 1e6,
            "ended": "well" if not process.returncode else signal.Signals(-process.returncode).name,
            "steps": rows,
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
