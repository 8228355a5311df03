"""No byte of a personal layer in any message: whole runs through Flower's messages, every one of them searched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.records import recorded
from edges.grid import InProcessGrid, simulated
from flwr.app import Message
from flwr.common.serde import message_to_proto
from safetensors.torch import load_file

from client_app.app import app as client
from fednas_core.base.settings import read
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct
from fednas_core.runs.folder import RunFolder
from server_app.roster import Roster
from server_app.rounds import GridFleet

WINDOW = 16
PLACES = 40
"""Bytes that are looked for: four weights in a row."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def through_flower(pairs: dict[str, Any]) -> tuple[RunFolder, list[bytes]]:
    """A run behind a grid of two nodes, and every message that passed either way, as its bytes."""
    config, seen = read(pairs), list[bytes]()

    def note(message: Message, reply: Message) -> list[Message]:
        seen.extend(message_to_proto(each).SerializeToString() for each in (message, reply))
        return [reply]

    grid = InProcessGrid(client, simulated(2), note)
    fleet = GridFleet(grid, config, Roster(grid, config, lambda text: None, nodes_s=0.0), grace_s=0.1)
    return conduct(config, fleet, lambda text: None), seen


def windows(folder: Path) -> Iterator[bytes]:
    """Four weights in a row of everything that clients keep, at up to `PLACES` places of each tensor."""
    for path in folder.glob("**/*.safetensors"):
        for tensor in load_file(path).values():
            data = tensor.contiguous().numpy().tobytes()
            step = WINDOW * max(1, len(data) // WINDOW // PLACES)
            yield from (data[at : at + WINDOW] for at in range(0, len(data) - WINDOW + 1, step))


@pytest.mark.parametrize(
    "more",
    [
        {"method": "fedper"},
        {"method": "fedper", "personal.blocks": 1, "wire.up": "fp16"},
        {"method": "deepfednas", "personal.layers": "head", "client-budgets": "30%,max"},
    ],
    ids=["fedper", "fedper-blocks-fp16", "deepfednas"],
)
def test_no_message_holds_a_byte_of_a_personal_layer(
    tiny_pairs: dict[str, Any], state: Path, more: dict[str, Any]
) -> None:
    run, messages = through_flower({**tiny_pairs, **more})
    traffic = b"".join(messages)
    kept = list(windows(state))
    assert len(kept) > 100 and len(messages) > 20
    assert not [part for part in kept if part in traffic]
    if "wire.up" not in more:  # the search does find what travels
        shared = load_file(next((run.path / "checkpoint").glob("*.safetensors")))
        found = shared["stem.weight"].numpy().tobytes()[:WINDOW]
        assert any(found in message for message in messages)


@pytest.mark.parametrize("method", ["fedper", "deepfednas"])
def test_flower_and_this_process_give_the_same_personal_run(tiny_pairs: dict[str, Any], method: str) -> None:
    pairs = {**tiny_pairs, "method": method, "personal.layers": "head"}
    through, _ = through_flower(pairs)
    config = read(pairs)
    here = conduct(config, LocalFleet(config), lambda text: None)
    one, two = (json.dumps([_timeless(event) for event in recorded(run.events())]) for run in (through, here))
    assert one == two


def _timeless(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what a clock decided."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in event["clients"]]
    return {key: value for key, value in event.items() if key != "seconds"} | {"clients": rows}
