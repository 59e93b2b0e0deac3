"""Which way particles are run, what is said of it, and the state, noise and mini-batches of the program meanwhile."""

import logging
import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from torch import nn

import pyro_dgm
from pyro_dgm.infer import ELBO, IWAE, PIWAE, CapturedELBO, DReG
from pyro_dgm.infer.objectives.evaluation.evaluate import evaluate, run_pairs
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.programs.structure import sample_sites
from tests.infer.objectives.evaluation.test_vectorization import Regression, way_of

# What does not fit, and what fits by accident


def accident(x):
    """The weights of K = N particles would be paired with the N data."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z * torch.ones(len(x)), 1.0).to_event(1), obs=x)


def along_the_wrong_dimension(x):
    with pyro.plate("time", len(x)):
        step = pyro.sample("step", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(step.cumsum(0), 1.0).to_event(1), obs=x)


def over_all_dimensions(x):
    with pyro.plate("parts", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z.mean(), 1.0).expand([len(x)]).to_event(1), obs=x)


def first_entry(x):
    with pyro.plate("parts", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z[0], 1.0), obs=x)


@pytest.mark.parametrize("num_particles", [2, 3, 4])
@pytest.mark.parametrize("model", [accident, along_the_wrong_dimension, over_all_dimensions, first_entry])
def test_a_shape_that_fits_by_accident_is_found_out(model, num_particles):
    x = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64)
    with pyro.settings.context(module_local_params=True):
        guide = autoguide.AutoNormal(model)
        torch.manual_seed(0)
        particles = evaluate(model, guide, (x,), num_particles=num_particles)
        values = sample_sites(particles.pairs[0][0])
        name = next(n for n, s in values.items() if not s["is_observed"])
        single = poutine.trace(model).get_trace(x).nodes[name]["value"].shape
        for k in range(num_particles):
            alone = poutine.condition(model, {name: values[name]["value"][k].reshape(single)})
            expected = poutine.trace(alone).get_trace(x).log_prob_sum()
            torch.testing.assert_close(particles.log_p[k].sum(), expected, check_dtype=False)


def test_what_was_taken_is_said_once_and_why(caplog):
    program = Regression("vmap", discrete=False)
    with caplog.at_level(logging.INFO, "pyro_dgm"):
        for num_particles in (2, 3):
            for objective in (IWAE(num_particles), DReG(num_particles)):
                objective.loss(program.model, program.guide)
    assert len(caplog.records) == 1
    assert "particles are run under vmap: in a plate: RuntimeError" in caplog.text
    program = Regression("loop", discrete=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for objective in (IWAE(2), DReG(2), IWAE(3)):
            objective.loss(program.model, program.guide)
    (warning,) = found
    assert re.search("one after another: in a plate: .*; under vmap: .*item", str(warning.message))


def test_another_batch_may_take_another_way():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            mean = (x * w).sum(-1) if len(x) < 5 else x @ w
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x.sum(-1))

    def guide(x):
        pyro.sample("w", dist.Normal(torch.full((2,), 0.1), 0.5).to_event(1))

    for objective in (IWAE(3), DReG(3), ELBO(3), CapturedELBO(IWAE(3), backend="aten")):
        for size in (4, 6, 4, 7):
            assert objective.loss(model, guide, torch.ones(size, 2)) > 0
    # what an objective notes of the samples is that of the second run alone
    loc = torch.full((2,), 0.1, requires_grad=True)

    def learned(x):
        pyro.sample("w", dist.Normal(loc, 0.5).to_event(1))

    for objective in (DReG(3), PIWAE(num_outer=2, num_inner=2)):
        for size in (4, 6):
            particles = objective.particles(model, learned, (torch.ones(size, 2),), {}, grad=True)
            noted = [site["value"] for _, _, site in particles.holders]
            assert len(noted) == len(particles.pairs)
            for value, (_, guide_trace) in zip(noted, particles.pairs, strict=True):
                assert value is guide_trace.nodes["w"]["value"]
            (grad,) = torch.autograd.grad(objective.surrogate_of(particles, objective.bound_of(particles)), loc)
            assert grad.isfinite().all() and grad.any()
    # a program's own error is raised as it is
    with pytest.raises(RuntimeError, match="size mismatch|vector"):
        IWAE(3).loss(model, guide, torch.ones(6, 3))


# Plates, masks, and guides that run the model


def test_all_particles_see_one_mini_batch():
    x = torch.arange(8.0)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", 8, subsample_size=3) as index:
            pyro.sample("x", dist.Normal(torch.ones(3, 1) @ w, 1.0), obs=x[index])

    def guide(x):
        pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    for vectorize in (True, False):
        structure = IWAE(4, vectorize_particles=vectorize).structure(model, guide, (x,), {})
        batches = []
        for _ in range(3):
            pairs = run_pairs(Pair(model, guide, (x,), {}, structure), 4, vectorize).pairs
            seen = {tuple(m.nodes["x"]["value"].tolist()) for m, _ in pairs}
            assert len(seen) == 1 and len(pairs) == (1 if vectorize else 4)
            batches += seen
        assert len(set(batches)) > 1  # and each evaluation another one


def test_masks_that_depend_on_draws_and_scales():
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.5, 0.4], dtype=x.dtype)).to_event(1))
        with pyro.plate("data", 3), poutine.mask(mask=x * z[0] < 1.0), poutine.scale(scale=1.0 + z[1]):
            pyro.sample("x", dist.Normal(z @ z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(torch.tensor([0.5, 0.4], dtype=x.dtype)).to_event(1))

    assert way_of(model, guide, x, num_particles=8).kind.name == "under vmap"
    torch.manual_seed(0)
    particles = evaluate(model, guide, (x,), num_particles=8)
    z = particles.pairs[0][0].nodes["z"]["value"]
    assert len({tuple(row.tolist()) for row in z.reshape(8, 2)}) > 2
    for k in range(8):
        trace = poutine.trace(poutine.condition(model, {"z": z[k].reshape(2)})).get_trace(x)
        torch.testing.assert_close(particles.log_p[k], trace.log_prob_sum())


def test_guide_messenger_under_vmap():
    from pyro.poutine.guide import GuideMessenger

    class Shifted(GuideMessenger):
        def get_posterior(self, name, prior):
            return dist.Normal(0.3, 0.5).expand(prior.batch_shape + prior.event_shape).to_event(prior.event_dim)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x @ w, 1.0), obs=x.sum(-1))

    guide, x = Shifted(model), torch.ones(3, 2)
    assert way_of(model, guide, x).kind.name == "under vmap"
    particles = evaluate(model, guide, (x,), num_particles=4)
    w = particles.pairs[0][1].nodes["w"]["value"].reshape(4, 2)
    assert w.unique().numel() == 8
    torch.testing.assert_close(particles.log_q, dist.Normal(0.3, 0.5).log_prob(w).sum(-1))
    normal = dist.Normal(w.sum(-1), 1.0).log_prob(torch.tensor(2.0))
    torch.testing.assert_close(particles.log_p, dist.Normal(0.0, 1.0).log_prob(w).sum(-1) + 3 * normal)


# State and noise of modules


class Autoencoder(nn.Module):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.1).to_event(1))


@pytest.mark.filterwarnings("ignore:the program's:RuntimeWarning")
@pytest.mark.parametrize("where", ["encoder", "decoder"])
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("captured", [True, False])
def test_running_statistics_are_left_as_one_particle_leaves_them(where, vectorize, captured):
    parts = {"encoder": nn.Linear(3, 2), "decoder": nn.Linear(2, 3)}
    norm = nn.BatchNorm1d(parts[where].out_features)
    parts[where] = nn.Sequential(parts[where], norm)
    vae, x = Autoencoder(**parts), torch.randn(6, 3)
    objective = IWAE(5, vectorize_particles=vectorize)
    if captured:
        objective = CapturedELBO(objective, backend="aten")
    objective.differentiable_loss(vae.model, vae.guide, x).backward()
    assert norm.num_batches_tracked == 1
    norm.reset_running_stats()
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().mean(0)))
    objective.loss(vae.model, vae.guide, x)
    assert norm.num_batches_tracked == 1
    if not captured:
        torch.testing.assert_close(norm.running_mean, 0.1 * seen[0])  # the first particle's
    if where == "encoder":  # of the data alone
        torch.testing.assert_close(norm.running_mean, 0.1 * vae.encoder[0](x).mean(0).detach())
    vae.eval()
    objective.loss(vae.model, vae.guide, x)
    assert norm.num_batches_tracked == 1


def test_a_module_with_state_is_named():
    vae, x = Autoencoder(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))), torch.randn(6, 3)
    with pytest.warns(RuntimeWarning, match=r"state of their own: decoder\.1 \(BatchNorm1d\.running_mean\)"):
        IWAE(2).loss(vae.model, vae.guide, x)
    vae.eval()  # another mode, another look: nothing is written, and vmap will do
    assert way_of(vae.model, vae.guide, x).kind.name == "under vmap"


@pytest.mark.parametrize("vectorize", [True, False])
def test_dropout_has_noise_of_its_own_for_each_particle(vectorize):
    vae, x = Autoencoder(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)), nn.Linear(2, 3)), torch.ones(20, 3)
    structure = IWAE(4).structure(vae.model, vae.guide, (x,), {})

    def locs():
        pairs = run_pairs(Pair(vae.model, vae.guide, (x,), {}, structure), 4, vectorize).pairs
        if not vectorize:
            return torch.stack([g.nodes["z"]["value"] for _, g in pairs])
        return pairs[0][1].nodes["z"]["value"]

    def masks():  # the draws are within 0.1 or so of the means, which are few
        rows = torch.cartesian_prod(*[torch.tensor([0.0, 2.0])] * 3)
        means = vae.encoder[1](rows)
        return torch.cdist(locs().detach(), means.detach()).argmin(-1)

    with torch.no_grad():
        vae.encoder[1].weight.mul_(20.0)
    found = masks()
    assert all((found[0] != found[k]).any() for k in range(1, 4))
    vae.eval()
    assert (locs() - vae.encoder[1](x)).abs().max() < 1.0


# Through the rest of the library


def test_the_kind_of_fault_that_was_reported():
    """``X @ w``: fit, comparison, likelihood and draws at every K."""

    def linear(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    x, y = torch.randn(9, 2), torch.randn(9)
    with pyro.settings.context(module_local_params=True):
        program = pyro_dgm.program(linear, autoguide.AutoMultivariateNormal(linear, init_scale=1.0))
        run = pyro_dgm.fit(program, (x, y), objective=IWAE(4), epochs=50, compile=False, progress=False, seed=0)
        assert run.history["train"]
        exact = dist.MultivariateNormal(torch.zeros(9), torch.eye(9) + x @ x.T).log_prob(y)
        estimate = pyro_dgm.analysis.log_likelihood(program, (x, y), num_particles=4000, seed=0)
        assert abs(float(estimate.values) - exact) < 4 * float(estimate.standard_error) + 1e-3
        table = pyro_dgm.compare_elbos(program, (x, y), [ELBO(), IWAE(8), DReG(8)], num_replicates=4, seed=0)
        assert len(table.to_frame()) == 3
        post = pyro_dgm.sample_posterior(program, x, y, num_samples=50, seed=0)
        weights = post.sample_stats["log_p"] - post.sample_stats["log_q"]
        assert abs(float(weights.flatten().logsumexp(0) - torch.tensor(200.0).log() - exact)) < 0.5
