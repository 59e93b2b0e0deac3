"""Models that vmap cannot take as they are written, and that run over all chains together all the same."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.mcmc import SGLD
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential

F64 = torch.float64
X = torch.linspace(-2.0, 2.0, 12, dtype=F64)


def ordinal():
    """Pyro's OrderedLogistic fills its probabilities in place."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    cuts = pyro.sample("cuts", dist.Normal(torch.tensor([-1.0, 1.0], dtype=F64), 0.3).to_event(1))
    with pyro.plate("n", len(X)):
        pyro.sample("y", dist.OrderedLogistic(slope * X, cuts.sort().values), obs=(X > -1).long() + (X > 1).long())


def counts():
    """Torch's Multinomial writes where a mask of its values says."""
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3, dtype=F64)))
    pyro.sample("y", dist.Multinomial(probs=p, total_count=10), obs=torch.tensor([7.0, 3.0, 0.0], dtype=F64))


def hidden_markov():
    """Pyro's DiscreteHMM has an autograd function of the kind that vmap does not know."""
    stay = pyro.sample("stay", dist.Beta(torch.tensor(5.0, dtype=F64), 2.0))
    start = torch.zeros(2, dtype=F64)
    moves = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])]).log()
    emit = dist.Normal(torch.tensor([-1.0, 1.0], dtype=F64), 1.0)
    pyro.sample("y", dist.DiscreteHMM(start, moves, emit, duration=len(X)), obs=X)


def filled_in_place():
    """What users write: a buffer, filled step by step."""
    rate = pyro.sample("rate", dist.Beta(torch.tensor(2.0, dtype=F64), 2.0))
    path = torch.zeros(len(X), dtype=F64)
    path[0] = 1.0
    for i in range(1, len(X)):
        path[i] = rate * path[i - 1].clone()
    path[2:-1] += rate
    with pyro.plate("n", len(X)):
        pyro.sample("y", dist.Normal(path, 0.5), obs=X)


def masked():
    """Values cut by a mask of their own."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(4, dtype=F64), 1.0).to_event(1))
    cut = loc.clone()
    cut[cut < 0] = -0.5
    pyro.factor("f", (cut * loc).sum())


def branching():
    """Python looks at a value: nothing but chain after chain is right."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    pyro.sample("y", dist.Normal(loc if loc > 0 else 2.0 * loc, 1.0), obs=torch.tensor(0.5, dtype=F64))


def position_of(potential, chains=6):
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(chains, *v.shape, dtype=v.dtype, generator=generator) for k, v in potential.latents.items()}


def chain_by_chain(potential, position):
    rows = []
    for c in range(len(next(iter(position.values())))):
        leaves = {k: v[c].clone().requires_grad_() for k, v in position.items()}
        joint = potential.joint(leaves)
        value = -(joint.log_prob + joint.log_det)
        rows.append((value.detach(), torch.autograd.grad(value, list(leaves.values()))))
    grads = {k: torch.stack([g[i] for _, g in rows]) for i, k in enumerate(position)}
    return torch.stack([v for v, _ in rows]), grads


@pytest.mark.parametrize("model", [ordinal, counts, hidden_markov, filled_in_place, masked], ids=lambda m: m.__name__)
def test_chains_run_together(model):
    potential = ModelPotential(model, (), {})
    position = position_of(potential)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential(position)
        found = potential({k: v.flip(0) for k, v in position.items()})
    assert potential.can_be_recorded
    expected = chain_by_chain(potential, {k: v.flip(0) for k, v in position.items()})
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    for k, grad in expected[1].items():
        torch.testing.assert_close(found[1][k], grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(potential.value(position), found[0].flip(0), rtol=1e-10, atol=1e-10)


def test_a_branch_on_values_runs_chain_by_chain_and_says_so():
    potential = ModelPotential(branching, (), {})
    position = position_of(potential)
    with pytest.warns(RuntimeWarning, match="chain by chain"):
        found = potential(position)
    assert not potential.can_be_recorded
    expected = chain_by_chain(potential, position)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1]["loc"], expected[1]["loc"])


def test_a_recording_with_another_gradient_is_not_taken():
    """The value alone would pass: the model's gradient is not that of its operations."""

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 0.5 * grad

    def model():
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        pyro.factor("f", Half.apply(loc))

    potential = ModelPotential(model, (), {})
    position = position_of(potential)
    with pytest.warns(RuntimeWarning, match="chain by chain"):
        found = potential(position)
    torch.testing.assert_close(found[1]["loc"], position["loc"] - 0.5)
    assert not potential.can_be_recorded


def test_a_parameter_that_changes_is_seen():
    """The recording reads the model's parameters anew each time."""
    weight = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))

    def model():
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        path = torch.zeros(2, dtype=F64)
        path[1] = weight * loc
        pyro.factor("f", -path.square().sum())

    potential = ModelPotential(model, (), {})
    position = {"loc": torch.tensor([1.0, 2.0], dtype=F64)}
    first = potential(position)[0]
    assert potential.can_be_recorded
    with torch.no_grad():
        weight.mul_(2.0)
    torch.testing.assert_close(potential(position)[0] - first, 3.0 * position["loc"].square())


def test_a_posterior_by_hmc():
    """Dirichlet and multinomial are conjugate: the mean is known."""
    options = {"num_samples": 300, "warmup_steps": 300, "num_chains": 16, "seed": 0, "progress": False}
    p = pyro_dgm.sample_posterior(counts, method="hmc", **options)["p"]
    from tests.infer.mcmc.test_exact import in_standard_errors

    assert in_standard_errors(p, torch.tensor([8.0, 4.0, 1.0], dtype=F64) / 13).max() < 4


@pytest.mark.uses_param_store
def test_a_gaussian_process_of_pyros_is_recorded():
    """Pyro adds the jitter to the diagonal in place, by strides."""
    import pyro.contrib.gp as gp

    kernel = gp.kernels.RBF(1)
    kernel.variance = pyro.nn.PyroSample(dist.LogNormal(0.0, 1.0))
    kernel.lengthscale = pyro.nn.PyroSample(dist.LogNormal(0.0, 1.0))
    potential = ModelPotential(gp.models.GPRegression(X.float(), X.sin().float(), kernel).model, (), {})
    position = position_of(potential)
    eager = potential(position)
    graph = potential.evaluator.record("gradient", position)
    value, *gradients = graph(*position.values())
    torch.testing.assert_close(value, eager[0])
    for k, gradient in zip(position, gradients, strict=True):
        torch.testing.assert_close(gradient, eager[1][k], rtol=1e-4, atol=1e-4)
    other = {k: v.flip(0) + 0.1 for k, v in position.items()}
    torch.testing.assert_close(graph(*other.values())[0], chain_by_chain(potential, other)[0], rtol=1e-4, atol=1e-4)


def test_mini_batches():
    x = torch.randn(50, dtype=F64, generator=torch.Generator().manual_seed(0))

    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        with pyro.plate("n", len(x), subsample_size=10) as i:
            both = torch.zeros(2, dtype=F64)
            both[0] = loc[0]
            both[1] = both[0] + loc[1]
            pyro.sample("x", dist.Normal(both[1], 1.0), obs=x[i])

    post = pyro_dgm.sample_posterior(
        model, x, method=SGLD(step_size=0.05), num_samples=50, warmup_steps=50, num_chains=3, seed=0, progress=False
    )
    assert post["loc"].shape == (3, 50, 2)
    assert torch.isfinite(post["loc"]).all()
