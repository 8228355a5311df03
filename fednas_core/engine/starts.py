"""What a run starts from: fresh weights, or the network and the policy of a run before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fednas_core.base.config import COMPETING, RunConfig
from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.seeding import derive
from fednas_core.base.settings import flatten
from fednas_core.base.values import ClientId, State
from fednas_core.methods.host import HOST
from fednas_core.methods.method import Method
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.runs.folder import RunFolder, find, output_folder
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.space import Elastic
from fednas_core.tasks.bench import digest_of, facts_of, space_of

DIVISION = tuple(
    f"data.{key}" for key in ("source", "image-size", "examples", "partition", "clients", "validation", "holdout")
)
"""Settings that decide, with the seed, which client holds which images and trains on which of them."""
SPREAD = {
    "iid": (),
    "dirichlet": ("data.alpha",),
    "classes": ("data.classes-per-client",),
    "column": ("data.column",),
}
"""What else decides it, by kind of partition."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What a run begins with.

    `weights` are the largest network's and `policy` one that is transferred, if any. `sides` says of the clients of the
    run whose network it is whether they tested there: they do so again. `warning` is to be told, if it says anything.
    """

    weights: dict[str, Tensor]
    policy: State | None = None
    sides: Mapping[ClientId, bool] = field(default_factory=dict)
    warning: str = ""


def starting(config: RunConfig, space: Elastic) -> Start:
    """Return what a run begins with.

    A run that is resumed has it in its checkpoint: the runs before need not be there any more. Raises `ConfigError`
    where the settings name a run whose network or policy does not fit, or whose clients hold other images; `RunError`
    for one that is not there.
    """
    initial = initial_weights(space, derive(config.seed, "weights"))
    start = Start({name: initial[name] for name in space.plan(space.supernet)})
    if config.resume:
        return start
    if config.contest.start:
        start = _started(config, space, start.weights)
    return replace(start, policy=_policy(config)) if config.ddc.policy else start


def trained(run: RunFolder) -> tuple[int, Method]:
    """Return how many rounds a run has done, and its method as it was then; raise `RunError` without a checkpoint."""
    config = run.config()
    space = space_of(config)
    done, state = run.load_checkpoint()
    initial = initial_weights(space, 0)
    weights = {name: initial[name] for name in space.plan(space.supernet)}
    method = make(Setup(config, space, path_of(config, space, space.cost(space.supernet).macs), weights))
    method.restore(state)
    return done, method


def _started(config: RunConfig, space: Elastic, weights: dict[str, Tensor]) -> Start:
    """Return the start that another run's largest network is; of its classifier, the rows of this run's classes."""
    run = _named(config, "contest.start", config.contest.start)
    _refuse_other_data(config, run)
    _, method = trained(run)
    their_space = space_of(run.config())
    found = dict(method.network(their_space.largest))
    theirs, mine = facts_of(run.config()).classes, facts_of(config).classes
    if not set(mine) <= set(theirs):
        raise ConfigError(
            f"setting 'data.only' = '{config.data.only}': run '{run.id}' trained space '{their_space.name}' for "
            f"{len(theirs)} classes: allowed are two or more of {', '.join(theirs[:100])}"
        )
    if theirs != mine:
        rows = [theirs.index(name) for name in mine]
        found |= {name: tensor[rows] for name, tensor in found.items() if name.startswith("head.")}
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
        raise ConfigError(
            f"setting 'contest.start': run '{run.id}' trained space '{their_space.name}' for {len(theirs)} classes, "
            f"and its largest network is not that of this run's space '{space.name}': choose the same space and "
            "images, or another run"
        )
    _, state = run.load_checkpoint()
    sides = state.data.get("sides", {}).get("tests", {})
    return Start({name: found[name].clone() for name in weights}, sides=sides, warning=_seen(run))


def _refuse_other_data(config: RunConfig, run: RunFolder) -> None:
    """Raise `ConfigError` if the clients of another run hold, train on or test on other images than those of this one.

    Its network would be tested on images that it was trained on.
    """
    other = run.config()
    theirs, mine, noted = flatten(other), flatten(config), run.images()
    competes = ["contest.testers"] if other.method in COMPETING else []
    for key in ["seed", *DIVISION, *SPREAD[config.data.partition], *competes]:
        if theirs[key] != mine[key]:
            raise ConfigError(
                f"setting '{key}' = {mine[key]!r}, but {theirs[key]!r} in run '{run.id}', whose network is the start: "
                "clients would test on images that it was trained on; allowed is the same, or another contest.start"
            )
    if noted != digest_of(config) if noted else theirs["data.path"] != mine["data.path"]:
        raise ConfigError(
            f"setting 'data.path' = {mine['data.path']!r} holds other images than run '{run.id}', whose network is the "
            f"start, had from {theirs['data.path']!r}: clients would test on images that it was trained on; allowed "
            "are the same images, or another contest.start"
        )


def _seen(run: RunFolder) -> str:
    """Return what is to be told if clients that test have trained the network of a run, else ''."""
    config = run.config()
    while config.method in COMPETING and config.contest.start:
        try:
            config = find(run.path.parent, config.contest.start).config()
        except RunError:
            break
    if config.method in COMPETING:
        return ""
    return (
        f"WARNING contest.start: all clients of a run of '{config.method}' trained this network, those that test it "
        "now too. Its accuracy there is too high, and that of networks that inherit its weights; the test set's is not "
        "touched. A start of fednas or ddc has no such fault"
    )


def _named(config: RunConfig, setting: str, name: str) -> RunFolder:
    """Return the run that a setting names."""
    try:
        return find(output_folder(config), name)
    except RunError as error:
        raise ConfigError(f"setting '{setting}': {error}") from error


def _policy(config: RunConfig) -> State:
    run = _named(config, "ddc.policy", config.ddc.policy)
    _, state = run.load_checkpoint()
    try:
        learner = state.data["host"]["learner"]
    except (KeyError, TypeError):
        raise ConfigError(
            f"setting 'ddc.policy': run '{run.id}' of method '{run.config().method}' learnt none; name one of 'ddc'"
        ) from None
    own = {name.removeprefix(f"{HOST}/"): t for name, t in state.tensors.items() if name.startswith(f"{HOST}/")}
    return State(own, learner)
