"""Presets against the hyper-parameters of the originals, transcribed here from papers and published code.

A value that a preset does not have from its original is marked in its file, and the mark states the original's value.
"""

from __future__ import annotations

import tomllib
from dataclasses import fields
from typing import Any

import pytest

from fednas_core.base.config import TrainConfig
from fednas_core.base.settings import flatten, read
from fednas_core.cli.settings import PRESETS, deviations, flat, gather, presets
from fednas_core.methods.registry import path_of, searched_by
from fednas_core.search.path import budgets
from fednas_core.spaces.registry import load
from fednas_core.spaces.space import Signature

NAMES = [name for name, _ in presets()]
SAID = {
    "method", "rounds", "cohort", "evaluate-every", "budgets", "space.name", "space.norm", "data.source",
    "data.partition", "data.clients", "data.validation", "data.holdout", "sample.weigh", "merge.rule",
    *(f"train.{field.name.replace('_', '-')}" for field in fields(TrainConfig)),
}  # fmt: skip
"""What every preset states itself, so that no default of the app stands in for a published value."""

PLAIN = {
    "train.clip": 0.0, "train.clip-value": 0.0, "train.label-smoothing": 0.0, "train.precision": "fp32",
    "train.momentum": 0.0, "train.weight-decay": 0.0, "train.schedule": "constant", "train.warmup": 0,
    "data.validation": 0.0, "data.holdout": 0.0, "merge.rule": "overlap",
}  # fmt: skip
"""What an original does whose code has nothing of the kind: float32, every training image on a client, plain SGD."""

SUPERFEDNAS = PLAIN | {
    # gatech-sysml/superfednas, README and fedml_experiments/standalone/superfednas/parse_args.py; normalisation is off
    # without --use_bn; loader: crop 4, flip, cutout 16
    "method": "superfednas", "rounds": 1500, "cohort": 8, "evaluate-every": 50, "space.name": "superfednas-cifar",
    "space.norm": "none", "data.source": "cifar10", "data.partition": "dirichlet", "data.alpha": 100.0,
    "data.clients": 20, "train.epochs": 5, "train.batch": 64, "train.lr": 0.1, "train.weight-decay": 5e-4,
    "train.clip": 10.0, "train.augment": "crop-flip-cutout",
    # MaxNet: β from 0.9 to 1/8 over 1200 rounds; --weight_dataset is off
    "sample.beta-start": 0.9, "sample.beta-end": 0.125, "sample.beta-decay": 0.8, "sample.weigh": "uniform",
    # evolution on accuracy over the first ten batches of 64
    "search.by": "accuracy", "search.images": 640,
}  # fmt: skip
DEEPFEDNAS = SUPERFEDNAS | {
    # bostankhan6/DeepFedNAS, first public state: experiments/02_deepfednas and generate_subnet_cache.py
    "method": "deepfednas", "space.name": "deepfednas-cifar", "data.alpha": 1.0, "evaluate-every": 20,
    "sample.path": "evolved", "sample.budgets": 60, "sample.population": 256, "sample.generations": 512,
    "sample.fitness-lambda": 1000.0, "search.by": "fitness",
}  # fmt: skip
del DEEPFEDNAS["search.images"]
FEDAVG = {key: value for key, value in SUPERFEDNAS.items() if not key.startswith(("sample.beta", "search."))}
EFEDSUP = PLAIN | {
    # Kthyeon/FedSup: scripts/c10_diri_efedsup.sh over config/efficient_fedsup.yml, main.py, fedutils/train_utils.py
    "method": "efedsup", "rounds": 500, "cohort": 10, "evaluate-every": 1, "space.name": "fedsup",
    "space.norm": "parametric", "data.source": "cifar10", "data.partition": "dirichlet", "data.alpha": 1.0,
    "data.clients": 100, "train.epochs": 5, "train.batch": 32, "train.lr": 0.1, "train.momentum": 0.5,
    "train.weight-decay": 1e-4, "train.clip-value": 1.0, "train.augment": "crop-flip",
    "sample.tiers": "min,0.75-1.0M,2.0-2.75M,max", "sample.deal": "fixed",
    "sample.weigh": "uniform", "merge.rule": "damped",
}  # fmt: skip
FEDSUP = EFEDSUP | {"method": "fedsup", "sample.sandwich": True, "sample.distill": True}  # the paper's algorithm 1
del FEDSUP["sample.tiers"], FEDSUP["sample.deal"]

ORIGINALS: dict[str, dict[str, Any]] = {
    "superfednas-cifar10": SUPERFEDNAS,
    "fedavg-cifar10": FEDAVG | {"method": "fedavg", "sample.weigh": "examples"},
    "deepfednas-cifar10": DEEPFEDNAS,
    "deepfednas-cifar100": DEEPFEDNAS | {"rounds": 2000, "data.source": "cifar100", "data.alpha": 100.0},
    "efedsup-cifar10": EFEDSUP,
    "fedsup-cifar10": FEDSUP,
    "fedper-cifar10": PLAIN | {
        # the paper, section 4, and adap/flower baselines/fedper: conf/cifar10/mobile/fedper.yaml, client.py
        "method": "fedper", "rounds": 50, "cohort": 0, "evaluate-every": 1, "space.name": "mobilenet-v1",
        "space.norm": "batch", "personal.layers": "head", "personal.blocks": 1, "data.source": "cifar10",
        "data.image-size": 224, "data.partition": "classes", "data.classes-per-client": 4, "data.clients": 10,
        "data.holdout": 0.17, "train.epochs": 4, "train.batch": 128, "train.lr": 0.01, "train.augment": "none",
        "sample.weigh": "examples",
    },
    "fednas-cifar10": {
        # arXiv 2002.06352 gives no hyper-parameters; NetAdapt (ECCV 2018), section 4.1: 3 % of the start, times 0.96
        "method": "fednas", "space.name": "mobilenet-v1", "contest.clients": "parts", "data.disclose": True,
        "fednas.search": "netadapt", "fednas.step": 0.03, "fednas.decay": 0.96, "sample.weigh": "examples",
        "merge.rule": "overlap",
    },
    "ddc-cifar10": {
        # arXiv 1911.12740, section "Implementation details"; temperature: RamitPahwa/DDC_modelcompression
        "method": "ddc", "space.name": "vgg11", "data.source": "cifar10", "data.clients": 1, "data.validation": 0.0,
        "data.holdout": 0.0, "train.epochs": 20, "train.lr": 0.001, "train.momentum": 0.9, "train.precision": "fp32",
        "contest.iterations": 100, "contest.candidates": 5, "ddc.rounds": 1, "ddc.sampler": "policy", "ddc.lr": 0.003,
        "ddc.resource": "ms",
        "ddc.reward": "ddc", "ddc.accuracy": 0.9, "ddc.latency": 0.3, "ddc.params": 0.6, "ddc.soft": 0.7,
        "ddc.temperature": 3.0, "ddc.inherit": False,
    },
}  # fmt: skip


def stated(preset: str) -> dict[str, Any]:
    return flat(tomllib.loads((PRESETS / f"{preset}.toml").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", NAMES)
def test_settings_and_marks_of_a_preset_are_its_original(name: str) -> None:
    here, marks = stated(name), {one.key: one for one in deviations(name)}
    published = {key: tomllib.loads(f"value = {one.published}")["value"] for key, one in marks.items() if one.published}
    ours = {key for key, one in marks.items() if not one.published}
    assert {key: value for key, value in (here | published).items() if key not in ours} == ORIGINALS[name]
    assert set(here) >= SAID


@pytest.mark.parametrize("name", NAMES)
def test_marks_say_what_is_there_and_why(name: str) -> None:
    here = flatten(read(gather(name, None)))
    text = (PRESETS / f"{name}.toml").read_text(encoding="utf-8")
    marks = deviations(name)
    assert len(marks) == sum("  # " in line for line in text.splitlines())  # no comment on a setting is overlooked
    for one in marks:
        assert tomllib.loads(f"value = {one.here}")["value"] == here[one.key]
        assert not one.published or (one.why and one.published != one.here)


def test_every_original_has_its_preset() -> None:
    assert set(ORIGINALS) == set(NAMES)


@pytest.mark.parametrize(("name", "by"), [("superfednas-cifar10", "accuracy"), ("deepfednas-cifar10", "fitness")])
def test_presets_search_as_published(name: str, by: str) -> None:
    config = read(gather(name, None))
    assert searched_by(config, load(config.space.name)) == by


def test_the_bins_of_the_budgets_begin_at_the_published_lower_end() -> None:
    for name, classes in (("superfednas-cifar10", 10), ("deepfednas-cifar10", 10), ("deepfednas-cifar100", 100)):
        config = read(gather(name, None))
        low = budgets(load(config.space.name).for_data(Signature((3, 32, 32), classes)), 2)[0]
        assert config.budgets.startswith(f"smallest={low / 1e6:.6f}M,")


def test_the_published_size_of_the_path_reaches_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def evolve(space: Any, objective: Any, constraints: Any, seed: int, population: int, generations: int, fixed: Any):
        sizes.append((population, generations))
        return space.smallest

    monkeypatch.setattr("fednas_core.search.path.evolve", evolve)
    config = read(gather("deepfednas-cifar10", ["sample.budgets=3"]))
    path_of(config, load(config.space.name), 10**9)
    assert sizes == [(256, 512)] * 2
