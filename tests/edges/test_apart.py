"""The process that carries out one message below the one that Flower starts, and what is told of its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import client_app.apart as apart

ROOT = Path(__file__).parents[2]
GROUPS = Path("/sys/fs/cgroup")
ASKER = """
import sys
sys.path[:0] = {paths!r}
from edges.grid import InProcessGrid
from flwr.app import ConfigRecord, Context, Message, RecordDict
import client_app.front as front, client_app.apart as apart

def app(message, context):
    what = message.content["ask"]["what"]
    if what == "kill":
        import os
        os.kill(os.getpid(), 9)
    if what == "exit":
        import os
        os._exit(3)
    if what == "raise":
        raise OSError("the camera is gone")
    if what == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(b"1" * 10_000_000))
    if what == "child":
        import os, time
        if os.fork() == 0:
            os.close(1)
            os.close(2)
            time.sleep(60)
            os._exit(0)
        os._exit(3)
    if what == "hang":
        import threading, time
        threading.Thread(target=time.sleep, args=(3600,)).start()
    if what == "parent":
        import os
        return Message(RecordDict({{"told": ConfigRecord({{"parent": os.getppid()}})}}), reply_to=message)
    return message

apart._app = app
InProcessGrid(front.app, {{}})
for what in {asked!r}:
    message = Message(RecordDict({{"ask": ConfigRecord({{"what": what}})}}), 1, "train")
    reply = front.app(message, Context(1, 1, {{}}, RecordDict(), {{}}))
    print(reply.error.reason if reply.has_error() else "fine", flush=True)
assert "torch" not in sys.modules
"""


def told(*asked: str, before: str = "") -> list[str]:
    """What a process that starts as Flower's says of each question."""
    program = ASKER.format(paths=[str(ROOT), str(ROOT / "tests")], asked=asked)
    command = ["sh", "-c", f'{before}exec "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_end_of_the_process_below_is_told_and_its_parent_goes_on() -> None:
    assert told("", "kill", "exit", "raise", "hang", "parent") == [
        "fine",
        "the client's process was ended by SIGKILL",
        "the client's process ended without an answer, with code 3",
        "OSError: the camera is gone",
        "fine",
        "fine",
    ]


def test_a_process_of_its_own_keeps_nobody_waiting_for_one_that_has_ended() -> None:
    start = time.monotonic()
    assert told("child", "") == ["the client's process ended without an answer, with code 3", "fine"]
    assert time.monotonic() - start < 50


def test_the_exit_code_says_whether_memory_was_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "out_of_memory_kills", lambda: 2)
    assert apart.died(-9, 1).startswith("out of memory") and apart.died(None, 1).startswith("out of memory")
    assert apart.died(-11, 1) == "the client's process was ended by SIGSEGV"
    assert apart.died(-9, 2) == "the client's process was ended by SIGKILL"


def test_a_process_that_computes_is_not_copied() -> None:
    assert {"torch", "ray"} & sys.modules.keys() == {"torch"} or "ray" in sys.modules
    assert not apart.possible()


def test_lack_of_memory_is_told_as_such() -> None:
    """In a control group of 200 MB, which only root may make."""
    made = [
        (folder, most)
        for folder, most in ((GROUPS / "memory", "memory.limit_in_bytes"), (GROUPS, "memory.max"))
        if (folder / most).exists() or (folder / "cgroup.subtree_control").exists()
    ]
    for parent, most in made:
        group = parent / f"fednas-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / most).exists():
                continue
            (group / most).write_text("200000000")
            first, second = told("eat", "", before=f"echo $$ > {group}/cgroup.procs; ")
        finally:
            group.rmdir()
        assert first.startswith("out of memory: ") and "200 MB that its container may use" in first, first
        assert second == "fine"
        return
    pytest.skip("no control group can be made here")
