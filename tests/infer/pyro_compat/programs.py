"""Programs of each kind that Pyro's objectives take, warn of or refuse: plates, sites, shapes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

#: by name, a function that makes ``(model, guide)``
PROGRAMS = {}


def pair(make):
    """Register a function that gives model and guide."""
    PROGRAMS[make.__name__] = make
    return make


def alike(program):
    """Register a program that is model and guide at once."""
    PROGRAMS[program.__name__] = lambda: (program, program)
    return program


def coin(*shape):
    return dist.Bernoulli(pyro.param("p", torch.tensor(0.5))).expand_by(shape)


@pair
def latent_that_the_guide_lacks():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(0.0))

    return model, lambda: None


@alike
def one_site():
    pyro.sample("x", coin())


@pair
def one_name_twice():
    def model():
        pyro.sample("x", coin())
        pyro.sample("x", coin())

    return model, one_site


@pair
def site_of_the_guide_alone():
    def guide():
        pyro.sample("x", coin())
        pyro.sample("y", coin())

    return one_site, guide


@pair
def auxiliary_site_of_the_guide():
    def guide():
        pyro.sample("x", coin())
        pyro.sample("y", coin(), infer={"is_auxiliary": True})

    return one_site, guide


@pair
def other_event_shape():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))

    def guide():
        pyro.sample("x", dist.Normal(torch.zeros(2, 1), 1.0).to_event(2))

    return model, guide


@alike
def batch_in_no_plate():
    pyro.sample("x", coin(2))


def _subsampled(size):
    def program():
        with pyro.plate("plate", 4, size) as rows:
            pyro.sample("x", coin(len(rows)))

    return lambda: (program, program)


PROGRAMS.update({f"plate_of_{size}": _subsampled(size) for size in (None, 2, 5)})


@alike
def plate_without_size():
    with pyro.plate("plate", dim=-1):
        pyro.sample("x", coin(3))


@alike
def sequential_plate():
    for i in pyro.plate("plate", 3):
        pyro.sample(f"x_{i}", coin())


@alike
def sequential_subsampled_plate():
    for i in pyro.plate("plate", 4, 2):
        pyro.sample(f"x_{i}", coin())


@alike
def sequential_plates_nested():
    for i in pyro.plate("a", 2):
        for j in pyro.plate("b", 2):
            pyro.sample(f"x_{i}_{j}", coin())


@pair
def sequential_plate_in_another_order():
    def model():
        for i in pyro.plate("a", 2):
            pyro.sample(f"x_{i}", coin())

    def guide():
        for i in (1, 0):
            pyro.sample(f"x_{i}", coin())

    return model, guide


@alike
def plate_inside_a_sequential_one():
    outer = pyro.plate("outer", 3, dim=-1)
    for j in pyro.plate("inner", 2):
        with outer:
            pyro.sample(f"x_{j}", coin(3))


@alike
def nested_subsampled_plates():
    with pyro.plate("outer", 10, 5) as outer:
        pyro.sample("x", coin(len(outer)))
        with pyro.plate("inner", 11, 6) as inner:
            pyro.sample("y", coin(len(inner), len(outer)))


@alike
def plates_used_again():
    outer, inner = pyro.plate("outer", 5, dim=-1), pyro.plate("inner", 6, dim=-2)
    with outer:
        pyro.sample("x", coin(5))
    with inner:
        pyro.sample("y", coin(6, 1))
    with outer, inner:
        pyro.sample("z", coin(6, 5))


@alike
def two_plates_in_one_dimension():
    with pyro.plate("a", 5, dim=-1), pyro.plate("b", 5, dim=-1):
        pyro.sample("x", coin(5))


@alike
def plate_of_another_size():
    with pyro.plate("a", 5):
        pyro.sample("x", coin(2))


@alike
def plate_that_expands():
    with pyro.plate("a", 5):
        pyro.sample("x", coin())


@alike
def stack_of_plates():
    with pyro.plate_stack("stack", [2, 3]):
        pyro.sample("x", coin())


@alike
def observation_of_none():
    pyro.sample("x", dist.Normal(pyro.param("p", torch.tensor(0.5)), 1.0), obs=None)


@alike
def masked():
    with pyro.plate("a", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        pyro.sample("x", dist.Normal(pyro.param("p", torch.tensor(0.5)), 1.0).expand_by([3]))


@pair
def observation_of_nan():
    return lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(float("nan"))), lambda: None


@pair
def observation_outside_of_the_support():
    return lambda: pyro.sample("x", dist.Bernoulli(0.5), obs=torch.tensor(0.5)), lambda: None


@pair
def latent_outside_of_the_support():
    def guide():
        pyro.sample("x", dist.Normal(5.0 + pyro.param("p", torch.tensor(0.5)), 0.1))

    return lambda: pyro.sample("x", dist.Beta(1.0, 1.0)), guide


@pair
def column_under_a_row():
    def guide():
        with pyro.plate("a", 3):
            return pyro.sample("z", dist.Normal(pyro.param("p", torch.tensor(0.5)), 1.0))

    def model():
        with pyro.plate("a", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3, 1))

    return model, guide


def _normal_guide():
    pyro.sample("z", dist.Normal(pyro.param("p", torch.tensor(0.5)), 1.0))


@pair
def factor_in_the_model():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.tensor(0.5))

    return model, _normal_guide


@pair
def factor_in_the_guide():
    def guide():
        _normal_guide()
        pyro.factor("f", torch.tensor(0.5), has_rsample=False)

    return lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), guide


@pair
def deterministic():
    def model():
        pyro.deterministic("d", 2 * pyro.sample("z", dist.Normal(0.0, 1.0)))

    return model, _normal_guide


@alike
def parameter_in_a_subsampled_plate():
    with pyro.plate("a", 4, 2):
        pyro.sample("x", dist.Normal(pyro.param("w", torch.ones(4), event_dim=0), 1.0))


@pair
def data_of_a_subsampled_plate():
    def model():
        with pyro.plate("a", 4, 2):
            x = pyro.subsample(torch.arange(4.0), event_dim=0)
            pyro.sample("x", dist.Normal(pyro.param("p", torch.tensor(0.5)), 1.0), obs=x)

    return model, lambda: None
