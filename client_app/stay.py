"""A process that stays on the device between messages, with torch imported and the data read.

Flower starts a process for each message; what that has to import and read again takes it seconds, many on a small
device. The process that stays does one thing at a time for one SuperNode. It ends when it has had nothing to do for a
while, when its SuperNode has ended, when whoever asked is gone, and when a task left a thread behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Context, Message
from flwr.supercore.task_identity import TaskIdentity

from client_app.apart import answered, died, error, first_to_go
from fednas_core.base.patience import Patience, cpu_seconds
from fednas_core.devices.containers import out_of_memory_kills

START_S = 60.0
"""How long the process may get on with nothing before it has come up."""
LINGER_S = 1.0
"""How long a thread may outlive the task that started it."""
POLL_S = 1.0
GREETING, GREETING_S = "here", 10.0
"""What it says at once to whoever asks; who does not hear it within this time starts another."""
APP = Path(__file__).parents[1]


# -- the one who asks ----------------------------------------------------------------------------------------------


def ask(message: Message, context: Context, idle_s: float) -> Message:
    """Return the reply of the process that stays, or an error if it died; start it if there is none.

    It ends by itself after `idle_s` seconds without a message.
    """
    place = _place(context)
    connection = _connected(place) or _started(place, idle_s)
    if connection is None:
        return error("the process that stays (warm) did not start", message)
    killed = out_of_memory_kills()
    with connection:
        try:
            connection.send((TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id, message, context))
            answer = connection.recv()
        except (EOFError, OSError):
            return error(died(None, killed), message)
    return answer if isinstance(answer, Message) else error(str(answer), message)


def _place(context: Context) -> Path:
    """Return the socket of the process that serves this SuperNode, in a folder that is this user's alone."""
    folder = Path(tempfile.gettempdir()) / f"fednas-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    told = folder.lstat()
    if told.st_uid != os.getuid() or told.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} is open to other users: remove it")
    mine = json.dumps([str(APP), os.getppid(), sorted(context.node_config.items())])
    return folder / hashlib.sha256(mine.encode()).hexdigest()[:24]


def _connected(place: Path) -> Connection | None:
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(str(place))
    except OSError:
        link.close()
        return None
    connection = Connection(link.detach())
    with suppress(EOFError, OSError):
        if connection.poll(GREETING_S) and connection.recv() == GREETING:
            return connection
    connection.close()  # it was about to end, or does not come back from what it does
    return None


def _started(place: Path, idle_s: float) -> Connection | None:
    paths = [str(APP), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "client_app.stay", str(place), str(idle_s), str(os.getppid())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        stdin=subprocess.DEVNULL,
    )
    patience = Patience(START_S, lambda: cpu_seconds(process.pid))
    while process.poll() is None and not patience.over():
        if connection := _connected(place):
            return connection
        time.sleep(0.02)
    return None


# -- the one who stays ---------------------------------------------------------------------------------------------


def serve(place: Path, idle_s: float, guardian: int) -> None:
    """Answer one message after the other at the socket `place`, as long as the process `guardian` lives."""
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()
        end = time.monotonic() + idle_s
        while time.monotonic() < end and _alive(guardian):
            if select.select([server], [], [], POLL_S)[0]:
                with Connection(server.accept()[0].detach()) as connection:
                    _serve_one(connection)
                if _left_behind():
                    break
                end = time.monotonic() + idle_s
        place.unlink(missing_ok=True)


def _serve_one(connection: Connection) -> None:
    done = threading.Event()
    try:
        connection.send(GREETING)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id, message, context = connection.recv()
        threading.Thread(target=_end_without_listener, args=(connection.fileno(), done), daemon=True).start()
        answer = answered(message, context)
        done.set()
        connection.send(answer)
        connection.recv()  # until the other side has read it and hung up
    except (EOFError, OSError):
        return


def _end_without_listener(link: int, done: threading.Event) -> None:
    """End this process, and whatever it computes, when the other side is gone before the work is done."""
    while not done.is_set():
        if select.select([link], [], [], POLL_S)[0] and not done.is_set():
            os._exit(1)


def _left_behind() -> bool:
    """Whether a task has left a thread that goes on: it hangs, and would go on taking time and memory."""
    end = time.monotonic() + LINGER_S
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(0.0, end - time.monotonic()))
    return any(t is not threading.main_thread() and not t.daemon for t in threading.enumerate())


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    first_to_go()
    serve(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # a thread that hangs would hold it
