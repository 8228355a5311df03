"""What Flower starts for each message: hands it to the ClientApp, in a process below this one or in one that stays.

It does not import torch by itself, so that a process which only hands over starts in a second less.
"""

from __future__ import annotations

import json
import os

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client_app import apart
from client_app.stay import ask
from fednas_core.base.environment import prepare
from fednas_core.devices.containers import available_cores

# Flower asks two CPUs for a simulated client unless told otherwise, and each of ours computes with one thread. This
# module is imported before Ray starts: offering Ray two CPUs a core makes the plain `flwr run` use every core, and the
# processes of Ray that compute start in the environment that is set here.
prepare()
os.environ.setdefault("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": 2 * available_cores()}))

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Carry out one order."""
    return _carry(message, context)


@app.query("profile")
def describe(message: Message, context: Context) -> Message:
    """Say which clients this node serves and what its device can do."""
    return _carry(message, context)


def _carry(message: Message, context: Context) -> Message:
    """Return the reply of `client_app.app` in a process below this one, or, where that cannot be, in this one.

    With ``warm=60`` in --node-config it is a process that stays for 60 seconds.
    """
    warm = context.node_config.get("warm", 0)
    if isinstance(warm, bool) or not isinstance(warm, int) or warm < 0:
        told = f"--node-config warm: found {warm!r}, allowed a whole number of seconds from 0, e.g. 'warm=60'"
        return apart.error(told, message)
    if warm:
        return ask(message, context, float(warm))
    if apart.possible():
        return apart.carry(message, context)
    from client_app.app import app as worker

    return worker(message, context)
