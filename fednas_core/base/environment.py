"""What oneDNN, glibc and OpenMP read from the environment of a process that computes, once, when it starts."""

from __future__ import annotations

import os

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # processes of one thread side by side are faster than one of several
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096",  # subnets have more shapes than the 1024 whose code is kept by default
    "MALLOC_MMAP_THRESHOLD_": "2000000000",  # keep large buffers instead of mapping fresh memory for each message
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
}
"""Hence to be set before any process that computes is started. None of it changes a number."""


def prepare() -> None:
    """Set for the processes that this one starts what nobody has set otherwise."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
