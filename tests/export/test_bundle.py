from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fednas_core.base.errors import ExportError, MissingExtraError
from fednas_core.devices.latency import Latency
from fednas_core.export import bundle
from fednas_core.export.bundle import Exported, ExportInput, Facts, export, load_bundle
from fednas_core.spaces.resnet import ResNetSpace

SPACE = ResNetSpace("tiny", 8, (8, 16), (1, 2), (1.0, 2.0), (0.5, 1.0), 1, image_size=7, in_channels=3, classes=4)
FILES = {"arch.json", "card.md", "model.onnx", "weights.safetensors"}


def made_up(norm: str = "group", device: str = "phone") -> ExportInput:
    space = dataclasses.replace(SPACE, norm=norm)  # type: ignore[arg-type]
    arch = space.arch({"d": [0, 1], "e": [0.5, 0.5, 1.0, 0.5], "w": [1, 0, 1]})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = space.build(arch)
        samples = torch.randint(0, 256, (5, 3, 7, 7), dtype=torch.uint8)
        if norm == "batch":
            module(torch.randn(8, 3, 7, 7))
    return ExportInput(
        device=device,
        space=space,
        arch=arch,
        module=module,
        mean=(0.5, 0.25, 0.1),
        std=(0.2, 0.4, 0.3),
        classes=("cat", "dog", "<b>*fish*</b>", "a|b"),
        samples=samples,
        facts=Facts(
            data="made-up",
            trained="deepfednas, 3 rounds over 10 clients.",
            validation_accuracy=0.95,
            test_accuracy=0.9312,
            latency=Latency(0.61, 0.6, 0.7, 50, 1, 1, "2.14", "cpu"),
        ),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportInput, Exported]:
    item = made_up()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return item, export(item, tmp_path_factory.mktemp("models"))


@pytest.fixture
def copy_of(finished: tuple[ExportInput, Exported], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[1].folder, tmp_path / "phone"))


def expected(item: ExportInput) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (item.mean, item.std))
    with torch.inference_mode():
        return item.module.eval()((item.samples.float() / 255 - mean) / std)  # type: ignore[no-any-return]


def test_the_folder_holds_four_files_and_nothing_is_left_beside_it(finished: tuple[ExportInput, Exported]) -> None:
    result = finished[1]
    assert {path.name for path in result.folder.iterdir()} == FILES == set(result.bytes)
    assert [path.name for path in result.folder.parent.iterdir()] == ["phone"]
    assert result.bytes["model.onnx"] > SPACE.cost(finished[0].arch).bytes, "the weights are inside"
    assert result.bytes["model.onnx"] < SPACE.cost(finished[0].arch).bytes + 30_000, "and little else"
    assert b".py" not in (result.folder / "model.onnx").read_bytes(), "no path of this machine"
    assert result.folder.stat().st_mode & 0o055 == 0o055, "readable by others"


def test_onnx_takes_pixels_from_0_to_1_in_any_batch(finished: tuple[ExportInput, Exported]) -> None:
    import onnxruntime

    item, result = finished
    session = onnxruntime.InferenceSession(str(result.folder / "model.onnx"))
    assert [node.name for node in session.get_inputs()] == ["images"]
    assert session.get_inputs()[0].shape == ["batch", 3, 7, 7]
    assert [node.name for node in session.get_outputs()] == ["logits"]
    wanted = expected(item).numpy()
    for n in (1, 2, 5):
        logits = session.run(["logits"], {"images": (item.samples[:n].numpy() / np.float32(255)).astype(np.float32)})[0]
        assert np.abs(logits - wanted[:n]).max() <= 1e-4
    assert 0 <= result.max_abs_error <= 1e-4
    assert result.samples == 5


def test_loaded_bundle_gives_exactly_the_outputs_of_the_trained_network(finished: tuple[ExportInput, Exported]) -> None:
    item, result = finished
    model, meta = load_bundle(result.folder)
    with torch.inference_mode():
        assert torch.equal(model(item.samples.float() / 255), expected(item))
    assert not model.training
    assert meta["classes"] == list(item.classes)
    assert item.space.arch(meta["arch"]) == item.arch
    assert meta["checks"]["max_abs_error"] == result.max_abs_error


def test_weights_file_says_what_it_is(finished: tuple[ExportInput, Exported]) -> None:
    item, result = finished
    with safe_open(result.folder / "weights.safetensors", "pt") as file:
        about = file.metadata()
        assert set(file.keys()) == set(item.module.state_dict())
    assert json.loads(about["arch"]) == item.arch.to_json()
    assert json.loads(about["preprocessing"])["mean"] == [0.5, 0.25, 0.1]


def test_card_says_what_how_and_how_good(finished: tuple[ExportInput, Exported]) -> None:
    text = (finished[1].folder / "card.md").read_text(encoding="utf-8")
    for part in ("phone", "93.1 %", "95.0 %", "0.610 ms", "MACs", "kB", "load_bundle", "onnxruntime", "5 real images"):
        assert part in text, part
    assert "<b>" not in text
    assert "a\\|b" in text
    for line in text.splitlines():
        assert line == line.rstrip()


def test_snippets_of_the_card_run(copy_of: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy_of)
    snippets = [part.split("```")[0] for part in (copy_of / "card.md").read_text().split("```python\n")[1:]]
    assert len(snippets) == 2
    for snippet in snippets:
        names: dict[str, Any] = {}
        exec(snippet, names)
        assert tuple(names["logits"].shape) == (1, 4)


def test_an_export_draws_no_attention(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    item = made_up("batch", "board")
    item.module.train()
    running = item.module.state_dict()["stem_norm.running_mean"].clone()
    result = export(item, tmp_path / "new" / "models")
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert item.module.training, "the trained network is not changed"
    assert torch.equal(item.module.state_dict()["stem_norm.running_mean"], running)
    model, _ = load_bundle(result.folder)
    with torch.inference_mode():
        assert torch.equal(model(item.samples.float() / 255), expected(item))


def no_onnx(monkeypatch: pytest.MonkeyPatch, error: float = 0.0) -> None:
    """Replace the slow exporter: the "graph" is an empty file, onnxruntime answers with this error."""

    def run(path: Path, images: torch.Tensor) -> torch.Tensor:
        model, _ = load_bundle(path.parent)
        with torch.inference_mode():
            return model(images) + error  # type: ignore[no-any-return]

    monkeypatch.setattr(bundle, "write_onnx", lambda model, images, path: path.write_bytes(b""))
    monkeypatch.setattr(bundle, "run_onnx", run)


def test_an_older_bundle_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_onnx(monkeypatch)
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "stale.txt").write_text("old")
    result = export(made_up(), tmp_path)
    assert {path.name for path in result.folder.iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["phone"]


def test_unequal_outputs_leave_the_older_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_onnx(monkeypatch)
    export(made_up(), tmp_path)
    before = (tmp_path / "phone" / "arch.json").read_bytes()
    for error in (2e-4, float("nan")):
        no_onnx(monkeypatch, error)
        with pytest.raises(ExportError, match=r"phone.*differ.*allowed is 0.0001"):
            export(made_up(), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["phone"]
        assert (tmp_path / "phone" / "arch.json").read_bytes() == before
    no_onnx(monkeypatch, 0.5e-4)
    assert export(made_up(), tmp_path).max_abs_error == pytest.approx(0.5e-4, rel=0.01)


def test_a_failed_rename_puts_the_older_bundle_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_onnx(monkeypatch)
    export(made_up(), tmp_path)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".export-" in str(self):
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ExportError, match="disk on fire"):
        export(made_up(), tmp_path)
    assert {path.name for path in (tmp_path / "phone").iterdir()} == FILES


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("not a folder")
    with pytest.raises(ExportError, match="models.*cannot be written"):
        export(made_up(), tmp_path / "models")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module(package)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*fednas\[export\]"):
        export(made_up(), tmp_path)
    assert list(tmp_path.iterdir()) == []


class Odd(nn.Module):
    """A network with a function that ONNX lacks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erfinv(x)


def test_a_network_that_onnx_cannot_express(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written as ONNX"):
        bundle.write_onnx(Odd(), torch.zeros(1, 3), tmp_path / "model.onnx")


def diverged() -> nn.Module:
    module = made_up().module
    with torch.no_grad():
        module.get_parameter("head.bias")[0] = torch.nan
    return module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "../up"}, "becomes a folder"),
        ({"device": ""}, "becomes a folder"),
        ({"samples": torch.zeros(2, 3, 7, 7)}, r"samples are float32 \(2, 3, 7, 7\)"),
        ({"samples": torch.zeros(2, 1, 7, 7, dtype=torch.uint8)}, "needed is uint8"),
        ({"samples": torch.zeros(0, 3, 7, 7, dtype=torch.uint8)}, "n at least 1"),
        ({"mean": (0.5,)}, "mean has 1 values, the images have 3"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
        ({"mean": (0.5, float("nan"), 0.5)}, "finite"),
        ({"classes": ("a", "b")}, "2 class names for 4 classes"),
        ({"module": made_up().module.to(torch.bfloat16)}, "bfloat16, needed is float32"),
        ({"module": diverged()}, "not finite"),
        ({"facts": Facts("d", "t", test_accuracy=97.0)}, "test accuracy is 97.0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export(dataclasses.replace(made_up(), **change), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_another_architecture_is_refused(tmp_path: Path) -> None:
    item = made_up()
    with pytest.raises(ExportError, match=r"weights.safetensors: (lacks|has the unknown|tensor)"):
        export(dataclasses.replace(item, arch=item.space.smallest), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_bundles_are_named(copy_of: Path) -> None:
    weights, meta = copy_of / "weights.safetensors", copy_of / "arch.json"
    whole, text = weights.read_bytes(), meta.read_text()

    def refused(message: str) -> None:
        with pytest.raises(ExportError, match=message):
            load_bundle(copy_of)

    weights.write_bytes(whole[:-100])
    refused("weights.safetensors: is damaged or cut short")
    weights.write_bytes(b"")
    refused("weights.safetensors: is damaged or cut short")
    weights.unlink()
    refused("weights.safetensors: no such file")
    weights.write_bytes(whole)
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if k != "head.bias"}, weights)
    refused("lacks tensor 'head.bias'")
    save_file({**tensors, "extra": torch.zeros(1)}, weights)
    refused("unknown tensor 'extra'")
    save_file({**tensors, "head.bias": torch.zeros(9)}, weights)
    refused(r"tensor 'head.bias' is \(9,\) torch.float32, needed is \(4,\)")
    weights.write_bytes(whole)
    for broken in ("{", "[]", json.dumps({"format": 99})):
        meta.write_text(broken)
        refused("arch.json")
    for key, value in (("arch", {"d": [9]}), ("space", {"name": "x"}), ("preprocessing", {}), ("space", 3)):
        meta.write_text(json.dumps({**json.loads(text), key: value}))
        refused("arch.json: does not describe a network")
    meta.unlink()
    refused("arch.json: no such file")
    meta.write_text(text)
    load_bundle(copy_of)
