"""Where a task runs: the client's images, the search space, and the device as its node's configuration has it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import derive
from fednas_core.data.augment import Preprocessing
from fednas_core.data.own import read_own
from fednas_core.data.sources import Facts, Images
from fednas_core.spaces.space import Elastic
from fednas_core.tasks.bench import chooses, device_of, facts_of, parted, shares_of, space_of, spared
from fednas_core.tasks.home import Home
from fednas_core.tasks.store import Store, store_of


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """What a task finds where it runs: all that it knows besides its order.

    By the images for `validation` networks are followed and chosen, by those for `test` models are reported; a client
    that has none to spare has none there. `held_out` is False where nobody holds any out, and both are `train`.
    `facts` are those of the run's images, `budgets` the text of the budgets that the run names, and `seed` is the
    run's. `repeats` says that a client may be asked twice in what counts as one round, so that its own last state is
    of that round.
    """

    space: Elastic
    prepare: Preprocessing
    train: Images
    validation: Images
    test: Images
    held_out: bool
    device: torch.device
    home: Home
    facts: Facts
    budgets: str
    seed: int
    repeats: bool

    @property
    def store(self) -> Store:
        """The device's private state; raise `RunError` if it is in a home folder that does not exist."""
        return store_of(self.home)


@lru_cache(maxsize=64)
def site_of(config: RunConfig, index: int, home: Home = Home(), trains: bool = True) -> Site:  # noqa: B008
    """Return the site of client number `index`: with its part of the run's images, or the device's own ones.

    The client keeps some of its images for testing (see `spared`), drawn class by class; a device whose own data have a
    test split tests on that. Where clients test networks during the run, or each chooses its own model, half of those
    are for validation. One that never `trains` in the run tests on all its images.
    """
    known = home.facts if home.data and home.facts else facts_of(config)
    train, test = _own(config, index, home.data, known) if home.data else shares_of(config, index)
    validation, held_out = test, test is not None
    if not trains:
        train = train if test is None else Images(torch.cat([train.x, test.x]), torch.cat([train.y, test.y]))
        validation, test, held_out = train, train, True
    elif test is not None and chooses(config):
        half = min(len(test.y), max(1, round(len(test.y) / 2)))
        validation, test = parted(test, half, derive(config.seed, "data.validation", index))
    return Site(
        space=space_of(config, known if home.data else None),
        prepare=Preprocessing(known.mean, known.std),
        train=train,
        validation=validation or train,
        test=test or train,
        held_out=held_out,
        device=device_of(config),
        home=home,
        facts=home.facts or facts_of(config),
        budgets=config.budgets,
        seed=config.seed,
        repeats=config.loop == "async",
    )


def labels_of(config: RunConfig, index: int, home: Home = Home()) -> tuple[int, ...]:  # noqa: B008
    """Return how many images of each class client number `index` trains on, if the run asks and the device tells."""
    if not (config.data.disclose and home.disclose):
        return ()
    site = site_of(config, index, home)
    return tuple(torch.bincount(site.train.y, minlength=site.space.signature.outputs).tolist())


def _own(config: RunConfig, index: int, path: str, known: Facts) -> tuple[Images, Images | None]:
    """Return the device's own images to train on and those to test on, None if it holds none out."""
    train, test = read_own(path, known)
    if test is None and config.data.holdout:
        return parted(train, spared(config, len(train.y)), derive(config.seed, "data.holdout", index))
    return train, test
