"""What a run starts from: fresh weights, or the network and the policy of a run before."""

from __future__ import annotations

from torch import Tensor

from fednas_core.config import RunConfig
from fednas_core.errors import ConfigError, RunError
from fednas_core.methods.contest import Contest
from fednas_core.methods.fedavg import SupernetAveraging
from fednas_core.methods.host import HOST
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.protocol import State
from fednas_core.runs.folder import RunFolder, find, output_folder
from fednas_core.seeding import derive
from fednas_core.spaces.modules import initial_weights
from fednas_core.spaces.space import SearchSpace
from fednas_core.tasks.bench import facts_of, space_of


def starting(config: RunConfig, space: SearchSpace) -> tuple[dict[str, Tensor], State | None]:
    """Return the weights that a run's training starts from, and the policy that is transferred to it, if any.

    A run that is resumed has both in its checkpoint: the runs before need not be there any more. Raises `ConfigError`
    where the settings name a run whose network or policy does not fit, `RunError` for one that is not there.
    """
    initial = initial_weights(space, derive(config.seed, "weights"))
    weights = {name: initial[name] for name in space.plan(space.largest)}
    if config.resume:
        return weights, None
    if config.contest.start:
        weights = _started(config, space, weights)
    return weights, _policy(config) if config.ddc.policy else None


def trained(run: RunFolder) -> tuple[int, SupernetAveraging | Contest]:
    """Return how many rounds a run has done, and its method as it was then; raise `RunError` without a checkpoint."""
    config = run.config()
    space = space_of(config)
    done, state = run.load_checkpoint()
    initial = initial_weights(space, 0)
    weights = {name: initial[name] for name in space.plan(space.largest)}
    method = make(Setup(config, space, path_of(config, space, space.cost(space.largest).macs), weights))
    method.restore(state)
    return done, method


def _started(config: RunConfig, space: SearchSpace, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the largest network of another run; of its classifier, the rows of this run's classes."""
    run = _named(config, "contest.start", config.contest.start)
    _, method = trained(run)
    found = dict(method.network(method.space.largest))
    theirs, mine = facts_of(run.config()).classes, facts_of(config).classes
    if theirs != mine and set(mine) <= set(theirs):
        rows = [theirs.index(name) for name in mine]
        found |= {name: tensor[rows] for name, tensor in found.items() if name.startswith("head.")}
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
        raise ConfigError(
            f"setting 'contest.start': run '{run.id}' trained space '{method.space.name}' for {len(theirs)} classes, "
            f"and its largest network is not that of this run's space '{space.name}': choose the same space and "
            "images, or another run"
        )
    return {name: found[name].clone() for name in weights}


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
