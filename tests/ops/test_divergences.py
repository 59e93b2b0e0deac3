"""Distances between draws against closed forms for Gaussians and against loops."""

import itertools
import math

import pytest
import torch

from pyro_dgm.ops.divergences import gaussian_total_correlation, mmd, sliced_wasserstein

DTYPE = torch.float64


def expected_rbf(gap, variance, width, dim):
    """E exp(-|d|^2 / 2 h^2) of d ~ N(gap, variance I) in ``dim`` dimensions; ``width`` is h^2."""
    total = width + variance
    return (width / total) ** (dim / 2) * math.exp(-float(gap @ gap) / (2 * total))


@pytest.mark.parametrize("scales", [(1.0,), (0.3, 4.0)])
def test_mmd_of_two_gaussians(scales):
    """x ~ N(0, I), y ~ N(m, s^2 I): Gaussian integrals; the V-statistic is above by a draw's share of itself."""
    torch.manual_seed(0)
    dim, n, m, repeats, s = 3, 12, 9, 4000, 0.6
    gap, zero = torch.tensor([0.8, -0.2, 0.5], dtype=DTYPE), torch.zeros(3, dtype=DTYPE)
    want_u = want_v = 0.0
    for scale in scales:
        width = scale * dim
        xx, yy = (expected_rbf(zero, 2 * v, width, dim) for v in (1.0, s**2))
        xy = expected_rbf(gap, 1 + s**2, width, dim)
        want_u += (xx + yy - 2 * xy) / len(scales)
        want_v += (xx + (1 - xx) / n + yy + (1 - yy) / m - 2 * xy) / len(scales)
    x, y = torch.randn(repeats, n, dim, dtype=DTYPE), gap + s * torch.randn(repeats, m, dim, dtype=DTYPE)
    for unbiased, want in ((True, want_u), (False, want_v)):
        values = mmd(x, y, scales=scales, unbiased=unbiased)
        assert values.shape == (repeats,)
        error = values.std() / repeats**0.5
        assert abs(values.mean() - want) < 4 * error
        assert error < 0.05 * want  # and so the two are told apart
    assert want_v - want_u > 10 * error


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_mmd_by_loops(kernel, unbiased):
    torch.manual_seed(1)
    x, y, h = torch.randn(5, 2, dtype=DTYPE), torch.randn(4, 2, dtype=DTYPE) + 1, 0.7

    def k(a, b):
        r = float(((a - b) ** 2).sum())
        return math.exp(-r / (2 * h**2)) if kernel == "rbf" else 2 * h**2 / (2 * h**2 + r)

    def mean(a, b, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and unbiased and i == j)]
        return sum(k(a[i], b[j]) for i, j in pairs) / len(pairs)

    want = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert mmd(x, y, kernel, bandwidth=h, unbiased=unbiased).item() == pytest.approx(want, rel=1e-10)


def test_imq_default_is_that_of_the_paper():
    x, y = torch.zeros(1, 6, dtype=DTYPE), torch.ones(1, 6, dtype=DTYPE)
    constant = 2 * 6  # 2 d sigma^2
    want = 2 - 2 * constant / (constant + 6)
    assert mmd(x, y, "imq", unbiased=False).item() == pytest.approx(want)


@pytest.mark.parametrize("distance", [mmd, sliced_wasserstein])
def test_masked_draws_are_as_good_as_absent(distance):
    torch.manual_seed(2)
    x, y = torch.randn(2, 6, 3, dtype=DTYPE), torch.randn(2, 6, 3, dtype=DTYPE) - 1
    mask = torch.tensor([True, False, True, True, False, True])
    x.requires_grad_()
    torch.manual_seed(3)
    got = distance(x, y, mask=mask)
    torch.manual_seed(3)
    want = distance(x[:, mask], y[:, mask])
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(v.sum(), x)[0] for v in (got, want)]
    torch.testing.assert_close(*grads)
    assert (grads[0][:, ~mask] == 0).all()
    assert torch.isfinite(torch.autograd.grad(distance(x, y, mask=torch.zeros(6, dtype=torch.bool)).sum(), x)[0]).all()


def test_sliced_wasserstein_of_shifted_gaussians():
    """Draws moved as a whole: each slice is (theta . gap)^2, whose mean over the sphere is |gap|^2 / d."""
    torch.manual_seed(4)
    dim, count = 4, 20_000
    x, gap = torch.randn(3, dim, dtype=DTYPE), torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=DTYPE)
    want = float(gap @ gap) / dim
    # (theta . gap)^2 = |gap|^2 times a Beta(1/2, (d-1)/2) variable
    spread = float(gap @ gap) * math.sqrt(2 * (dim - 1) / (dim**2 * (dim + 2)))
    error = spread / count**0.5
    assert abs(sliced_wasserstein(x, x + gap, count).item() - want) < 4 * error
    assert error < 0.02 * want


def test_sliced_wasserstein_on_a_line_is_the_best_pairing():
    torch.manual_seed(5)
    x, y = torch.randn(5, 1, dtype=DTYPE), 2 * torch.randn(5, 1, dtype=DTYPE)
    pairings = torch.stack([((x - y[p]) ** 2).mean() for p in map(list, itertools.permutations(range(5)))])
    torch.testing.assert_close(sliced_wasserstein(x, y, 3), pairings.min())
    # and between many draws of N(0, 1) and N(1, 2^2) the closed form, 1 + (2 - 1)^2
    a, b = torch.randn(40_000, 1, dtype=DTYPE), 1 + 2 * torch.randn(40_000, 1, dtype=DTYPE)
    assert abs(sliced_wasserstein(a, b, 1) - 2) < 0.1


def test_total_correlation_of_a_gaussian():
    rho = 0.8
    torch.testing.assert_close(
        gaussian_total_correlation(torch.tensor([[4.0, 2 * rho], [2 * rho, 1.0]], dtype=DTYPE)),
        torch.tensor(-0.5 * math.log(1 - rho**2), dtype=DTYPE),
    )
    factor = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    cov = factor @ factor.mT + torch.eye(3, dtype=DTYPE)
    joint = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=DTYPE), cov)
    apart = torch.distributions.MultivariateNormal(joint.loc, torch.diag_embed(cov.diagonal(dim1=-2, dim2=-1)))
    torch.testing.assert_close(gaussian_total_correlation(cov), torch.distributions.kl_divergence(joint, apart))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mmd(x, x, "laplace"), "kernel must be 'rbf' or 'imq', got 'laplace'"),
        (lambda x: mmd(x, x, bandwidth=0.0), "bandwidth and scales must be positive"),
        (lambda x: mmd(x, x, scales=()), "bandwidth and scales must be positive"),
        (lambda x: mmd(x[:1], x), "unbiased needs at least 2 draws"),
        (lambda x: mmd(x, x[:, :1]), r"got \(4, 2\) and \(4, 1\)"),
        (lambda x: mmd(x, x[:3], mask=torch.ones(4, dtype=torch.bool)), "mask must be"),
        (lambda x: sliced_wasserstein(x, x, 0), "num_projections must be an integer of at least 1"),
        (lambda x: sliced_wasserstein(x, x[:3]), "as many draws, got 4 and 3"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(4, 2))
