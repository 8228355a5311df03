"""What networks, devices and disks do, provoked with real processes: the rest goes on and the events say what happened.

Each history is compared with that of a run in process in which the same clients fail in the same rounds: an equal one
shows that whoever failed has moved nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.samples import TINY
from deployment.harness import Proxy, Site, rehearse, same_history, site

from fednas_core.runs.folder import RunFolder

pytestmark = pytest.mark.deployment
PAIRS: dict[str, Any] = {**TINY, "data.clients": 3, "evaluate-every": 100, "install": False}


def events_so_far(output: Path) -> int:
    """How many events the latest run below `output` has."""
    path = output / "latest" / "events.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def reasons(run: RunFolder, round: int) -> dict[str, str]:
    """Why clients failed in a round, by client."""
    told = {failure["client"]: failure["reason"] for failure in run.events()[round - 1]["failures"]}
    for client, reason in told.items():
        print(f"round {round}: {client}: {reason}")
    return told


def clients(run: RunFolder, round: int) -> list[str]:
    """Whose answers a round has merged."""
    return [row["client"] for row in run.events()[round - 1]["clients"]]


def times(run: RunFolder) -> None:
    """Print how long the rounds took."""
    print(f"\nrounds of {[round(event['seconds'], 1) for event in run.events()]} s")


def in_round(federation: Site, number: int, round: int) -> bool:
    """Whether a node that was started with mischief has begun an order of a round."""
    return (federation.folder / f"node-{number}" / f"round-{round}").exists()


RAISES = """
def before(message, round):
    if round == 1:
        raise OSError("the camera is gone")
"""
HANGS = """
def before(message, round):
    if round == 1:
        import time
        import client_app.app
        client_app.app.perform = lambda *order: time.sleep(3600)
"""
DIES = """
def before(message, round):
    if round == 1:
        import os
        import client_app.apart
        client_app.apart._app = lambda *order: os.kill(os.getpid(), 9)
"""
SLEEPS = """
def before(message, round):
    if round == 1:
        import time
        time.sleep(3600)
"""


def test_clients_that_raise_hang_and_die_come_back(tmp_path: Path) -> None:
    pairs = {**PAIRS, "data.clients": 5, "rounds": 2, "deadline": 50.0}
    with site(tmp_path / "site", nodes=5) as federation:
        for number, mischief in enumerate((RAISES, HANGS, SLEEPS, "", DIES)):
            federation.start_node(number, mischief=mischief)
        job = federation.submit({**pairs, "output": str(tmp_path / "out")})
        federation.wait_for("the client that is to be killed", lambda: in_round(federation, 2, 1))
        (victim,) = federation.node(2).children("flwr-clientapp")
        os.kill(victim, signal.SIGKILL)
        run = federation.completed(job, tmp_path / "out")
        left = federation.node(1).children("flwr-clientapp")
    times(run)
    told = reasons(run, 1)
    assert "the camera is gone" in told["client-00"]
    assert told["client-01"].startswith("no end 5 seconds after the deadline of 50 seconds")
    assert told["client-04"] == "the client's process was ended by SIGKILL"
    assert told["client-02"] and set(told) == {"client-00", "client-01", "client-02", "client-04"}
    assert clients(run, 1) == ["client-03"] and len(clients(run, 2)) == 5 and not reasons(run, 2)
    assert not left, "a client that hung is still there"
    same_history(run, rehearse(pairs, tmp_path / "here", failing={1: set(told)}))


@pytest.mark.parametrize("method", ["deepfednas", "fedper"])
def test_a_node_that_is_cut_off_returns(tmp_path: Path, method: str) -> None:
    """A cable that is out for seconds loses nothing; a node that dies misses rounds and returns under its key.

    With `fedper` the histories are equal only if it returns with the head that it had.
    """
    pairs = {**PAIRS, "rounds": 6, "deadline": 60.0, "method": method}
    slow = "def before(message, round):\n    import time\n    time.sleep(6)\n"
    with site(tmp_path / "site") as federation:
        proxy = Proxy(federation.port)
        federation.start_node(0)
        federation.start_node(1, mischief=slow, port=proxy.port)
        federation.start_node(2, mischief=slow)
        job = federation.submit({**pairs, "output": str(tmp_path / "out")})
        federation.wait_for("round 1", lambda: in_round(federation, 1, 1))
        proxy.cut()
        time.sleep(8)
        proxy.mend()
        federation.wait_for("round 2", lambda: in_round(federation, 2, 2))
        federation.node(2).kill()

        def over() -> bool:
            if federation.node(2).process.poll() is not None:  # what a restart policy does
                federation.start_node(2, mischief=slow)
            return events_so_far(tmp_path / "out") >= pairs["rounds"]

        federation.wait_for("the last round", over, pause=2.0)
        run = federation.completed(job, tmp_path / "out")
    times(run)
    assert not reasons(run, 1) and len(clients(run, 1)) == 3
    assert set(reasons(run, 2)) == {"client-02"} and clients(run, 2) == ["client-00", "client-01"]
    away = {event["round"] for event in run.events() if "client-02" not in clients(run, event["round"])} - {2}
    assert len(clients(run, pairs["rounds"])) == 3, f"did not return; away in {away}"
    assert not any(reasons(run, round) for round in away)
    print(f"absent in rounds {sorted(away)}")
    absent = {round: {"client-02"} for round in away}
    same_history(run, rehearse(pairs, tmp_path / "here", failing={2: {"client-02"}}, absent=absent))


def test_a_client_that_freezes_is_given_up_and_comes_back(tmp_path: Path) -> None:
    pairs = {**PAIRS, "rounds": 2, "deadline": 30.0}
    with site(tmp_path / "site") as federation:
        federation.start_node(0, mischief=SLEEPS)
        federation.start_node(1)
        federation.start_node(2)
        job = federation.submit({**pairs, "output": str(tmp_path / "out")})
        federation.wait_for("the client that is to freeze", lambda: in_round(federation, 0, 1))
        (victim,) = federation.node(0).children("flwr-clientapp")
        os.kill(victim, signal.SIGSTOP)
        run = federation.completed(job, tmp_path / "out")
    times(run)
    told = reasons(run, 1)
    assert set(told) == {"client-00"}
    either = ("no answer within the deadline", "ClientApp stopped responding")  # whoever notices first, server or node
    assert any(words in told["client-00"] for words in either)
    later = reasons(run, 2)
    same_history(run, rehearse(pairs, tmp_path / "here", failing={1: {"client-00"}, 2: set(later)}))


def test_a_killed_server_is_resumed_and_a_truncated_checkpoint_refused(tmp_path: Path) -> None:
    pairs, out = {**PAIRS, "rounds": 3}, tmp_path / "out"
    with site(tmp_path / "site") as federation:
        federation.start_nodes()
        killed = federation.submit({**pairs, "output": str(out)})
        federation.wait_for("the first checkpoint", (out / "latest" / "checkpoint" / "state.json").exists, pause=0.02)
        (server,) = federation.running["superlink"].children("flwr-serverapp")
        os.kill(server, signal.SIGKILL)
        name = (out / "latest").resolve().name
        shutil.copytree(out / name, tmp_path / "torn" / name)
        run = federation.completed(federation.submit({"resume": name, "output": str(out)}), out)
        assert run.path.name == name
        status, details = federation.ended(killed)
        print(f"\nthe killed run: {status}: {details}")
        assert status == "finished:failed"

        (tensors,) = (tmp_path / "torn" / name / "checkpoint").glob("*.safetensors")
        os.truncate(tensors, tensors.stat().st_size // 2)
        torn = federation.submit({"resume": name, "output": str(tmp_path / "torn")})
        status, details = federation.ended(torn)
    print(f"the truncated one: {status}: {details}")
    assert status == "finished:failed" and "checkpoint" in details and "is damaged" in details
    same_history(run, rehearse(pairs, tmp_path / "here"))


def test_a_killed_superlink_is_restarted_and_the_run_goes_on(tmp_path: Path) -> None:
    pairs, out = {**PAIRS, "rounds": 3}, tmp_path / "out"
    with site(tmp_path / "site", isolation="process") as federation:
        federation.start_nodes()
        job = federation.submit({**pairs, "output": str(out)})
        federation.wait_for("the event of round 1", lambda: events_so_far(out))
        federation.running["superlink"].kill()
        time.sleep(3)
        federation.start_link()
        run = federation.completed(job, out)
    times(run)
    assert not any(reasons(run, round) for round in (1, 2, 3))
    same_history(run, rehearse(pairs, tmp_path / "here"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB: room for one checkpoint and not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_at_a_checkpoint_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    pairs = {**PAIRS, "rounds": 3}
    with site(tmp_path / "site") as federation:
        federation.start_nodes()
        status, details = federation.ended(federation.submit({**pairs, "output": str(small_disk)}))
        print(f"\n{status}: {details}")
        assert status == "finished:failed" and "No space left on device" in details and "resume" in details
        name = (small_disk / "latest").resolve().name
        assert RunFolder(small_disk / name).load_checkpoint()[0] == 1
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        job = federation.submit({"resume": name, "output": str(small_disk)})
        run = federation.completed(job, small_disk)
        same_history(run, rehearse(pairs, tmp_path / "here"))


LIES = """
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict


def content(head, arrays):
    record = ArrayRecord({name: Array(name, (len(data),), "fednas.flat", data) for name, data in arrays.items()})
    return RecordDict({"fednas": ConfigRecord({"head": head}), "tensors": record})


def after(reply, round):
    head = reply.content["fednas"]["head"]
    arrays = {name: bytes(array.data) for name, array in reply.content["tensors"].items()}
    kept = folder / "kept"
    if round == 1:
        kept.write_bytes(head.encode() + b"\\n" + b"".join(arrays.values()))
    if round == 2:
        arrays = {name: bytes.fromhex("0000c07f") + data[4:] for name, data in arrays.items()}
    if round == 3:
        arrays = {name: data[:-4] for name, data in arrays.items()}
    if round == 4:
        head, _, data = kept.read_bytes().partition(b"\\n")
        head, arrays = head.decode(), dict.fromkeys(arrays, data)
    reply.content = content(head, arrays)
    return reply
"""


def test_a_malicious_node_is_named_and_moves_nothing(tmp_path: Path) -> None:
    """It tells the truth once, then sends a NaN, a tensor cut short and its first reply again."""
    pairs = {**PAIRS, "rounds": 4}
    with site(tmp_path / "site") as federation:
        federation.start_node(0)
        federation.start_node(1)
        federation.start_node(2, mischief=LIES)
        run = federation.completed(federation.submit({**pairs, "output": str(tmp_path / "out")}), tmp_path / "out")
    times(run)
    assert not reasons(run, 1)
    told = [reasons(run, round) for round in (2, 3, 4)]
    assert all(set(row) == {"client-02"} for row in told)
    nan, short, replayed = (row["client-02"] for row in told)
    assert "finite" in nan and "bytes" in short and "round" in replayed
    assert json.loads((run.path / "result.json").read_text())["failures"] == 3
    same_history(run, rehearse(pairs, tmp_path / "here", failing={round: {"client-02"} for round in (2, 3, 4)}))
