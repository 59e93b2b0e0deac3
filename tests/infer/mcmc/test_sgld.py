"""SGLD on a conjugate Gaussian mean: posterior, inflation by the gradient's noise in closed form, preconditioning."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.mcmc import MCMC, SGLD, PolynomialDecay
from pyro_dgm.infer.mcmc.potentials.minibatch import ModelMinibatches
from tests.infer.mcmc.targets import walk
from tests.infer.mcmc.test_exact import SIGMAS, in_standard_errors

N, BATCH, SD, PRIOR = 400, 20, 2.0, 3.0
X = 1.0 + SD * torch.randn(N, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
PRECISION = N / SD**2 + 1 / PRIOR**2
MEAN, VARIANCE = float(X.sum() / SD**2 / PRECISION), 1 / PRECISION
#: variance of the mini-batch gradient, drawn with replacement: N^2 / B Var(x) / sd^4
GRADIENT_NOISE = N**2 / BATCH * float(X.var(unbiased=False)) / SD**4


def model(x, batch=BATCH):
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0).double(), PRIOR))
    with pyro.plate("data", len(x), subsample_size=batch) as i:
        pyro.sample("x", dist.Normal(mean, SD), obs=x[i])


def estimate(u, i):
    likelihood = 0.5 * ((u["mean"].unsqueeze(-1) - X[i]) / SD).square().sum(-1)
    return len(X) / i.shape[-1] * likelihood + 0.5 * (u["mean"] / PRIOR).square()


def stationary_variance(step, noise, variance=VARIANCE, temperature=1.0):
    return (
        temperature
        * variance
        * (1 + step**2 * noise / (4 * temperature**2))
        / (1 - step**2 / (4 * temperature * variance))
    )


@pytest.mark.parametrize("step_size", [0.02, 0.06])
@pytest.mark.parametrize("kind", ["model", "potential"])
def test_mean_and_inflated_variance(kind, step_size):
    """The larger step has a variance half as large again, all of it accounted for."""
    if kind == "model":
        kernel = SGLD(model, step_size=step_size)
        args, start = (X,), None
    else:
        kernel = SGLD(potential_fn=estimate, num_data=N, batch_size=BATCH, step_size=step_size)
        args, start = (), {"mean": torch.full((500,), MEAN).double()}
    chains, draws = 500, 250
    start = start or {"mean": torch.full((chains,), MEAN).double()}
    mcmc = MCMC(kernel, draws, 150, chains, seed=1, progress=False)
    mcmc.run(*args, initial_params=start)
    x = mcmc.get_samples(group_by_chain=True)["mean"]
    assert in_standard_errors(x, torch.tensor(MEAN)).max() < SIGMAS
    expected = stationary_variance(step_size, GRADIENT_NOISE)
    assert in_standard_errors((x - MEAN).square(), torch.tensor(expected)).max() < SIGMAS
    if step_size > 0.05:
        assert expected > 1.3 * VARIANCE
        assert in_standard_errors((x - MEAN).square(), torch.tensor(VARIANCE)).max() > 2 * SIGMAS


def test_a_falling_step_size_takes_the_bias_away():
    """The variance follows its recursion, and ends at the posterior's."""
    decay = PolynomialDecay(offset=20.0, exponent=0.9)
    kernel = SGLD(potential_fn=estimate, num_data=N, batch_size=BATCH, step_size=0.05, schedule=decay)
    steps = [0.05 * decay(t) for t in range(1200)]
    variance, worst = 0.0, 0.0
    for step in steps:
        variance = (1 - step**2 / 2 / VARIANCE) ** 2 * variance + step**2 + step**4 / 4 * GRADIENT_NOISE
        worst = max(worst, variance)
    assert worst > 1.2 * VARIANCE
    assert variance == pytest.approx(VARIANCE, rel=0.05)
    state, _ = walk(kernel, {"mean": torch.full((4000,), MEAN).double()}, len(steps))
    squares = (state.position["mean"] - MEAN).square()
    assert abs(float(squares.mean()) - variance) < SIGMAS * float(squares.std()) / 4000**0.5
    assert float(state.step_size) == pytest.approx(steps[-1])


@pytest.mark.parametrize("step_size", [0.25])
def test_preconditioned_and_frozen(step_size):
    """With G frozen the variance is the closed form of a step of epsilon sqrt(G), whatever each chain's G is."""
    kernel = SGLD(model, step_size=step_size, preconditioner="rmsprop", decay=0.98)
    kernel.condition(X)
    start = {"mean": torch.full((800,), MEAN).double()}
    state = kernel.start_warmup(kernel.init(start, torch.Generator().manual_seed(0)), 300)
    for _ in range(300):
        state, info = kernel.step(state)
        state = kernel.adapt(state, info)
    state = kernel.finish_warmup(state)
    square = state.squares["mean"].clone()
    draws = []
    for _ in range(300):
        state, _ = kernel.step(state)
        draws.append(state.position["mean"])
    assert torch.equal(state.squares["mean"], square)
    x = torch.stack(draws, 1)
    assert in_standard_errors(x, torch.tensor(MEAN)).max() < SIGMAS
    steps = step_size * (1 / (1e-5 + square.sqrt())).sqrt()
    expected = stationary_variance(steps, GRADIENT_NOISE)
    assert float(steps.std()) > 0
    ratio = (x - MEAN).square() / expected[:, None]
    assert in_standard_errors(ratio, torch.tensor(1.0)).max() < SIGMAS


def test_published_preconditioner_keeps_moving_and_is_the_recursion():
    kernel = SGLD(model, step_size=0.1, preconditioner="rmsprop", decay=0.9, damping=0.5, freeze_preconditioner=False)
    kernel.condition(X)
    state = kernel.init({"mean": torch.zeros(3).double()}, torch.Generator().manual_seed(0))
    state = kernel.finish_warmup(kernel.start_warmup(state, 1))
    noise = kernel.noise(state)
    new, _ = kernel.transition(state, noise)
    g = state.gradient["mean"]
    v = 0.9 * state.squares["mean"] + 0.1 * g**2
    scale = 1 / (0.5 + v.sqrt())
    by_hand = state.position["mean"] - 0.005 * scale * g + 0.1 * scale.sqrt() * noise["noise mean"]
    torch.testing.assert_close(new.position["mean"], by_hand)
    torch.testing.assert_close(new.squares["mean"], v)


def test_preconditioning_evens_out_scales():
    """Scales 1 and 1000 with one step size that plain SGLD is unstable at."""
    scale = torch.tensor([1.0, 1000.0]).double()

    def potential(u):
        return 0.5 * (u["x"] / scale).square().sum(-1)

    start = {"x": scale * torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    kernel = SGLD(potential_fn=potential, step_size=0.5, preconditioner="rmsprop", decay=0.99)
    mcmc = MCMC(kernel, 800, 400, 100, seed=0, progress=False)
    mcmc.run(initial_params=start)
    spread = mcmc.get_samples()["x"].std(0) / scale
    assert bool(((spread > 0.8) & (spread < 1.25)).all()), spread


def test_estimates_are_unbiased_and_of_their_own_data():
    """The mean over all mini-batches of one datum is the whole potential; each chain has data of its own."""
    potential = ModelMinibatches(model, (X, 1), {})
    position = {"mean": torch.full((N,), 0.7).double()}
    value, gradient = potential.on(position, {"data": torch.arange(N)[:, None]})
    whole = ModelMinibatches(model, (X, N), {})
    assert whole.plates == {}
    exact, slope = whole({"mean": torch.full((1,), 0.7).double()})
    torch.testing.assert_close(value.mean(), exact[0])
    torch.testing.assert_close(gradient["mean"].mean(), slope["mean"][0])
    assert len(set(value.tolist())) == N


def test_without_a_subsampled_plate_it_is_langevin():
    def whole(x):
        return model(x, None)

    one, _ = walk_model(SGLD(whole, step_size=0.05))
    two, _ = walk_model(pyro_dgm.infer.mcmc.Langevin(whole, step_size=0.05))
    assert torch.equal(one.position["mean"], two.position["mean"])


def walk_model(kernel):
    kernel.condition(X)
    state = kernel.init({"mean": torch.zeros(3).double()}, torch.Generator().manual_seed(0))
    for _ in range(5):
        state, info = kernel.step(state)
    return state, info


def test_both_drivers_and_sample_posterior():
    post = pyro_dgm.sample_posterior(
        model, X, method=SGLD(step_size=0.03), num_samples=200, num_chains=50, warmup_steps=200, seed=0, progress=False
    )
    assert in_standard_errors(post["mean"], torch.tensor(MEAN)).max() < SIGMAS
    sequential = MCMC(SGLD(model, step_size=0.05), 200, 100, 2, "sequential", seed=0, progress=False)
    sequential.run(X)
    assert sequential.get_samples(group_by_chain=True)["mean"].shape == (2, 200)
    pyro.set_rng_seed(0)
    theirs = pyro.infer.MCMC(SGLD(model, step_size=0.06), 800, 200, disable_progbar=True)
    theirs.run(X)
    draws = theirs.get_samples(group_by_chain=True)["mean"].reshape(8, 100)
    assert in_standard_errors(draws, torch.tensor(MEAN)).max() < SIGMAS


def test_a_local_latent_in_the_subsampled_plate_is_refused():
    def local(x):
        with pyro.plate("data", len(x), subsample_size=5) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    with pytest.raises(ValueError, match="latent site 'z' is inside the subsampled plate 'data'"):
        MCMC(SGLD(local), 5, 5, 2, progress=False).run(torch.zeros(20))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_data": 10}, "give num_data and batch_size both"),
        ({"num_data": 10, "batch_size": 11}, "batch_size must be from 1 to num_data = 10, got 11"),
        ({"num_data": 10, "batch_size": 5, "model": model}, "a model.s plate has both"),
        ({"preconditioner": "adam"}, "preconditioner must be None or 'rmsprop'"),
        ({"decay": 1.0}, "decay must be in"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SGLD(**settings)
