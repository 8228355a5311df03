"""Are the numbers those that are recorded? Runs of a pairwise covering set of settings against committed digests.

    python benchmarks/same_numbers.py                            # compares with same_numbers.json
    python benchmarks/same_numbers.py --only 'ddc'               # cases whose name contains this
    python benchmarks/same_numbers.py --part 1/2                 # the first half of the cases
    python benchmarks/same_numbers.py --record                   # writes the file anew
    python benchmarks/same_numbers.py --projections FOLDER       # and what is digested, to locate a difference by diff

Every two values of different `FACTORS` are together in a case, unless the app refuses them (`REFUSED`, each of which
is tried as well and must be refused in words). A case is two rounds on digits of 8×8 pixels, started by the command
`fednas run` with one worker; what is read of it are the files of the run's folder. So nothing here depends on where the
app's modules are. What is digested is the projection of `PARTS`: everything but clocks, what is measured by them,
names, paths and versions.

Arithmetic differs between kinds of processors and versions of torch, so the file names those that it holds for.

Exit status 1 if a part of a case is not as recorded, a case fails or what must be refused is not; 2 if this machine is
of another kind than the file's.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import EntryPoint, version
from itertools import combinations, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FILE = HERE / "same_numbers.json"

Settings = Mapping[str, str | int | float | bool]
Case = Mapping[str, str]
"""The value of each factor, by name."""

BASE: Settings = {
    "workers": 1, "device": "cpu", "rounds": 2, "data.source": "digits", "data.examples": 120, "data.clients": 6,
    "train.epochs": 1, "train.batch": 8, "sample.budgets": 6, "budgets": "half=50%,all=max", "evaluate-every": 1,
}  # fmt: skip
CONTEST: Settings = {
    "contest.iterations": 2, "contest.candidates": 2, "contest.finish": 1, "contest.testers": 0.34
}  # fmt: skip
GROWING: Settings = {"rounds": 4, "train.schedule": "constant", "sample.shrink-until": 0.6}

FACTORS: Mapping[str, Mapping[str, Settings]] = {
    "method": {
        "deepfednas": {}, "superfednas": {}, "fedsup": {"sample.inner": 1}, "efedsup": {}, "fedavg": {},
        "fedper": {"personal.epochs": 1},
        "fednas": {**CONTEST, "fednas.rounds-min": 1, "fednas.rounds-max": 1},
        "ddc": {**CONTEST, "ddc.rounds": 1},
    },
    "space": {name: {"space.name": name} for name in ("small", "mobilenet", "cnn8", "cifar-light")},
    "norm": {
        "group": {}, "none": {"space.norm": "none"},
        "batch-server": {"space.norm": "batch"},
        "batch-clients": {"space.norm": "batch", "calibrate": "federated"},
        "batch-client": {"space.norm": "batch", "calibrate": "client"},
        "parametric": {"space.norm": "parametric"}, "per-sample": {"space.norm": "parametric-sample"},
    },
    "variant": {"usual": {}, "second": {}, "third": {}},  # see VARIANTS
    "wire": {
        "fp32": {},
        "bf16": {"wire.down": "bf16", "wire.up": "bf16"},
        "int8": {"wire.down": "int8", "wire.up": "int8"},
        "topk": {"wire.down": "fp16", "wire.up": "topk"},
    },
    "personal": {
        "none": {},
        "head": {"personal.layers": "head", "personal.epochs": 1},
        "blocks": {"personal.blocks": 1, "personal.epochs": 1},
        "arch": {"personal.arch": True},
    },
    "merge": {
        "overlap": {}, "damped": {"merge.rule": "damped"}, "trimmed": {"merge.rule": "trimmed"},
        "clip": {"merge.clip": 0.8}, "opposed": {"merge.opposed": 0.25},
    },
    "loop": {"sync": {}, "async": {"loop": "async"}},
    "precision": {"fp32": {"train.precision": "fp32"}, "bf16": {"train.precision": "bf16"}},
    "shrink": {"none": {}, "shrink": GROWING, "sorted": {**GROWING, "sample.sort": True}},  # see settings_of
    "search": {
        "own": {}, "fitness": {"search.by": "fitness"},
        "accuracy": {"search.by": "accuracy", "search.population": 4, "search.generations": 1, "search.images": 8},
    },
    "partition": {
        "dirichlet": {}, "iid": {"data.partition": "iid"},
        "classes": {"data.partition": "classes", "data.classes-per-client": 3},
    },
    "limits": {"none": {}, "dealt": {"client-budgets": "half,all,all"}},
    "testers": {"none": {}, "three": {"evaluate-clients": 3}},
    "cohort": {"all": {}, "four": {"cohort": 4}},
    "training": {
        "plain": {},
        "other": {
            "train.augment": "crop-flip-cutout", "train.clip-value": 0.5, "train.clip": 0.0, "train.warmup": 1,
            "train.schedule": "constant", "train.label-smoothing": 0.0,
        },
    },
    "install": {"yes": {}, "no": {"install": False}},
}  # fmt: skip
"""What is varied; the first value of each factor is the usual one."""

VARIANTS: Mapping[str, tuple[Settings, Settings]] = {
    "deepfednas": (
        {"sample.between": "mac-matched", "sample.beta-end": 0.1},
        {"sample.range-share": 0.5, "sample.stratify": True},
    ),
    "superfednas": (
        {"sample.between": "path", "sample.path": "evolved", "sample.population": 4, "sample.generations": 2},
        {"sample.between": "range-matched", "sample.weigh": "examples"},
    ),
    "fedsup": ({"sample.distill": False}, {"sample.sandwich": False, "sample.weigh": "uniform"}),
    "efedsup": ({"sample.deal": "fixed"}, {"sample.tiers": "min,10%-50%,max"}),
    "fedavg": ({"sample.weigh": "uniform"}, {"seed": 2}),
    "fedper": ({"sample.weigh": "uniform"}, {"seed": 2}),
    "fednas": (
        {"fednas.search": "evolution", "fednas.freed": "join", "data.disclose": True},
        {"fednas.resource": "params", "fednas.drop": 0.0, "contest.clients": "all", "contest.own": True},
    ),
    "ddc": (
        {"ddc.sampler": "random", "ddc.inherit": True, "contest.own": True},
        {"ddc.reward": "n2n", "ddc.soft": 0.0, "contest.clients": "all"},
    ),
}
"""What is a method's own: its settings in the second and third variant."""

ONE_NETWORK, COMPETING = ("fedavg", "fedper"), ("fednas", "ddc")
REFUSED: Sequence[Mapping[str, tuple[str, ...]]] = (
    {"loop": ("async",), "merge": ("damped", "trimmed", "opposed")},
    {"method": ("ddc",), "space": ("small", "mobilenet", "cifar-light")},
    {"space": ("cifar-light",), "norm": ("per-sample",)},  # its last maps are single pixels
    {"method": COMPETING, "loop": ("async",)},
    {"method": COMPETING, "wire": ("topk",)},
    {"method": COMPETING, "personal": ("head", "blocks", "arch")},
    {"method": (*ONE_NETWORK, *COMPETING), "shrink": ("shrink", "sorted")},
    {"method": (*ONE_NETWORK, *COMPETING), "search": ("accuracy",)},
    {"personal": ("head", "blocks", "arch"), "search": ("accuracy",)},
    {"loop": ("async",), "shrink": ("sorted",)},
    {"wire": ("topk",), "shrink": ("sorted",)},
)
"""Values that the app refuses together."""

ROW = ("role", "tier", "network", "macs", "params", "examples", "client_macs", "bytes_down", "bytes_up", "anew")
"""What an event says of a client's order: who trained what, and what that cost."""
TOTALS = ("round", "client_macs", "bytes_down", "bytes_up")
FIGURES = ("loss", "accuracy", "update_norm")
"""What it says of training, in all and of each client."""
CLOCKS = re.compile(r"seconds|latency|(^|_)ms$|^(run|versions|fits|stored|date|time|path|events)$")
"""Keys of what is measured by clocks, names a run or a place, or is a digest of such."""
PARTS = ("orders", "figures", "search", "weights", "results")


# -- the covering set ----------------------------------------------------------------------------------------------


def covering() -> list[Case]:
    """Return cases in which every pair of values that is not refused is found, the greedy way.

    Each case begins with the first pair that no case has yet. Factor by factor it gets the value that adds most such
    pairs; of equal ones that which has been used least.
    """
    missing = dict.fromkeys(pairs())
    used, cases = {(factor, value): 0 for factor in FACTORS for value in FACTORS[factor]}, list[Case]()

    def completed(case: Case) -> Case | None:
        factor = next((factor for factor in FACTORS if factor not in case), None)
        if factor is None:
            return case
        options = [(factor, value) for value in FACTORS[factor]]
        gains = {one: sum(pair(one, other) in missing for other in case.items()) for one in options}
        for _, value in sorted(options, key=lambda one: (-gains[one], used[one])):
            more = {**case, factor: value}
            if not refused(more) and (found := completed(more)):
                return found
        return None

    while missing:
        first = next(iter(missing))
        found = completed(dict(first))
        if found is None:
            del missing[first]  # other values that it needs are refused
            continue
        case = {factor: found[factor] for factor in FACTORS}
        for both in combinations(case.items(), 2):
            missing.pop(both, None)
        for one in case.items():
            used[one] += 1
        cases.append(case)
    return cases


Pair = tuple[tuple[str, str], tuple[str, str]]
"""Two factors and a value of each, in the order of `FACTORS`."""


def pairs() -> Iterator[Pair]:
    """Yield all pairs of values of different factors that are not refused as they are."""
    for one, other in combinations(FACTORS, 2):
        for a in FACTORS[one]:
            for b in FACTORS[other]:
                if not refused({one: a, other: b}):
                    yield (one, a), (other, b)


def pair(one: tuple[str, str], other: tuple[str, str]) -> Pair:
    """Return two values as a pair."""
    order = list(FACTORS)
    return (one, other) if order.index(one[0]) < order.index(other[0]) else (other, one)


def refused(case: Case) -> bool:
    """Whether the app refuses the values of a case, or of a part of one."""
    return bool(broken(case))


def broken(case: Case) -> list[Mapping[str, tuple[str, ...]]]:
    """Return the entries of `REFUSED` that hold for a case, or for a part of one."""
    return [rule for rule in REFUSED if all(case.get(factor) in values for factor, values in rule.items())]


def refusals() -> list[Case]:
    """Return a case for each pair of values that the app refuses, refused for no other reason."""
    found = []
    for rule in REFUSED:
        one, other = rule
        for a, b in product(rule[one], rule[other]):
            case = {one: a, other: b}
            for factor, values in FACTORS.items():
                fitting = (value for value in values if broken({factor: value, **case}) == [rule])
                case = {factor: next(fitting), **case}
            found.append({factor: case[factor] for factor in FACTORS})
    return found


def name_of(case: Case) -> str:
    """Return the name of a case: method, space, and all values that are not the usual ones."""
    method, space, *rest = case.items()
    others = [f"{factor}={value}" for factor, value in rest if value != next(iter(FACTORS[factor]))]
    return " ".join([method[1], space[1], *others])


def settings_of(case: Case) -> Settings:
    """Return the settings of a case."""
    settings = {**BASE, "method": case["method"]}
    for factor, value in case.items():
        settings |= FACTORS[factor][value]
    if case["variant"] != "usual":
        settings |= VARIANTS[case["method"]][case["variant"] == "third"]
    if case["shrink"] != "none":
        settings["sample.shrink"] = "k" if case["space"] == "cnn8" else "w"
    return settings


# -- what is digested ----------------------------------------------------------------------------------------------


def projection(run: Path) -> dict[str, Any]:
    """Return what is digested of the run in this folder, by part; of orders and figures, a list of the rounds."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    files = {name: run / f"{name}.json" for name in ("search", "result", "frontier")}
    read = {name: timeless(json.loads(file.read_text())) for name, file in files.items() if file.exists()}
    story = [timeless(event["search"]) for event in events if "search" in event]
    checkpoint = [*sorted(run.glob("checkpoint/*.safetensors"))]
    models = {file.parent.name: tensors(file) for file in sorted(run.glob("models/*/weights.safetensors"))}
    return {
        "orders": [picked(event, TOTALS, ROW) | {"failures": event["failures"]} for event in events],
        "figures": [picked(event, FIGURES, FIGURES) | {"evaluation": event["evaluation"]} for event in events],
        "search": {"rounds": story, "candidates": read.get("search", [])},
        "weights": {"checkpoint": [tensors(file) for file in checkpoint], "models": models},
        "results": {"result": read["result"], "frontier": read["frontier"]},
    }


def picked(event: Mapping[str, Any], totals: Sequence[str], row: Sequence[str]) -> dict[str, Any]:
    """Return these values of an event, and of each of its clients."""
    clients = [{key: one[key] for key in ("client", *row) if key in one} for one in event["clients"]]
    return {key: event[key] for key in totals if key in event} | {"clients": clients}


def timeless(value: Any) -> Any:
    """Return a JSON value without what clocks have measured, names and places."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if not CLOCKS.search(key)}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def tensors(file: Path) -> dict[str, str]:
    """Return the digest of each tensor in a safetensors file: of its type, its shape and its values."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        said = f"{entry['dtype']}{entry['shape']}".encode()
        found[name] = hashlib.sha256(said + data[start + begin : start + end]).hexdigest()[:16]
    return found


def digest(value: Any) -> str:
    """Return the first eight hexadecimal digits of a JSON value's SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def line_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of a projection: a digest of each part, of orders and figures of each round, and a few figures.

    The figures are there to be read: each round's loss, the MACs of all clients and the accuracies of the models.
    """
    digests = {
        part: " ".join(map(digest, found[part])) if part in ("orders", "figures") else digest(found[part])
        for part in PARTS
    }
    result = found["results"]["result"]
    losses = [one["loss"] and round(one["loss"], 4) for one in found["figures"]]
    tested = [model["test_accuracy"] and round(model["test_accuracy"], 4) for model in result["models"]]
    return {**digests, "loss": losses, "client_macs": result["client_macs"], "tested": tested}


# -- runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lived:
    """A case, its line in the file, its whole projection (None: it was refused, or failed) and its CPU-seconds."""

    name: str
    line: Mapping[str, Any]
    projection: Mapping[str, Any] | None
    seconds: float


def live(case: Case) -> Lived:
    """Run a case in this process."""
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="fednas-same-") as folder:
        os.environ["FEDNAS_STATE"] = f"{folder}/state"
        given = {**settings_of(case), "output": f"{folder}/runs"}
        pairs = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items()]
        code, said = fednas(["run", *(f"--set={pair}" for pair in pairs)])
        found, done = None, {file.name: file.parent for file in Path(folder, "runs").glob("2*/*.json*")}
        if code != 2 and "result.json" in done:  # 1: a client was left without its model
            found = projection(done["result.json"])
            line = line_of(found)
        elif code == 2 and "events.jsonl" not in done:  # before its first round was done
            line = {"refused": said.rpartition("error: ")[2].strip()}
        else:
            line = {"failed": said[-1500:]}
    return Lived(name_of(case), line, found, time.process_time() - began)


def fednas(arguments: Sequence[str]) -> tuple[int, str]:
    """Run the command with these arguments in this process; return its exit status and all that it said."""
    script = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["scripts"]["fednas"]
    sys.argv = ["fednas", *arguments]
    said = io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            EntryPoint("fednas", script, "console_scripts").load()()
        except SystemExit as end:
            code = end.code or 0
    return code, said.getvalue()


def machine() -> dict[str, str]:
    """Return what arithmetic depends on: the kind of processor, what it does with vectors, torch and numpy."""
    told = dict[str, str]()
    for row in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = row.partition(":")
        told.setdefault(key.strip(), value.strip())
    vectors = [flag for flag in told.get("flags", "").split() if re.match(r"avx|amx|fma|f16c", flag)]
    kind = " ".join(told.get(key, "?") for key in ("vendor_id", "cpu family", "model"))
    packages = {name: version(name) for name in ("torch", "numpy")}
    return {"processor": kind, "vectors": " ".join(sorted(vectors)), **packages}


# -- the file ------------------------------------------------------------------------------------------------------


def write(file: Path, lines: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the lines of all cases, one a line."""
    rows = [f"{json.dumps(name)}: {json.dumps(line, ensure_ascii=False)}" for name, line in lines.items()]
    file.write_text(f'{{"machine": {json.dumps(machine())},\n"cases": {{\n' + ",\n".join(rows) + "\n}}\n")


def difference(case: Case, recorded: Mapping[str, Any] | None, line: Mapping[str, Any]) -> str:
    """Return what is not as it should be, '' if all is; of what is refused the words may be others."""
    if "failed" in line:
        return f"FAILED: {line['failed']}"
    if ("refused" in line) != refused(case):
        return f"REFUSED: {line['refused']}" if "refused" in line else "CARRIED OUT, but should be refused"
    if recorded is None:
        return "NOT RECORDED"
    if "refused" in line:
        return ""
    parts = [part_difference(part, recorded, line) for part in PARTS]
    return f"OTHER {', '.join(filter(None, parts))}" if any(parts) else ""


def part_difference(part: str, recorded: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """Return the part, with its first round that is another, '' if it is the same."""
    before, now = recorded[part].split(), line[part].split()
    if before == now:
        return ""
    if part not in ("orders", "figures"):
        return part
    same = [one == other for one, other in zip(before, now, strict=False)]
    return f"{part} from round {1 + (same.index(False) if False in same else len(same))}"


def main() -> int:
    options = given()
    everything = {name_of(case): case for case in [*covering(), *refusals()]}
    part, of = map(int, options.part.split("/"))
    chosen = {name: everything[name] for name in [name for name in everything if options.only in name][part - 1 :: of]}
    if not chosen:
        sys.exit(f"no case's name contains {options.only!r}; --list shows all")
    if options.list:
        print("\n".join(chosen))
        return 0
    stored = json.loads(options.file.read_text()) if options.file.exists() else {"machine": machine(), "cases": {}}
    if stored["machine"] != machine():
        print(f"{options.file} holds for {stored['machine']}; this is {machine()}: numbers may differ by rounding")
        if not options.record:
            return 2
        stored["cases"] = {}
    wrong = 0
    for number, one in enumerate(lived(list(chosen.values()), options.processes), start=1):
        if options.projections and one.projection:
            options.projections.mkdir(parents=True, exist_ok=True)
            (options.projections / f"{one.name}.json").write_text(json.dumps(one.projection, indent=1))
        if options.record:
            stored["cases"][one.name] = one.line
            write(options.file, {name: stored["cases"][name] for name in everything if name in stored["cases"]})
        told = difference(chosen[one.name], stored["cases"].get(one.name), one.line)
        wrong += bool(told)
        words = told or ("refused: " + one.line["refused"] if "refused" in one.line else "same")
        print(f"{number:4} of {len(chosen)}  {one.seconds:5.1f} s  {one.name}: {words}", flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} cases are {'' if options.record else 'as '}recorded")
    return int(wrong > 0)


def given() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the file instead of comparing with it")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every Nth of them, from the Ith on")
    parser.add_argument("--processes", type=int, default=2, help="cases side by side")
    parser.add_argument("--file", type=Path, default=FILE, help="the digests (same_numbers.json)")
    parser.add_argument("--projections", type=Path, metavar="FOLDER", help="write there what is digested, as JSON")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and leave")
    return parser.parse_args()


def lived(cases: Sequence[Case], processes: int) -> Iterator[Lived]:
    """Yield the cases as they have been lived, in order, by so many processes of one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=beside) as pool:
        for case, future in [(case, pool.submit(live, case)) for case in cases]:
            error = future.exception()  # a case that breaks is told, and the others go on
            yield Lived(name_of(case), {"failed": repr(error)}, None, 0.0) if error else future.result()


def beside() -> None:
    """Have this process import the app that lies beside this script, wherever another one may be installed."""
    sys.path.insert(0, str(HERE.parent))


if __name__ == "__main__":
    sys.exit(main())
