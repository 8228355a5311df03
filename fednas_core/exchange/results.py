"""What clients find, by task: typed values that say of themselves whether a client can have found them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fednas_core.base.errors import ReplyError
from fednas_core.devices.info import ClientInfo


@dataclass(frozen=True, slots=True)
class Trained:
    """What training saw in its last epoch: means over the examples of loss and accuracy (0 to 1)."""

    loss: float
    accuracy: float

    def check(self, client: ClientInfo) -> None:
        """See `Result.check`."""
        _from_zero("loss", self.loss)
        _share("accuracy", self.accuracy)


@dataclass(frozen=True, slots=True)
class Tested:
    """What a test found on `tested` images, with none of which loss and accuracy are 0.

    `held_out` says that the client never trained on them.
    """

    loss: float
    accuracy: float
    tested: int
    held_out: bool

    def check(self, client: ClientInfo) -> None:
        """See `Result.check`."""
        _from_zero("loss", self.loss)
        _share("accuracy", self.accuracy)
        at_most("tested", self.tested, client.examples + client.held_out)


@dataclass(frozen=True, slots=True)
class Installed:
    """How a device does with the model that it was handed.

    `latency_ms` is the true median of one image there; `fits` says whether that keeps its budget, `stored` whether the
    model lies in the folder that the node's configuration names.
    """

    loss: float
    accuracy: float
    tested: int
    held_out: bool
    latency_ms: float
    fits: bool
    stored: bool

    def check(self, client: ClientInfo) -> None:
        """See `Result.check`."""
        Tested(self.loss, self.accuracy, self.tested, self.held_out).check(client)
        _from_zero("latency_ms", self.latency_ms)
        if self.stored and not self.fits:
            raise ReplyError("stored: found true, allowed false of a model that does not fit")


@dataclass(frozen=True, slots=True)
class Summed:
    """Over how many images sums of batch statistics go."""

    images: int

    def check(self, client: ClientInfo) -> None:
        """See `Result.check`."""
        at_most("images", self.images, client.examples, least=1)


@dataclass(frozen=True, slots=True)
class Kept:
    """That a device keeps what it was sent."""

    def check(self, client: ClientInfo) -> None:
        """There is nothing to check."""


def at_most(name: str, found: int, most: int, least: int = 0) -> None:
    """Raise `ReplyError` unless a number of images is one that a client can have."""
    if not least <= found <= most:
        raise ReplyError(f"{name}: found {found}, allowed {least} to the {most} that it said it has")


def _from_zero(name: str, found: float) -> None:
    if not (math.isfinite(found) and found >= 0):
        raise ReplyError(f"{name}: found {found}, allowed a finite number from 0")


def _share(name: str, found: float) -> None:
    if not 0 <= found <= 1:
        raise ReplyError(f"{name}: found {found}, allowed a number from 0 to 1")
