"""Programs of the shapes that Pyro's examples and tutorials have, through everything that takes a program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.subsample_messenger import _Subsample

import pyro_dgm
from pyro_dgm.infer import ELBO, IWAE, OBJECTIVES, CapturedELBO, Objective
from pyro_dgm.infer.objectives.evaluation.strategy import Pair
from pyro_dgm.infer.objectives.evaluation.vectorization import strategy_for
from pyro_dgm.programs.structure import is_point, sample_sites
from tests.infer.zoo import deep, hidden_markov, mixtures, regression, series  # noqa: F401  (they fill the zoo)
from tests.infer.zoo.case import CASES, Case, Made, fresh

pytestmark = [
    pytest.mark.uses_param_store,
    pytest.mark.filterwarnings("ignore:the program's .* particles are run one after another:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*weights are joint over the data:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*marked for enumeration:UserWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*you need to use TraceEnum_ELBO:UserWarning"),
]
every_program = pytest.mark.parametrize("case", CASES, ids=repr)
K = 4
WAYS = {"plate": "in a plate", "vmap": "under vmap", "loop": "one after another"}


def pyros(case: Case, made: Made, enumerate_guide: bool = True) -> Any:
    summed = case.enumerates == "model" or (case.enumerates == "guide" and enumerate_guide)
    nesting = ELBO().structure(made.model, made.guide, made.args, made.kwargs).nesting
    return (TraceEnum_ELBO if summed else Trace_ELBO)(max_plate_nesting=nesting)


@every_program
def test_loss_of_one_particle_is_pyros(case: Case) -> None:
    with fresh(case) as made:
        theirs, ours = pyros(case, made), ELBO(analytic_kl=False)
        losses = []
        for objective in (ours, theirs):
            torch.manual_seed(7)
            losses.append(objective.loss(made.model, made.guide, *made.args))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-4)


@every_program
def test_weights_of_all_particles_are_those_of_single_runs(case: Case) -> None:
    with fresh(case) as made, _FirstRows():
        objective = IWAE(K)
        structure = objective.structure(made.model, made.guide, made.args, made.kwargs)
        strategy = strategy_for(Pair(made.model, made.guide, made.args, made.kwargs, structure), K)
        assert (
            strategy.kind.name == {"plate": "in a plate", "vmap": "under vmap", "loop": "one after another"}[case.way]
        )
        loss = objective.differentiable_loss(made.model, made.guide, *made.args)
        assert loss.isfinite()
        if loss.requires_grad:
            loss.backward()
        if not case.replays:
            return
        with torch.no_grad():
            particles = objective.particles(made.model, made.guide, made.args, made.kwargs)
            found = (particles.outer_scale * particles.log_weights).reshape(K, -1).sum(1)
            theirs = pyros(case, made, enumerate_guide=False)
            for k in range(K):
                with _AtParticle(particles, k, strategy.dims):
                    expected = -theirs.loss(made.model, made.guide, *made.args)
                assert float(found[k]) == pytest.approx(expected, rel=1e-4, abs=1e-3)


class _AtParticle(poutine.messenger.Messenger):
    """Gives the guide's sites their values at one particle; points are computed again."""

    def __init__(self, particles: Any, k: int, dims: dict[str, int]) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}
        _, guide = particles.pairs[k if len(particles.pairs) > 1 else 0]
        for name, site in sample_sites(guide).items():
            value = site["value"]
            if particles.vectorized and value.dim() > dims[name]:
                value = value[k].reshape(value.shape[value.dim() - dims[name] :])
            self.values[name] = value

    def _pyro_sample(self, msg: Any) -> None:
        value = self.values.get(msg["name"])
        if value is None or msg["done"] or msg["is_observed"] or is_point(msg["fn"]):
            return
        msg["value"], msg["done"] = value, True


class _FirstRows(poutine.messenger.Messenger):
    """The first rows are every plate's mini-batch."""

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            msg["value"], msg["done"] = torch.arange(msg["fn"].subsample_size or msg["fn"].size), True


RECORDED = ["linear_regression", "vae", "stick_breaking", "dropout", "objects_by_presence"]


@pytest.mark.parametrize(
    "case", [c if c.name in RECORDED else pytest.param(c, marks=pytest.mark.slow) for c in CASES], ids=repr
)
def test_recorded_is_eager(case: Case) -> None:
    with fresh(case) as made:
        eager = IWAE(K)
        recorded = CapturedELBO(IWAE(K), backend="aten", say=lambda reason: None)
        for seed in (1, 2):
            losses = []
            for objective in (eager, recorded):
                torch.manual_seed(seed)
                losses.append(objective.differentiable_loss(made.model, made.guide, *made.args).item())
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        if case.records is not None:
            assert recorded.status(made.model, made.guide).startswith("captured" if case.records else "eager: ")


@every_program
def test_guide_draws_and_likelihood(case: Case) -> None:
    with fresh(case) as made:
        program = pyro_dgm.program(made.model, made.guide)
        estimate = pyro_dgm.analysis.log_likelihood(program, made.args, num_particles=3, seed=0)
        assert torch.as_tensor(estimate.values).isfinite().all()
        if case.draws:
            post = pyro_dgm.sample_posterior(program, *made.args, num_samples=2, num_chains=2, seed=0)
            assert all(value.shape[:2] == (2, 2) for value in post.samples.values())
            assert all(value.isfinite().all() for value in post.sample_stats.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", OBJECTIVES.values(), ids=OBJECTIVES)
@every_program
def test_every_objective_trains_or_refuses_by_name(case: Case, kind: type[Objective]) -> None:
    with fresh(case) as made:
        try:
            objective = kind(num_particles=3)
            loss = objective.differentiable_loss(made.model, made.guide, *made.args)
        except (TypeError, ValueError) as error:
            if kind.__name__ in str(error) or str(error).startswith("the guide computes"):
                return
            raise
        assert loss.isfinite()
        if loss.requires_grad:
            loss.backward()
