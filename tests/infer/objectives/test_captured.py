"""Captured objectives: the same numbers seed for seed, and a reasoned way back where a graph is not the program."""

import random
import re
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn

import pyro_dgm
from pyro_dgm.capture.static_graph import CannotCapture, agreement, record
from pyro_dgm.infer import ELBO, IWAE, OBJECTIVES, CapturedELBO, DReG
from pyro_dgm.models import VAE, LinearGaussian


def evaluate(objective, program, *batch, seed=3):
    """Loss and gradients of a seed, and the random state after it."""
    torch.manual_seed(seed)
    for p in program.parameters():
        p.grad = None
    loss = objective(program.model, program.guide)(*batch)
    loss.backward()
    return [loss.detach(), *(p.grad for p in program.parameters() if p.grad is not None)], torch.get_rng_state()


def assert_same(captured, program, *batch, graphs=1, seed=3):
    want, state = evaluate(captured.inner, program, *batch, seed=seed)
    got, state_after = evaluate(captured, program, *batch, seed=seed)
    said = captured.status(program.model, program.guide)
    assert said.startswith(f"captured: {graphs} graph")
    torch.testing.assert_close(got, want)
    assert torch.equal(state, state_after)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_is_the_same_captured(name):
    torch.manual_seed(0)
    m = LinearGaussian(4, 2).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    captured = CapturedELBO(OBJECTIVES[name](num_particles=3), backend="aten")
    for seed in (1, 2):
        assert_same(captured, m, x, seed=seed)
    for method in ("bound", "loss"):
        torch.manual_seed(5)
        want = getattr(captured.inner, method)(m.model, m.guide, x)
        torch.manual_seed(5)
        got = getattr(captured, method)(m.model, m.guide, x)
        torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(want))
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.1)  # as an optimiser does
    assert_same(captured, m, x + 1.0, graphs=3, seed=4)


class Binary(nn.Module):
    """Three binary latents, data as an argument."""

    def __init__(self):
        super().__init__()
        self.prior, self.weight = nn.Parameter(torch.zeros(3).double()), nn.Parameter(torch.ones(3, 4).double())
        self.encode = nn.Linear(4, 3).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.prior))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=self.encode(x)))


def trajectory(objective, steps=3):
    """Every weight, the objective's too, after some steps of training."""
    torch.manual_seed(0)
    net, x = Binary(), torch.bernoulli(torch.full((5, 4), 0.4, dtype=torch.float64))
    loss = objective(net.model, net.guide)
    loss(x)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
    return loss.state_dict(), net


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_trains_discrete_latents_alike(name):
    """Networks and running statistics of the objective's own among the weights; what is refused is refused alike."""
    make = OBJECTIVES[name]
    try:
        want, _ = trajectory(make(num_particles=2))
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            trajectory(CapturedELBO(make(num_particles=2), backend="aten"))
        return
    captured = CapturedELBO(make(num_particles=2), backend="aten")
    got, net = trajectory(captured)
    torch.testing.assert_close(got, want)
    assert captured.status(net.model, net.guide).startswith("captured: 1 graph")


@pytest.mark.parametrize("objective", [ELBO(), DReG(num_particles=3)], ids=repr)
def test_compiled_by_inductor(objective):
    torch.manual_seed(0)
    vae = VAE((3, 3), 2, hidden=(5,))
    x = torch.bernoulli(torch.full((7, 3, 3), 0.4))
    captured = CapturedELBO(objective)
    assert_same(captured, vae, x)
    assert captured.status(vae.model, vae.guide) == "captured: 1 graph (inductor)"
    assert_same(captured, vae, 1 - x, seed=8)


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x), subsample_size=4) as i:
        pyro.sample("y", dist.Normal(x[i] @ weight, scale), obs=y[i])


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal, AutoDelta])
def test_autoguides_and_subsampling(auto):
    x, y = torch.randn(10, 3), torch.randn(10)
    with pyro.settings.context(module_local_params=True):
        program = pyro_dgm.program(regression, auto(regression))
        program.guide(x, y)
        captured = CapturedELBO(ELBO(), backend="aten")
        assert_same(captured, program, x, y)
        assert_same(captured, program, x, y, seed=9)


def test_parameters_of_the_param_store():
    x = torch.randn(5)

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), scale))

    captured = CapturedELBO(ELBO(), backend="aten")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), captured)
    torch.manual_seed(0)
    losses = [svi.step(x) for _ in range(5)]
    values = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
    assert captured.status(model, guide).startswith("captured")
    pyro.clear_param_store()
    torch.manual_seed(0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), ELBO())
    assert [svi.step(x) for _ in range(5)] == pytest.approx(losses)
    torch.testing.assert_close({k: v.detach() for k, v in pyro.get_param_store().items()}, values)
    pyro.clear_param_store()


class Normalised(nn.Module):
    """A guide network with running statistics and dropout."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))

    def guide(self, x):
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 3]).to_event(1), obs=x)


def test_batchnorm_and_dropout_move_as_they_do_eagerly():
    torch.manual_seed(0)
    eager, graph = Normalised(), Normalised()
    graph.load_state_dict(eager.state_dict())
    captured = CapturedELBO(ELBO(), backend="aten")
    for seed in range(4):
        x = torch.randn(8, 3)
        want, _ = evaluate(ELBO(), eager, x, seed=seed)
        got, _ = evaluate(captured, graph, x, seed=seed)
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(graph.state_dict(), eager.state_dict())
    assert graph.net[1].num_batches_tracked == 4
    graph.eval()
    eager.eval()
    torch.testing.assert_close(evaluate(captured, graph, x)[0], evaluate(ELBO(), eager, x)[0])
    assert captured.status(graph.model, graph.guide) == "captured: 2 graphs (aten)"


def test_enumerated_site():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + torch.tensor([-1.0, 2.0])[k], 1.0), obs=x)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.4))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.slope * x, 1.0))

    program = pyro_dgm.program(model, Guide())
    assert_same(CapturedELBO(ELBO(), backend="aten"), program, torch.randn(5))
    assert_same(CapturedELBO(IWAE(3), backend="aten"), program, torch.randn(5))


def test_enumerated_guide():
    """Sites of the guide that depend on each other, summed out inside the graph."""

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))

        @config_enumerate
        def forward(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Categorical(logits=self.rows[:, 0] * x[:, None]))
                pyro.sample("b", dist.Bernoulli(logits=self.rows[a, 1]))

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=torch.zeros(3, dtype=torch.float64)))
            b = pyro.sample("b", dist.Bernoulli(0.3 * torch.ones((), dtype=torch.float64)))
            pyro.sample("x", dist.Normal(a + 2.0 * b, 1.0), obs=x)

    torch.manual_seed(0)
    program, x = pyro_dgm.program(model, Guide()), torch.randn(5, dtype=torch.float64)
    assert_same(CapturedELBO(ELBO(), backend="aten"), program, x)


class Odd(LinearGaussian):
    """A program that does something no graph can hold, told by ``trick``."""

    def __init__(self, trick):
        super().__init__(4, 2)
        self.trick, self.factor, self.lists = trick, 1.0, {"value": 1.0}

    def model(self, x, *rest):
        with pyro.poutine.scale(scale=self.trick(self, x)):
            return super().model(x)

    def guide(self, x, *rest):
        return super().guide(x)


def recursion(_, x):
    """Depth by coin flips on tensors."""
    return 1.0 if bool(torch.rand(()) < 0.5) else 0.5 * recursion(_, x)


TRICKS = {
    "recursion": (recursion, "structure depends on values"),
    "branch on a parameter": (lambda m, x: 1.0 if m.weight.sum() > 0 else 2.0, "structure depends on values"),
    "python": (lambda m, x: 1.0 + random.random(), "Python's or NumPy's random numbers"),
    "numpy": (lambda m, x: 1.0 + float(np.random.rand()), "Python's or NumPy's random numbers"),
    "data as numbers": (lambda m, x: 1.0 + abs(x.tolist()[0][0]), "reads data in a way"),
    "generator": (lambda m, x: torch.rand((), generator=torch.Generator().manual_seed(0)), "enerator"),
}


@pytest.mark.parametrize("trick", list(TRICKS))
def test_what_a_graph_would_freeze_runs_eagerly_and_says_why(trick):
    fn, reason = TRICKS[trick]
    torch.manual_seed(0)
    m, x = Odd(fn), torch.randn(6, 4)
    captured = CapturedELBO(ELBO(), backend="aten")
    with pytest.warns(RuntimeWarning, match=f"runs eagerly, not captured.*{reason}"):
        captured(m.model, m.guide)(x)
    assert captured.status(m.model, m.guide).startswith("eager: ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        random.seed(1)
        np.random.seed(1)
        want, _ = evaluate(captured.inner, m, x)
        random.seed(1)
        np.random.seed(1)
        torch.testing.assert_close(evaluate(captured, m, x)[0], want)


def test_what_the_first_batch_hides_is_noticed_at_the_second():
    """The first batch is the same in every row, so that turning it over shows nothing."""
    m = Odd(lambda m, x: 1.0 + abs(x.tolist()[0][0]))
    captured = CapturedELBO(ELBO(), backend="aten")
    evaluate(captured, m, torch.ones(6, 4))
    assert captured.status(m.model, m.guide).startswith("captured")
    x = torch.randn(6, 4)
    with pytest.warns(RuntimeWarning, match="runs eagerly"):
        got, _ = evaluate(captured, m, x)
    torch.testing.assert_close(got, evaluate(ELBO(), m, x)[0])


def test_a_number_that_changes_is_captured_again_a_few_times():
    m, x = Odd(lambda m, x: m.factor), torch.randn(6, 4)
    captured = CapturedELBO(ELBO(), backend="aten")
    assert_same(captured, m, x)
    for i in range(5):
        m.factor = 2.0 + i
        assert not captured.verify(m.model, m.guide, x)
        assert_same(captured, m, x)
        assert captured.status(m.model, m.guide).startswith("captured")
    m.factor = 0.5
    with pytest.warns(RuntimeWarning, match="changed more than 5 times"):
        captured.verify(m.model, m.guide, x)
    assert captured.status(m.model, m.guide).startswith("eager")


def test_ragged_batches_make_few_graphs():
    m = LinearGaussian(4, 2)
    captured = CapturedELBO(ELBO(), backend="aten", max_graphs=3)
    for n in (8, 8, 5, 8, 5, 3, 2, 1, 8):
        torch.manual_seed(n)
        got = captured(m.model, m.guide)(torch.ones(n, 4))
        torch.manual_seed(n)
        torch.testing.assert_close(got, captured.inner(m.model, m.guide)(torch.ones(n, 4)))
    assert captured.status(m.model, m.guide) == "captured: 3 graphs (aten)"


def test_unhashable_argument():
    m = Odd(lambda m, x: 1.0)
    captured = CapturedELBO(ELBO(), backend="aten")
    with pytest.warns(RuntimeWarning, match="neither tensor nor hashable"):
        captured.loss(m.model, m.guide, torch.ones(3, 4), np.zeros(2))
    captured.loss(m.model, m.guide, torch.ones(3, 4), np.zeros(2))


def test_an_argument_that_is_no_tensor_is_part_of_the_key():
    m = Odd(lambda m, x: 1.0)
    captured = CapturedELBO(ELBO(), backend="aten")
    for flag in (True, False, True):
        captured.loss(m.model, m.guide, torch.ones(3, 4), flag)
    assert captured.status(m.model, m.guide) == "captured: 2 graphs (aten)"


def test_one_tensor_given_twice():
    """Recorded as one input it would stay one: the second call gives two."""

    def model(x, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    with pyro.settings.context(module_local_params=True):
        program = pyro_dgm.program(model, AutoNormal(model))
        x = torch.randn(5)
        program.guide(x, x)
        captured = CapturedELBO(ELBO(), backend="aten")
        assert_same(captured, program, x, x)
        assert_same(captured, program, x, torch.randn(5))


def test_gradient_to_a_batch_tensor():
    m = LinearGaussian(4, 2)
    captured = CapturedELBO(ELBO(), backend="aten")
    gradients = []
    for objective in (captured, captured.inner):
        x = torch.ones(3, 4, requires_grad=True)
        torch.manual_seed(0)
        objective(m.model, m.guide)(2 * x).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_own_handlers_are_obeyed():
    m, x = LinearGaussian(4, 2), torch.ones(3, 4)
    captured = CapturedELBO(ELBO(), backend="aten")
    captured.loss(m.model, m.guide, x)
    with pyro.poutine.scale(scale=2.0):
        torch.manual_seed(0)
        scaled = captured.loss(m.model, m.guide, x)
    torch.manual_seed(0)
    assert scaled == pytest.approx(2 * captured.loss(m.model, m.guide, x))


def test_the_random_state_is_the_eager_one_from_the_first_call_on():
    m, x = LinearGaussian(4, 2), torch.ones(3, 4)
    states = []
    for objective in (ELBO(), CapturedELBO(ELBO(), backend="aten")):
        torch.manual_seed(0)
        values = [float(objective(m.model, m.guide)(x).detach()) for _ in range(4)]
        states.append((values, torch.get_rng_state()))
    assert states[0][0] == pytest.approx(states[1][0])
    assert torch.equal(states[0][1], states[1][1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"objective": pyro.infer.Trace_ELBO()}, TypeError, "objective must be an objective of pyro_dgm.infer"),
        ({"objective": CapturedELBO()}, TypeError, "got CapturedELBO"),
        ({"backend": "cuda"}, ValueError, "backend must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        CapturedELBO(**arguments)


def test_recording_tells_a_graph_from_a_function_that_differs():
    """The comparison itself: what it lets pass and what not."""
    a = torch.randn(10)
    assert agreement([a], [a * (1 + 1e-6)]) == ""
    assert "differs by" in agreement([a], [a * 1.01])
    assert "not finite" in agreement([a], [a / 0])
    assert "instead of" in agreement([a], [a[:9]])
    assert "differs" in agreement([torch.arange(3)], [torch.arange(3) + 1])
    counter = torch.zeros(())

    def counting(x):
        return [x + counter.add_(1)]

    graph = record(counting, [a])
    assert graph.externals == [counter] or graph.externals[0] is counter
    assert float(graph(a)[0][0] - a[0]) == pytest.approx(float(counter))
    with pytest.raises(CannotCapture, match="depends on values"):
        record(lambda x: [x if x.sum() > 0 else -x], [a])


def test_values_that_are_the_same_on_each_call_may_be_read():
    """Indices of a sequential plate are; what was written into, drawn, or made of an input is not."""

    def constant(x):
        return [x[int(torch.arange(3)[1])] * float(torch.ones(2).sum()) * (2.0 if torch.zeros(()) == 0 else 3.0)]

    x = torch.tensor([1.0, 2.0, 4.0])
    graph = record(constant, [x])
    torch.testing.assert_close(graph(3 * x)[0], torch.tensor(24.0))

    def written(x):
        y = torch.zeros(3)
        y[0] = x[0]
        return [x * float(y.sum())]

    def written_view(x):
        y = torch.zeros(3)
        y.view(3, 1)[:, 0].copy_(x)
        return [x * y[1].item()]

    def drawn(x):
        return [x[int(torch.randperm(3)[0])]]

    for changing in (written, written_view, drawn, lambda x: [x * x.sum().item()], lambda x: [x if x[0] > 0 else -x]):
        with pytest.raises(CannotCapture, match="depends on values"):
            record(changing, [x])
