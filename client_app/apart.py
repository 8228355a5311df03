"""A process that carries out one message, below the one that Flower starts, so that its end can be told.

If the system ends the process that Flower started, for lack of memory above all, the server hears a minute later that
it "stopped responding". So that one hands over and waits, and the other computes. They share what was imported before.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Context, Error, Message

from fednas_core.devices.containers import memory_limit, out_of_memory_kills

FAILED = 2
"""Flower's code of an error in the ClientApp."""
PR_SET_PDEATHSIG = 1
POLL_S = 0.5
"""How often it is seen to that the process still lives; its answer is taken at once."""


def possible() -> bool:
    """Whether this process may be copied: on Linux, unless it computes itself, or simulates clients.

    A copy of one with torch's threads may hang. A simulated client is in a process of Ray's, which tells of its end.
    """
    return sys.platform == "linux" and not {"torch", "ray"} & sys.modules.keys()


def carry(message: Message, context: Context) -> Message:
    """Return the reply of `client_app.app` in a process of its own, or an error that says how that one ended."""
    context_of = get_context("fork")
    receiver, sender = context_of.Pipe(duplex=False)
    killed = out_of_memory_kills()
    process = context_of.Process(target=_work, args=(message, context, sender, os.getpid()))
    process.start()
    sender.close()
    while not receiver.poll(POLL_S) and process.is_alive():
        continue  # the pipe says nothing of its end if a process that it started itself holds it as well
    try:
        answer = receiver.recv() if receiver.poll() else None
    except (EOFError, OSError):  # it ended before its answer, or in the midst of it
        answer = None
    process.join()
    if answer is None:
        answer = died(process.exitcode, killed)
    return answer if isinstance(answer, Message) else error(answer, message)


def error(reason: str, message: Message) -> Message:
    """Return the reply that says why there is no other."""
    return Message(Error(FAILED, reason), reply_to=message)


def answered(message: Message, context: Context) -> Message | str:
    """Return the ClientApp's reply, or what it raised, told as Flower tells what ends a process of its own."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(_app, message, context)
        problem = future.exception()
    return f"{type(problem).__name__}: {problem}" if problem else future.result()


def _app(message: Message, context: Context) -> Message:
    from client_app.app import app

    return app(message, context)


def died(code: int | None, killed_before: int) -> str:
    """Return why a client's process has ended, from its exit code and `out_of_memory_kills` when it started."""
    if code in (None, -signal.SIGKILL) and out_of_memory_kills() > killed_before:
        limit = memory_limit()
        of = f" of the {limit / 1e6:,.0f} MB that its container may use" if limit else ""
        return (
            f"out of memory: the system ended the client's process for lack of memory{of}; give the device a smaller "
            "budget (--budget), smaller batches (train.batch), or more memory"
        )
    if code is not None and code < 0:
        return f"the client's process was ended by {signal.Signals(-code).name}"
    return "the client's process ended without an answer" + (f", with code {code}" if code is not None else "")


def first_to_go() -> None:
    """Let the system end this process, and none that waits for it, if memory runs out."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        return  # then it decides by size, which comes to the same


def _work(message: Message, context: Context, sender: Connection, parent: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # what Flower does then is its own process's to do
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    first_to_go()
    sender.send(answered(message, context))
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread that hangs would hold it
