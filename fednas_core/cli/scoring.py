"""Commands that need no training: score architectures, search the best within limits, find a Pareto path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fednas_core.base.errors import ArchError, ConfigError, InfeasibleError
from fednas_core.base.paths import expanded
from fednas_core.cli.show import Json, guard, millions, note, print_json, print_table, refuse

if TYPE_CHECKING:
    from fednas_core.base.values import Arch, NormKind
    from fednas_core.search.evolution import Measure
    from fednas_core.search.fitness import Floats, Ints
    from fednas_core.spaces.capabilities import Staged

Space = Annotated[str, typer.Option("--space", help="A space's name (see `fednas spaces`) or a TOML file.")]
Lambda = Annotated[float, typer.Option("--lambda", help="λ of the fitness: weight of effectiveness.")]
Norm = Annotated[Literal["none", "group", "batch"], typer.Option("--norm", help="Normalisation.")]

POPULATION, TIMED_POPULATION = (128, 100), (24, 20)
"""Architectures and generations of an evolutionary search; the second where each is timed on this machine."""


@guard
def score(
    space: Space,
    arch: Annotated[str | None, typer.Option("--arch", help='JSON: {"d":[…],"e":[…],"w":[…]}.')] = None,
    archs: Annotated[
        Path | None, typer.Option("--archs", help="File of one JSON object a line, other keys allowed.")
    ] = None,
    lam: Lambda = 1000.0,
    norm: Norm = "group",
    as_json: Json = False,
) -> None:
    """Say what architectures cost and how fit they are, without training."""
    if (arch is None) == (archs is None):
        raise ConfigError("give either --arch JSON or --archs FILE.jsonl")
    chosen = _space(space, norm)
    if archs is None:
        rows = _scores(chosen, [_arch(chosen, str(arch), "--arch")[1]], lam)
    else:
        named = list(_read_archs(chosen, archs))
        rows = [extra | row for (extra, _), row in zip(named, _scores(chosen, [a for _, a in named], lam), strict=True)]
    if as_json:
        print_json(rows if archs else rows[0])
    else:
        _show(rows)


@guard
def search(
    space: Space,
    max_macs: Annotated[str | None, typer.Option(help="Limit on MACs: 500M, 1.4G, 30% (of the largest).")] = None,
    max_params: Annotated[str | None, typer.Option(help="Limit on parameters: 10M, 30% (of the largest).")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(min=0.0, help="Limit on a forward pass measured here, one image, one thread.")
    ] = None,
    lam: Lambda = 1000.0,
    norm: Norm = "group",
    as_json: Json = False,
) -> None:
    """Find the architecture of highest fitness within limits: exactly for one limit, else by evolution."""
    from fednas_core.devices.budgets import parse_macs

    chosen = _space(space, norm)
    most = chosen.cost(chosen.largest)
    limits: dict[str, float] = {}
    if max_macs is not None:
        limits["macs"] = parse_macs(max_macs, most.macs)
    if max_params is not None:
        limits["params"] = parse_macs(max_params, most.params)
    if max_latency_ms is not None:
        limits["latency_ms"] = max_latency_ms
    if not limits:
        raise ConfigError("give at least one limit: --max-macs 500M, --max-params 10M or --max-latency-ms 20")
    timed = _Timed(chosen)
    try:
        found, how = _best(chosen, limits, lam, timed)
    except InfeasibleError as error:
        nearest = _scores(chosen, [chosen.smallest], lam)[0]
        about = f"{millions(nearest['macs'])} MACs, {millions(nearest['params'])} parameters"
        if "latency_ms" in limits:
            nearest["latency_ms"] = timed.milliseconds(chosen.smallest)
            about += f", {nearest['latency_ms']:.2f} ms"
        refuse(f"{error}\nthe smallest network takes {about}: {chosen.smallest}", as_json, nearest=nearest)
        return
    row = _scores(chosen, [found], lam)[0] | {"bytes": chosen.cost(found).bytes, "how": how}
    if "latency_ms" in limits:
        row["latency_ms"] = timed.milliseconds(found)
    if as_json:
        print_json(row)
    else:
        _show([row])


@guard
def path(
    space: Space,
    budgets: Annotated[int, typer.Option(min=1, max=1000, help="Number of MAC budgets, one row for each.")] = 60,
    how: Annotated[
        Literal["exact", "evolved"], typer.Option(help="Exact search, or the published evolution (extra 'search').")
    ] = "exact",
    stratify: Annotated[bool, typer.Option("--stratify", help="Spread the path over depths.")] = False,
    low: Annotated[str | None, typer.Option(help="MACs of the first budget: 0.4G, 10%.")] = None,
    lam: Lambda = 1000.0,
    as_json: Json = False,
) -> None:
    """Find the Pareto path: the architecture of highest fitness for each of a series of MAC budgets."""
    from fednas_core.devices.budgets import parse_macs
    from fednas_core.search.fitness import Fitness
    from fednas_core.search.path import pareto_path

    chosen = _space(space, "group")
    start = None if low is None else parse_macs(low, chosen.cost(chosen.largest).macs)
    found = pareto_path(chosen, budgets, Fitness(lam=lam), how=how, stratify=stratify, low=start)
    rows = [
        {"macs": row.cost.macs, "params": row.cost.params, "fitness": row.fitness, "arch": row.arch.to_json()}
        for row in found
    ]
    if as_json:
        print_json(rows)
    else:
        _show(rows)


def _space(name: str, norm: NormKind) -> Staged:
    from fednas_core.spaces.capabilities import staged
    from fednas_core.spaces.registry import load

    found = staged(load(name).with_norm(norm))
    if found is None:
        raise ConfigError(f"--space {name}: the fitness of DeepFedNAS is defined for elastic ResNets only")
    return found


def _read_archs(space: Staged, file: Path) -> Iterator[tuple[dict[str, Any], Arch]]:
    """Yield the further keys and the architecture of every line that is not empty."""
    try:
        lines = expanded(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--archs {file}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            genes, arch = _arch(space, line, f"{file}, line {number}")
            yield ({"name": genes["name"]} if "name" in genes else {}), arch


def _arch(space: Staged, text: str, where: str) -> tuple[dict[str, Any], Arch]:
    """Return a JSON object and its architecture: of the genes in it, or in its key ``arch``."""
    try:
        values = json.loads(text)
        genes = values["arch"] if isinstance(values, dict) and "arch" in values else values
        return values, space.arch({key: genes[key] for key in ("d", "e", "w")})
    except (ValueError, KeyError, TypeError) as error:
        what = f"needs d, e and w ({error})" if not isinstance(error, ValueError) else f"is not JSON ({error})"
        raise ArchError(f"{where}: {what}; an example: {space.smallest}") from error
    except ArchError as error:
        raise ArchError(f"{where}: {error}") from error


def _scores(space: Staged, archs: Sequence[Arch], lam: float) -> list[dict[str, Any]]:
    """Return macs, params, rho, entropy, fitness and the architecture itself of each architecture."""
    import numpy as np

    from fednas_core.search.fitness import Fitness, evaluate

    if not archs:
        return []
    found = evaluate(space, np.stack([space.encode(arch) for arch in archs]))
    columns = (found.macs, found.params, found.rho, found.entropy, found.fitness(Fitness(lam=lam)))
    keys = ("macs", "params", "rho", "entropy", "fitness")
    values = zip(*(column.tolist() for column in columns), strict=True)
    rows = (dict(zip(keys, row, strict=True)) for row in values)
    return [row | {"arch": arch.to_json()} for row, arch in zip(rows, archs, strict=True)]


def _best(space: Staged, limits: dict[str, float], lam: float, timed: _Timed) -> tuple[Arch, str]:
    """Return the best architecture within the limits and how it was found: ``exact`` or ``evolved``."""
    from fednas_core.search.evolution import Constraint, evolve
    from fednas_core.search.exact import exact_search
    from fednas_core.search.fitness import Fitness, evaluate

    constants = Fitness(lam=lam)
    if "latency_ms" not in limits and len(limits) == 1:
        resource: Literal["macs", "params"] = "macs" if "macs" in limits else "params"
        return exact_search(space, [int(limits[resource])], constants, resource=resource)[0], "exact"
    measures: dict[str, Measure] = {
        "macs": lambda rows: evaluate(space, rows).macs,
        "params": lambda rows: evaluate(space, rows).params,
        "latency_ms": timed,
    }
    constraints = [Constraint(name, measures[name], limit) for name, limit in limits.items()]
    population, generations = POPULATION
    if "latency_ms" in limits:
        note("timing architectures on this machine: this takes a while")
        population, generations = TIMED_POPULATION

    def fitness(rows: Ints) -> Floats:
        return evaluate(space, rows).fitness(constants)

    return evolve(space, fitness, constraints, population=population, generations=generations), "evolved"


class _Timed:
    """The measured latency of architectures, each timed once: a `Measure` in milliseconds."""

    def __init__(self, space: Staged) -> None:
        self._space = space
        self._known: dict[Arch, float] = {}

    def __call__(self, rows: Any) -> list[float]:
        return [self.milliseconds(self._space.decode(row)) for row in rows]

    def milliseconds(self, arch: Arch) -> float:
        """Return the median time of a forward pass of one image with one thread."""
        import torch

        from fednas_core.devices.latency import measure

        if arch not in self._known:
            with torch.device("meta"):
                network = self._space.build(arch)
            network = network.to_empty(device="cpu")
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.data.fill_(0.01)
            shape = self._space.signature.inputs
            self._known[arch] = measure(network, shape, repeats=5, warmup=1).median_ms
        return self._known[arch]


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table, with the columns that they have."""
    formats: dict[str, Callable[[Any], str]] = {
        "name": str,
        "macs": millions,
        "params": millions,
        "bytes": lambda size: f"{size / 1e6:.2f} MB",
        "latency_ms": lambda time: f"{time:.2f} ms",
        "rho": lambda rho: f"{rho:.5f}",
        "entropy": lambda entropy: f"{entropy:.3f}",
        "fitness": lambda fitness: f"{fitness:.4f}",
        "arch": lambda arch: json.dumps(arch, separators=(",", ":")),
    }
    names = {"macs": "MACs", "params": "parameters", "rho": "ρ", "latency_ms": "latency", "bytes": "size"}
    keys = [key for key in formats if any(key in row for row in rows)]
    cells = [[formats[key](row[key]) if key in row else "" for key in keys] for row in rows]
    print_table([names.get(key, key) for key in keys], cells)
