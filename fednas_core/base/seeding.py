"""Randomness as an argument: every stream is derived from (run seed, round, client, purpose) and from nothing else.

A stable hash (SHA-256) makes the streams independent of process, platform and order of use, so that a resumed run,
another order of replies or another backend draws the same numbers.
"""

from __future__ import annotations

import numpy as np


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed for the stream named by `path`, e.g. ``derive(7, round, client, "batches")``."""
    import hashlib  # with OpenSSL, 4 MB: a command that draws nothing does without

    text = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *path: str | int) -> np.random.Generator:
    """Return a NumPy generator for the stream named by `path` (see `derive`)."""
    return np.random.default_rng(derive(seed, *path))
