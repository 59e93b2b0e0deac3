"""``fit(compile=...)``: every depth trains as the eager run does, resumes as it was, and says what it does."""

import logging
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer import ELBO, IWAE, CapturedELBO, NonFiniteLossError
from pyro_dgm.infer.objectives.adapter import as_objective
from pyro_dgm.infer.train.callbacks import Callback
from pyro_dgm.infer.train.compilation import choose_depth
from pyro_dgm.models import VAE, LinearGaussian


def data(n=70):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))


def train(compile, epochs=3, make=None, **options):
    torch.manual_seed(0)
    program = make() if make else LinearGaussian(4, 2)
    options = {"batch_size": 6, "validation": data(10), "seed": 1, "progress": False, **options}
    run = pyro_dgm.fit(program, data(), epochs=epochs, compile=compile, **options)
    return run, [p.detach() for p in program.parameters()]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """Graphs run as recorded: what inductor makes of them is tested where it is called."""

    def keep(self, inputs, cuda_graphs=False, **options):
        self.backend = "inductor"

    monkeypatch.setattr("pyro_dgm.capture.static_graph.StaticGraph.compile", keep)


@pytest.mark.parametrize("depth", ["graph", "objective", "reduce-overhead", "step", "block"])
@pytest.mark.parametrize("clip_norm", [None, 0.7])
def test_every_depth_trains_as_the_eager_run(depth, clip_norm):
    eager, want = train(False, clip_norm=clip_norm)
    run, got = train(depth, clip_norm=clip_norm)
    assert run.config["compile"] == depth
    assert run.steps == eager.steps == 36
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for key in ("train", "validation", "gradient_norm"):
        assert run.history[key] == pytest.approx(eager.history[key], rel=1e-4)


@pytest.mark.parametrize("depth", ["graph", "objective", "step", "block"])
def test_resumed_to_the_bit(depth, tmp_path):
    _, want = train(depth, epochs=4, checkpoint_dir=tmp_path / "a")
    train(depth, epochs=2, checkpoint_dir=tmp_path / "b")
    run, got = train("auto", epochs=4, checkpoint_dir=tmp_path / "b", resume=True)
    assert run.config["compile"] == depth  # "auto" goes on as the run was
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_interrupted_in_the_middle_of_an_epoch(tmp_path):
    _, want = train("step", epochs=2, checkpoint_dir=tmp_path / "a")
    steps = {"n": 0, "stop": 17}

    def interrupting(batch):
        steps["n"] += 1
        if steps["n"] == steps["stop"]:
            signal.raise_signal(signal.SIGINT)
        return batch

    run, _ = train("step", epochs=2, checkpoint_dir=tmp_path / "b", transform=interrupting)
    assert run.interrupted
    steps["stop"] = 0
    run, got = train("step", epochs=2, checkpoint_dir=tmp_path / "b", transform=interrupting, resume=True)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("depth", ["objective", "step", "block"])
def test_a_step_that_is_not_finite_stops_before_the_weights_take_it(depth):
    seen = {}

    class Keep(Callback):
        def on_epoch_end(self, run):
            seen["weights"] = [p.detach().clone() for p in run.program.parameters()]

    bad = data()
    torch.manual_seed(0)
    m = LinearGaussian(4, 2)

    def poison(run):
        bad[40, 2] = torch.nan  # after the first epoch

    with pytest.raises(NonFiniteLossError, match="in epoch 2 at step 10") as caught:
        pyro_dgm.fit(m, bad, epochs=3, batch_size=6, seed=1, progress=False, compile=depth, callbacks=[Keep(), poison])
    assert caught.value.epoch == 2
    assert caught.value.site == "z"
    assert all(torch.isfinite(p).all() for p in m.parameters())


def test_learning_rate_schedules_reach_the_graph():
    schedule = {"lr_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8)}
    for interval in ("step", "epoch"):
        _, want = train(False, lr_scheduler_interval=interval, **schedule)
        _, got = train("step", lr_scheduler_interval=interval, **schedule)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_mini_batch_scale_and_several_optimisers():
    _, want = train(False, num_data=700)
    _, got = train("step", num_data=700)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    both = {"optimizer": {"model": None, "guide": None}}
    _, want = train(False, **both)
    run, got = train("step", **both)
    assert run.config["compile"] == "objective"
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    _, want = train(False, accumulate=2)
    run, got = train("step", accumulate=2)
    assert run.config["compile"] == "objective"
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Recursive(LinearGaussian):
    """A program whose number of steps is drawn."""

    def model(self, x):
        depth = 1
        while bool(torch.rand(()) < 0.5):
            depth += 1
        with pyro.poutine.scale(scale=1.0 / depth):
            return super().model(x)


@pytest.mark.parametrize("depth", ["graph", "step"])
def test_a_program_that_no_graph_can_hold_runs_eagerly(depth, caplog):
    make = lambda: Recursive(4, 2)  # noqa: E731
    _, want = train(False, make=make)
    with pytest.warns(RuntimeWarning, match="depends on values of tensors"):
        _, got = train(depth, make=make)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    monkey = pytest.MonkeyPatch()
    monkey.setattr("pyro_dgm.infer.train.phases.choose_depth", lambda *_: depth)
    with caplog.at_level(logging.INFO, logger="pyro_dgm"), monkey.context():
        train("auto", make=make)  # nobody asked: it is logged, not warned of
    monkey.undo()
    assert any("depends on values" in r.message for r in caplog.records)


def test_parameters_of_plain_functions():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = pyro.param("weight", torch.ones(4)) * z[:, None]
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ pyro.param("slope", torch.zeros(4)), 1.0))

    ends = []
    for depth in (False, "graph", "step"):
        pyro.clear_param_store()
        pyro_dgm.fit((model, guide), data(), epochs=2, batch_size=10, seed=0, progress=False, compile=depth)
        ends.append({k: v.detach().clone() for k, v in pyro.get_param_store().items()})
    pyro.clear_param_store()
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-4, atol=1e-5)


def test_a_convolutional_vae_under_iwae_with_dynamic_binarisation():
    x = torch.rand(24, 8, 8, generator=torch.Generator().manual_seed(0))
    ends = []
    for depth in (False, "graph"):
        torch.manual_seed(0)
        vae = VAE((8, 8), 2, network="conv")
        pyro_dgm.fit(
            vae, x, objective=IWAE(3), transform=torch.bernoulli, epochs=2, batch_size=10, seed=0, progress=False,
            compile=depth,
        )  # fmt: skip
        ends.append([p.detach() for p in vae.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


def test_auto_compiles_where_it_pays():
    small, large = [torch.zeros(1000)], [torch.zeros(600_000)]

    def depth(steps, parameters=small, objective=None, batch=20):
        return choose_depth("auto", objective or ELBO(), parameters, batch, steps)

    assert depth(100) == "eager"
    assert depth(5_000) == "graph"
    assert depth(30_000) == "step"
    assert depth(10**7) == "block"
    assert depth(None) == "eager"
    assert depth(30_000, large) == "objective"
    assert depth(12_000, large, batch=128) == "objective"  # arithmetic is saved too
    assert depth(10**7, objective=as_objective(pyro.infer.Trace_ELBO())) == "eager"
    assert depth(10**7, objective=CapturedELBO()) == "eager"
    assert choose_depth(True, ELBO(), small, 20, None) == "step"
    assert choose_depth(True, ELBO(), large, 20, 1) == "objective"


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [("fast", ValueError, "compile must be True, False, 'auto' or one of"), (3, TypeError, "compile must be a bool")],
)
def test_bad_words(asked, error, message):
    with pytest.raises(error, match=message):
        train(asked)


def test_objectives_that_cannot_be_captured():
    with pytest.raises(ValueError, match="needs an objective of pyro_dgm.infer.*got Trace_ELBO"):
        train(True, objective=pyro.infer.Trace_ELBO())
    run, _ = train("auto", objective=pyro.infer.Trace_ELBO())
    assert run.config["compile"] == "eager"
