"""The posterior of summed-out sites: Pyro's ``TraceEnum_ELBO`` beside ours, and against Bayes' rule."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_dgm.infer import TraceEnumELBO

pytestmark = pytest.mark.uses_param_store
X = torch.tensor([0.2, -1.0, 1.4])
TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]])


@config_enumerate
def mixture(x):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(locs[c], 0.5), obs=x)
    return c


def of_locs(x):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    pyro.sample("locs", dist.Normal(loc, 0.1).to_event(1))


@config_enumerate
def chain(x):
    z, states = torch.tensor(0), []
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(TRANSITION[z]))
        pyro.sample(f"x_{t}", dist.Normal(2.0 * z.float() - 1.0, 1.0), obs=x[t])
        states.append(z)
    return torch.stack([s.squeeze() for s in states])


def nothing(x):
    pass


CASES = {"mixture": (mixture, of_locs, 1), "chain": (chain, nothing, 0)}


@pytest.mark.parametrize("name", list(CASES))
def test_marginals_are_pyros(name):
    model, guide, nesting = CASES[name]
    found = []
    for elbo in (TraceEnum_ELBO(max_plate_nesting=nesting), TraceEnumELBO(), TraceEnumELBO(max_plate_nesting=nesting)):
        pyro.set_rng_seed(0)
        if isinstance(elbo, TraceEnumELBO):
            elbo.structure(model, guide, (X,), {})
            pyro.set_rng_seed(0)
        found.append(elbo.compute_marginals(model, guide, X))
    assert found[0].keys() == found[1].keys()
    for site, right in found[0].items():
        for other in found[1:]:
            assert other[site].batch_shape == right.batch_shape
            torch.testing.assert_close(other[site].probs, right.probs)


def test_marginals_of_a_chain_are_exact():
    joint = torch.zeros(2, 2, 2)
    for a in range(2):
        for b in range(2):
            for c in range(2):
                prior = TRANSITION[0, a] * TRANSITION[a, b] * TRANSITION[b, c]
                states = torch.tensor([a, b, c], dtype=torch.float)
                joint[a, b, c] = prior * dist.Normal(2 * states - 1, 1.0).log_prob(X).sum().exp()
    joint = joint / joint.sum()
    found = TraceEnumELBO().compute_marginals(chain, nothing, X)
    for t, others in enumerate(((1, 2), (0, 2), (0, 1))):
        torch.testing.assert_close(found[f"z_{t}"].probs.reshape(2), joint.sum(others))
    draws = torch.stack([TraceEnumELBO().sample_posterior(chain, nothing, X) for _ in range(400)])
    share = torch.stack([(draws == torch.tensor(s)).all(-1).float().mean() for s in ((0, 0, 1), (0, 0, 0), (1, 1, 1))])
    exact = torch.stack([joint[0, 0, 1], joint[0, 0, 0], joint[1, 1, 1]])
    assert ((share - exact).abs() < 4 * (exact * (1 - exact) / 400).sqrt()).all()


@pytest.mark.parametrize("name", list(CASES))
def test_draws_are_pyros(name):
    model, guide, nesting = CASES[name]
    found = []
    for elbo in (TraceEnum_ELBO(max_plate_nesting=nesting), TraceEnumELBO()):
        if isinstance(elbo, TraceEnumELBO):
            elbo.structure(model, guide, (X,), {})
        pyro.set_rng_seed(3)
        found.append(torch.stack([elbo.sample_posterior(model, guide, X) for _ in range(20)]))
    assert torch.equal(*found)


@pytest.mark.parametrize("method", ["compute_marginals", "sample_posterior"])
def test_what_pyro_refuses(method):
    @config_enumerate
    def marked(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.ones(len(x), 2)))
        pyro.sample("locs", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    for make in (TraceEnum_ELBO, TraceEnumELBO):
        with pytest.raises(NotImplementedError, match="multiple particles"):
            getattr(make(num_particles=2, max_plate_nesting=1), method)(mixture, of_locs, X)
        with pytest.raises(NotImplementedError, match="guide enumeration"):
            getattr(make(max_plate_nesting=1), method)(mixture, marked, X)
