"""The events of a run for TensorBoard, in the run's folder: ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednas_core.errors import MissingExtraError

SCALARS = ("loss", "accuracy", "bytes_up", "bytes_down", "client_macs", "seconds")
CLIENTS = ("mean", "worst_decile")
"""Of networks that clients tested on their own images: over all of them, and over the tenth that fares worst."""


def write_scalars(run: Path, event: Mapping[str, Any]) -> None:
    """Add one round's numbers to ``run/tensorboard``; needs the extra 'tensorboard'."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard", "setting 'tensorboard'") from error
    writer = SummaryWriter(str(run / "tensorboard"))
    for name in SCALARS:
        writer.add_scalar(f"round/{name}", event[name], event["round"])
    writer.add_scalar("round/failures", len(event["failures"]), event["round"])
    for row in event["evaluation"] or []:
        writer.add_scalar(f"validation/{row['name']}", row["accuracy"], event["round"])
        for key in CLIENTS if row.get("clients") else ():
            writer.add_scalar(f"clients/{row['name']}/{key}", row["clients"][key], event["round"])
    writer.close()
