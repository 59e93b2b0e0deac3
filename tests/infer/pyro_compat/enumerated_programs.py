"""Programs with sites that are marked for enumeration, of each kind that Pyro's objectives take, warn of or refuse."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate

from tests.infer.pyro_compat.programs import coin, one_site

#: by name, a function that makes ``(model, guide)``
ENUMERATED = {}
WEIGHTS = torch.tensor([0.3, 0.7])
TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]])


def pair(make):
    ENUMERATED[make.__name__] = make
    return make


def alike(program):
    ENUMERATED[program.__name__] = lambda: (program, program)
    return program


def of_the_model(model):
    """Register a model that sums its sites out by itself."""
    ENUMERATED[model.__name__] = lambda: (model, lambda: None)
    return model


@pair
def marked_guide():
    return one_site, config_enumerate(one_site)


@pair
def marked_guide_in_turn():
    return one_site, config_enumerate(default="sequential")(one_site)


def _sequential():
    for i in pyro.plate("a", 3):
        pyro.sample(f"x_{i}", coin())


@pair
def sequential_plate_in_parallel():
    return _sequential, config_enumerate(_sequential)


@pair
def sequential_plate_in_turn():
    return _sequential, config_enumerate(default="sequential")(_sequential)


@alike
@config_enumerate
def dependence_out_of_a_plate():
    with pyro.plate("a", 2):
        x = pyro.sample("x", coin())
    pyro.sample("y", dist.Bernoulli(x.mean() * 0.5))


@alike
@config_enumerate
def dimension_taken_by_a_plate():
    x = pyro.sample("x", coin())
    with pyro.plate("a", 3, dim=-2):
        pyro.sample("y", dist.Bernoulli(0.2 + 0.5 * x).expand_by([3, 1]))


@of_the_model
@config_enumerate
def mixture():
    with pyro.plate("a", 3):
        c = pyro.sample("c", dist.Categorical(WEIGHTS))
        pyro.sample("x", dist.Normal(c.float(), 1.0), obs=torch.zeros(3))


@of_the_model
@config_enumerate
def sum_over_a_plate():
    with pyro.plate("a", 3):
        c = pyro.sample("c", dist.Categorical(WEIGHTS))
    pyro.sample("x", dist.Normal(c.float().sum(-1), 1.0), obs=torch.tensor(0.0))


@alike
@config_enumerate
def mark_on_a_continuous_site():
    pyro.sample("z", dist.Normal(pyro.param("p", torch.tensor(0.5)), 1.0))
    pyro.sample("c", coin())


@of_the_model
def several_samples():
    pyro.sample("c", coin(), infer={"enumerate": "parallel", "num_samples": 4})


@of_the_model
@config_enumerate
def chain():
    x = torch.tensor(0)
    for t in pyro.markov(range(4)):
        x = pyro.sample(f"x_{t}", dist.Categorical(TRANSITION[x]))
        pyro.sample(f"y_{t}", dist.Normal(x.float(), 1.0), obs=torch.tensor(0.3))


@alike
@config_enumerate
def chain_without_markov():
    x = torch.tensor(0)
    for t in range(3):
        x = pyro.sample(f"x_{t}", dist.Categorical(TRANSITION[x]))


@pair
def one_switch_for_a_plate():
    @config_enumerate
    def model():
        z = pyro.sample("z", coin())
        with pyro.plate("a", 3):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))

    return model, config_enumerate(lambda: pyro.sample("z", coin()))
