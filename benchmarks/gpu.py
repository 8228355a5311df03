"""What a card does today: training steps, many clients at once, and whole rounds, in at most eight minutes.

    python benchmarks/gpu.py [--seconds 460] [--out gpu.jsonl] [--quick]

Three tables, each row printed, and appended to `--out` as a line of JSON, as soon as it is there:

* networks: images per second in batches of 64, by six loops. "published" is the loop of training.py: float32, NCHW, PIL
  transforms in the process, plain SGD; "its ready" the same on one batch that lies on the device. "app" is
  `fednas_core.training.loop.train` on `fednas_core.data.augment`, in bf16 and fp32; "its ready" in bf16 on one batch.
  "graph" is the same step in bf16, forward to SGD, as one CUDA graph on one batch.
* clients at once: K clients of one architecture as one `torch.func.vmap` of `grad_and_value` with clipping and SGD, a
  batch of 64 each, in bf16, plainly and as one CUDA graph.
* rounds: everything from planning to the merged supernet (`engine.rounds.run_round`), clients in one process or in
  several that share the card.

Numbers are medians; "±" is half the distance between the fastest and the slowest repeat of a row, in percent of the
median. "÷" are ratios of columns, or of rounds to the first row of the same job. float32 convolutions on a card are
torch's default, TF32. What fails is noted below its row with the reason, and its traceback goes to stderr; what no
longer fits into `--seconds` is skipped and says so. Without a card the small part runs on the processor: smaller
networks and counts, no graphs.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any, TypeVar

import torch
from common import MEAN, STD, npz, options, pixels, read, space
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.utils.data import DataLoader
from training import BATCH, Pictures, published

from fednas_core.base.errors import FednasError
from fednas_core.base.settings import Scalar
from fednas_core.base.values import Arch, NormKind
from fednas_core.data.augment import Preprocessing, augment, batches
from fednas_core.devices.budgets import parse_budgets
from fednas_core.devices.containers import available_cores
from fednas_core.devices.latency import device_name, synchronize
from fednas_core.devices.profile import native_bf16
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.networks import subnet
from fednas_core.tasks.bench import space_of
from fednas_core.training.loop import Batch, Sgd, clip, train
from fednas_core.training.settings import TrainSettings

SETTINGS = TrainSettings(batch=BATCH, lr=0.01)  # low enough for networks without norm to stay finite
IMAGES = 16 * BATCH
"""Images of an epoch over single networks."""
WARM_UP = 3
"""Steps before anything is timed or captured."""

Step = Callable[[], Tensor]
"""One training step on a batch that is always the same; its loss, on the device."""
Steps = Callable[[int], object]
"""As many training steps as asked for."""
Measure = Callable[[], list[float]]
"""Images per second of each repeat."""
Row = dict[str, Any]
"""A line of JSON."""
T = TypeVar("T")


# -- what is measured ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Network:
    """The largest or the smallest network of a preset."""

    preset: str
    norm: NormKind
    largest: bool

    def space(self) -> ResNetSpace:
        return space(self.preset, self.norm)

    def arch(self) -> Arch:
        return self.space().largest if self.largest else self.space().smallest

    def macs(self) -> int:
        return self.space().cost(self.arch()).macs

    def __str__(self) -> str:
        preset = "" if self.preset == "deepfednas-cifar" else f", {self.preset}"
        return f"{self.macs() / 1e6:,.1f} M MACs{preset}, {self.norm}"


@dataclass(frozen=True, slots=True)
class Job:
    """Whole rounds of a run in this many processes on a device; `seconds` they take at most, to plan with."""

    name: str
    settings: Mapping[str, Scalar]
    device: str
    workers: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured: what, repeats of `span` seconds each, and rounds after the first, which does not count."""

    device: torch.device
    networks: Sequence[Network]
    cohorts: Sequence[tuple[Network, int]]
    jobs: Sequence[Job]
    span: float
    repeats: int
    rounds: int


LARGEST = tuple(Network("deepfednas-cifar", norm, largest=True) for norm in ("none", "group", "batch"))
SMALLEST = tuple(Network("deepfednas-cifar", norm, largest=False) for norm in ("none", "group", "batch"))
LIGHT = tuple(Network("cifar-light", "group", largest) for largest in (True, False))
SHARING = 8
"""Processes that share the card in rounds with several."""


def cohort(data: Path, preset: str, clients: int, examples: int, batch: int) -> dict[str, Scalar]:
    """Return the settings of rounds in which each of `clients` trains 2 epochs of `examples` images."""
    return {
        "space.name": preset,
        "data.source": "npz",
        "data.path": str(data),
        "data.examples": round(clients * examples / 0.9),  # the server keeps a tenth
        "data.partition": "iid",
        "data.clients": clients,
        "data.holdout": 0.0,
        "train.epochs": 2,
        "train.batch": batch,
    }


def on_card(data: Path) -> Extent:
    light = cohort(data, "cifar-light", clients=10, examples=540, batch=16)
    full = cohort(data, "deepfednas-cifar", clients=8, examples=500, batch=64)
    jobs = (
        Job("default job", {}, "cuda", 1, 45),
        Job("default job", {}, "cuda", SHARING, 45),
        Job("default job", {}, "cpu", available_cores(), 30),
        Job("cifar-light, 10 clients", light, "cuda", 1, 45),
        Job("cifar-light, 10 clients", light, "cuda", SHARING, 45),
        Job("published size, 8 clients", full, "cuda", 1, 50),
    )
    cohorts = [(network, clients) for network in LIGHT for clients in (8, 32)]
    return Extent(torch.device("cuda"), (*LARGEST, *SMALLEST, *LIGHT), cohorts, jobs, span=0.4, repeats=5, rounds=2)


def on_processor(data: Path) -> Extent:
    light = cohort(data, "cifar-light", clients=3, examples=64, batch=16)
    jobs = (Job("default job", {}, "cpu", 1, 30), Job("cifar-light, 3 clients", light, "cpu", 1, 20))
    return Extent(torch.device("cpu"), (*SMALLEST, LIGHT[1]), [(LIGHT[1], 2)], jobs, span=0.2, repeats=3, rounds=1)


# -- rows ----------------------------------------------------------------------------------------------------------


@dataclass
class Record:
    """Where rows go as soon as they are there, and the seconds that are left."""

    out: Path | None
    seconds: float
    rows: list[Row] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.start + self.seconds - time.monotonic()

    def attempt(self, row: Row, name: str, needed: float, measure: Callable[[], T]) -> T | None:
        """Return what `measure` does; None, with a note in the row, if it fails or `needed` seconds are not left."""
        if needed > self.left():
            row["notes"].append(f"{name}: skipped, it may take {needed:.0f} s and {max(0, self.left()):.0f} s are left")
            return None
        try:
            return measure()
        except (RuntimeError, FednasError) as error:  # torch's own, out of memory among them, and ours
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            row["notes"].append(f"{name}: {type(error).__name__}: {first}")
            return None
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def add(self, row: Row, cells: Sequence[str]) -> None:
        """Write a row and print its cells, with its notes below."""
        self.rows.append(row)
        if self.out:
            with self.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        show(cells)
        for note in row["notes"]:
            print(f"    {note}", flush=True)


def show(cells: Sequence[str]) -> None:
    first, *others = cells
    print(f"{first:<33}" + "".join(f"{cell:>13}" for cell in others), flush=True)


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def ratio(above: float | None, below: float | None) -> str:
    return number(above / below if above and below else None, 2)


def spread(rates: Iterable[Sequence[float]]) -> str:
    """Return the widest spread of any column."""
    halves = [(max(column) - min(column)) / 2 / statistics.median(column) for column in rates]
    return number(100 * max(halves), 1) if halves else "–"


# -- steps ---------------------------------------------------------------------------------------------------------


def per_second(steps: Steps, images: int, extent: Extent) -> list[float]:
    """Return the images per second of each repeat; every step takes `images`."""

    def timed(count: int) -> float:
        synchronize(extent.device)
        start = time.perf_counter()
        steps(count)
        synchronize(extent.device)
        return time.perf_counter() - start

    timed(WARM_UP)
    count = max(1, round(extent.span / (timed(2) / 2)))
    return [count * images / timed(count) for _ in range(extent.repeats)]


def learning(step: Step, images: int, extent: Extent, row: Row, column: str) -> list[float]:
    """Return the rates of a step; the row notes if the loss of its batch does not fall, as it does in training."""

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    before = float(step())
    rates = per_second(steps, images, extent)
    after = float(step())
    row["losses"][column] = (before, after)
    if not after < before:
        row["notes"].append(f"{column}: the loss of its batch went from {before:.3g} to {after:.3g}")
    return rates


def low_precision(device: torch.device) -> torch.autocast:
    """Return the context of bf16; without a cache, whose copies of weights a graph would not renew."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


class Captured:
    """A step as one CUDA graph: it computes on the same memory, whatever Python does meanwhile."""

    def __init__(self, step: Step, row: Row) -> None:
        self._step = step  # the tensors of its module must live as long as the graph
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=side):
            self._loss = step()
        torch.cuda.synchronize()
        row["capture_ms"] = 1000 * (time.perf_counter() - start)

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self._loss


def single_step(module: nn.Module, batch: Batch) -> Step:
    """Return the app's training step in bf16 on one batch."""
    (x, y), parameters = batch, list(module.train().parameters())
    optimiser = Sgd(parameters, SETTINGS.lr, SETTINGS.momentum, SETTINGS.weight_decay)

    def step() -> Tensor:
        optimiser.zero_grad()
        with low_precision(x.device):
            logits = module(x).float()
        loss = functional.cross_entropy(logits, y)
        loss.backward()
        clip(parameters, SETTINGS)
        optimiser.step()
        return loss.detach()

    return step


def cohort_step(module: nn.Module, batch: Batch) -> Step:
    """Return one training step in bf16 of many clients, each with its own copy of the module's parameters.

    `batch` is (clients, n, channels, size, size) and (clients, n).
    """
    (x, y), module = batch, module.train()
    every = {name: torch.stack([tensor.detach()] * len(y)) for name, tensor in module.named_parameters()}
    optimiser = Sgd(list(every.values()), SETTINGS.lr, SETTINGS.momentum, SETTINGS.weight_decay)

    def loss_of(own: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(module, dict(own), (x,)).float(), y)

    def clipped(own: Mapping[str, Tensor], x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        gradients, loss = grad_and_value(loss_of)(own, x, y)
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        share = (SETTINGS.clip / (norm + 1e-6)).clamp(max=1.0)
        return {name: gradient * share for name, gradient in gradients.items()}, loss

    together = vmap(clipped)

    def step() -> Tensor:
        with low_precision(x.device):
            gradients, losses = together(every, x, y)
        for name, tensor in every.items():
            tensor.grad = gradients[name].contiguous()
        optimiser.step()
        return losses.mean()

    return step


# -- images per second ---------------------------------------------------------------------------------------------


def module_of(network: Network, device: torch.device) -> nn.Module:
    return subnet(network.space(), network.arch(), initial_weights(network.space(), 0), device)


@cache
def images(count: int) -> tuple[Tensor, Tensor]:
    """Return images (n, 32, 32, 3) uint8, and their labels (n,)."""
    x, y, _ = pixels(count)
    return torch.from_numpy(x), torch.from_numpy(y)


def ready_batches(clients: int, device: torch.device) -> Batch:
    """Return a normalised batch for each client: images (clients, n, 3, 32, 32), NCHW, and labels (clients, n)."""
    pictures, labels = images(clients * BATCH)
    x = Preprocessing(MEAN, STD)(pictures.permute(0, 3, 1, 2)).contiguous()
    return x.unflatten(0, (clients, BATCH)).to(device), labels.unflatten(0, (clients, BATCH)).to(device)


def endless(epoch: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
    while True:
        yield from epoch()


def loops(network: Network, extent: Extent, row: Row) -> dict[str, Measure]:
    """Return how each loop over single networks is measured, by its column; each trains a module of its own."""
    device = extent.device
    pictures, labels = images(IMAGES)
    loader = DataLoader(Pictures(pictures.numpy(), labels.numpy()), BATCH, shuffle=True, num_workers=0)
    x, y = pictures.permute(0, 3, 1, 2).to(device), labels.to(device)
    prepare, generator = Preprocessing(MEAN, STD), torch.Generator().manual_seed(0)
    plain, plain_labels = (part[0] for part in ready_batches(1, device))
    ready = plain.to(memory_format=torch.channels_last), plain_labels

    def augmented() -> Iterator[Batch]:
        for rows in batches(len(y), BATCH, generator):
            yield prepare(augment(x[rows], "crop-flip-cutout", generator, MEAN)), y[rows]

    def theirs(stream: Iterator[Batch]) -> list[float]:
        module = module_of(network, device)
        return per_second(lambda count: published(module, islice(stream, count), SETTINGS.lr), BATCH, extent)

    def ours(stream: Iterator[Batch], precision: str) -> list[float]:
        module = module_of(network, device)
        return per_second(lambda count: train(module, [islice(stream, count)], SETTINGS, precision), BATCH, extent)

    def graph() -> list[float]:
        return learning(Captured(single_step(module_of(network, device), ready), row), BATCH, extent, row, "graph")

    found: dict[str, Measure] = {
        "published": lambda: theirs(endless(lambda: loader)),
        "its ready": lambda: theirs(repeat((plain, plain_labels))),
        "app fp32": lambda: ours(endless(augmented), "fp32"),
    }
    if native_bf16(device):
        found["app bf16"] = lambda: ours(endless(augmented), "bf16")
        found["bf16 ready"] = lambda: ours(repeat(ready), "bf16")
    return found | ({"graph": graph} if device.type == "cuda" else {})


def together(network: Network, clients: int, extent: Extent, row: Row) -> dict[str, Measure]:
    """Return how many clients of one architecture are measured, by column."""

    def made() -> Step:
        return cohort_step(module_of(network, extent.device), ready_batches(clients, extent.device))

    found: dict[str, Measure] = {"plain": lambda: learning(made(), clients * BATCH, extent, row, "plain")}
    if extent.device.type == "cuda":
        found["graph"] = lambda: learning(Captured(made(), row), clients * BATCH, extent, row, "graph")
    return found


def measured(record: Record, extent: Extent, row: Row, columns: Mapping[str, Measure]) -> Row:
    """Return the row with the rates of each column and their medians."""
    start, rates = time.monotonic(), dict[str, list[float]]()
    for column, measure in columns.items():
        found = record.attempt(row, column, (extent.repeats + 2) * extent.span + 4, measure)
        if found:
            rates[column] = found
    medians = {column: statistics.median(values) for column, values in rates.items()}
    return row | {"rates": rates, "medians": medians, "took_s": time.monotonic() - start}


def networks(record: Record, extent: Extent) -> None:
    columns = ("published", "its ready", "app bf16", "app fp32", "bf16 ready", "graph")
    show(("images per second", *columns, "app÷publ.", "graph÷ready", "graph TFLOPS", "± %", "took s"))
    for network in extent.networks:
        row: Row = {"part": "networks", "network": str(network), "losses": {}, "notes": []}
        row = measured(record, extent, row, loops(network, extent, row))
        medians = row["medians"]
        graph, app = medians.get("graph"), medians.get("app bf16", medians.get("app fp32"))
        flops = graph and 6 * graph * network.macs() / 1e12  # 2 a MAC, forwards once and backwards twice
        ratios = (ratio(app, medians.get("published")), ratio(graph, medians.get("bf16 ready")), number(flops, 1))
        rates = (number(medians.get(column)) for column in columns)
        record.add(row, (str(network), *rates, *ratios, spread(row["rates"].values()), number(row["took_s"], 1)))


def clients_at_once(record: Record, extent: Extent) -> None:
    alone = {row["network"]: row["medians"].get("graph") for row in record.rows if row["part"] == "networks"}
    show(("images per second, vmap", "K", "plain", "graph", "graph÷plain", "÷one graph", "capture ms", "± %", "took s"))
    for network, clients in extent.cohorts:
        name = str(network)
        row: Row = {"part": "clients at once", "network": name, "clients": clients, "losses": {}, "notes": []}
        row = measured(record, extent, row, together(network, clients, extent, row))
        plain, graph = (row["medians"].get(column) for column in ("plain", "graph"))
        ratios = (ratio(graph, plain), ratio(graph, alone.get(name)))
        cells = (number(row.get("capture_ms"), 1), spread(row["rates"].values()), number(row["took_s"], 1))
        record.add(row, (name, str(clients), number(plain), number(graph), *ratios, *cells))


# -- rounds --------------------------------------------------------------------------------------------------------


def live(job: Job, count: int) -> Row:
    """Return the figures of `count` rounds after a first one in which processes start and read the data."""
    config = read({**job.settings, "device": job.device, "workers": job.workers, "rounds": 1000})
    chosen = space_of(config)
    poorest = min(budget.macs for budget in parse_budgets(config.budgets, chosen.cost(chosen.largest).macs))
    weights = initial_weights(chosen, config.seed)
    method = make(Setup(config, chosen, path_of(config, chosen, int(poorest)), weights))
    with closing(LocalFleet(config)) as fleet:
        events = [run_round(config, method, fleet, index) for index in range(count + 1)][1:]
    seconds = [event.seconds for event in events]
    training = [sum(client.seconds for client in event.clients) / job.workers for event in events]
    images = [config.train.epochs * sum(client.examples for client in event.clients) for event in events]
    rates = [count / second for count, second in zip(images, seconds, strict=True)]
    return {
        "round_s": statistics.median(seconds),
        "rounds_s": seconds,
        "training_s": statistics.median(training),
        "images_per_second": statistics.median(rates),
        "mb_down": statistics.median(event.bytes_down for event in events) / 1e6,
        "failures": [failure.reason for event in events for failure in event.failures],
    }


def rounds(record: Record, extent: Extent) -> None:
    show(
        ("rounds", "device", "processes", "round s", "training s", "images/s", "MB down", "÷first row", "± %", "took s")
    )
    first = dict[str, float]()
    for job in extent.jobs:
        start = time.monotonic()
        row: Row = {"part": "rounds", "job": job.name, "device": job.device, "workers": job.workers, "notes": []}
        found = record.attempt(row, "rounds", job.seconds, partial(live, job, extent.rounds)) or {}
        row |= {**found, "took_s": time.monotonic() - start}
        if row.get("failures"):
            row["notes"].append(f"clients failed: {row['failures']}")
        seconds = row.get("round_s")
        cells = [number(seconds, 2), number(row.get("training_s"), 2), number(row.get("images_per_second"))]
        cells += [number(row.get("mb_down"), 1), ratio(seconds, first.setdefault(job.name, seconds))]
        cells += [spread([row["rounds_s"]] if seconds else []), number(row["took_s"], 1)]
        record.add(row, (job.name, job.device, str(job.workers), *cells))


# -- all -----------------------------------------------------------------------------------------------------------


def measure_all(record: Record, extent: Extent) -> None:
    """Measure every part that fits into the time, and tell how long each took."""
    took = []
    for part in (networks, clients_at_once, rounds):
        start = time.monotonic()
        part(record, extent)
        print(flush=True)
        took.append(f"{part.__name__.replace('_', ' ')} {time.monotonic() - start:.0f} s")
    print(
        f"took: {', '.join(took)}; in all {time.monotonic() - record.start:.0f} s of {record.seconds:.0f}", flush=True
    )


def machine(device: torch.device, data: str) -> Row:
    row: Row = {"device": device_name(device), "torch": torch.__version__, "python": platform.python_version()}
    row |= {"cores": available_cores(), "load": os.getloadavg()[0], "images": data}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        row |= {"GiB": round(memory / 2**30, 1), "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return row


def main() -> None:
    chosen = options(
        __doc__,
        seconds={"type": float, "default": 460.0, "help": "what would end later is skipped"},
        out={"type": Path, "help": "file to which rows are appended, as lines of JSON"},
    )
    torch.set_num_threads(1)  # as the app trains
    record = Record(chosen.out, chosen.seconds)
    with tempfile.TemporaryDirectory() as folder:
        data, source = npz(Path(folder))
        extent = on_card(data) if torch.cuda.is_available() else on_processor(data)
        if chosen.quick:
            extent = replace(extent, span=extent.span / 4, repeats=2, rounds=1)
        row = machine(extent.device, source)
        record.add({"part": "machine", **row, "notes": []}, [", ".join(f"{key} {value}" for key, value in row.items())])
        if extent.device.type == "cpu":
            print("There is no usable card here: only the small part runs, on the processor, without graphs.")
        measure_all(record, extent)


if __name__ == "__main__":
    main()
