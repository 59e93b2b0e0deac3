"""Models whose sites do not fit plates or data are refused by every sampler before it draws; others are not."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_dgm
from pyro_dgm.infer.mcmc import HMC, KERNELS, MCMC
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential

METHODS = [*sorted(set(KERNELS) - {"langevin", "sgld", "annealed-langevin"}), "nuts-numpyro"]
X = torch.tensor([0.3, 1.5], dtype=torch.float64)


def draw(model, *data, method="hmc"):
    return pyro_dgm.sample_posterior(model, *data, method=method, num_samples=3, num_chains=4, seed=0, progress=False)


# A summed-out latent beside a batch dimension in no plate


def switch(x, of=lambda law, x: law, plate=None, each=False, free=False, further=False):
    """One switch for all of ``x``, or one for each; a mean, perhaps of two elements."""
    zero = torch.zeros(2 if free else (), dtype=x.dtype)
    mu = pyro.sample("mu", dist.Normal(zero, 1.0))
    rate = torch.full(x.shape if each else (), 0.3, dtype=x.dtype)
    k = pyro.sample("k", dist.Bernoulli(rate))
    k = k.unsqueeze(-1) if further else k
    with poutine.block(hide=[]) if plate is None else pyro.plate("x", len(x)):
        pyro.sample("obs", of(dist.Normal(mu.sum() + 3.0 * k, 1.0), x), obs=x)


@pytest.mark.parametrize("method", METHODS)
def test_an_undeclared_dimension_beside_a_sum_is_refused(method):
    with pytest.raises(ValueError, match=r'at site "obs"(.|\n)*pyro.plate(.|\n)*to_event'):
        draw(switch, X, method=method)


@pytest.mark.parametrize(
    ("settings", "site"),
    [({"each": True}, "k"), ({"free": True, "of": lambda law, x: law.expand([2]).to_event(1)}, "mu")],
    ids=["the discrete latent's", "a continuous latent's"],
)
def test_whose_dimension_it_is_does_not_matter(settings, site):
    with pytest.raises(ValueError, match=f'at site "{site}"'):
        draw(lambda x: switch(x, **settings), X)
    with pytest.raises(ValueError, match="at site"):  # five data, of which torch's own error said nothing
        draw(switch, torch.randn(5))


@pytest.mark.parametrize(
    "settings",
    [{"plate": "x"}, {"of": lambda law, x: law.expand([*law.batch_shape[:-1], 2]).to_event(1), "further": True}],
    ids=["plate", "event"],
)
def test_declared_it_is_summed_exactly(settings):
    """In a plate or as an event: one switch for both data."""
    potential = ModelPotential(lambda x: switch(x, **settings), (X,), {})
    mu = torch.linspace(-3.0, 3.0, 7, dtype=torch.float64)

    def joint(k):
        prior = dist.Bernoulli(torch.tensor(0.3).double()).log_prob(torch.tensor(k).double())
        return dist.Normal(mu[:, None] + 3.0 * k, 1.0).log_prob(X).sum(-1) + prior

    expected = dist.Normal(0.0, 1.0).log_prob(mu) + torch.logaddexp(joint(0.0), joint(1.0))
    torch.testing.assert_close(-potential({"mu": mu})[0], expected)


def test_a_model_that_does_not_expect_the_dimension_of_a_sum():
    """Two data beside two values of k: with k's dimension in the place of the data's the shapes fit by accident."""
    with pytest.raises(ValueError, match=r"site 'obs' has another density where \['k'\] take all their values at once"):
        draw(lambda x: switch(x, of=lambda law, x: law.expand([2]).to_event(1)), X)


# Data that broadcast against a density


def in_plate(shape_of_mean, shape_of_data, plate=True):
    def model(x):
        with pyro.plate("d", len(x)) if plate else poutine.block(hide=[]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([] if plate else [len(x)]))
            pyro.sample("x", dist.Normal(shape_of_mean(z), 1.0), obs=shape_of_data(x))

    return model


COLUMN, AS_IT_IS = (lambda v: v[:, None]), (lambda v: v)
EIGHT = torch.linspace(-1.0, 1.0, 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_column_against_a_row_is_refused(method):
    with pytest.raises(ValueError, match=r"of batch shape \(8,\), is counted several times"):
        draw(in_plate(COLUMN, AS_IT_IS), EIGHT, method=method)


@pytest.mark.parametrize("plate", [True, False])
@pytest.mark.parametrize(
    ("mean", "data", "fits"),
    [
        (AS_IT_IS, AS_IT_IS, True),
        (COLUMN, AS_IT_IS, False),
        (AS_IT_IS, COLUMN, False),
        (AS_IT_IS, lambda v: v.expand(3, 8), True),  # data repeated along a dimension of their own
        (lambda v: v.expand(3, 8), AS_IT_IS, False),
    ],
    ids=["rows", "column of means", "column of data", "three rows of data", "three rows of means"],
)
def test_what_fits(plate, mean, data, fits):
    model = in_plate(mean, data, plate)
    if fits:
        assert draw(model, EIGHT)["z"].shape == (4, 3, 8)
    else:
        with pytest.raises(ValueError, match='at site "x"'):
            draw(model, EIGHT)


def test_an_event_of_another_size():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.MultivariateNormal(z.expand(3), torch.eye(3)), obs=x)

    with pytest.raises(ValueError, match=r"at site 'x', a value of shape \(4,\) does not fit .* event shape \(3,\)"):
        draw(model, torch.zeros(4))


# Values that are not valid


def observing(law, value):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", law(z), obs=torch.tensor(value))

    return model


INVALID = {
    "bernoulli of 0.3": observing(lambda z: dist.Bernoulli(logits=z), 0.3),
    "negative time": observing(lambda z: dist.Exponential(z.exp()), -1.0),
    "negative count": observing(lambda z: dist.NegativeBinomial(3.0, logits=z), -2.5),
    "negative concentration": observing(lambda z: dist.Gamma(-0.5, z.exp()), 1.0),
    "probability above one": observing(lambda z: dist.Bernoulli(1.5 + 0.0 * z), 1.0),
}


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_arguments_and_data_are_refused(kind):
    with pytest.raises(ValueError, match="site 'x'|site 'z'"):
        draw(INVALID[kind])


@pytest.mark.parametrize("method", METHODS)
def test_by_every_method(method):
    with pytest.raises(ValueError, match="at site 'x'.*support"):
        draw(observing(lambda z: dist.Exponential(z.exp()), -1.0), method=method)


def test_a_scale_that_is_not_a_number_is_named():
    with pytest.raises(ValueError, match=r"non-finite log-probability at 'x' \(nan\)"):
        draw(observing(lambda z: dist.Normal(z, float("nan")), 1.0))


def test_a_value_outside_of_the_support_for_some_latents_is_no_mistake():
    """Where the support ends is what is inferred."""

    def model(x):
        end = pyro.sample("end", dist.Gamma(2.0, 1.0))
        with pyro.plate("n", 3):
            pyro.sample("x", dist.Uniform(torch.zeros(()), end), obs=x)

    assert bool((draw(model, torch.tensor([0.2, 0.9, 1.4]))["end"] > 1.4).all())


def test_without_validation_models_are_taken_at_their_word():
    with pyro.validation_enabled(False):
        assert draw(in_plate(COLUMN, AS_IT_IS), EIGHT)["z"].shape == (4, 3, 8)


class Mine(dist.TorchDistribution):
    """A distribution of the user's, as short as it can be."""

    arg_constraints: dict = {}

    def __init__(self):
        super().__init__(validate_args=False)

    def sample(self, sample_shape=()):
        return torch.randn(sample_shape)

    def log_prob(self, value):
        return -(value**2)


class MineWithSupport(Mine):
    support = torch.distributions.constraints.real


def test_a_distribution_without_support_is_named():
    with pytest.raises(ValueError, match=r"latent site 'z' has a distribution without support \(Mine\)"):
        draw(lambda: pyro.sample("z", Mine()))
    assert draw(lambda: pyro.sample("z", MineWithSupport()))["z"].shape == (4, 3)


def test_annealing_refuses_them_too():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    with pytest.raises(ValueError, match='at site "z"'):
        pyro_dgm.analysis.log_likelihood((model, guide), torch.tensor(0.3), method="ais", seed=0)


def test_a_model_alone_and_given_starts_are_checked_too():
    """The check is the potential's, whoever makes it."""
    with pytest.raises(ValueError, match="is counted several times"):
        MCMC(HMC(in_plate(COLUMN, AS_IT_IS)), 3, 3, progress=False).run(EIGHT, initial_params={"z": torch.zeros(4, 8)})
