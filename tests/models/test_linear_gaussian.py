"""The exact answers of LinearGaussian against independent computations."""

import pytest
import torch
from sklearn.decomposition import FactorAnalysis

from pyro_dgm.infer import ELBO, IWAE
from pyro_dgm.models import LinearGaussian


def make(isotropic=False, covariance="full", n=400, seed=0):
    torch.manual_seed(seed)
    truth = LinearGaussian(6, 2).double()
    with torch.no_grad():
        truth.weight.mul_(2.0)
        truth.log_scale.copy_(torch.linspace(-1.0, 0.3, 6, dtype=torch.float64))
    x = truth.marginal().sample((n,)).detach()
    return LinearGaussian(6, 2, isotropic=isotropic, guide_covariance=covariance).double(), x


def test_marginal_and_posterior_by_conditioning_the_joint():
    m, x = make(n=5)
    with torch.no_grad():
        w, psi = m.weight, m.noise_scale**2
        cov = w @ w.mT + psi.diag()
        want = torch.distributions.MultivariateNormal(m.bias, cov).log_prob(x)
        torch.testing.assert_close(m.log_marginal(x), want)
        gain = w.mT @ torch.linalg.inv(cov)
        post = m.posterior(x)
        torch.testing.assert_close(post.loc, (x - m.bias) @ gain.mT)
        torch.testing.assert_close(post.covariance_matrix[0], torch.eye(2, dtype=x.dtype) - gain @ w)


def test_guide_at_the_posterior_closes_the_gap():
    m, x = make(covariance="full", n=5)
    m.set_guide_to_posterior()
    for objective in (ELBO(analytic_kl=False), IWAE(3)):
        torch.testing.assert_close(objective.bound(m.model, m.guide, x), m.log_marginal(x).detach())


def test_mean_field_guide_is_optimal():
    m, x = make(covariance="diagonal", n=50)
    m.set_guide_to_posterior()
    # The exact expectation of the gradient: with the guide's mean at the posterior's and the optimal variances, the
    # gradient of the ELBO for the guide is zero; its Monte Carlo mean must be so within its error.
    torch.manual_seed(0)
    rows = []
    guide = [m.guide_weight, m.guide_bias, m.guide_log_scale]
    for _ in range(400):
        grads = torch.autograd.grad(ELBO(20)(m.model, m.guide)(x), guide)
        rows.append(torch.cat([g.flatten() for g in grads]))
    rows = torch.stack(rows)
    assert (rows.mean(0) / (rows.std(0) / 20)).abs().max() < 4
    with torch.no_grad():
        m.guide_log_scale.add_(0.05)
    rows = torch.stack([torch.autograd.grad(ELBO(20)(m.model, m.guide)(x), m.guide_log_scale)[0] for _ in range(400)])
    assert (rows.mean(0) / (rows.std(0) / 20)).abs().min() > 4  # and the test can see a guide that is off


@pytest.mark.parametrize("isotropic", [True, False])
def test_em_reaches_the_maximum_likelihood(isotropic):
    m, x = make(isotropic=isotropic)
    history = m.fit_em(x, max_iterations=5000, tolerance=1e-11)
    assert all(b >= a - 1e-12 for a, b in zip(history, history[1:], strict=False))
    analysis = FactorAnalysis(2, tol=1e-10, max_iter=20_000, svd_method="lapack")
    want = _ppca(x, 2) if isotropic else analysis.fit(x.numpy()).score(x.numpy())
    assert history[-1] == pytest.approx(want, abs=1e-5)


def _ppca(x, d):
    """Maximum of the PPCA likelihood per datum, from the eigenvalues (Tipping and Bishop 1999)."""
    values = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)
    dim = len(values)
    noise = values[d:].mean()
    log_det = values[:d].log().sum() + (dim - d) * noise.log()
    return (-0.5 * (dim * torch.log(torch.tensor(2 * torch.pi)) + log_det + dim)).item()


def test_bad_arguments():
    with pytest.raises(ValueError, match="latent_dim must be an integer of at least 1, got 0"):
        LinearGaussian(3, 0)
    with pytest.raises(ValueError, match="guide_covariance must be"):
        LinearGaussian(3, 1, guide_covariance="banana")
    with pytest.raises(ValueError, match="at least 2 data"):
        LinearGaussian(3, 1).fit_em(torch.zeros(1, 3))
