"""Parameters of ``pyro.param`` statements belong to the program: none is shared by name, and Pyro's store stays."""

import copy
import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

import pyro_dgm
from pyro_dgm.infer import ELBO, IWAE, DReG
from pyro_dgm.programs.param_statements import ParamStatements

X = torch.linspace(2.0, 4.0, 12)
ADAM = functools.partial(torch.optim.Adam, lr=0.1)


def model(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor(0.4), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def both():
    return pyro_dgm.program(model, guide)


def with_automatic_guide():
    return pyro_dgm.program(model, AutoNormal(pyro.poutine.block(model, hide=["x"]), init_scale=0.3))


def fit(program, **options):
    return pyro_dgm.fit(
        program, X, **{"epochs": 40, "seed": 0, "progress": False, "optimizer": ADAM, "objective": DReG(4), **options}
    )


@pytest.mark.parametrize("compile", [False, "graph", pytest.param("step", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [both, with_automatic_guide])
def test_a_program_keeps_its_parameters(make, compile):
    """Twice the same fit: a fresh program starts afresh, and neither moves the other one's."""
    first, second = make(), make()
    run = fit(first, compile=compile)
    assert not list(pyro.get_param_store())
    assert {"loc"} <= set(first.param_store) and len(list(first.parameters())) == 3
    kept = {name: value.detach().clone() for name, value in first.named_parameters()}
    assert float(first.param_store["loc"].detach()) > 1.0
    again = fit(second, compile=compile)
    assert again.history["train"] == run.history["train"]
    for name, value in first.named_parameters():
        assert torch.equal(value, kept[name])
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


def test_the_trained_program_is_used_everywhere():
    program = both()
    fit(program)
    bound = IWAE(50).bound(program.model, program.guide, X).mean()
    pyro.clear_param_store()
    torch.manual_seed(0)
    post = pyro_dgm.sample_posterior(program, X, num_samples=200, num_chains=1, seed=0)
    slope = program.param_store["slope"].detach()
    assert (post.samples["z"].mean((0, 1)) / X - slope).abs().max() < 0.2
    found = pyro_dgm.analysis.log_likelihood(program, X, num_particles=500, seed=0).values.mean()
    assert float(bound) == pytest.approx(float(found), abs=0.2)
    exact = dist.Normal(program.param_store["loc"].detach(), 1.25**0.5).log_prob(X).mean()
    assert float(found) == pytest.approx(float(exact), abs=0.05)


def test_a_call_by_hand_leaves_the_store(uses_param_store):
    program = both()
    pyro.param("slope", torch.tensor(7.0))
    pyro.param("other", torch.tensor(1.0))
    fresh = both()
    with pyro.poutine.trace() as tr:
        program.guide(X)
    # What Pyro's store has is used there; the rest belongs to the program.
    assert tr.trace.nodes["slope"]["value"].item() == 7.0
    assert set(uses_param_store) == {"slope", "other"}
    assert set(program.param_store) == {"scale"}
    assert not set(fresh.param_store)
    pyro.clear_param_store()
    program.guide(X)
    assert set(program.param_store) == {"scale", "slope"} and not list(uses_param_store)
    # A name that comes to Pyro's store later does not shadow the program's, and is back at the end.
    pyro.param("scale", torch.tensor(9.0))
    with pyro.poutine.trace() as tr:
        program.guide(X)
    assert tr.trace.nodes["scale"]["value"].item() == pytest.approx(0.4)
    assert pyro.param("scale").item() == 9.0


def test_a_program_within_another_ones_run_has_its_own():
    """As in a callback of ``fit``: what the other one has put in Pyro's store is not Pyro's."""
    first, known, fresh = both(), both(), both()
    known.guide(X)
    with first.param_store:  # new parameters of the first one are in the store alone until its scope ends
        guide(X)
        for other in (known, fresh):
            other.guide(X)
            other.guide(X)
        assert pyro.param("slope").unconstrained() is pyro.get_param_store()._params["slope"]
    for program in (first, known, fresh):
        assert set(program.param_store) == {"slope", "scale"}
    leaves = [p for program in (first, known, fresh) for p in program.parameters()]
    assert len({id(p) for p in leaves}) == 6 and not list(pyro.get_param_store())


def test_pairs_of_functions_use_pyros_store(uses_param_store):
    """A pair has nothing that could keep them from one call to the next."""
    fit((model, guide), epochs=5)
    assert set(uses_param_store) == {"loc", "slope", "scale"}
    value = uses_param_store["loc"].item()
    assert value > 0
    fit((model, guide), epochs=5)
    assert uses_param_store["loc"].item() > value


def test_svi_trains_the_programs_parameters():
    program = both()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), ELBO())
    for _ in range(20):
        svi.step(X)
    assert not list(pyro.get_param_store())
    assert float(program.param_store["loc"].detach()) > 0.5


def test_resume_and_saved_weights(tmp_path):
    first = both()
    fit(first, epochs=4, checkpoint_dir=tmp_path)
    resumed = both()
    run = fit(resumed, epochs=8, checkpoint_dir=tmp_path, resume=True)
    whole = both()
    right = fit(whole, epochs=8, checkpoint_dir=tmp_path / "whole")
    assert run.history["train"] == right.history["train"]
    for (name, a), (other, b) in zip(resumed.named_parameters(), whole.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b)
    loaded = both()
    loaded.model(X), loaded.guide(X)
    loaded.load_state_dict(whole.state_dict())
    assert torch.equal(loaded.param_store["scale"], whole.param_store["scale"])


def test_functions_of_a_trained_program_by_themselves_are_said_to_be_untrained(uses_param_store):
    program = both()
    fit(program, epochs=3)
    with pytest.warns(UserWarning, match=r"model.*param_store.*program\.model"):
        IWAE(2).bound(model, guide, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        IWAE(2).bound(model, guide, X)  # said once
        IWAE(2).bound(program.model, program.guide, X)


def test_a_copy_has_its_own():
    program = both()
    fit(program, epochs=3)
    twin = copy.deepcopy(program)
    before = program.param_store["loc"].detach().clone()
    assert torch.equal(twin.param_store["loc"], before)
    fit(twin, epochs=10)
    assert torch.equal(program.param_store["loc"], before) and not torch.equal(twin.param_store["loc"], before)
    assert twin.model.param_store is twin.param_store and twin.guide.param_store is twin.param_store


def test_model_and_guide_share_a_name():
    def tied_model(x):
        shared = pyro.param("shared", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(shared, 1.0)), 1.0), obs=x)

    def tied_guide(x):
        shared = pyro.param("shared", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shared, 0.7))

    program = pyro_dgm.program(tied_model, tied_guide)
    fit(program, epochs=3)
    assert list(dict(program.named_parameters())) == ["param_store.shared"]


def test_modules_have_no_store_of_statements():
    vae = pyro_dgm.models.VAE((4,), latent_dim=2, hidden=(8,))
    program = pyro_dgm.program(vae.model, vae.guide)
    assert not any(isinstance(m, ParamStatements) for m in program.modules())
    assert program.model == vae.model


def test_a_module_in_a_statement():
    """``pyro.module`` gives the names of a network's parameters to the store: the network's leaves stay its own."""
    net = torch.nn.Linear(1, 1)

    def with_network(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 0.5))

    before = net.weight.detach().clone()
    program = pyro_dgm.program(model, with_network)
    fit(program, epochs=5)
    assert not list(pyro.get_param_store()) and not torch.equal(net.weight, before)
    assert {id(net.weight), id(net.bias)} <= {id(p) for p in program.parameters()}
