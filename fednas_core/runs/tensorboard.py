"""The events of a run for TensorBoard, in the run's folder: ``tensorboard --logdir runs``."""

from __future__ import annotations

from fednas_core.base.errors import MissingExtraError
from fednas_core.runs.folder import RunFolder
from fednas_core.runs.record import RoundEvent


def write_scalars(run: RunFolder, event: RoundEvent) -> None:
    """Add one round's numbers to the run's folder ``tensorboard``; needs the extra 'tensorboard'.

    Raises `RunError` if they cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard", "setting 'tensorboard'") from error
    with run.writing(), SummaryWriter(str(run.path / "tensorboard")) as writer:
        for name, value in scalars(event).items():
            if value is not None:
                writer.add_scalar(name, value, event.round)


def scalars(event: RoundEvent) -> dict[str, float | None]:
    """Return what is told of a round, by the names under which it is.

    ``training`` is found on the images that clients train on, ``clients`` on others of theirs: over all of them, and
    over the tenth that fares worst.
    """
    told: dict[str, float | None] = {"training/loss": event.loss}
    told |= {f"training/{name}": value for name, value in event.metrics.items()}
    told |= {"round/bytes_up": event.bytes_up, "round/bytes_down": event.bytes_down}
    told |= {"round/client_macs": event.client_macs, "round/seconds": event.seconds}
    told["round/failures"] = len(event.failures)
    for row in event.evaluation or ():
        (_, value), *others = row.metrics.items()
        told[f"validation/{row.name}"] = value
        told |= {f"validation/{row.name}/{name}": other for name, other in others}
        if row.clients:
            told[f"clients/{row.name}/mean"] = row.clients.spread.mean
            told[f"clients/{row.name}/worst_decile"] = row.clients.spread.worst_decile
    return told
