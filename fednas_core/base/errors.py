"""Errors a person can act on: each says what is wrong, where, what is allowed and what to do."""

from __future__ import annotations


class FednasError(Exception):
    """Base of every error that fednas raises on purpose; its text is shown to the user without a traceback."""


class ConfigError(FednasError):
    """A setting that cannot be used: names the key, the value found and the values allowed."""


class ArchError(FednasError):
    """An architecture that does not belong to its search space: names the gene and the choices."""


class DataError(FednasError):
    """A data set or partition that cannot be used: names the file or split and what was expected."""


class ReplyError(FednasError):
    """A client's reply that must not be merged: names the client, the tensor, what was found and what is allowed."""


class InfeasibleError(FednasError):
    """A constraint no architecture meets: names the constraint and the nearest value that can be met."""


class RunError(FednasError):
    """A run that cannot start, continue or be read: names the folder or round and what to do."""


class ExportError(FednasError):
    """An exported model whose outputs differ from the trained one, or that could not be written."""


class MissingExtraError(FednasError):
    """An optional dependency is absent: names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': install it with  pip install 'fednas[{extra}]'")
        self._given = package, extra, purpose

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        """Let processes hand it on."""
        return type(self), self._given


class TaskError(FednasError):
    """A client's work that cannot be done there, for its data, its machine or a library: names the kind of error."""


class RoomError(FednasError):
    """A client's work for which its device has too little memory: says how much it takes and how much is free."""


class DeadlineError(FednasError):
    """A client's work that did not end within its deadline."""
