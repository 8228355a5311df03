"""The process that stays between messages, with a ClientApp of four lines in the place of the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from edges.grid import InProcessGrid
from flwr.app import ConfigRecord, Context, Message, RecordDict

import client_app.apart as apart
import client_app.front as front
import client_app.stay as stay
from fednas_core.base.patience import Patience, cpu_seconds
from fednas_core.cli.superlink import descendants

APP = """
import os, threading, time
from flwr.app import ConfigRecord, Message, RecordDict

def app(message, context):
    what = message.content["ask"]["what"]
    if what == "die":
        os.kill(os.getpid(), 9)
    if what == "raise":
        raise OSError("the camera is gone")
    if what == "hang":
        threading.Thread(target=time.sleep, args=(3600,)).start()
    if what == "work":
        open(message.content["ask"]["note"], "w").write(str(os.getpid()))
        time.sleep(3600)
    return Message(RecordDict({"told": ConfigRecord({"pid": os.getpid()})}), reply_to=message)
"""
Ask = Callable[..., Message]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask the process that stays, through the app that Flower starts."""
    InProcessGrid(front.app, {})  # so that messages can be made
    package = tmp_path / "app" / "client_app"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "app.py").write_text(APP)
    for module in (stay, apart):
        shutil.copy(str(module.__file__), package)
    monkeypatch.setattr(stay, "APP", tmp_path / "app")

    def call(what: str = "", warm: object = 3, note: str = "") -> Message:
        content = RecordDict({"ask": ConfigRecord({"what": what, "note": note})})
        message = Message(content, dst_node_id=1, message_type="train")
        return front.app(message, Context(1, 1, {"warm": warm}, RecordDict(), {}))  # type: ignore[dict-item]

    return call


def pid(reply: Message) -> int:
    assert not reply.has_error(), reply.error
    return int(str(reply.content.config_records["told"]["pid"]))


def ended(process: int, seconds: float = 60.0) -> bool:
    """Whether a process ends within some seconds; it is a child of this one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.05)
    return False


def test_one_process_answers_message_after_message_and_ends_when_idle(ask: Ask) -> None:
    first = pid(ask())
    assert first != os.getpid() and pid(ask()) == first
    assert ended(first)
    assert pid(ask()) != first


def test_nodes_with_other_settings_have_processes_of_their_own(ask: Ask) -> None:
    assert pid(ask(warm=2)) != pid(ask(warm=3))


def test_what_a_task_raises_is_told_and_the_process_stays(ask: Ask) -> None:
    first = pid(ask())
    assert ask("raise").error.reason == "OSError: the camera is gone"
    assert pid(ask()) == first


def test_a_process_that_dies_is_told_at_once_and_replaced(ask: Ask) -> None:
    first = pid(ask())
    start = time.monotonic()
    assert "ended without an answer" in ask("die").error.reason and time.monotonic() - start < 30
    assert pid(ask()) != first


def test_a_process_with_a_thread_that_hangs_answers_and_ends(ask: Ask) -> None:
    assert ended(pid(ask("hang", warm=3600)))


def test_a_process_ends_when_nobody_waits_for_its_answer(ask: Ask, tmp_path: Path) -> None:
    note = tmp_path / "note"
    program = f"""
import sys
sys.path[:0] = {[str(Path(stay.__file__).parents[1]), str(Path(__file__).parents[1])]!r}
from pathlib import Path
from edges.grid import InProcessGrid
from flwr.app import ConfigRecord, Context, Message, RecordDict
import client_app.front as front, client_app.stay as stay
stay.APP = Path({str(stay.APP)!r})
InProcessGrid(front.app, {{}})
message = Message(RecordDict({{"ask": ConfigRecord({{"what": "work", "note": {str(note)!r}}})}}), 1, "train")
front.app(message, Context(1, 1, {{"warm": 3600}}, RecordDict(), {{}}))
"""
    asker = subprocess.Popen([sys.executable, "-c", program])
    patience = Patience(60.0, lambda: sum(map(cpu_seconds, (asker.pid, *descendants(asker.pid)))))
    while not (note.exists() and note.read_text()):
        assert asker.poll() is None and not patience.over()
        time.sleep(0.05)
    asker.kill()
    asker.wait()
    end = time.monotonic() + 60
    worker = Path(f"/proc/{note.read_text()}/stat")
    while worker.exists() and worker.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "it works on for nobody"
        time.sleep(0.05)


def test_a_process_ends_with_its_supernode(tmp_path: Path) -> None:
    supernode = subprocess.Popen(["sleep", "3600"])
    server = threading.Thread(target=stay.serve, args=(tmp_path / "link", 3600.0, supernode.pid))
    server.start()
    supernode.kill()
    supernode.wait()
    server.join(10)
    assert not server.is_alive() and not (tmp_path / "link").exists()


@pytest.mark.parametrize("warm", [-1, "60", True, 1.5])
def test_a_wrong_setting_is_refused_by_its_name(ask: Ask, warm: object) -> None:
    assert "--node-config warm: found" in ask(warm=warm).error.reason


def test_without_it_the_message_is_answered_here(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    import client_app.app as real

    monkeypatch.setattr(real, "app", lambda message, context: message)
    assert ask("", warm=0).content["ask"]["what"] == ""


def test_the_front_imports_no_torch() -> None:
    code = "import sys, client_app.front; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(front.__file__).parents[1], check=False).returncode == 0
    )
