"""to_arviz: groups, dimensions and values against log-densities worked out by hand."""

from __future__ import annotations

import contextlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyro_dgm
from pyro_dgm.analysis import arviz_adapter
from pyro_dgm.analysis.replay import map_draws
from pyro_dgm.infer.posterior import Posterior

CHAINS, DRAWS = 2, 30


def group(idata, name):
    return arviz_adapter.get_group(idata, name)


def hierarchical(x, sizes=None):
    """Global mu, a local theta for each group, observations within groups; two nested plates."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    scale = pyro.deterministic("scale", mu.abs() + 0.5)
    with pyro.plate("group", x.shape[0], dim=-2):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.deterministic("shifted", theta + 1.0)
        with pyro.plate("member", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(theta, scale), obs=x)


def hierarchical_draws(groups, chains=CHAINS, draws=DRAWS):
    return {"mu": torch.randn(chains, draws), "theta": torch.randn(chains, draws, groups, 1)}


def test_values_and_dims_of_a_hierarchical_model(rng_unchanged):
    x = torch.arange(12.0).reshape(3, 4) / 5
    draws = hierarchical_draws(3)
    sizes = torch.tensor([4, 4, 4])
    with rng_unchanged():
        idata = pyro_dgm.to_arviz(Posterior(draws, model=hierarchical, args=(x, sizes), method="test"))
    posterior = group(idata, "posterior")
    mu, theta = draws["mu"].numpy(), draws["theta"].squeeze(-1).numpy()
    assert posterior["mu"].dims == ("chain", "draw")
    assert posterior["theta"].dims == posterior["shifted"].dims == ("chain", "draw", "group")
    np.testing.assert_array_equal(posterior["theta"].values, theta)
    np.testing.assert_allclose(posterior["scale"].values, np.abs(mu) + 0.5, rtol=1e-6)
    np.testing.assert_allclose(posterior["shifted"].values, theta + 1.0, rtol=1e-6)
    likelihood = group(idata, "log_likelihood")["x"]
    assert likelihood.dims == ("chain", "draw", "group", "member")
    want = scipy.stats.norm.logpdf(x.numpy(), theta[..., None], (np.abs(mu) + 0.5)[..., None, None])
    np.testing.assert_allclose(likelihood.values, want, rtol=2e-5, atol=1e-5)
    prior = group(idata, "log_prior")
    assert prior["theta"].dims == ("chain", "draw", "group")
    np.testing.assert_allclose(prior["mu"].values, scipy.stats.norm.logpdf(mu, 0, 2), rtol=1e-5)
    np.testing.assert_allclose(
        prior["theta"].values, scipy.stats.norm.logpdf(theta, mu[..., None], 1), rtol=1e-4, atol=1e-5
    )
    observed = group(idata, "observed_data")["x"]
    assert observed.dims == ("group", "member")
    np.testing.assert_array_equal(observed.values, x.numpy())
    assert list(group(idata, "constant_data").data_vars) == ["sizes"]
    assert group(idata, "posterior").attrs["method"] == "test"
    assert arviz_adapter.loo(idata) is not None
    assert len(arviz_adapter.summary(idata)) == 2 + 2 * 3


def test_one_draw_at_a_time_is_the_same():
    x = torch.randn(3, 4)
    post = Posterior(hierarchical_draws(3), model=hierarchical, args=(x,))
    one, many = pyro_dgm.to_arviz(post, chunk_size=1), pyro_dgm.to_arviz(post, chunk_size=7)
    for name in arviz_adapter.group_names(one):
        for a, b in zip(group(one, name).data_vars.values(), group(many, name).data_vars.values(), strict=True):
            np.testing.assert_allclose(a.values, b.values, rtol=1e-6, atol=1e-6)


def test_a_model_that_vmap_cannot_follow_is_looped_over():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = 2.0 if mu.item() > 0 else 1.0  # needs the host
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    mu, x = torch.tensor([[-1.0, 0.5, 2.0]]), torch.tensor([0.1, 0.2])
    got = group(pyro_dgm.to_arviz(Posterior({"mu": mu}, model=model, args=(x,))), "log_likelihood")["x"].values[0]
    scale = np.array([1.0, 2.0, 2.0])[:, None]
    np.testing.assert_allclose(got, scipy.stats.norm.logpdf(x.numpy(), mu[0, :, None].numpy(), scale), rtol=1e-5)


def test_an_error_of_the_model_itself_is_raised():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if mu.item() > 1:
            raise RuntimeError("the model's own complaint")
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    with pytest.raises(RuntimeError, match="own complaint"):
        pyro_dgm.to_arviz(Posterior({"mu": torch.tensor([[0.0, 2.0]])}, model=model, args=(torch.tensor(0.0),)))


def test_indexing_over_the_first_dimension_stays_within_a_draw():
    # An outer plate over draws would have indexed draws here.
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.deterministic("first", w[0])
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w[1] + w.sum(), 1.0), obs=x)

    w, x = torch.randn(1, 5, 3), torch.randn(4)
    idata = pyro_dgm.to_arviz(Posterior({"w": w}, model=model, args=(x,)))
    np.testing.assert_array_equal(group(idata, "posterior")["first"].values, w[..., 0].numpy())
    want = scipy.stats.norm.logpdf(x.numpy(), (w[..., 1] + w.sum(-1))[..., None].numpy(), 1)
    np.testing.assert_allclose(group(idata, "log_likelihood")["x"].values, want, rtol=1e-5, atol=1e-5)
    assert group(idata, "posterior")["w"].dims == ("chain", "draw", "w_dim_0")


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    event=st.lists(st.integers(1, 3), min_size=0, max_size=2),
    chunk=st.integers(1, 7),
)
def test_any_plates_and_event_shapes(sizes, event, chunk):
    names = [f"plate{i}" for i in range(len(sizes))]

    def model(x):
        with contextlib.ExitStack() as stack:
            for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
                stack.enter_context(pyro.plate(name, size, dim=i - len(sizes)))
            z = pyro.sample("z", dist.Normal(torch.zeros(event), 1.0).to_event(len(event)))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 2.0).to_event(len(event)), obs=x)

    shape = (*sizes, *event)
    z, x = torch.randn(1, 4, *shape), torch.randn(shape)
    idata = pyro_dgm.to_arviz(Posterior({"z": z}, model=model, args=(x,)), chunk_size=chunk, posterior_predictive=True)
    posterior, likelihood = group(idata, "posterior"), group(idata, "log_likelihood")["x"]
    events = [f"{{}}_dim_{i}" for i in range(len(event))]
    assert posterior["z"].dims == ("chain", "draw", *names, *(e.format("z") for e in events))
    assert posterior["twice"].shape == posterior["z"].shape
    assert likelihood.dims == ("chain", "draw", *names)
    want = scipy.stats.norm.logpdf(x.numpy(), z.numpy(), 2).sum(tuple(range(-len(event), 0)) if event else ())
    np.testing.assert_allclose(likelihood.values, want, rtol=1e-4, atol=1e-4)
    predictive = group(idata, "posterior_predictive")["x"]
    assert predictive.dims == ("chain", "draw", *names, *(e.format("x") for e in events))


def test_masked_scaled_and_factored_densities():
    def model(x, mask):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("extra", -mu.square())
        with pyro.plate("data", 10, subsample=torch.tensor([7, 2, 5])), pyro.poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    mu, x, mask = torch.randn(1, 5), torch.randn(3), torch.tensor([True, False, True])
    idata = pyro_dgm.to_arviz(Posterior({"mu": mu}, model=model, args=(x, mask)))
    likelihood = group(idata, "log_likelihood")
    assert list(likelihood.data_vars) == ["x"]
    want = scipy.stats.norm.logpdf(x.numpy(), mu.numpy()[..., None])[..., mask.numpy()]  # not times 10/3
    np.testing.assert_allclose(likelihood["x"].values, want, rtol=1e-5, atol=1e-6)
    assert likelihood["x"].dims == ("chain", "draw", "x_unmasked")
    assert likelihood["x_data"].values.tolist() == [7, 5]
    assert group(idata, "observed_data")["data"].values.tolist() == [7, 2, 5]
    assert group(idata, "constant_data")["mask"].values.tolist() == [True, False, True]


def test_random_subsampling():
    def global_latent(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=4) as index:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])

    mu, x = torch.randn(1, 5), torch.randn(50)
    likelihood = group(pyro_dgm.to_arviz(Posterior({"mu": mu}, model=global_latent, args=(x,))), "log_likelihood")
    rows = likelihood["data"].values
    assert len(set(rows)) == 4
    want = scipy.stats.norm.logpdf(x.numpy()[rows], mu.numpy()[..., None])  # one set of rows for all draws
    np.testing.assert_allclose(likelihood["x"].values, want, rtol=1e-5, atol=1e-6)

    def local_latent(x):
        with pyro.plate("data", len(x), subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    with pytest.raises(ValueError, match="draws its subsample at random"):
        pyro_dgm.to_arviz(Posterior({"z": torch.randn(1, 5, 4)}, model=local_latent, args=(x,)))


def test_names_that_would_clash():
    def model(x):
        with pyro.plate("draw", len(x)):
            z = pyro.sample("scope/z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    x = torch.randn(3)
    idata = pyro_dgm.to_arviz(Posterior({"scope/z": torch.randn(1, 5, 3, 2)}, model=model, args=(x,)))
    assert group(idata, "posterior")["scope.z"].dims == ("chain", "draw", "draw_plate", "scope.z_dim_0")
    assert group(idata, "log_likelihood")["x"].dims == ("chain", "draw", "draw_plate")


def test_own_dims_and_coords():
    m = pyro_dgm.models.LinearGaussian(3, 2)
    x = torch.randn(4, 3)
    post = Posterior({"z": torch.randn(1, 5, 4, 2)}, model=m.model, args=(x,))
    coords = {"data": list("abcd"), "factor": ["f", "g"]}
    idata = pyro_dgm.to_arviz(post, dims={"z": ["factor"], "x": ["item", "test"]}, coords=coords)
    assert group(idata, "posterior")["z"].dims == ("chain", "draw", "data", "factor")
    assert group(idata, "posterior")["data"].values.tolist() == list("abcd")
    assert group(idata, "log_prior")["z"].dims == ("chain", "draw", "data")
    assert group(idata, "log_likelihood")["x"].dims == ("chain", "draw", "item")
    assert group(idata, "observed_data")["x"].dims == ("item", "test")
    with pytest.raises(ValueError, match=r"dims\['z'\] names 3 dimensions"):
        pyro_dgm.to_arviz(post, dims={"z": ["a", "b", "c"]})


def test_half_precision_gradients_and_integers():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.bfloat16), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    z = torch.randn(1, 6, dtype=torch.bfloat16).requires_grad_()
    stats = {"diverging": torch.zeros(1, 6, dtype=torch.bool), "n_steps": torch.ones(1, 6, dtype=torch.int64)}
    idata = pyro_dgm.to_arviz(Posterior({"z": z}, stats, model=model, args=(torch.tensor([1, 3]),)))
    assert group(idata, "posterior")["z"].dtype == np.float32
    np.testing.assert_array_equal(group(idata, "posterior")["z"].values, z.detach().float().numpy())
    assert group(idata, "sample_stats")["diverging"].dtype == bool
    assert group(idata, "observed_data")["x"].values.tolist() == [1, 3]


def test_predictive_and_prior_draws():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(3.0, 0.5))
        pyro.deterministic("double", 2 * mu)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x, n = torch.zeros(20), 2000
    post = Posterior({"mu": torch.full((2, n // 2), -2.0)}, model=model, args=(x,))
    idata = pyro_dgm.to_arviz(post, posterior_predictive=True, prior=n, seed=1)
    predictive = group(idata, "posterior_predictive")["x"].values
    assert predictive.shape == (2, n // 2, 20)
    assert abs(predictive.mean() + 2.0) < 4 / np.sqrt(predictive.size)
    assert abs(predictive.std() - 1.0) < 4 / np.sqrt(2 * predictive.size)
    prior, prior_predictive = group(idata, "prior"), group(idata, "prior_predictive")["x"]
    assert abs(float(prior["mu"].mean()) - 3.0) < 4 * 0.5 / np.sqrt(n)
    np.testing.assert_allclose(prior["double"].values, 2 * prior["mu"].values, rtol=1e-6)
    assert prior_predictive.dims == ("chain", "draw", "data")
    # Each draw has its own latent: variance 1 + 0.25 over draws, correlated within one.
    within = prior_predictive.values[0].mean(-1)
    assert abs(within.std() / np.sqrt(0.25 + 1 / 20) - 1) < 4 / np.sqrt(2 * n)
    assert group(idata, "observed_data")["x"].values.tolist() == [0.0] * 20


def test_seed_repeats_draws_and_leaves_the_generators(rng_unchanged):
    m = pyro_dgm.models.LinearGaussian(3, 2)
    post = Posterior({"z": torch.randn(1, 9, 4, 2)}, model=m.model, args=(torch.randn(4, 3),))
    with rng_unchanged():
        a, b, c = (pyro_dgm.to_arviz(post, posterior_predictive=True, prior=5, seed=s) for s in (1, 1, 2))
    for name in ("posterior_predictive", "prior", "prior_predictive"):
        assert group(a, name).equals(group(b, name))
        assert not group(a, name).equals(group(c, name))


def test_evaluation_mode_inside_and_training_mode_after():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))

    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    model, z, x = Model(), torch.randn(1, 5, 4, 2), torch.randn(4, 3)
    before = net[1].running_mean.clone()
    idata = pyro_dgm.to_arviz(Posterior({"z": z}, model=model, args=(x,)))
    assert net.training and net[2].training and torch.equal(net[1].running_mean, before)
    net.eval()
    want = dist.Normal(net(z.reshape(-1, 2)).reshape(1, 5, 4, 3), 1.0).to_event(1).log_prob(x).detach()
    np.testing.assert_allclose(group(idata, "log_likelihood")["x"].values, want, rtol=1e-4, atol=1e-4)


def test_exact_draws_of_linear_gaussian_give_the_exact_loo():
    torch.manual_seed(0)
    m = pyro_dgm.models.LinearGaussian(3, 1).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    with torch.no_grad():
        m.weight.mul_(0.3)  # broad posteriors, so that importance sampling by it is reliable
        z = m.posterior(x).sample((4, 1000))
        exact = m.log_marginal(x).numpy()
    idata = pyro_dgm.to_arviz(Posterior({"z": z}, model=m.model, args=(x,)))
    # With a local latent, leaving x_n out leaves its prior: the expected log predictive density is log p(x_n).
    loo = arviz_adapter.loo(idata)
    np.testing.assert_allclose(loo.loo_i.values if hasattr(loo, "loo_i") else loo.elpd_i.values, exact, atol=0.1)


def test_our_mcmc_and_pyro_mcmc_agree_on_groups():
    from pyro_dgm.infer.mcmc import HMC, MCMC

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = torch.tensor([0.5, 1.0, -0.3])
    ours = MCMC(HMC(model), num_samples=50, warmup_steps=50, num_chains=2, seed=0, progress=False)
    ours.run(x)
    kernel = pyro.infer.HMC(model, step_size=0.5, num_steps=4)
    theirs = pyro.infer.MCMC(kernel, num_samples=50, warmup_steps=20, disable_progbar=True)
    with pytest.raises(ValueError, match="has not been run"):
        pyro_dgm.to_arviz(theirs)
    theirs.run(x)
    for result in (ours, theirs):
        idata = pyro_dgm.to_arviz(result)
        assert {"posterior", "log_likelihood", "log_prior", "sample_stats", "observed_data"} <= set(
            arviz_adapter.group_names(idata)
        )
        mu = group(idata, "posterior")["mu"].values
        want = scipy.stats.norm.logpdf(x.numpy(), mu[..., None])
        np.testing.assert_allclose(group(idata, "log_likelihood")["x"].values, want, rtol=1e-4, atol=1e-5)
        assert group(idata, "sample_stats")["diverging"].dtype == bool
        arviz_adapter.summary(idata)
    lp = group(pyro_dgm.to_arviz(ours), "sample_stats")["lp"].values
    total = pyro_dgm.to_arviz(ours)
    summed = group(total, "log_likelihood")["x"].values.sum(-1) + group(total, "log_prior")["mu"].values
    np.testing.assert_allclose(lp, summed, rtol=1e-4, atol=1e-4)


def test_divergences_of_pyro_mcmc():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    mcmc = pyro.infer.MCMC(
        pyro.infer.HMC(model, step_size=0.5, num_steps=2), num_samples=10, warmup_steps=5, disable_progbar=True
    )
    mcmc.run()
    mcmc._diagnostics[0]["divergences"] = [2, 7]
    diverging = group(pyro_dgm.to_arviz(mcmc), "sample_stats")["diverging"].values
    assert np.flatnonzero(diverging[0]).tolist() == [2, 7]


def test_a_run_and_a_program_are_drawn_from_by_their_guide():
    torch.manual_seed(0)
    m = pyro_dgm.models.LinearGaussian(3, 2)
    x = torch.randn(16, 3)
    run = pyro_dgm.fit(m, x, objective=pyro_dgm.infer.ELBO(), epochs=1, batch_size=8, seed=0, progress=False)
    with pytest.raises(ValueError, match="data is needed"):
        pyro_dgm.to_arviz(run)
    for result in (run, m):
        idata = pyro_dgm.to_arviz(result, data=x, num_samples=50, seed=0)
        assert dict(group(idata, "posterior").sizes) == {"chain": 4, "draw": 50, "data": 16, "z_dim_0": 2}
        assert group(idata, "posterior_predictive")["x"].dims == ("chain", "draw", "data", "x_dim_0")
        stats, likelihood = group(idata, "sample_stats"), group(idata, "log_likelihood")["x"].values.sum(-1)
        prior = group(idata, "log_prior")["z"].values.sum(-1)
        np.testing.assert_allclose(stats["log_p"].values, likelihood + prior, rtol=1e-4)
        assert {"log_p", "log_q"} <= set(stats.data_vars)


def test_a_bare_potential_has_draws_and_statistics_only():
    idata = pyro_dgm.to_arviz(Posterior({"z": torch.randn(2, 5, 3)}, {"lp": torch.randn(2, 5)}, method="hmc"))
    assert arviz_adapter.group_names(idata) == ["posterior", "sample_stats"]
    assert group(idata, "posterior")["z"].dims == ("chain", "draw", "z_dim_0")


def test_an_enumerated_latent_is_refused_where_it_matters():
    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            pyro.deterministic("loc", 2 * k)
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    post = Posterior({"p": torch.rand(1, 5)}, model=model, args=(torch.randn(3),))
    with pytest.raises(ValueError, match=r"no draws of the model's latent sites \['k'\]"):
        pyro_dgm.to_arviz(post)
    idata = pyro_dgm.to_arviz(post, log_likelihood=False, log_prior=False)
    assert arviz_adapter.group_names(idata) == ["posterior", "observed_data"]
    assert list(group(idata, "posterior").data_vars) == ["p"]  # loc would have been of a k from the prior


def test_bad_input():
    m = pyro_dgm.models.LinearGaussian(3, 2)
    post = Posterior({"z": torch.randn(1, 5, 4, 2)}, model=m.model)
    with pytest.raises(TypeError, match="result must be a Posterior"):
        pyro_dgm.to_arviz({"z": torch.zeros(1)})
    with pytest.raises(ValueError, match="data: the model's arguments are not known"):
        pyro_dgm.to_arviz(post)
    with pytest.raises(ValueError, match="not both"):
        pyro_dgm.to_arviz(post, data=torch.zeros(4, 3), args=(torch.zeros(4, 3),))
    with pytest.raises(ValueError, match="Shape mismatch inside plate"):
        pyro_dgm.to_arviz(post, data=torch.zeros(5, 3))
    thin = Posterior({"z": torch.randn(1, 5, 1, 2)}, model=m.model)
    with pytest.raises(ValueError, match=r"draws of 'z' have shape \(1, 2\), the model's site has \(5, 2\)"):
        pyro_dgm.to_arviz(thin, data=torch.zeros(5, 3))
    with pytest.raises(ValueError, match="no draws of any site"):
        pyro_dgm.to_arviz(Posterior({}))
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1"):
        pyro_dgm.to_arviz(post, data=torch.zeros(4, 3), chunk_size=0)
    with pytest.raises(ValueError, match="prior must be an integer of at least 1"):
        pyro_dgm.to_arviz(post, data=torch.zeros(4, 3), prior=-3)


def test_the_function_is_not_shadowed_by_a_module():
    import importlib

    importlib.import_module("pyro_dgm.analysis.convert")
    importlib.import_module("pyro_dgm.analysis.likelihood")
    assert callable(pyro_dgm.to_arviz) and pyro_dgm.analysis.to_arviz is pyro_dgm.to_arviz
    assert callable(pyro_dgm.analysis.log_likelihood)
    assert pyro_dgm.analysis.compare_elbos is pyro_dgm.compare_elbos


def test_predictive_draws_are_made_together(caplog):
    """Torch fills one tensor with normal numbers, which vmap refuses: each draw has noise of its own all the same."""

    def draw(values):
        noisy = dist.Normal(values["mu"].expand(3), 1.0).sample()
        return {"x": noisy, "p": dist.Beta(2.0, 3.0).sample(), "u": dist.Exponential(1.0).sample()}

    mu = torch.linspace(-50.0, 50.0, 200)
    with caplog.at_level("INFO"):
        found = map_draws(draw, {"mu": mu}, 200, 64)
    assert "looping" not in caplog.text
    assert all(len(np.unique(found[name])) == found[name].size for name in found)
    noise = found["x"] - mu[:, None].numpy()
    assert abs(noise.mean()) < 4 / 600**0.5 and abs(noise.var() - 1.0) < 4 * (2 / 600) ** 0.5


def test_predictive_draws_of_a_density_without_sample_are_refused_by_name():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample(
            "y", dist.LogNormalNegativeBinomial(torch.tensor(3.0), a, torch.tensor(0.5), num_quad_points=4), obs=y
        )

    post = pyro_dgm.sample_posterior(model, torch.tensor(1.0), method="hmc", num_samples=5, progress=False)
    with pytest.raises(ValueError, match=r"site 'y' \(LogNormalNegativeBinomial\) cannot be drawn"):
        pyro_dgm.to_arviz(post, posterior_predictive=True)
    assert pyro_dgm.to_arviz(post).posterior["a"].shape == (4, 5)
