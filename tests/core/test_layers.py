from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CORE = Path(__file__).parents[2] / "fednas_core"


def modules_after(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CORE.parent, timeout=120
    )
    return set(json.loads(done.stdout))


def test_the_core_imports_neither_flower_nor_ray() -> None:
    names = [".".join(path.relative_to(CORE.parent).with_suffix("").parts) for path in CORE.rglob("*.py")]
    names = sorted(name.removesuffix(".__init__") for name in names)
    assert "fednas_core.experiment" in names and "fednas_core.local" in names
    loaded = modules_after("import importlib; [importlib.import_module(n) for n in " + repr(names) + "]")
    assert set(names) <= loaded
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & {"flwr", "ray", "client_app", "server_app"}


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    loaded = {name.partition(".")[0] for name in modules_after("import fednas_core.experiment, fednas_core.local")}
    assert not loaded & {
        "pymoo",
        "onnx",
        "onnxruntime",
        "matplotlib",
        "flwr_datasets",
        "tensorboard",
        "sklearn",
        "torchvision",
    }


def test_the_settings_need_no_torch_network() -> None:
    assert "torchvision" not in modules_after("import fednas_core.config")
