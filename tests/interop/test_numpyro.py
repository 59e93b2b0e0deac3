"""Pyro models in NumPyro's NUTS, networks among them, against what is known of their posteriors."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential
from pyro_dgm.interop.numpyro import compare_backends, run_nuts, to_jax
from tests.infer.mcmc.test_exact import in_standard_errors

SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)
Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)


def linear_gaussian():
    torch.manual_seed(3)
    model = pyro_dgm.models.LinearGaussian(event_dim=5, latent_dim=2).double()
    return model, torch.randn(3, 5, dtype=torch.float64)


def test_linear_gaussian_posterior_is_exact():
    model, x = linear_gaussian()
    post = pyro_dgm.sample_posterior(
        model, x, method="nuts-numpyro", num_samples=400, warmup_steps=300, num_chains=8, seed=1, progress=False
    )
    z = post["z"]
    assert z.shape == (8, 400, 3, 2)
    assert z.dtype is torch.float64
    exact = model.posterior(x)
    errors = in_standard_errors(z, exact.loc)
    assert errors.max() < 4
    centred = z - exact.loc.detach()
    errors = in_standard_errors(centred[..., :, None] * centred[..., None, :], exact.covariance_matrix.expand(3, 2, 2))
    assert errors.max() < 4
    stats = post.sample_stats
    assert set(stats) == {"lp", "acceptance_rate", "diverging", "step_size", "n_steps", "energy"}
    trace = pyro.poutine.trace(pyro.poutine.condition(model.model, {"z": z[2, 5]})).get_trace(x)
    torch.testing.assert_close(stats["lp"][2, 5], trace.log_prob_sum())
    again = pyro_dgm.sample_posterior(
        model, x, method="nuts-numpyro", num_samples=400, warmup_steps=300, num_chains=8, seed=1, progress=False
    )
    assert torch.equal(again["z"], z)
    idata = pyro_dgm.to_arviz(post)
    assert idata.posterior["z"].shape == (8, 400, 3, 2)


def test_other_weights_and_data_are_not_compiled_again():
    from pyro_dgm.interop.numpyro_nuts import _compiled

    model, x = linear_gaussian()
    density = to_jax(model, x)
    settings = {"num_samples": 5, "warmup_steps": 5, "num_chains": 2, "seed": 0, "progress": False}
    run_nuts(density, **settings)
    loop = _compiled(density.lowered, tuple(density.names), density.x64, 5, 0.8, 10)
    compiled = loop.block._cache_size()
    with torch.no_grad():
        model.weight.mul_(2.0)
    changed = to_jax(model, x + 1.0)
    assert changed.lowered is density.lowered or changed.lowered == density.lowered
    run_nuts(changed, **settings)
    assert loop.block._cache_size() == compiled


def test_weights_are_arguments():
    """The density follows the tensors that it reads, after refresh, without being made anew."""
    model, x = linear_gaussian()
    density = to_jax(model, x)
    with torch.no_grad():
        model.weight.add_(0.3)
    point = density.points(1, 0)[0]
    with pytest.raises(RuntimeError):
        density.check(rtol=1e-10)
    density.refresh()
    assert density.check(rtol=1e-10) <= 1e-10
    assert torch.isfinite(density.value_and_grad(point)[0])


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_decoders(network):
    torch.manual_seed(0)
    vae = pyro_dgm.models.VAE((8, 8), 3, network=network).double()
    density = to_jax(vae, torch.bernoulli(torch.full((2, 8, 8), 0.4, dtype=torch.float64)))
    assert density.check(rtol=1e-10) <= 1e-10
    assert any(name.startswith("decoder") for name in density.arrays)


def test_float32_stays_float32_and_jax_is_left_as_it_was():
    import jax

    before = jax.config.jax_enable_x64
    model, x = linear_gaussian()
    post = pyro_dgm.sample_posterior(
        model.float(), x.float(), method="nuts-numpyro", num_samples=5, warmup_steps=5, num_chains=2, progress=False
    )
    assert post["z"].dtype is torch.float32
    assert jax.config.jax_enable_x64 == before


def schools():
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=torch.float64), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0, dtype=torch.float64)))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8, dtype=torch.float64), 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, SIGMA), obs=Y)


@pytest.mark.slow
def test_backends_side_by_side_on_eight_schools():
    table = compare_backends(schools, posterior=True, num_samples=1000, num_chains=4, seed=0)
    frame = table.to_frame("posteriors")
    assert len(frame) == 10
    assert frame["z"].abs().max() < 4
    assert table.to_frame()["gradient"].max() < 1e-10
    assert "Posteriors" in str(table)
    assert repr(table) == "BackendComparison(5 points, 10 elements)"


def test_what_nuts_cannot_take_is_named():
    def discrete():
        pyro.sample("k", dist.Poisson(3.0))

    with pytest.raises(ValueError, match="'k' is discrete"):
        to_jax(discrete)
    model, x = linear_gaussian()
    density = to_jax(model, x)
    with pytest.raises(ValueError, match="num_chains must be an integer of at least 1, got 0"):
        run_nuts(density, num_chains=0)
    with pytest.raises(ValueError, match=r"position must have the names \['z'\]"):
        with density.precision():
            density({"w": 0.0})
    with pytest.raises(RuntimeError, match="the model is of float64 and JAX is in 32 bits"):
        density({"z": torch.zeros(3, 2).numpy()})


def mixed(x, y, scalars):
    """Data from NumPy are float64, priors that are made of Python's numbers float32."""
    if scalars:
        b = pyro.sample("b0", dist.Normal(0.0, 1.0)), pyro.sample("b1", dist.Normal(0.0, 1.0))
    else:
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(2.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(x[:, 0] * b[0] + x[:, 1] * b[1], s), obs=y)


@pytest.mark.parametrize("scalars", [False, True])
def test_data_of_another_precision_than_the_priors(scalars):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    density = to_jax(mixed, x, y[:, 0], scalars)
    assert density.x64
    assert density.error < 1e-5


def by_plate(y):
    m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    for i in pyro.plate("n", len(y)):
        pyro.sample(f"y_{i}", dist.Normal(m, 1.0), obs=y[i])


def by_range(y):
    m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    for i in range(len(y)):
        pyro.sample(f"y_{i}", dist.Normal(m, 1.0), obs=y[i])


def test_a_plate_that_is_iterated_over():
    y = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plate, plain = to_jax(by_plate, y), to_jax(by_range, y)
    with plate.precision():
        position = {"m": 0.3}
        assert float(plate(position)) == pytest.approx(float(plain(position)), rel=1e-12)
    ours = ModelPotential(by_plate, (y,), {})
    point = {"m": torch.tensor([0.3, -1.0], dtype=torch.float64)}
    eager = ours(point)
    ours.capture(point)  # by Python's numbers: a recording cannot make them of a tensor
    for found, expected in zip(ours(point), eager, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [20, 30])
def test_large_correlation_matrices(size):
    """From the default start: further out they are singular in float32."""

    def model(y):
        factor = pyro.sample("L", dist.LKJCholesky(size, 2.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(size), scale_tril=factor), obs=y)

    y = torch.randn(60, size, generator=torch.Generator().manual_seed(0))
    density = to_jax(model, y)
    assert density.error < 1e-2
