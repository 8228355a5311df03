"""FedPer (Arivazhagan et al., 2019, arXiv 1912.00818): a shared base, and layers that each client keeps for itself.

Server, in each round: send the base W_B; receive W_B,j; ``W_B ← Σ_j γ_j·W_B,j`` with ``γ_j = n_j/Σ n`` (section 3,
algorithm "server"). That is federated averaging of a plan minus private names, which the search space leaves out where
`personal` names them; what a client does with its own layers W_P,j is in `fednas_core.tasks.personal`.

Any other method has personal layers too, by the setting ``personal.layers``; here they are the head by default,
that is K_P = 0 blocks and the classifier; setting ``personal.blocks`` adds the last K_P ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from fednas_core.base.config import RunConfig
from fednas_core.methods.fedavg import Everyone, fixed_arch
from fednas_core.methods.setup import averaging
from fednas_core.search.path import PathRow
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.weightings import Weighting


def fedper(config: RunConfig, space: Elastic, path: Sequence[PathRow]) -> tuple[Everyone, Weighting]:
    """Return the parts of the method: everyone trains one network, weighed by examples by default."""
    return Everyone(fixed_arch(config, space)), averaging(config)
