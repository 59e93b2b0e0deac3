"""Every discrete estimator on a sigmoid belief network of 8 binary latents, against all 256 states."""

import pytest
import torch

from pyro_dgm.infer import ELBO, IWAE, NVIL, REBAR, RELAX, VIMCO, RenyiELBO, ScoreFunction, TraceGraphELBO, VarGrad
from tests.infer.elbo.sbn import LATENTS, OBSERVED, SigmoidBeliefNetwork, draws, train

EXACT = [
    (ELBO(num_particles=2), "bernoulli", 1, 0.0),
    (TraceGraphELBO(num_particles=2), "bernoulli", 1, 0.0),
    (IWAE(num_particles=2), "bernoulli", 2, 0.0),
    (RenyiELBO(0.4, num_particles=2), "bernoulli", 2, 0.4),
    (ScoreFunction(), "bernoulli", 1, 0.0),
    (ScoreFunction(num_particles=1, baseline=None), "bernoulli", 1, 0.0),
    (VIMCO(num_particles=2), "bernoulli", 2, 0.0),
    (VIMCO(num_particles=2, vectorize_particles=False), "categorical", 2, 0.0),
    (VarGrad(), "bernoulli", 1, 0.0),
    (VarGrad(vectorize_particles=False), "onehot", 1, 0.0),
    (NVIL(), "bernoulli", 1, 0.0),
    (NVIL(num_particles=2), "categorical", 1, 0.0),
    (NVIL(num_particles=2, bound="iwae"), "bernoulli", 2, 0.0),
    (NVIL(num_particles=2, bound="iwae", vectorize_particles=False), "bernoulli", 2, 0.0),
    (RELAX(), "bernoulli", 1, 0.0),
    (RELAX(num_particles=2), "categorical", 1, 0.0),
    (RELAX(num_particles=2, vectorize_particles=False), "onehot", 1, 0.0),
    (REBAR(), "bernoulli", 1, 0.0),
    (REBAR(num_particles=2), "onehot", 1, 0.0),
    (REBAR(num_particles=2, vectorize_particles=False), "bernoulli", 1, 0.0),
]


@pytest.mark.parametrize(("objective", "kind", "num_particles", "alpha"), EXACT, ids=lambda v: str(v))
def test_bound_and_mean_gradient_against_all_states(objective, kind, num_particles, alpha):
    torch.manual_seed(1)
    net = SigmoidBeliefNetwork(kind)
    if objective.build_learned.__func__ is not ELBO.build_learned:
        train(net, objective, steps=30)  # away from where its networks start, which is no control variate at all
    bound = net.bound(num_particles, alpha)
    want = torch.cat([bound.detach()[None], *(g.flatten() for g in torch.autograd.grad(bound, list(net.parameters())))])
    rows = draws(net, objective, 100, 200)
    error = rows.std(0) / 10
    z = (rows.mean(0) - want) / error.clamp(min=1e-9)
    assert z.abs().max() < 4, f"{z.abs().max():.1f}"
    assert error[0] < 0.02 * want[0].abs()
    assert error[1:].norm() < 0.1 * want[1:].norm()


def guide_variance(net, objective):
    """Total variance of the guide's gradient, one replicate."""
    rows = draws(net, objective, 300, 4)[:, 1:]
    return 4 * rows[:, -(OBSERVED + 1) * LATENTS :].var(0).sum().item()


def test_variance_orderings():
    """The orderings of the papers, each on one bound and one number of particles."""
    torch.manual_seed(0)
    net = SigmoidBeliefNetwork()
    with torch.no_grad():
        net.bias.add_(-2.0)  # log-weights far from zero, as they are on data of any size
    plain = guide_variance(net, IWAE(num_particles=5))
    nvil = guide_variance(net, train(net, NVIL(num_particles=5, bound="iwae")))
    vimco = guide_variance(net, VIMCO(num_particles=5))
    assert vimco < 0.8 * nvil < 0.8 * 0.5 * plain, (vimco, nvil, plain)
    plain = guide_variance(net, ScoreFunction(num_particles=5, baseline=None))
    others = {
        "leave-one-out": guide_variance(net, ScoreFunction(num_particles=5)),
        "vargrad": guide_variance(net, VarGrad(num_particles=5)),
        "nvil": guide_variance(net, train(net, NVIL(num_particles=5))),
        "relax": guide_variance(net, train(net, RELAX(num_particles=5), steps=300)),
        "rebar": guide_variance(net, train(net, REBAR(num_particles=5))),
    }
    assert max(others.values()) < 0.5 * plain, (others, plain)
