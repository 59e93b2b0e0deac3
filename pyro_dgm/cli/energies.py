"""``pyro-dgm compare --energies``: objectives for energies on a density of two dimensions that is known."""

from __future__ import annotations

import functools
import math
from typing import Any

from pyro_dgm.cli.errors import UsageError, bad_usage_if_raised
from pyro_dgm.cli.specs import split_call

__all__ = ["DEFAULT_ENERGY_OBJECTIVES", "compare_on_plane", "eight_normals", "parse_energy_objective"]

#: name and specification of what is compared by default
DEFAULT_ENERGY_OBJECTIVES = {
    "CD-1": "ContrastiveDivergence(num_steps=1)",
    "CD-10": "ContrastiveDivergence(num_steps=10)",
    "PCD": "PersistentCD(num_steps=10, num_chains=256, buffer=4000, reinit=0.05)",
    "SM": "ScoreMatching",
    "DSM": "DenoisingScoreMatching(0.1)",
    "SSM": "SlicedScoreMatching",
    "NCE": "NoiseContrastive(num_noise=4)",
}
NUM_DATA, BATCH_SIZE, LEARNING_RATE = 4000, 250, 0.01


def parse_energy_objective(spec: str) -> Any:
    """An objective for energies by its name and arguments, as ``"ContrastiveDivergence(10)"``."""
    from pyro_dgm.infer.objectives import energies as energy

    known = {name: getattr(energy, name) for name in energy.__all__}
    abstract = (energy.EnergyObjective, energy.ScoreObjective, energy.ShortRunML)  # the last trains a prior
    made = {n: c for n, c in known.items() if issubclass(c, energy.EnergyObjective) and c not in abstract}
    name, args, named = split_call(spec)
    if name not in made:
        raise UsageError(f"there is no objective for energies {name!r}; there are {', '.join(sorted(made))}")
    with bad_usage_if_raised(f"objective {spec!r}"):
        return made[name](*args, **named)


def eight_normals() -> Any:
    """Eight normals on a circle, of which half are three times as heavy as the others."""
    import pyro.distributions as dist
    import torch

    angles = torch.arange(8) * math.pi / 4
    modes = dist.Normal(2 * torch.stack([angles.cos(), angles.sin()], -1), 0.25).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([1.0, 1, 1, 1, 3, 3, 3, 3])), modes)


def compare_on_plane(objectives: dict[str, Any], epochs: int, seed: int) -> Any:
    """Train a small network's energy on draws of :func:`eight_normals` under each objective."""
    import torch

    import pyro_dgm
    from pyro_dgm.ops.random_state import forked_rng

    law = eight_normals()
    with forked_rng(seed=seed):
        x = law.sample((NUM_DATA,))

    def make() -> Any:
        ebm = pyro_dgm.models.EBM((2,), hidden=(64, 64), step_size=0.1)
        ebm.initialize_base(x, widen=1.5)
        return ebm

    falling = functools.partial(
        torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs * math.ceil(NUM_DATA / BATCH_SIZE)
    )
    return pyro_dgm.analysis.compare_energies(
        make, x, objectives, log_density=law.log_prob, epochs=epochs, batch_size=BATCH_SIZE, seed=seed,
        optimizer=functools.partial(torch.optim.Adam, lr=LEARNING_RATE), lr_scheduler=falling,
        lr_scheduler_interval="step", device="cpu",
    )  # fmt: skip
