"""The core runs without Flower and Ray, and imports heavy packages only where it uses them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "fednas_core"
HEAVY = {
    "datasets",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pandas",
    "pyarrow",
    "pymoo",
    "flwr_datasets",
    "scipy",
    "sklearn",
}
HEAVY |= {"tensorboard", "torchvision"}
NAMES = sorted(
    ".".join(path.relative_to(CORE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in CORE.rglob("*.py")
)
PROGRAM = f"""
import importlib, json, sys
import fednas_core.engine.run, fednas_core.engine.local
from fednas_core.base.config import RunConfig
from fednas_core.tasks.bench import split_of
split_of(fednas_core.engine.run.settle(RunConfig()))
some = sorted(sys.modules)
for name in {NAMES}:
    importlib.import_module(name)
print(json.dumps([some, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def loaded() -> tuple[set[str], set[str]]:
    """Modules there once a run in process has divided its data, and once every module of the core is imported."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CORE.parent, timeout=300)
    some, every = json.loads(done.stdout.splitlines()[-1])
    return set(some), set(every)


def test_the_core_imports_neither_flower_nor_ray(loaded: tuple[set[str], set[str]]) -> None:
    some, every = loaded
    assert {"fednas_core.engine.run", "fednas_core.engine.local"} <= some and set(NAMES) <= every
    assert not {name.partition(".")[0] for name in every} & {"flwr", "ray", "client_app", "server_app"}


def test_heavy_packages_are_imported_where_they_are_used(loaded: tuple[set[str], set[str]]) -> None:
    assert not {name.partition(".")[0] for name in loaded[0]} & HEAVY
