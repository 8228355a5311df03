"""The events of a run for TensorBoard, in the run's folder: ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fednas_core.base.errors import MissingExtraError
from fednas_core.runs.folder import RunFolder

SCALARS = {
    "loss": "training/loss",  # of the clients, on the images that they train on
    "accuracy": "training/accuracy",
    "bytes_up": "round/bytes_up",
    "bytes_down": "round/bytes_down",
    "client_macs": "round/client_macs",
    "seconds": "round/seconds",
}
"""What is told of each round, and under which name."""
CLIENTS = ("mean", "worst_decile")
"""Of networks that clients tested on their own images: over all of them, and over the tenth that fares worst."""


def write_scalars(run: RunFolder, event: Mapping[str, Any]) -> None:
    """Add one round's numbers to the run's folder ``tensorboard``; needs the extra 'tensorboard'.

    Raises `RunError` if they cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard", "setting 'tensorboard'") from error
    with run.writing(), SummaryWriter(str(run.path / "tensorboard")) as writer:
        for key, name in SCALARS.items():
            if event[key] is not None:
                writer.add_scalar(name, event[key], event["round"])
        writer.add_scalar("round/failures", len(event["failures"]), event["round"])
        for row in event["evaluation"] or []:
            writer.add_scalar(f"validation/{row['name']}", row["accuracy"], event["round"])
            for key in CLIENTS if row.get("clients") else ():
                writer.add_scalar(f"clients/{row['name']}/{key}", row["clients"][key], event["round"])
