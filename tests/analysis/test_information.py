"""ELBO surgery, mutual information and active units against linear-Gaussian closed forms."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormalMessenger
from torch.distributions import kl_divergence

from pyro_dgm import program
from pyro_dgm.analysis import active_units, elbo_surgery, mutual_information
from pyro_dgm.analysis.aggregate import aggregate_terms
from pyro_dgm.models import VAE, LinearGaussian


def linear_gaussian(n, latent_dim=2, guide_covariance="full"):
    torch.manual_seed(0)
    m = LinearGaussian(4, latent_dim, guide_covariance=guide_covariance).double()
    m.set_guide_to_posterior()
    with torch.no_grad():
        m.guide_bias.add_(0.3)
        m.guide_log_scale.add_(0.4)
    return m, m.marginal().sample((n,))


@pytest.mark.parametrize("chunk_size", [200_000, 50])
def test_parts_of_a_bound_against_a_sum_over_data(chunk_size):
    """With a handful of data the aggregate posterior is a small mixture: each part by brute force."""
    m, x = linear_gaussian(6)
    parts = elbo_surgery(m, x, num_samples=2000 if chunk_size > 50 else 20, chunk_size=chunk_size, seed=1)
    assert parts.elbo == pytest.approx(parts.reconstruction - parts.mutual_information - parts.marginal_kl)
    assert parts.num_data == 6
    torch.manual_seed(2)
    q = dist.MultivariateNormal(x @ m.guide_weight.mT + m.guide_bias, scale_tril=m.guide_scale_tril)
    prior = dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1)
    with torch.no_grad():
        z = q.sample((20_000,))
        own = q.log_prob(z)
        mixture = q.log_prob(z.unsqueeze(2)).logsumexp(-1) - math.log(6)
        likelihood = dist.Normal(z @ m.weight.mT + m.bias, m.noise_scale).to_event(1).log_prob(x)
        want = {
            "reconstruction": likelihood,
            "mutual_information": own - mixture,
            "marginal_kl": mixture - prior.log_prob(z),
            "elbo": likelihood + prior.log_prob(z) - own,
        }
    for name, values in want.items():
        values = values.mean(1)
        error = math.hypot(float(values.std()) / 20_000**0.5, parts.standard_errors[name])
        assert abs(parts.parts[name] - float(values.mean())) < 4 * error, name


def test_the_elbo_is_the_closed_form_and_the_kl_of_both_parts():
    m, x = linear_gaussian(40)
    parts = elbo_surgery(m, x, num_samples=400, seed=0)
    with torch.no_grad():
        q = dist.MultivariateNormal(x @ m.guide_weight.mT + m.guide_bias, scale_tril=m.guide_scale_tril)
        kl = kl_divergence(q, dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())).mean()
        gap = kl_divergence(q, m.posterior(x)).mean()
        elbo = (m.log_marginal(x).mean() - gap).item()
    assert abs(parts.elbo - elbo) < 4 * parts.standard_errors["elbo"]
    error = math.hypot(parts.standard_errors["mutual_information"], parts.standard_errors["marginal_kl"])
    assert abs(parts.mutual_information + parts.marginal_kl - kl.item()) < 4 * error
    assert "mutual information (at most 3.69)" in str(parts)
    assert copy.copy(parts) == parts
    with pytest.raises(AttributeError, match="no part 'kl'"):
        _ = parts.kl


def test_mutual_information_brackets_the_truth():
    m, x = linear_gaussian(800)
    found = mutual_information(m, x, num_samples=4, seed=0)
    with torch.no_grad():
        spread = m.guide_weight @ m.marginal().covariance_matrix @ m.guide_weight.mT
        noise = m.guide_scale_tril @ m.guide_scale_tril.mT
        truth = 0.5 * (torch.logdet(spread + noise) - torch.logdet(noise)).item()
    assert found.lower - 4 * found.lower_se < truth < found.upper + 4 * found.upper_se
    assert found.upper - found.lower < 0.1
    assert abs(found.lower - truth) < 0.1 + 4 * found.lower_se
    assert found.lower < found.limit == math.log(800)
    assert "N = 800" in repr(found)


def test_a_collapsed_guide_has_no_information_and_no_active_unit():
    m, x = linear_gaussian(100)
    with torch.no_grad():
        m.guide_weight.zero_()
    found = mutual_information(m, x, num_samples=2, seed=0)
    assert abs(found.lower) < 1e-9
    assert abs(found.upper) < 1e-9
    assert active_units(m, x).count == 0


def test_active_units_are_the_variances_of_posterior_means():
    m, x = linear_gaussian(60)
    with torch.no_grad():
        m.guide_weight[1] *= 1e-3
        want = (x @ m.guide_weight.mT).var(0)
    found = active_units(m, x, seed=0)
    torch.testing.assert_close(found.variances["z"], want)
    assert found.active["z"].tolist() == [True, False]
    assert (found.count, found.total) == (1, 2)
    assert "1 of 2 with variance above 0.01" in repr(found)


def test_draws_add_no_variance_where_a_mean_depends_on_another_site():
    x = torch.linspace(-2, 2, 200, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0 * x, 1.0))
            pyro.sample("b", dist.Normal(a + 0.5 * x, 1.0))

    found = active_units(program(model, guide), x, num_samples=200, seed=0)
    assert found.variances["a"].item() == 0
    # Var of 0.5 x, known to the noise of the means: sd 1 / sqrt(200) on each of 200 data
    assert abs(found.variances["b"].item() - (0.5 * x).var().item()) < 0.05
    parts = elbo_surgery(program(model, guide), x, num_samples=3, seed=0)
    assert parts.mutual_information > 0


def test_any_network_and_inner_plates():
    torch.manual_seed(0)
    vae = VAE((3, 3), 2, hidden=(5,))
    images = torch.bernoulli(torch.full((30, 3, 3), 0.4))
    assert active_units(vae, images).total == 2
    x = torch.randn(7, 3)

    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def outer(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("parts", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 0.5))

    assert active_units(program(outer, guide), x).variances["z"].shape == (1,)
    found = mutual_information(program(outer, guide), x, num_samples=2000, seed=0)
    q = dist.Normal(x.mean(-1), 0.5)
    with torch.no_grad():
        z = q.sample((20_000,))
        values = (q.log_prob(z) - (q.log_prob(z.unsqueeze(2)).logsumexp(-1) - math.log(7))).mean(1)
        pairs = q.log_prob(z.unsqueeze(2)).masked_fill(torch.eye(7, dtype=torch.bool), -math.inf)
        upper = (q.log_prob(z) - (pairs.logsumexp(-1) - math.log(6))).mean(1)
    for got, want in ((found.lower, values), (found.upper, upper)):
        assert abs(got - want.mean().item()) < 4 * want.std().item() / 2000**0.5

    def each(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
            pyro.sample("z", dist.Normal(x, 0.5))

    with pytest.raises(ValueError, match=r"one plate over data.*sizes \(7, 3\)"):
        elbo_surgery(program(model, each), x)
    with pytest.raises(ValueError, match=r"at least 2 data.*sizes \(7, 3\)"):
        active_units(program(model, each), x)


@pytest.mark.parametrize("function", [elbo_surgery, mutual_information, active_units])
def test_bad_arguments(function):
    m, x = linear_gaussian(5)
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 2.*got 1"):
        function(m, x, num_samples=1)
    if function is active_units:
        with pytest.raises(ValueError, match="threshold must be positive, got 0"):
            active_units(m, x, threshold=0)
        return
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1, got 0"):
        function(m, x, chunk_size=0)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pyro.settings.context(module_local_params=True), pytest.raises(TypeError, match="GuideMessenger"):
        function(program(model, AutoNormalMessenger(model)), x)


def test_one_datum_has_nothing_to_be_told_from():
    m, x = linear_gaussian(1)
    with pytest.raises(ValueError, match="at least 2 data, got 1"):
        mutual_information(m, x)
    assert elbo_surgery(m, x, seed=0).mutual_information == pytest.approx(0.0)


def test_draws_leave_no_mark_with_a_seed():
    m, x = linear_gaussian(5)
    before = torch.get_rng_state()
    assert elbo_surgery(m, x, seed=3) == elbo_surgery(m, x, seed=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:the program's .* one after another:RuntimeWarning")
def test_a_guide_that_does_not_fit_a_plate_of_draws():
    """Draws and data put into one row: the same numbers as of a guide that adds them."""
    x = torch.randn(7, 2, dtype=torch.float64)
    first, second = torch.tensor([[0.4], [-0.3]]).to(x), torch.tensor([[0.5], [0.2], [-0.7]]).to(x)

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a + b, 1.0).to_event(1), obs=x[:, :1])

    def guides(joined, looks=False):
        def guide(x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(x @ first, 0.5).to_event(1))
                assert not (looks and a.sum().item() == 1e9)
                mean = torch.cat([a, x], dim=1) @ second if joined else a * second[0] + x @ second[1:]
                pyro.sample("b", dist.Normal(mean, 0.5).to_event(1))

        return guide

    pairs = [(model, guides(*how)) for how in ((False,), (True,), (True, True))]
    found = [aggregate_terms("a test", pair, x, 3, 20, 0) for pair in pairs]  # 2 draws at once, and one alone
    for other in found[1:]:
        for name, added in vars(found[0]).items():
            torch.testing.assert_close(getattr(other, name), added)
