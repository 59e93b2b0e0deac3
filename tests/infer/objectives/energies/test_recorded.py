"""Energy objectives as graphs: the same history and weights as run eagerly, seed for seed."""

from __future__ import annotations

import pytest
import torch

import pyro_dgm
from pyro_dgm.infer import (
    CapturedELBO,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastive,
    PersistentCD,
    ScoreMatching,
    ShortRunML,
    SlicedScoreMatching,
)


def ebm(seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pyro_dgm.models.EBM(event_shape=(2,), hidden=(8,))


def rbm(seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pyro_dgm.models.RBM(num_visible=6, num_hidden=3)


def latent(seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pyro_dgm.models.LatentEBM(event_shape=(2,), latent_dim=2, hidden=(8,), prior_hidden=(8,))


def real() -> torch.Tensor:
    return torch.randn(48, 2, generator=torch.Generator().manual_seed(1))


def binary() -> torch.Tensor:
    return torch.randint(2, (48, 6), generator=torch.Generator().manual_seed(1)).float()


CASES = {
    "score matching": (ebm, real, ScoreMatching),
    "sliced": (ebm, real, SlicedScoreMatching),
    "denoising": (ebm, real, lambda: DenoisingScoreMatching([0.1, 0.5])),
    "noise contrastive": (ebm, real, NoiseContrastive),
    "cd": (rbm, binary, lambda: ContrastiveDivergence(2)),
    "cd, langevin": (ebm, real, lambda: ContrastiveDivergence(2)),
    "persistent cd": (rbm, binary, lambda: PersistentCD(2, num_chains=10)),
    "buffer": (rbm, binary, lambda: PersistentCD(1, num_chains=8, buffer=20, reinit=0.2)),
    "short run": (latent, real, lambda: ShortRunML(3, 3)),
}


def fit(case: str, compile, epochs=3):
    make, data, objective = CASES[case]
    program, objective = make(), objective()
    run = pyro_dgm.fit(
        program, data(), objective=objective, epochs=epochs, batch_size=16, seed=0, progress=False, compile=compile
    )
    return run, objective


@pytest.mark.parametrize("depth", ["graph", pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_fit_is_the_eager_one(case, depth, recwarn):
    eager, held = fit(case, False)
    recorded, moved = fit(case, depth)
    assert not [str(w.message) for w in recwarn if "runs eagerly" in str(w.message)]
    assert recorded.config["compile"] == ("graph" if depth == "graph" else "step")
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if depth == "graph" else {"rtol": 1e-3, "atol": 1e-4}
    if depth == "graph" or case not in ("cd", "persistent cd", "buffer"):  # inductor's Bernoulli has its own stream
        torch.testing.assert_close(
            torch.tensor(eager.history["train"]), torch.tensor(recorded.history["train"]), **tolerance
        )
        for a, b in zip(eager.program.parameters(), recorded.program.parameters(), strict=True):
            torch.testing.assert_close(a, b, **tolerance)
    if getattr(held, "chains", None) is not None:
        assert moved.chains.shape == held.chains.shape
        if depth == "graph":
            assert torch.equal(held.chains, moved.chains)


def test_chains_move_in_a_graph_of_ones_own_loop():
    program, data, objective = rbm(), binary(), PersistentCD(2, num_chains=10)
    loss = CapturedELBO(objective, backend="aten")(program.model, program.guide)
    torch.manual_seed(0)
    loss(data)
    before = objective.chains.clone()
    loss(data).backward()
    assert not torch.equal(before, objective.chains)
    assert program.weight.grad is not None
    with torch.no_grad():
        now = objective.chains.clone()
        loss(data)
    assert torch.equal(now, objective.chains)  # an evaluation does not move them


def test_an_energy_has_no_bound():
    program = rbm()
    with pytest.raises(TypeError, match="ContrastiveDivergence has no bound per datum"):
        CapturedELBO(ContrastiveDivergence(1)).bound(program.model, program.guide, binary())
