"""One contract over every objective: a Pyro ELBO with all four methods, on any program."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import SVI
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_dgm.infer import OBJECTIVES
from pyro_dgm.models import VAE, LinearGaussian

every = pytest.mark.parametrize("cls", list(OBJECTIVES.values()), ids=list(OBJECTIVES))


def program():
    torch.manual_seed(0)
    m = LinearGaussian(4, 2).double()
    return m, torch.randn(6, 4, dtype=torch.float64)


@every
def test_constructs_on_defaults_and_with_pyros_keywords(cls):
    assert isinstance(cls(), pyro.infer.ELBO)
    cls(num_particles=3, max_plate_nesting=1, vectorize_particles=False, strict_enumeration_warning=False)
    assert f"num_particles={cls(num_particles=3).num_particles}" in repr(cls(num_particles=3))


@every
def test_the_four_methods_agree(cls):
    m, x = program()
    objective = cls(num_particles=3, max_plate_nesting=1)
    sign = 1 if cls.side == "upper" else -1  # the loss of an upper bound is plus the bound
    objective.structure(m.model, m.guide, (x,), {})
    torch.manual_seed(1)
    bound = objective.bound(m.model, m.guide, x)
    assert bound.shape == (6,)
    assert not bound.requires_grad
    torch.manual_seed(1)
    assert objective.loss(m.model, m.guide, x) == pytest.approx(sign * bound.sum().item())
    torch.manual_seed(1)
    loss = objective.differentiable_loss(m.model, m.guide, x)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(sign * bound.sum().item())
    grads = torch.autograd.grad(loss, list(m.parameters()))
    torch.manual_seed(1)
    assert objective.loss_and_grads(m.model, m.guide, x) == pytest.approx(sign * bound.sum().item())
    torch.testing.assert_close([p.grad for p in m.parameters()], list(grads))
    with torch.no_grad():
        torch.manual_seed(1)
        assert objective.differentiable_loss(m.model, m.guide, x).item() == pytest.approx(loss.item())


@every
def test_module_form_holds_the_parameters_of_bound_methods(cls):
    m, x = program()
    module = cls()(m.model, m.guide)
    assert {id(p) for p in module.parameters()} == {id(p) for p in m.parameters()}
    module(x).backward()
    assert all(p.grad is not None for p in m.parameters())


@every
def test_svi_trains_with_it(cls):
    m, x = program()
    optim = pyro.optim.Adam({"lr": 0.05})
    svi = SVI(m.model, m.guide, optim, cls())
    start = torch.tensor([svi.step(x) for _ in range(5)]).mean()
    for _ in range(150):
        svi.step(x)
    least = 1 if cls.side == "upper" else 5  # an upper bound trains the guide alone
    assert torch.tensor([svi.step(x) for _ in range(5)]).mean() < start - least
    assert not pyro.get_param_store()


@every
@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_and_global_latents(cls, auto):
    x = torch.randn(20, 3)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    with pyro.settings.context(module_local_params=True):
        guide = auto(model)
        objective = cls(num_particles=4)
        if getattr(objective, "dreams", False):  # an automatic guide draws sites of its own, unknown to a dream
            with pytest.raises(ValueError, match="which the model does not"):
                objective(model, guide)(x)
            return
        if getattr(objective, "min_data", 0):  # it compares the latents of many data
            with pytest.raises(ValueError, match="no plate contains every site|which the model does not"):
                objective(model, guide)(x)
            return
        loss = objective(model, guide)(x)
        assert objective.bound(model, guide, x).shape == ()
        loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters())


@every
def test_copies_and_reuse_on_another_program(cls):
    m, x = program()
    objective = cls(num_particles=2)
    objective.loss(m.model, m.guide, x)
    other = VAE((3, 3), 2, hidden=(8,))
    if objective.learned is None:
        assert objective.bound(other.model, other.guide, torch.ones(4, 3, 3)).shape == (4,)
    else:
        with pytest.raises(ValueError, match="an objective with networks of its own belongs to one program"):
            objective.bound(other.model, other.guide, torch.ones(4, 3, 3))
    assert copy.deepcopy(objective).bound(m.model, m.guide, x).shape == (6,)


@every
@pytest.mark.parametrize("bad", [0, -1])
def test_bad_particles(cls, bad):
    with pytest.raises(ValueError, match=f"num_particles must be an integer of at least 1, got {bad}"):
        cls(num_particles=bad)
    with pytest.raises(TypeError, match="num_particles must be an integer"):
        cls(num_particles=1.5)


@every
@given(
    sizes=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    latent_depth=st.integers(0, 3),
    event=st.sampled_from([(), (2,), (2, 3)]),
    num_particles=st.integers(1, 3),
    vectorize=st.booleans(),
)
def test_any_plates_and_event_shapes(cls, sizes, latent_depth, event, num_particles, vectorize):
    """A latent in the outer plates, an observation in all: the bound has the shape of the latent's plates."""
    depth = min(latent_depth, len(sizes))
    scale = torch.nn.Parameter(torch.tensor(0.7))

    def draw(x, observe):
        with pyro.plate_stack("outer", sizes[:depth], rightmost_dim=-1 - (len(sizes) - depth)):
            z = pyro.sample("z", dist.Normal(torch.zeros(event), scale if not observe else 1.0).to_event(len(event)))
            if observe:
                with pyro.plate_stack("inner", sizes[depth:]):
                    pyro.sample("x", dist.Normal(z, 1.0).to_event(len(event)), obs=x)

    objective = cls(num_particles=max(num_particles, cls.min_particles), vectorize_particles=vectorize)
    model, guide, x = (lambda x: draw(x, True)), (lambda x: draw(x, False)), torch.ones((*sizes, *event))
    least = getattr(objective, "min_data", 0)  # of those that compare the latents of many data
    if least and (depth == 0 or math.prod(sizes[:depth]) < least):
        with pytest.raises(ValueError, match="no plate contains every site|needs at least"):
            objective.bound(model, guide, x)
        return
    assert objective.bound(model, guide, x).shape == tuple(sizes[:depth])
    loss = objective.differentiable_loss(model, guide, x)
    (grad,) = torch.autograd.grad(loss, scale)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad)
