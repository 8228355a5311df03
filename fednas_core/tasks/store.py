"""A device's private state on disk: what a client keeps from round to round and nobody else ever receives.

It is keyed by run, client, purpose and round. A server that was killed resumes a round that some clients have already
done; reading the state from *before* a round makes them repeat it exactly. Files are safetensors, nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fednas_core.base.errors import RunError
from fednas_core.base.files import PART, write
from fednas_core.base.values import ClientId, State
from fednas_core.tasks.home import Home

VARIABLE = "FEDNAS_STATE"
"""Environment variable that names the folder of a node whose configuration does not."""
PRIVATE, PRIVATE_FILE = 0o700, 0o600
ABANDONED_S = 600.0
"""Age of an unfinished file at which nobody is writing it any more."""
READABLE = 40
"""Characters of a name that stay readable in a file name; a hash keeps names apart."""


@dataclass(frozen=True, slots=True)
class Store:
    """States below the folder `root`, which is made when first needed; only its owner can read what is in it."""

    root: Path

    def load(self, run: str, client: ClientId, purpose: str, round: int) -> State | None:
        """Return the newest state that was saved in a round before `round`; None if there is none.

        A damaged file counts as absent. Raises `RunError` if a file is there but may not be read.
        """
        folder = self._folder(run, client)
        for _, path in sorted(_saved(folder, purpose, round), reverse=True):
            try:
                with safe_open(str(path), "pt") as file:
                    data = json.loads(file.metadata()["data"])
                    return State({name: file.get_tensor(name) for name in file.keys()}, data)  # noqa: SIM118
            except (SafetensorError, FileNotFoundError, ValueError, KeyError, TypeError):
                continue
            except OSError as error:
                raise self._unusable(error) from error
        return None

    def save(self, run: str, client: ClientId, purpose: str, round: int, state: State) -> None:
        """Save the state after `round`; it and the newest one before it are kept, all others of `purpose` removed.

        A reader sees the whole file or none. Raises `RunError` if it cannot be written.
        """
        folder = self._folder(run, client)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        content = save(tensors, {"data": json.dumps(dict(state.data))})
        try:
            for level in (self.root, folder.parent, folder):
                level.mkdir(PRIVATE, parents=level == self.root, exist_ok=True)
            for rest in folder.glob(f".{_safe(purpose)}.*{PART}"):
                _clear(rest)
            write(folder / f"{_safe(purpose)}.{round}.safetensors", content, PRIVATE_FILE)
            before = sorted(_saved(folder, purpose, round))
            kept = {round, *(number for number, _ in before[-1:])}
            for number, path in _saved(folder, purpose):
                if number not in kept:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def forget(self, run: str) -> None:
        """Remove everything that was saved for a run; raise `RunError` if it cannot be removed."""
        try:
            shutil.rmtree(self.root / _safe(run))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error) from error

    def _folder(self, run: str, client: ClientId) -> Path:
        return self.root / _safe(run) / _safe(client)

    def _unusable(self, error: OSError) -> RunError:
        return RunError(
            f"the device's private state cannot be kept in {self.root} ({error.strerror or error}): make room there, "
            "or name another folder with --node-config 'state=\"…\"'; of simulated clients it is the folder that "
            f"${VARIABLE} names, and their run can then be resumed"
        )


def store_of(home: Home) -> Store:
    """Return the store of a device: the folder that its configuration names, else $FEDNAS_STATE, else in ~/.cache.

    Raises `RunError` if that is in a home folder that does not exist.
    """
    named = home.state or os.environ.get(VARIABLE) or "~/.cache/fednas/state"
    try:
        return Store(Path(named).expanduser())
    except RuntimeError as error:
        raise RunError(
            f"the device's private state belongs in {named}, and there is no home folder: name another folder with "
            "--node-config 'state=\"…\"'"
        ) from error


def _safe(name: str) -> str:
    """Return a file name for any text: other texts have other ones, and none leaves its folder."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub('[^A-Za-z0-9_-]', '_', name[:READABLE])}-{digest}"


def _saved(folder: Path, purpose: str, before: int | None = None) -> Iterator[tuple[int, Path]]:
    """Yield round and file of every state of a purpose, of rounds before `before` only if it is given."""
    for path in folder.glob(f"{_safe(purpose)}.*.safetensors"):
        with contextlib.suppress(ValueError):
            number = int(path.name.split(".")[1])
            if before is None or number < before:
                yield number, path


def _clear(rest: Path) -> None:
    """Remove what a process left that was killed while it wrote; one that is writing now is not so old."""
    with contextlib.suppress(FileNotFoundError):
        if time.time() - rest.stat().st_mtime > ABANDONED_S:
            rest.unlink()
