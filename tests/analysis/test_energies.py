"""compare_energies: its numbers against closed forms of a Gaussian, and what its rows say of failures."""

from __future__ import annotations

import functools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_dgm.analysis import EnergyComparison, compare_energies
from pyro_dgm.analysis.density_grid import DensityGrid
from pyro_dgm.infer import (
    ELBO,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastive,
    PersistentCD,
    ScoreMatching,
    ShortRunML,
    SlicedScoreMatching,
)
from pyro_dgm.infer.objectives.energies.score import score_and_curvature
from pyro_dgm.models import EBM
from tests.infer.objectives.energies.gaussian import F64, Program, Quadratic, gaussian_log_z

MEAN = torch.tensor([0.5, -0.3], dtype=F64)
COVARIANCE = torch.tensor([[0.6, 0.25], [0.25, 0.4]], dtype=F64)
LAW = dist.MultivariateNormal(MEAN, COVARIANCE)
BOUNDS = [(-5.0, 6.0), (-5.0, 4.4)]
ADAM = functools.partial(torch.optim.Adam, lr=0.1)


def draws(count, seed=0):
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return MEAN + noise @ torch.linalg.cholesky(COVARIANCE).mT


def make():
    return Program(Quadratic(torch.eye(2, dtype=F64)))


def kl(precision, linear):
    """From the target to the Gaussian of this energy, nats."""
    model = dist.MultivariateNormal(torch.linalg.solve(precision, linear), precision_matrix=precision)
    return float(torch.distributions.kl_divergence(LAW, model))


class Flipped(ScoreMatching):
    """With the curvature's sign wrong."""

    def surrogate(self, site):
        found, curvature, _ = score_and_curvature(
            self.log_prob_of(site), site.value, torch.eye(2, dtype=F64)[:, None, :]
        )
        return 0.5 * found.square().sum() - curvature.sum()


class BreaksOff(ScoreMatching):
    """Has its program's energy become NaN in its fifth step."""

    steps = 0

    def surrogate(self, site):
        self.steps += 1
        return super().surrogate(site) * (math.nan if self.steps == 5 else 1.0)


@pytest.fixture(scope="module")
def table():
    objectives = {
        "SM": ScoreMatching(),
        "SSM": SlicedScoreMatching(num_slices=2),
        "DSM": DenoisingScoreMatching([0.5]),
        "NCE": NoiseContrastive(noise=dist.MultivariateNormal(MEAN, 2 * COVARIANCE), num_noise=4),
        "flipped": Flipped(),
        "breaks off": BreaksOff(),
    }
    steps = 25 * 4
    with pytest.warns(RuntimeWarning, match="flipped: .* it reaches beyond"):  # a precision below nought has no density
        return compare_energies(
            make, draws(4000), objectives, log_density=LAW.log_prob, held_out=draws(3000, 1), bounds=BOUNDS, epochs=25,
            batch_size=1000, seed=0, optimizer=ADAM, lr_scheduler_interval="step",
            lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["SM", "SSM", "NCE"])
def test_consistent_objectives_come_near_and_broken_ones_do_not(table, name):
    # Five parameters of 4000 data cost 5 / 8000 nats in expectation for maximum likelihood.
    assert table[name]["kl"] < 0.01
    assert table[name]["tv"] < 0.04
    assert table["flipped"]["kl"] > 20 * table[name]["kl"]
    assert table["flipped"]["tv"] > 5 * table[name]["tv"]


@pytest.mark.parametrize("name", ["SM", "SSM", "DSM", "NCE"])
def test_numbers_are_those_of_the_closed_form(table, name):
    energy = table.programs[name].energy
    precision, linear = energy.symmetric.detach(), energy.linear.detach()
    assert table[name]["kl"] == pytest.approx(kl(precision, linear), abs=1e-4)
    assert table[name]["log_z"] == pytest.approx(gaussian_log_z(precision, linear), abs=1e-4)
    model = dist.MultivariateNormal(torch.linalg.solve(precision, linear), precision_matrix=precision)
    scores = model.log_prob(draws(3000, 1))
    assert table[name]["log_likelihood"] == pytest.approx(float(scores.mean()), abs=1e-4)
    assert table[name]["log_likelihood_se"] == pytest.approx(float(scores.std()) / 3000**0.5, abs=1e-4)
    assert table[name]["seconds"] > 0 and table[name]["failure"] == ""


def test_denoising_is_held_against_the_blurred_target(table):
    row = table["DSM"]
    assert row["blur"] == 0.5
    assert row["kl_blurred"] < 0.01 and row["tv_blurred"] < 0.05
    blurred = dist.MultivariateNormal(MEAN, COVARIANCE + 0.25 * torch.eye(2, dtype=F64))
    assert row["kl"] == pytest.approx(float(torch.distributions.kl_divergence(LAW, blurred)), abs=0.03)
    assert row["kl"] > 5 * row["kl_blurred"]
    assert math.isnan(table["SM"]["blur"]) and math.isnan(table["SM"]["kl_blurred"])


def test_learnt_log_z_stands_beside_that_of_the_grid(table):
    assert table["NCE"]["log_z_learned"] == pytest.approx(table["NCE"]["log_z"], abs=0.05)
    assert math.isnan(table["SM"]["log_z_learned"])


def test_a_failure_is_a_row_that_says_so(table):
    row = table["breaks off"]
    assert "not finite" in row["failure"] or "nan" in row["failure"]
    assert math.isnan(row["kl"]) and math.isnan(row["log_z"]) and "breaks off" not in table.densities
    text = " ".join(str(table).split())
    assert "breaks off failed: " in text and "DSM learns the density of data with noise 0.5" in text


def test_table_frame_text_and_figure(table, tmp_path):
    frame = table.to_frame()
    assert list(frame.index) == ["SM", "SSM", "DSM", "NCE", "flipped", "breaks off"]
    assert frame.loc["SM", "kl"] == table[0]["kl"]
    text = str(table)
    for word in ("4000 data", "25 epochs", "200 x 200", "total", "CPU s", f"{table['SM']['log_z']:.3f}"):
        assert word in text
    figure = table.plot()
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title().split("\n")[0] for ax in panels] == ["target", *frame.index]
    images = [image for ax in panels for image in ax.images]
    assert len({image.get_clim() for image in images}) == 1 and len(images) == 6
    assert panels[-1].texts[0].get_text() == "failed"
    assert figure.axes[-1].get_ylabel() == "density"
    figure.savefig(tmp_path / "a.png")
    assert len(table) == 6 and isinstance(table, EnergyComparison)
    with pytest.raises(KeyError, match="no objective 'PCD'"):
        table["PCD"]


def test_chains_too_and_the_same_start_each_time(rng_unchanged):
    x = draws(200).float()
    objectives = {"CD-1": ContrastiveDivergence(1), "PCD": PersistentCD(2, num_chains=50), "again": PersistentCD(2, 50)}
    with rng_unchanged():
        first, second = (
            compare_energies(
                lambda: EBM((2,), hidden=(8,), step_size=0.3), x, objectives, held_out=x, epochs=2, batch_size=100,
                bounds=BOUNDS, grid_size=60, seed=3,
            )
            for _ in range(2)
        )  # fmt: skip
    for a, b in zip(first.rows, second.rows, strict=True):
        assert a["log_likelihood"] == b["log_likelihood"]
    assert first["PCD"]["log_z"] == first["again"]["log_z"] != first["CD-1"]["log_z"]
    assert math.isnan(first["PCD"]["kl"]) and first.target is None
    assert "held-out" in str(first) and "variation" not in str(first)
    assert first.plot().axes[0].get_title() == "data"


def test_mass_beyond_the_grid_is_warned_of():
    with pytest.warns(RuntimeWarning, match=r"SM: 0\.\d+ of the density's mass is in the outermost cells"):
        compare_energies(
            make, draws(500), {"SM": ScoreMatching()}, held_out=draws(9), bounds=[(0, 1), (-1, 0)], epochs=1,
            grid_size=20, seed=0,
        )  # fmt: skip


def test_energies_that_are_not_finite_on_the_grid_are_named():
    class Wall(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Quadratic(torch.eye(2, dtype=F64))

        def forward(self, x):
            return torch.where(x.sum(-1) > 4, math.inf, self.inner(x))

    made = iter([Wall(), Quadratic(torch.eye(2, dtype=F64))])
    table = compare_energies(
        lambda: Program(next(made)), draws(100), [ScoreMatching(), ScoreMatching()], held_out=draws(9), bounds=BOUNDS,
        epochs=1, grid_size=50, seed=0,
    )  # fmt: skip
    assert table[0]["failure"].startswith("the energy is inf at ") and table[0]["failure"].endswith("grid points")
    assert table[1]["failure"] == ""


def test_grid_sums_against_closed_forms():
    grid = DensityGrid.make([(-6, 6), (-7, 5)], 240, torch.zeros(2, 2))
    log_p = grid.evaluate(LAW.log_prob, MEAN)
    assert grid.log_integral(log_p) == pytest.approx(0.0, abs=1e-8)
    # a row is a second coordinate, a column a first
    assert torch.equal(grid.points.reshape(240, 240, 2)[0, :, 1], grid.points[:240, 1])
    assert grid.points[1, 0] > grid.points[0, 0] and grid.points[1, 1] == grid.points[0, 1]
    other = dist.MultivariateNormal(MEAN + 0.4, COVARIANCE)
    log_q = grid.evaluate(other.log_prob, MEAN)
    assert grid.kl(log_p, log_q) == pytest.approx(float(torch.distributions.kl_divergence(LAW, other)), abs=1e-6)
    # Of Gaussians with one covariance, whose means are d apart in it: 2 Phi(d / 2) - 1.
    shift = torch.full((2,), 0.4, dtype=F64)
    apart = float((shift @ torch.linalg.solve(COVARIANCE, shift)).sqrt())
    assert grid.total_variation(log_p, log_q) == pytest.approx(math.erf(apart / 2 / 2**0.5), abs=1e-3)
    blurred = grid.blurred(log_p, 0.3)
    exact = dist.MultivariateNormal(MEAN, COVARIANCE + 0.09 * torch.eye(2, dtype=F64))
    torch.testing.assert_close(blurred.exp(), grid.evaluate(exact.log_prob, MEAN).exp(), atol=1e-3, rtol=0)
    flat = torch.full((240, 240), -math.log(144.0), dtype=F64)
    assert grid.edge_mass(flat) == pytest.approx((240**2 - 238**2) / 240**2)


def test_default_bounds_hold_the_data_with_a_margin():
    x = torch.tensor([[0.0, -1.0], [10.0, 1.0]])
    first, second = DensityGrid.make(None, 20, x).bounds
    assert first == pytest.approx((-3.0, 13.0)) and second == pytest.approx((-1.6, 1.6))


SM = [ScoreMatching()]
X = draws(50)
SHARED = Program(Quadratic(torch.eye(2, dtype=F64)))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((SHARED, X, SM), {}, TypeError, "program_factory must be a function without arguments"),
        ((make, X, []), {}, ValueError, "objectives must hold at least one objective"),
        ((make, X, [ELBO()]), {}, TypeError, r"ELBO\(num_particles=1\) \(ELBO\) is no objective for energies"),
        ((make, X[:, :1], SM), {}, ValueError, r"x must be data of two dimensions, \(N, 2\), got shape \(50, 1\)"),
        ((make, X.long(), SM), {}, TypeError, "x must be a floating point tensor, got torch.int64"),
        ((make, torch.full((5, 2), math.nan), SM), {}, ValueError, "x holds 10 values that are not finite"),
        ((make, X, SM), {"held_out": X[0]}, ValueError, "held_out must be data of two dimensions"),
        ((make, X, SM), {"held_out": None}, ValueError, "give log_density, or held_out data"),
        ((make, X, SM), {"epochs": 0}, ValueError, "epochs must be an integer of at least 1, got 0"),
        ((make, X, SM), {"grid_size": 5}, ValueError, "grid_size must be an integer of at least 10, got 5"),
        ((make, X, SM), {"bounds": [(0, 1), (1, 1)]}, ValueError, "bounds must be two pairs"),
        ((make, X, SM), {"log_density": lambda v: LAW.log_prob(v) + 1}, ValueError, "integrates to 2.718 on the grid"),
        ((make, X, SM), {"batch_size": 0}, ValueError, "every objective failed: ScoreMatching.*batch_size"),
        ((make, X, [ShortRunML()]), {}, ValueError, "every objective failed: ShortRunML.*one latent site"),
        ((lambda: SHARED, X, [*SM, ScoreMatching()]), {}, ValueError, "must make a new program at each call"),
    ],
)
def test_bad_input_is_named(arguments, options, error, message):
    options = {"held_out": X, "bounds": BOUNDS, "grid_size": 50, "epochs": 1, "seed": 0} | options
    with pytest.raises(error, match=message):
        compare_energies(*arguments, **options)
