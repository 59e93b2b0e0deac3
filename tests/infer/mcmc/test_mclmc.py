"""Microcanonical sampling: the dynamics against their equation, the bias against the energy's variance."""

from __future__ import annotations

import pytest
import torch

from pyro_dgm.infer.mcmc import MCLMC, MCMC, AdjustedMCLMC
from pyro_dgm.infer.mcmc.kernels.isokinetic import minimal_norm_step, turn, unit
from tests.infer.mcmc.targets import walk

DTYPE = torch.float64


def start(seed=0, chains=5, dimensions=4):
    g = torch.Generator().manual_seed(seed)
    velocity = unit(torch.randn(chains, dimensions, generator=g, dtype=DTYPE))
    return velocity, torch.randn(chains, dimensions, generator=g, dtype=DTYPE)


def test_turning_solves_the_equation():
    """du/dt = -(I - u u') g / (d - 1) by small Runge-Kutta steps, and dK/dt = -g . u along it."""
    velocity, gradient = start()
    size, steps = torch.full((5,), 0.8, dtype=DTYPE), 400

    def slope(u):
        return -(gradient - u * (u * gradient).sum(-1, keepdim=True)) / 3

    u, work, h = velocity, torch.zeros(5, dtype=DTYPE), 0.8 / steps
    for _ in range(steps):
        k1 = slope(u)
        k2 = slope(u + 0.5 * h * k1)
        k3 = slope(u + 0.5 * h * k2)
        k4 = slope(u + h * k3)
        new = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        work = work - h * 0.5 * ((gradient * u).sum(-1) + (gradient * new).sum(-1))
        u = new
    turned, energy = turn(velocity, gradient, size)
    torch.testing.assert_close(turned, u, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(energy, work, rtol=1e-5, atol=1e-6)
    back, _ = turn(-turned, gradient, size)
    torch.testing.assert_close(back, -velocity)


def test_turning_bears_any_force():
    velocity, gradient = start()
    for factor in (0.0, 1e-300, 1e12):
        turned, energy = turn(velocity, factor * gradient, torch.ones(5, dtype=DTYPE))
        assert bool(torch.isfinite(turned).all() & torch.isfinite(energy).all())
        torch.testing.assert_close(turned.norm(dim=-1), torch.ones(5, dtype=DTYPE))


def test_error_of_a_step_is_of_third_order():
    velocity, x = start(1)

    def evaluate(y):
        return 0.25 * y.pow(4).sum(-1), y.pow(3)

    errors = []
    for h in (0.01, 0.005):
        value, gradient = evaluate(x)
        _, _, after, _, kinetic = minimal_norm_step(x, velocity, gradient, torch.full((5,), h, dtype=DTYPE), evaluate)
        errors.append((after + kinetic - value).abs())
    assert ((errors[0] / errors[1]).log2() - 3.0).abs().max() < 0.4


def scales(u):
    return 0.5 * (u["x"] / SCALES).square().sum(-1)


SCALES = torch.logspace(-1, 1, 40, dtype=DTYPE)


def run(kernel, draws=200, chains=32, seed=0):
    mcmc = MCMC(kernel, draws, 400, chains, seed=seed, progress=False)
    g = torch.Generator().manual_seed(seed)
    mcmc.run(initial_params={"x": torch.randn(chains, 40, generator=g, dtype=DTYPE)})
    return mcmc.get_samples(group_by_chain=True)["x"], mcmc


def test_unadjusted_draws_are_biased_by_little():
    x, mcmc = run(MCLMC(potential_fn=scales))
    assert bool((mcmc.posterior.sample_stats["acceptance_rate"] == 1).all())
    variances = (x / SCALES).square().mean((0, 1))
    assert abs(float(variances.mean()) - 1.0) < 0.02
    means = (x / SCALES).mean((0, 1))
    assert means.abs().max() < 0.06


@pytest.mark.slow
def test_bias_follows_the_energy():
    """Far more variance of the energy: a longer step, and a bias that no number of draws takes away."""
    rough, fine = (
        run(MCLMC(potential_fn=scales, energy_variance=v, trajectory_length=4.0), seed=1) for v in (0.2, 1e-7)
    )
    error = {k: abs(float((x / SCALES).square().mean()) - 1.0) for k, (x, _) in (("rough", rough), ("fine", fine))}
    assert error["fine"] < 0.01 < error["rough"]
    sizes = [float(m.posterior.sample_stats["step_size"][0, 0]) for _, m in (rough, fine)]
    assert sizes[0] > 1.5 * sizes[1]


def test_energy_variance_is_what_was_asked_for():
    kernel = MCLMC(potential_fn=scales, energy_variance=1e-6)
    g = torch.Generator().manual_seed(3)
    start = {"x": SCALES * torch.randn(64, 40, generator=g, dtype=DTYPE)}
    _, seen = walk(kernel, start, 30, warmup=300, after=lambda s, _: s.squared_energy)
    assert 0.6e-6 < float(torch.stack(seen).mean()) / 40 < 1.6e-6


def test_adjusted_is_exact_in_many_dimensions():
    x, mcmc = run(AdjustedMCLMC(potential_fn=scales), draws=150)
    squares = (x / SCALES).square()
    error = squares.mean(1).std(0) / 32**0.5
    assert ((squares.mean((0, 1)) - 1.0) / error).abs().max() < 4.5
    assert 0.8 < float(mcmc.posterior.sample_stats["acceptance_rate"].mean()) < 0.98


def test_a_chain_at_a_cliff_diverges_alone():
    def cliff(u):
        return torch.where(u["x"][..., 0] > 3.0, float("nan"), 0.5 * u["x"].square().sum(-1))

    kernel = MCLMC(potential_fn=cliff, step_size=0.4)
    begin = torch.zeros(12, 3, dtype=DTYPE)
    begin[4:, 0] = 2.99
    _, seen = walk(kernel, {"x": begin}, 20, after=lambda s, i: (s.position["x"].clone(), i.diverging))
    positions = torch.stack([p for p, _ in seen])
    diverging = torch.stack([d for _, d in seen])
    assert bool(torch.isfinite(positions).all())
    assert bool(diverging[:, 4:].any())
    calm, _ = walk(kernel, {"x": torch.zeros(12, 3, dtype=DTYPE)}, 20)
    torch.testing.assert_close(positions[-1][:4], calm.position["x"][:4], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"energy_variance": 0.0}, "energy_variance must be positive and finite, got 0.0"),
        ({"trajectory_length": -1.0}, "trajectory_length must be positive and finite"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, or None, got 0"),
        ({"temperature": 0.0}, "temperature must be positive and finite"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MCLMC(potential_fn=scales, **settings)
