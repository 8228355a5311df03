"""Fleets for the tests of whole runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from contracts.samples import TINY

from fednas_core.config import read
from fednas_core.local import LocalFleet


@pytest.fixture(scope="session")
def pool(tiny_space_file: Path) -> Iterator[LocalFleet]:
    """Two worker processes that serve every run with the data of the tiny one."""
    fleet = LocalFleet(read({**TINY, "space.name": str(tiny_space_file), "workers": 2}))
    yield fleet
    fleet.close()
