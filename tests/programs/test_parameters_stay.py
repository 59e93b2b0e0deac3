"""One program, one set of parameters: nothing passes from one program to another through Pyro's store, or is lost."""

import functools
import threading
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import affine_autoregressive, iterated
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoNormal, AutoNormalizingFlow, AutoNormalMessenger
from pyro.nn import PyroModule, PyroParam

import pyro_dgm
from pyro_dgm import analysis
from pyro_dgm.infer import ELBO, IWAE, CapturedELBO, capture_potential
from pyro_dgm.infer.mcmc import HMC, MCMC
from pyro_dgm.infer.objectives.evaluation.evaluate import evaluate

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


def model(x):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)


class Constrained(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(2))
        self.scale = PyroParam(torch.ones(2), constraint=dist.constraints.positive)

    def forward(self, x):
        pyro.sample("mu", dist.Normal(self.loc, self.scale).to_event(1))


class Tied(PyroModule):
    def __init__(self):
        super().__init__()
        self.first, self.second = PyroModule[torch.nn.Linear](2, 2), PyroModule[torch.nn.Linear](2, 2)
        self.second.weight = self.first.weight

    def forward(self, x):
        pyro.sample("mu", dist.Normal(self.second(self.first(x.mean(0))), 0.3).to_event(1))


GUIDES = {
    "AutoNormal": lambda: AutoNormal(model),
    "AutoIAFNormal": lambda: AutoIAFNormal(model),
    "AutoNormalizingFlow": lambda: AutoNormalizingFlow(model, partial(iterated, 2, affine_autoregressive)),
    "AutoNormalMessenger": lambda: AutoNormalMessenger(model),
    "PyroModule": Constrained,
    "tied weights": Tied,
}


#: ways to use a program
USES = {
    "fit": lambda g: pyro_dgm.fit((model, g), X, epochs=1, seed=0, progress=False),
    "bound": lambda g: IWAE(3).bound(model, g, X),
    "loss": lambda g: ELBO().loss(model, g, X),
    "loss_and_grads": lambda g: ELBO().loss_and_grads(model, g, X),
    "module": lambda g: ELBO()(model, g)(X).backward(),
    "captured": lambda g: CapturedELBO(ELBO(), backend="aten")(model, g)(X),
    "evaluate": lambda g: evaluate(model, g, (X,), num_particles=2),
    "guide draws": lambda g: pyro_dgm.to_arviz(
        pyro_dgm.sample_posterior((model, g), X, num_samples=3, num_chains=1, seed=0)
    ),
    "log_likelihood": lambda g: analysis.log_likelihood((model, g), X, num_particles=5, seed=0),
    "compare_elbos": lambda g: pyro_dgm.compare_elbos(
        (model, g), X, [ELBO()], num_replicates=2, reference_particles=5, seed=0
    ),
}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("name", list(GUIDES))
def test_the_store_is_as_it_was(name, use, uses_param_store):
    """Also where it holds the names of another object of the class, trained by Pyro, which nobody takes over."""
    torch.manual_seed(0)
    theirs = GUIDES[name]()
    svi = SVI(model, theirs, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(2):
        svi.step(X)
    pyro.param("own", torch.tensor(3.0))
    before = {k: (id(v), v.detach().clone()) for k, v in uses_param_store.named_parameters()}
    ours = GUIDES[name]()
    USES[use](ours)
    after = dict(uses_param_store.named_parameters())
    assert set(after) == set(before)
    for key, (identity, value) in before.items():
        assert id(after[key]) == identity
        torch.testing.assert_close(after[key].detach(), value, rtol=0, atol=0)
    assert not {id(p) for p in ours.parameters()} & {id(p) for p in theirs.parameters()}


@pytest.mark.parametrize("name", list(GUIDES))
def test_two_programs_of_a_kind_share_nothing(name):
    """A look at the first one's bound must not hand its tensors to the second."""
    torch.manual_seed(0)
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    first, second = GUIDES[name](), GUIDES[name]()
    pyro_dgm.fit((model, first), X + 2.0, epochs=3, seed=0, progress=False, optimizer=adam)
    IWAE(2).bound(model, first, X)
    kept = {k: v.clone() for k, v in first.state_dict().items() if isinstance(v, torch.Tensor)}
    pyro_dgm.fit((model, second), X - 2.0, epochs=3, seed=0, progress=False, optimizer=adam)
    assert all(torch.equal(v, kept[k]) for k, v in first.state_dict().items() if k in kept)


@pytest.mark.parametrize("name", ["AutoIAFNormal", "tied weights"])
def test_parameters_under_two_names_are_saved_and_resumed(name, tmp_path):
    def go(epochs, resume=None, folder=tmp_path):
        torch.manual_seed(0)
        guide = GUIDES[name]()
        run = pyro_dgm.fit(
            (model, guide), X, epochs=epochs, batch_size=6, seed=0, progress=False, checkpoint_dir=folder, resume=resume
        )
        return run, {k: v for k, v in guide.state_dict().items() if isinstance(v, torch.Tensor)}

    go(2)
    resumed, weights = go(4, True)
    whole, right = go(4, folder=tmp_path / "whole")
    assert resumed.history["train"] == whole.history["train"]
    assert all(torch.equal(weights[k], v) for k, v in right.items())


def test_svi_trains_functions_in_pyros_store(uses_param_store):
    """Inside Pyro's SVI the store is Pyro's, and so it is for functions after a fit."""

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("mu", dist.Normal(loc, 0.5).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), IWAE(2))
    for _ in range(20):
        svi.step(X + 3.0)
    svi_value = pyro.param("loc").detach().clone()
    assert bool((svi_value > 0.5).all())
    pyro_dgm.fit(
        (model, guide), X + 3.0, epochs=20, seed=0, progress=False, optimizer=partial(torch.optim.Adam, lr=0.1)
    )
    assert bool((pyro.param("loc") > svi_value).all())
    auto = AutoNormal(model)
    SVI(model, auto, pyro.optim.Adam({"lr": 0.1}), ELBO()).step(X)
    assert "AutoNormal.locs.mu" in uses_param_store


def test_a_potential_leaves_the_store_as_it_was():
    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.bias = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

        def forward(self, x):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(w * x[:, 0] + self.bias, 1.0), obs=x[:, 1])

    program = Regression()
    potential = capture_potential(program, X, num_chains=2, backend="aten")
    potential({"w": torch.zeros(2)})
    mcmc = MCMC(HMC(program), 3, 3, 2, seed=0, progress=False)
    mcmc.run(X)
    assert not list(pyro.get_param_store().keys())


def test_threads_take_turns():
    """Each thread's result is that of the same call alone."""

    def work(seed):
        post = pyro_dgm.sample_posterior(
            model, X, method="hmc", num_samples=20, num_chains=2, seed=seed, progress=False
        )
        bound = IWAE(2).bound(model, Constrained(), X)
        return post["mu"].sum().item(), bound.shape

    alone = [work(seed) for seed in range(3)]
    found, failed = {}, []

    def thread(seed):
        try:
            found[seed] = work(seed)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=thread, args=(seed,)) for seed in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed
    assert [found[seed] for seed in range(3)] == alone
