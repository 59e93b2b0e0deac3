"""to_arviz of sites that a model computes: reparameterised ones, restated data, imputed values, masked rows."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.reparam import (
    AutoReparam,
    ConjugateReparam,
    DiscreteCosineReparam,
    GumbelSoftmaxReparam,
    HaarReparam,
    LatentStableReparam,
    LinearHMMReparam,
    LocScaleReparam,
    MinimalReparam,
    NeuTraReparam,
    ProjectedNormalReparam,
    SplitReparam,
    StableReparam,
    StructuredReparam,
    StudentTReparam,
    SymmetricStableReparam,
    TransformReparam,
)

import pyro_dgm
from pyro_dgm.analysis import arviz_adapter
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.programs.structure import sample_sites

DRAWS = 7
Y = torch.tensor([0.5, -1.0, 2.0, 0.1])


def group(idata, name):
    return arviz_adapter.get_group(idata, name)


def prior_draws(model, *args):
    """Draws of a model's latents, and the values of all its sites at them, from single runs of it."""
    rows = [poutine.trace(model).get_trace(*args) for _ in range(DRAWS)]
    nodes = sample_sites(rows[0])
    values = {n: torch.stack([torch.as_tensor(r.nodes[n]["value"]) for r in rows])[None].detach() for n in nodes}
    latents = {n: v for n, v in values.items() if not nodes[n]["is_observed"]}
    return Posterior(latents, model=model, args=args), values


def at_plate(law):
    """A law for each of four data, and the data given it."""

    def model(y):
        loc, scale = pyro.sample("loc", dist.Normal(0.0, 1.0)), pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        with pyro.plate("item", 4):
            z = pyro.sample("z", law(loc, scale))
            pyro.sample("y", dist.Normal(z.reshape(4, -1).sum(-1), 1.0), obs=y)

    return model


def event(law):
    def model(y):
        loc, scale = pyro.sample("loc", dist.Normal(0.0, 1.0)), pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        z = pyro.sample("z", law(loc, scale))
        with pyro.plate("item", 4):
            pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

    return model


def shifted_log_normal(loc, scale):
    return dist.TransformedDistribution(
        dist.Normal(loc, scale), [dist.transforms.ExpTransform(), dist.transforms.AffineTransform(1.0, 2.0)]
    )


def stable(loc, scale):
    return dist.Stable(1.5, 0.1, scale, loc)


def vector(loc, scale):
    return dist.Normal(loc + torch.zeros(4), scale).to_event(1)


def sticks(loc, scale):
    return dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=loc + torch.arange(3.0))


def sphere(loc, scale):
    return dist.ProjectedNormal(torch.stack([loc, scale, loc]))


#: reparameterisation, model, its dimensions in `posterior` (past chain and draw)
CASES = {
    "LocScale(0)": (LocScaleReparam(0.0), at_plate(dist.Normal), ("item",)),
    "LocScale(0.3), StudentT": (
        LocScaleReparam(0.3, shape_params=["df"]),
        at_plate(lambda loc, scale: dist.StudentT(5.0, loc, scale)),
        ("item",),
    ),
    "LocScale, event": (LocScaleReparam(0.0), event(vector), ("z_dim_0",)),
    "Transform": (TransformReparam(), at_plate(shifted_log_normal), ("item",)),
    "ProjectedNormal": (ProjectedNormalReparam(), at_plate(sphere), ("item", "z_dim_0")),
    "GumbelSoftmax": (GumbelSoftmaxReparam(), at_plate(sticks), ("item", "z_dim_0")),
    "DiscreteCosine": (DiscreteCosineReparam(), event(vector), ("z_dim_0",)),
    "Haar": (HaarReparam(), event(vector), ("z_dim_0",)),
    "LatentStable": (LatentStableReparam(), at_plate(stable), ("item",)),
    "Stable": (StableReparam(), at_plate(stable), ("item",)),
    "SymmetricStable": (
        SymmetricStableReparam(),
        at_plate(lambda loc, scale: dist.Stable(1.5, 0.0, scale, loc)),
        ("item",),
    ),
    "StudentT": (StudentTReparam(), at_plate(lambda loc, scale: dist.StudentT(5.0, loc, scale)), ("item",)),
}


def check(post, values, names, dims, tail=("y",)):
    idata = pyro_dgm.to_arviz(post, posterior_predictive=True, prior=3, seed=0)
    posterior = group(idata, "posterior")
    for name in {*names, *post.samples}:
        np.testing.assert_allclose(
            posterior[name].values, values[name].squeeze().reshape(posterior[name].shape), rtol=2e-4, atol=2e-5
        )
    for name in names:
        assert posterior[name].dims == ("chain", "draw", *dims)
        assert name in group(idata, "prior")
    for of_data in ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive"):
        assert set(group(idata, of_data).data_vars) == set(tail)
    np.testing.assert_array_equal(group(idata, "observed_data")["y"].values, Y.numpy())
    assert arviz_adapter.loo(idata)["n_data_points"] == 4
    return idata


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_reparameterised_sites_are_in_posterior(name):
    torch.manual_seed(0)
    change, model, dims = CASES[name]
    changed = poutine.reparam(model, config={"z": change})
    check(*prior_draws(changed, Y), ["z"], dims)


@pytest.mark.parametrize("strategy", [AutoReparam(), MinimalReparam()], ids=lambda s: type(s).__name__)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.uses_param_store
def test_strategies(strategy):
    torch.manual_seed(0)
    model = poutine.reparam(at_plate(dist.Normal), config=strategy)
    post, values = prior_draws(model, Y)
    idata = pyro_dgm.to_arviz(post)
    for site, dims in (("z", ("item",)), ("scale", ()), ("loc", ())):
        variable = group(idata, "posterior")[site]
        assert variable.dims == ("chain", "draw", *dims)
        np.testing.assert_allclose(variable.values, values[site].numpy(), rtol=1e-4, atol=1e-5)
    assert list(group(idata, "log_likelihood").data_vars) == ["y"]


@pytest.mark.parametrize("kind", ["NeuTra", "Structured"])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.uses_param_store
def test_reparameterised_by_a_guide(kind):
    """The Jacobian that such a site carries is its prior's business: log_prior sums to that of the plain model."""
    torch.manual_seed(0)
    model = at_plate(dist.Normal)
    if kind == "NeuTra":
        guide = AutoMultivariateNormal(model)
        guide(Y)
        change = NeuTraReparam(guide).reparam
    else:
        from pyro.infer.autoguide import AutoStructured

        guide = AutoStructured(model, conditionals="normal")
        guide(Y)
        change = StructuredReparam(guide).reparam
    changed = change(model)
    post, values = prior_draws(changed, Y)
    idata = pyro_dgm.to_arviz(post)
    for site, dims in (("z", ("item",)), ("scale", ()), ("loc", ())):
        variable = group(idata, "posterior")[site]
        assert variable.dims == ("chain", "draw", *dims)
        np.testing.assert_allclose(variable.values, values[site].numpy(), rtol=1e-4, atol=1e-4)
    assert list(group(idata, "log_likelihood").data_vars) == ["y"]
    assert list(group(idata, "observed_data").data_vars) == ["y"]
    first = {k: v[0, 0] for k, v in post.samples.items()}
    joint = poutine.trace(poutine.condition(changed, first)).get_trace(Y).log_prob_sum()
    total = sum(float(v.values[0, 0].sum()) for g in ("log_prior", "log_likelihood") for v in group(idata, g).values())
    assert total == pytest.approx(float(joint), rel=1e-4)


def test_parts_of_a_split_site():
    """Each part has an improper law: it is drawn by MCMC, and cannot be drawn from the prior."""
    changed = poutine.reparam(event(vector), config={"z": SplitReparam([1, 3], -1)})
    draws = {"loc": (2, 5), "scale": (2, 5), "z_split_0": (2, 5, 1), "z_split_1": (2, 5, 3)}
    post = Posterior({k: torch.rand(shape) for k, shape in draws.items()}, model=changed, args=(Y,))
    idata = pyro_dgm.to_arviz(post)
    parts = torch.cat([post["z_split_0"], post["z_split_1"]], -1)
    np.testing.assert_array_equal(group(idata, "posterior")["z"].values, parts.numpy())
    assert list(group(idata, "log_likelihood").data_vars) == list(group(idata, "observed_data").data_vars) == ["y"]
    want = dist.Normal(post["loc"][..., None], post["scale"][..., None]).log_prob(parts).sum(-1)
    prior = group(idata, "log_prior")
    found = sum(prior[name].values for name in ("z", "z_split_0", "z_split_1") if name in prior)
    np.testing.assert_allclose(found, want.numpy(), rtol=1e-4)
    with pytest.raises(ValueError, match=r"site 'z_split_0' \(ImproperUniform\) cannot be drawn"):
        pyro_dgm.to_arviz(post, prior=3)


@pytest.mark.filterwarnings("ignore")
def test_conjugate_latents_are_drawn_where_the_likelihood_is_evaluated():
    """Its draw is hidden from MCMC; what the posterior holds is what the log-likelihood was evaluated at."""

    def counts(y):
        a = pyro.sample("a", dist.LogNormal(0.0, 0.1))
        with pyro.plate("item", 4):
            p = pyro.sample("z", dist.Beta(a, 2.0))
            pyro.sample("y", dist.Binomial(10, p), obs=y)

    y = torch.tensor([3.0, 5.0, 8.0, 1.0])
    changed = poutine.reparam(counts, config={"z": ConjugateReparam(dist.Beta(1 + y, 11 - y))})
    post, _ = prior_draws(changed, y)
    idata = pyro_dgm.to_arviz(post)
    z = torch.as_tensor(group(idata, "posterior")["z"].values)
    assert group(idata, "posterior")["z"].dims == ("chain", "draw", "item")
    assert list(group(idata, "log_likelihood").data_vars) == list(group(idata, "observed_data").data_vars) == ["y"]
    want = dist.Binomial(10, z).log_prob(y)
    np.testing.assert_allclose(group(idata, "log_likelihood")["y"].values, want.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("observed", [False, True])
def test_hidden_markov_models(observed):
    def model(y):
        law = dist.LinearHMM(
            dist.Normal(torch.zeros(1), 1.0).to_event(1),
            torch.eye(1),
            dist.StudentT(3.0, torch.zeros(4, 1), 1.0).to_event(1),
            torch.eye(1),
            dist.Normal(torch.zeros(4, 1), 1.0).to_event(1),
            duration=4,
        )
        z = pyro.sample("z", law, obs=y[:, None] if observed else None)
        with pyro.plate("item", 4):
            pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=y)

    torch.manual_seed(0)
    changed = poutine.reparam(model, config={"z": LinearHMMReparam(trans=StudentTReparam())})
    post, _ = prior_draws(changed, Y)
    idata = pyro_dgm.to_arviz(post)
    data = {"y", "z"} if observed else {"y"}
    assert set(group(idata, "observed_data").data_vars) == set(group(idata, "log_likelihood").data_vars) == data
    assert set(group(idata, "posterior").data_vars) == set(post.samples)
    assert ("z" in post.samples) != observed


def test_a_point_mass_at_a_latents_value_is_computed_and_data_restated_are_data():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        twice = pyro.sample("twice", dist.Delta(2 * z), obs=2 * z)
        with pyro.plate("item", 4):
            y = pyro.sample("copy", dist.Delta(y), obs=y)
            pyro.sample("y", dist.Normal(twice, 1.0), obs=y)

    post, _ = prior_draws(model, Y)
    idata = pyro_dgm.to_arviz(post, posterior_predictive=True)
    np.testing.assert_array_equal(group(idata, "posterior")["twice"].values, 2 * post["z"].numpy())
    assert set(group(idata, "observed_data").data_vars) == {"copy", "y"}
    assert list(group(idata, "log_likelihood").data_vars) == ["y"]
    assert list(group(idata, "posterior_predictive").data_vars) == ["y"]


def test_the_likelihood_of_transformed_data_is_that_of_the_transform():
    """A reparameterised likelihood: the datum is restated, its transform has the density."""

    def plain(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, torch.ones(4)).to_event(1), obs=y)

    changed = poutine.reparam(plain, config={"y": DiscreteCosineReparam()})
    post = Posterior({"z": torch.randn(1, DRAWS)}, model=changed, args=(Y,))
    idata = pyro_dgm.to_arviz(post)
    assert list(group(idata, "log_likelihood").data_vars) == ["y_dct"]
    assert set(group(idata, "observed_data").data_vars) == {"y", "y_dct"}
    np.testing.assert_array_equal(group(idata, "observed_data")["y"].values, Y.numpy())
    want = group(pyro_dgm.to_arviz(Posterior(post.samples, model=plain, args=(Y,))), "log_likelihood")["y"]
    np.testing.assert_allclose(group(idata, "log_likelihood")["y_dct"].values, want.values, rtol=1e-4)


def test_imputed_values_are_in_posterior():
    x = torch.tensor([0.3, float("nan"), -0.5, 1.0])

    def model(x, y):
        missing = x.isnan()
        with pyro.plate("item", 4):
            filled = pyro.sample("fill", dist.Normal(0.0, 1.0).mask(False))
            full = torch.where(missing, filled, x.nan_to_num())
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=full)
            pyro.sample("y", dist.Normal(full, 1.0), obs=y)

    post, values = prior_draws(model, x, Y)
    idata = pyro_dgm.to_arviz(post, posterior_predictive=True)
    np.testing.assert_array_equal(group(idata, "posterior")["x"].values, values["x"].numpy())
    assert list(group(idata, "observed_data").data_vars) == ["y"]
    assert list(group(idata, "posterior_predictive").data_vars) == ["y"]
    assert arviz_adapter.loo(idata)["n_data_points"] == 4


def gaussian(y, mask):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("row", y.shape[0], dim=-2), pyro.plate("time", y.shape[1], dim=-1), poutine.mask(mask=mask):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def by_obs_mask(y, mask):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("row", y.shape[0], dim=-2), pyro.plate("time", y.shape[1], dim=-1):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=mask)


def by_distribution(y, mask):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("row", y.shape[0], dim=-2), pyro.plate("time", y.shape[1], dim=-1):
        pyro.sample("y", dist.Normal(mu, 1.0).expand(y.shape).mask(mask), obs=y)


MASKS = {
    "none": torch.ones(5, 4, dtype=torch.bool),
    "rows": torch.tensor([1, 0, 1, 1, 0], dtype=torch.bool)[:, None].expand(5, 4),
    "ragged": torch.arange(4) < torch.tensor([4, 1, 2, 3, 1])[:, None],
    "one": torch.eye(5, 4, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("model", [gaussian, by_obs_mask, by_distribution], ids=lambda m: m.__name__)
def test_loo_counts_the_data_that_are_not_masked(model, mask):
    """Against the exact leave-one-out density of the unmasked data, the posterior being a conjugate Gaussian."""
    keep = MASKS[mask]
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    data = y[keep]
    n = len(data)
    precision = 1 / 4 + n
    # quantiles in random order, so that what is left of Monte Carlo error is that of the tails
    levels = (torch.randperm(16_000, generator=generator).double() + 0.5) / 16_000
    mu = dist.Normal(data.sum() / precision, precision**-0.5).icdf(levels).reshape(4, 4000)
    draws = {"mu": mu}
    if model is by_obs_mask:
        draws["y_unobserved"] = torch.randn(4, 4000, 5, 4, generator=generator, dtype=torch.float64)
    idata = pyro_dgm.to_arviz(Posterior(draws, model=model, args=(torch.where(keep, y, 0.0), keep)), chunk_size=4000)
    found = arviz_adapter.loo(idata)
    assert found["n_data_points"] == n
    others = precision - 1
    loc = (data.sum() - data) / others
    exact = dist.Normal(loc, (1 + 1 / others) ** 0.5).log_prob(data)
    assert float(found["elpd_loo"]) == pytest.approx(float(exact.sum()), abs=2e-3)
    assert float(found["se"]) == pytest.approx(float(n**0.5 * exact.std(correction=0)), abs=2e-3)
    name = "y_observed" if model is by_obs_mask else "y"
    likelihood = group(idata, "log_likelihood")[name]
    if mask == "none":
        assert likelihood.dims == ("chain", "draw", "row", "time")
    else:
        assert likelihood.dims == ("chain", "draw", f"{name}_unmasked")
        rows, times = keep.nonzero().T.numpy()
        np.testing.assert_array_equal(likelihood[f"{name}_row"].values, rows)
        np.testing.assert_array_equal(likelihood[f"{name}_time"].values, times)
    want = dist.Normal(mu[..., None], 1.0).log_prob(data)
    np.testing.assert_allclose(likelihood.values.reshape(want.shape), want.numpy(), rtol=1e-10)


def test_labels_of_unmasked_rows_and_what_is_masked_away():
    def model(y, mask):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("item", 10, subsample=torch.tensor([7, 2, 5, 1])):
            with poutine.mask(mask=mask):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            with poutine.mask(mask=False):
                pyro.sample("unused", dist.Normal(mu, 1.0), obs=y)

    mask = torch.tensor([True, False, True, True])
    post = Posterior({"mu": torch.randn(1, 5)}, model=model, args=(Y, mask))
    likelihood = group(pyro_dgm.to_arviz(post), "log_likelihood")
    assert list(likelihood.data_vars) == ["y"]
    assert likelihood["y_item"].values.tolist() == [7, 5, 1]
    named = pyro_dgm.to_arviz(post, dims={"y": ["city"]}, coords={"city": list("abcd")})
    assert group(named, "log_likelihood")["y_city"].values.tolist() == ["a", "c", "d"]


def test_a_mask_made_of_latents_is_said():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("item", 4), poutine.mask(mask=y > mu):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.warns(UserWarning, match=r"mask of site 'y' depends on the latents \['mu'\]"):
        idata = pyro_dgm.to_arviz(Posterior({"mu": torch.randn(1, 5)}, model=model, args=(Y,)))
    assert group(idata, "log_likelihood")["y"].dims == ("chain", "draw", "item")


def test_predictions_at_new_inputs():
    def regression(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        line = pyro.deterministic("line", b * x, event_dim=0)
        with pyro.plate("n", len(x)):
            y = pyro.sample("y", dist.Normal(b * x, 0.01), obs=y)
            pyro.deterministic("residual", y - b * x)
        return line

    x, new = torch.randn(9), torch.tensor([1.0, 2.0, -3.0])
    post = Posterior({"b": torch.randn(2, 6)}, model=regression, args=(x, x))
    for args in ((new, None), (new,)):
        idata = pyro_dgm.to_arviz(post, args=args, posterior_predictive=True, prior=4, seed=0)
        predictive = group(idata, "posterior_predictive")["y"]
        assert predictive.dims == ("chain", "draw", "n")
        line = (post["b"][..., None] * new).numpy()
        np.testing.assert_allclose(predictive.values, line, atol=0.05)
        np.testing.assert_allclose(group(idata, "posterior")["line"].values, line, rtol=1e-5)
        assert "residual" not in group(idata, "posterior")  # it depends on what is predicted
        assert "y" in group(idata, "prior_predictive")
        assert "observed_data" not in arviz_adapter.group_names(idata)
        assert "log_likelihood" not in arviz_adapter.group_names(idata)
    bare = Posterior(post.samples, model=regression)
    with pytest.raises(ValueError, match=r"no draws of the model's latent sites \['y'\].*is predicted where"):
        pyro_dgm.to_arviz(bare, args=(new, None), posterior_predictive=True)


def test_a_law_that_cannot_be_drawn_is_named():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        scale = torch.tensor(0.5)
        law = dist.LogNormalNegativeBinomial(torch.tensor(3.0), a, scale, num_quad_points=4)
        pyro.sample("y", law, obs=y)

    post = Posterior({"a": torch.randn(1, 5)}, model=model, args=(torch.tensor(1.0),))
    with pytest.raises(ValueError, match=r"site 'y' \(LogNormalNegativeBinomial\) cannot be drawn"):
        pyro_dgm.to_arviz(post, posterior_predictive=True)
    assert "log_likelihood" in arviz_adapter.group_names(pyro_dgm.to_arviz(post))


def test_unknown_names_are_refused():
    def model(y):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("item", 4):
            pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

    post = Posterior({"z": torch.randn(1, 5, 2)}, model=model, args=(Y,))
    with pytest.raises(ValueError, match=r"dims: there is no site \['zz'\]; there are \['y', 'z'\]"):
        pyro_dgm.to_arviz(post, dims={"zz": ["k"]})
    with pytest.raises(ValueError, match=r"coords: there is no dimension \['itm'\]; there are .*'item'"):
        pyro_dgm.to_arviz(post, coords={"itm": list("abcd")})
    idata = pyro_dgm.to_arviz(post, dims={"z": ["k"]}, coords={"k": ["a", "b"], "item": list("abcd")})
    assert group(idata, "posterior")["k"].values.tolist() == ["a", "b"]
