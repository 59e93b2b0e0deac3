"""compare_elbos: what theory says of the estimators, and that its numbers are what they are called."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_dgm
from pyro_dgm.analysis.gradients import Moments, find_parameters, signal_to_noise
from pyro_dgm.analysis.memory import peak_memory
from pyro_dgm.infer import ELBO, IWAE, STL, DReG, TraceGraphELBO


@pytest.fixture(scope="module")
def problem():
    m = pyro_dgm.models.LinearGaussian(4, 2).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    with torch.no_grad():  # data of the model's own scale, a guide near its posterior but not at it
        m.weight.normal_(0.0, 0.7)
        m.set_guide_to_posterior()
        m.guide_weight.add_(0.1 * torch.randn_like(m.guide_weight))
        m.guide_bias.add_(0.2)
        m.guide_log_scale.add_(0.2)
    return m, x


@pytest.fixture(scope="module")
def table(problem):
    m, x = problem
    estimators = [ELBO(), STL(), *(E(k) for E in (IWAE, DReG) for k in (2, 16, 128))]
    return pyro_dgm.compare_elbos(m, x, estimators, num_replicates=200, num_reference_replicates=300, seed=3)


def of(table, kind):
    return [table[f"{kind}(num_particles={k})"] for k in (2, 16, 128)]


def test_guide_signal_falls_with_particles_for_iwae_and_rises_for_dreg(table):
    iwae = [r["snr_guide"] for r in of(table, "IWAE")]
    dreg = [r["snr_guide"] for r in of(table, "DReG")]
    # Rainforth et al.: 1/sqrt(K), so a factor of sqrt(8) = 2.8 each step, down to the floor 0.8/sqrt(500) = 0.036.
    assert iwae[0] > 1.6 * iwae[1] > 1.6 * iwae[2]
    assert dreg[2] > 1.6 * dreg[1] > 1.6 * dreg[0]
    assert dreg[0] > iwae[0]
    assert iwae[2] < 0.12
    # The model's gradient gains signal with K either way.
    for rows in (of(table, "IWAE"), of(table, "DReG")):
        model = [r["snr_model"] for r in rows]
        assert model[2] > 1.6 * model[1] > 1.6 * model[0]


def test_cosines_and_variances_say_the_same(table):
    iwae, dreg = of(table, "IWAE"), of(table, "DReG")
    assert iwae[0]["cosine_guide"] > iwae[2]["cosine_guide"]
    assert dreg[2]["cosine_guide"] > dreg[0]["cosine_guide"] > iwae[0]["cosine_guide"]
    assert dreg[2]["cosine_guide"] > 0.99
    for a, b in zip(iwae, dreg, strict=True):
        assert b["variance_guide"] < a["variance_guide"]
        assert b["variance_model"] / a["variance_model"] == pytest.approx(1, abs=0.35)


def test_bounds_are_ordered_and_below_the_truth(table, problem):
    m, x = problem
    assert table.reference["name"] == "exact"
    assert table.reference["value"] == pytest.approx(float(m.log_prob(x).mean().detach()))
    for row in table.rows:
        assert row["gap"] > -4 * row["gap_se"]
        assert row["gap"] == pytest.approx(table.reference["value"] - row["bound"])
    for rows in (of(table, "IWAE"), of(table, "DReG")):
        for a, b in zip(rows, rows[1:], strict=False):
            assert b["bound"] > a["bound"] - 4 * math.hypot(a["bound_se"], b["bound_se"])
        assert rows[2]["gap"] < rows[0]["gap"]
    for a, b in zip(of(table, "IWAE"), of(table, "DReG"), strict=True):
        assert abs(a["bound"] - b["bound"]) < 4.5 * math.hypot(a["bound_se"], b["bound_se"])
        assert a["ess"] == pytest.approx(b["ess"], rel=0.1)
        assert 1 < a["ess"] < a["num_particles"]
        assert a["ess_fraction"] == pytest.approx(a["ess"] / a["num_particles"])
    elbo = table[0]
    exact = float(IWAE(1).bound(m.model, m.guide, x.repeat(2000, 1)).mean())
    assert abs(elbo["bound"] - exact) < 5 * elbo["bound_se"] + 0.02
    assert elbo["ess"] == 1


def test_cost_is_measured(table):
    memory = [r["peak_mb"] for r in of(table, "IWAE")]
    # 128 particles of 8 data of 4 float64 numbers are 32 kB an intermediate; 64 times two particles'.
    assert 32 * memory[0] < memory[2] < 128 * memory[0]
    assert all(r["seconds"] > 0 for r in table.rows)


def test_table_frame_text_and_figure(table, tmp_path):
    frame = table.to_frame()
    assert frame.shape == (8, len(table.rows[0]) - 1)
    assert frame.loc["ELBO(num_particles=1)", "bound"] == table[0]["bound"]
    text = str(table)
    for word in ("DReG(num_particles=128)", "nats per datum", "a step", "SNR", "Reference (exact)", "8 data"):
        assert word in text
    figure = table.plot()
    assert all(ax.get_xlabel() for ax in figure.axes)
    figure.savefig(tmp_path / "table.png")
    with pytest.raises(KeyError, match="no estimator 'VIMCO'"):
        table["VIMCO"]
    assert len(table) == 8


def test_nothing_is_left_behind(problem, rng_unchanged):
    m, x = problem
    before = {k: v.clone() for k, v in m.state_dict().items()}
    m.bias.grad = torch.full_like(m.bias, 7.0)
    with rng_unchanged():
        a = pyro_dgm.compare_elbos(m, x, [IWAE(2)], num_replicates=3, seed=0)
        b = pyro_dgm.compare_elbos(m, x, {"mine": IWAE(2)}, num_replicates=3, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    assert torch.equal(m.bias.grad, torch.full_like(m.bias, 7.0)) and m.weight.grad is None
    m.bias.grad = None
    assert a[0]["bound"] == b["mine"]["bound"] and a[0]["snr_guide"] == b["mine"]["snr_guide"]


def test_running_statistics_are_put_back():
    vae = pyro_dgm.models.VAE((6,), 2, hidden=(8,))
    vae.encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(6), vae.encoder)
    norm = vae.encoder[0]
    before = norm.running_mean.clone()
    pyro_dgm.compare_elbos(vae, torch.ones(4, 6), [ELBO()], num_replicates=2, seed=0, reference_particles=2)
    assert torch.equal(norm.running_mean, before) and int(norm.num_batches_tracked) == 0


def test_parameters_are_split_by_what_depends_on_them():
    vae = pyro_dgm.models.VAE((6,), 2, hidden=(8,))
    found = find_parameters(vae, (torch.zeros(3, 6),), {})
    assert {n.split(".")[0] for n in found.model} == {"decoder"}
    assert {n.split(".")[0] for n in found.guide} == {"encoder"}
    assert set(found.tensors) == found.model | found.guide

    shared = torch.nn.Linear(1, 1)

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.own, self.idle = shared, torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.shared(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.own(self.shared(x)), 1.0).to_event(1))

    found = find_parameters(Pair(), (torch.zeros(3, 1),), {})
    assert found.model == {"shared.weight", "shared.bias"}
    assert found.guide == {"shared.weight", "shared.bias", "own.weight", "own.bias"}
    assert "idle.weight" not in found.tensors


@pytest.mark.uses_param_store
def test_plain_functions_and_autoguides():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.4))
        scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, scale))

    x = torch.randn(6)
    found = find_parameters(pyro_dgm.program(model, guide), (x,), {})
    assert (found.model, found.guide) == ({"loc"}, {"slope", "scale"})

    def free(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    table = pyro_dgm.compare_elbos((free, AutoNormal(free)), x, [ELBO(), IWAE(3)], num_replicates=3, seed=0)
    assert math.isnan(table[0]["snr_model"]) and table[0]["snr_guide"] > 0


def test_pyro_estimators_and_references(problem):
    m, x = problem
    estimators = [ELBO(analytic_kl=False), pyro.infer.Trace_ELBO(), TraceGraphELBO()]
    table = pyro_dgm.compare_elbos(m, x, estimators, num_replicates=20, reference=m.log_prob, seed=0)
    assert table.reference["name"] == "log_prob"
    ours, pyros, _ = table.rows
    # One gradient estimator in three implementations.
    for other in table.rows[1:]:
        assert abs(ours["bound"] - other["bound"]) < 4.5 * math.hypot(ours["bound_se"], other["bound_se"])
    assert pyros["estimator"] == "Trace_ELBO"
    iwae = pyro_dgm.compare_elbos(m, x, [ELBO()], num_replicates=2, reference="iwae", seed=0).reference
    assert abs(iwae["value"] - table.reference["value"]) < 4 * iwae["standard_error"]
    number = pyro_dgm.compare_elbos(m, x, [ELBO()], num_replicates=2, reference=lambda x: -1.5).reference
    assert (number["value"], number["standard_error"]) == (-1.5, 0.0)


def test_gradients_are_per_datum_whatever_the_batch_and_scale(problem):
    m, x = problem

    def doubled(fn):
        def scaled(*args):
            with pyro.poutine.scale(scale=5.0):
                return fn(*args)

        return scaled

    plain = pyro_dgm.compare_elbos(m, x, [IWAE(4)], num_replicates=4, seed=0)[0]
    scaled = pyro_dgm.compare_elbos((doubled(m.model), doubled(m.guide)), x, [IWAE(4)], num_replicates=4, seed=0)
    assert scaled.num_data == 40
    assert plain["bound"] == pytest.approx(scaled[0]["bound"], rel=0.05)


def test_moments_are_those_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3.0, 2.0, size=(40, 5)), rng.normal(3.0, 2.0, size=(25, 5))
    parts = []
    for rows in (a, b):
        moments = Moments()
        for row in rows:
            moments.add([torch.from_numpy(row[:2]), torch.from_numpy(row[2:])])
        parts.append(moments)
    mean, variance = parts[0].merged(parts[1]).flat([0, 1])
    both = np.concatenate([a, b])
    np.testing.assert_allclose(mean, both.mean(0))
    np.testing.assert_allclose(variance, both.var(0, ddof=1))


def test_signal_to_noise():
    mean, variance = torch.tensor([2.0, -3.0, 0.0, 5.0]), torch.tensor([4.0, 1.0, 0.0, 0.0])
    assert signal_to_noise(mean, variance) == pytest.approx((1.0 + 3.0) / 2)
    assert signal_to_noise(torch.tensor([1.0]), torch.tensor([0.0])) == math.inf
    assert math.isnan(signal_to_noise(torch.zeros(2), torch.zeros(2)))


def test_peak_memory_counts_what_lives_at_once():
    cpu = torch.device("cpu")

    def work():
        a = torch.ones(1000, dtype=torch.float64)
        b = a + 1  # two live
        c = b.view(10, 100)  # a view is nothing new
        del a
        return (c * 2).sum()  # two live again, and a scalar

    assert peak_memory(work, cpu) == 16008
    held = torch.ones(1000)
    assert peak_memory(lambda: held.view(10, 100), cpu) == 0


def test_a_callable_is_compared_like_the_objective_that_it_calls(problem):
    m, x = problem
    estimators = {"elbo": ELBO(), "callable": lambda model, guide: ELBO()(model, guide)}
    table = pyro_dgm.compare_elbos(m, x, estimators, num_replicates=100, seed=0)
    one, other = table["elbo"], table["callable"]
    assert abs(one["bound"] - other["bound"]) < 4 * math.hypot(one["bound_se"], other["bound_se"])
    assert other["variance_guide"] == pytest.approx(one["variance_guide"], rel=0.5)


def test_bad_input(problem):
    m, x = problem
    with pytest.raises(ValueError, match="num_replicates must be an integer of at least 2"):
        pyro_dgm.compare_elbos(m, x, [ELBO()], num_replicates=1)
    with pytest.raises(ValueError, match="at least one objective"):
        pyro_dgm.compare_elbos(m, x, [])
    with pytest.raises(TypeError, match="must be an ELBO or a callable|no differentiable_loss"):
        pyro_dgm.compare_elbos(m, x, [object()])
    with pytest.raises(ValueError, match="reference must be 'exact'"):
        pyro_dgm.compare_elbos(m, x, [ELBO()], reference="ais")
    with pytest.raises(TypeError, match="reference must be"):
        pyro_dgm.compare_elbos(m, x, [ELBO()], reference=3)
    with pytest.raises(ValueError, match="needs a program with log_prob"):
        pyro_dgm.compare_elbos((m.model, m.guide), x, [ELBO()], reference="exact")
    bad = x.clone()
    bad[0, 0] = math.nan
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"ELBO\(num_particles=1\): the loss is nan"):
        pyro_dgm.compare_elbos((m.model, m.guide), bad, [ELBO()], num_replicates=2, reference=lambda x: 0.0)
