"""Training in phases: several losses, each with its own parameters, optimiser and number of updates."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import pyro_dgm
from pyro_dgm.infer import (
    ELBO,
    EMA,
    IWAE,
    AdversarialELBO,
    FactorVAE,
    Paired,
    Phase,
    Phased,
    ReweightedWakeSleep,
    WakeSleep,
)
from pyro_dgm.infer.objectives.metric import Metric
from tests.infer.train.fit_programs import digits_like, small_vae

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            return self.net(pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)))

    def guide(self, x):
        pass


def test_a_generative_adversarial_network():
    torch.manual_seed(0)
    generator, critic = Generator(), nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def discriminate(model, guide):
        return lambda x: (softplus(-critic(x)) + softplus(critic(model(x).detach()))).sum()

    def generate(model, guide):
        return lambda x: softplus(-critic(model(x))).sum()

    x = torch.randn(2000, 2) * torch.tensor([0.5, 0.2]) + torch.tensor([3.0, -1.0])
    gan = Phased(Phase("objective", discriminate, steps=2), Phase("program", generate), learned=critic)
    adam = functools.partial(torch.optim.Adam, lr=5e-3, betas=(0.5, 0.9))
    run = pyro_dgm.fit(
        generator, x, objective=gan, optimizer=adam, epochs=30, batch_size=100, seed=0, averaging=EMA(0.99),
        progress=False,
    )  # fmt: skip
    made = generator.model(torch.zeros(4000, 2)).detach()
    assert run.steps == 300 and len(run.history["objective"]) == 30
    assert torch.allclose(made.mean(0), torch.tensor([3.0, -1.0]), atol=0.3)
    assert made.std(0)[0] > made.std(0)[1]


class Numbers(nn.Module):
    """A program with a parameter for the model and one for the guide, whose losses are known."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.a, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.b, 1.0))


def phases_of_numbers(program, seen, model_steps=1, guide_steps=1):
    def of(name):
        def loss(model, guide):
            def value(x):
                seen.append((name, x.tolist()))
                return (program.a + program.b - 1.0) ** 2 * len(x)

            return value

        return loss

    return Phased(Phase("guide", of("guide"), guide_steps), Phase("model", of("model"), model_steps))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def test_each_phase_moves_its_own_parameters_in_turn():
    program, seen = Numbers(), []
    objective = phases_of_numbers(program, seen)
    run = pyro_dgm.fit(
        program, torch.ones(4), objective=objective, optimizer=sgd, epochs=1, batch_size=4, progress=False
    )
    # (a + b - 1)^2: b moves first, by -0.1 * 2 * (0 - 1); then a, by what is left
    assert program.b.item() == pytest.approx(0.2)
    assert program.a.item() == pytest.approx(0.16)
    assert run.history["guide"] == [pytest.approx(1.0)]
    assert run.history["train"] == [pytest.approx(0.64)]
    assert set(run.optimizer.optimizers) == {"model", "guide"}


def test_the_ith_update_of_each_phase_sees_the_ith_batch():
    program, seen = Numbers(), []
    objective = phases_of_numbers(program, seen, guide_steps=3)
    run = pyro_dgm.fit(
        program, torch.arange(10.0), objective=objective, optimizer=sgd, epochs=1, batch_size=2, shuffle=False, seed=0,
        progress=False,
    )  # fmt: skip
    order = [(name, rows[0]) for name, rows in seen[-7:]]
    first = [("guide", 0.0), ("guide", 2.0), ("guide", 4.0), ("model", 0.0)]
    assert order == [*first, ("guide", 6.0), ("guide", 8.0), ("model", 6.0)]
    assert run.steps == 2


def test_optimisers_and_schedulers_by_role():
    program = Numbers()
    run = pyro_dgm.fit(
        program, torch.ones(4), objective=phases_of_numbers(program, []), epochs=2, progress=False,
        optimizer={"model": lambda p: torch.optim.SGD(p, lr=0.0), "guide": sgd},
        lr_scheduler={"guide": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)},
    )  # fmt: skip
    assert program.a.item() == 0.0 and program.b.item() != 0.0
    assert run.optimizer.optimizers["guide"].param_groups[0]["lr"] == pytest.approx(0.025)


def test_a_resumed_run_is_the_whole_run(tmp_path):
    def make(epochs, **more):
        vae = small_vae()
        objective = Phased(Phase("guide", IWAE(5), 2), Phase("model", ELBO()))
        return vae, pyro_dgm.fit(
            vae, digits_like(), objective=objective, optimizer=ADAM, epochs=epochs, batch_size=20, seed=0,
            progress=False, **more,
        )  # fmt: skip

    whole, full = make(4)
    make(2, checkpoint_dir=tmp_path)
    again, resumed = make(4, checkpoint_dir=tmp_path, resume=True)
    assert resumed.history["train"] == full.history["train"] and resumed.history["guide"] == full.history["guide"]
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_recorded_phases_are_as_eager_ones():
    def make(compile):
        vae = small_vae()
        objective = Phased(Phase("guide", IWAE(5), 2), Phase("model", ELBO()))
        pyro_dgm.fit(
            vae, digits_like(), objective=objective, optimizer=ADAM, epochs=2, batch_size=20, seed=0, progress=False,
            compile=compile,
        )  # fmt: skip
        return vae

    for a, b in zip(make(False).parameters(), make("graph").parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_phases_of_one_objective_are_that_objective():
    plain, phased = small_vae(), small_vae()
    options = {"epochs": 2, "batch_size": 20, "seed": 0, "progress": False, "compile": False}
    a = pyro_dgm.fit(plain, digits_like(), objective=ELBO(), **options)
    b = pyro_dgm.fit(phased, digits_like(), objective=Phased(Phase("program", ELBO())), **options)
    assert a.history["train"] == b.history["train"]


def test_labelled_and_unlabelled_data():
    """A classifier beside a density, each loss on data of its own."""
    torch.manual_seed(0)
    y = torch.arange(60) % 2
    x = torch.randn(60, 2) * 0.5 + torch.stack([2.0 * y, -1.0 * y], -1)

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc, self.classifier = nn.Parameter(torch.randn(2, 2)), nn.Linear(2, 2)

        def model(self, labelled, unlabelled):
            for name, values, labels in (("labelled", *labelled), ("unlabelled", unlabelled, None)):
                with pyro.plate(name, len(values)):
                    k = pyro.sample(f"y_{name}", dist.Categorical(torch.ones(2)), obs=labels)
                    pyro.sample(f"x_{name}", dist.Normal(self.loc[k], 0.5).to_event(1), obs=values)
                    if labels is not None:  # the guide learns from them too (Kingma et al., 2014, arXiv:1406.5298)
                        pyro.sample("label", dist.Categorical(logits=self.classifier(values)), obs=labels)

        def guide(self, labelled, unlabelled):
            with pyro.plate("unlabelled", len(unlabelled)):
                logits = self.classifier(unlabelled)
                pyro.sample("y_unlabelled", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    program = Mixture()
    pyro_dgm.fit(
        program, Paired((x[:6], y[:6]), x), batch_size=(6, 20), epochs=60, seed=0, progress=False,
        objective=ELBO(), optimizer=functools.partial(torch.optim.Adam, lr=0.05),
    )  # fmt: skip
    assert torch.allclose(program.loc, torch.tensor([[0.0, 0.0], [2.0, -1.0]]), atol=0.3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Phase("critic", ELBO()), ValueError, "role must be one of 'program'"),
        (lambda: Phase("model", ELBO(), 0), ValueError, "steps must be"),
        (lambda: Phased(ELBO()), TypeError, "Phased takes one Phase or more"),
        (lambda: Phased(Phase("model", ELBO()), learned=3), TypeError, "learned must be a torch.nn.Module"),
    ],
)
def test_bad_phases(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("phases", "optimizer", "error", "message"),
    [
        ((Phase("objective", ELBO()), Phase("program", ELBO())), None, ValueError, "a phase trains 'objective'"),
        ((Phase("guide", ELBO()), Phase("model", ELBO())), "one", TypeError, "trains in phases"),
        ((Phase("guide", ELBO()), Phase("model", ELBO())), {"model": None}, ValueError, "no key 'guide'"),
    ],
)
def test_phases_that_fit_refuses(phases, optimizer, error, message):
    vae = small_vae()
    optimizer = torch.optim.Adam(vae.parameters()) if optimizer == "one" else optimizer
    with pytest.raises(error, match=message):
        pyro_dgm.fit(vae, digits_like(), objective=Phased(*phases), optimizer=optimizer, epochs=1, progress=False)


def test_a_metric_for_a_phase():
    program = Numbers()
    objective = Phased(
        Phase("guide", lambda model, guide: lambda x: program.b**2 * len(x), metric=Metric("square", "units", "lower")),
        Phase("model", lambda model, guide: lambda x: (program.a - 1.0) ** 2 * len(x)),
    )
    run = pyro_dgm.fit(program, torch.ones(4), objective=objective, epochs=1, progress=False)
    assert run.measured["guide"].name == "square" and run.measured["train"].name == "loss"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_max_steps_without_epochs_counts_steps_of_all_phases(accumulate):
    objective = Phased(Phase("guide", ELBO(), 3), Phase("model", ELBO()))
    run = pyro_dgm.fit(
        small_vae(), digits_like(), objective=objective, max_steps=7, batch_size=10, accumulate=accumulate, seed=0,
        progress=False,
    )  # fmt: skip
    # 7 batches an epoch: 3 steps of 3 batches, or 2 of 6
    assert (run.steps, run.epochs) == (7, 3 if accumulate == 1 else 4)


MAKE = {
    "FactorVAE": (lambda: FactorVAE(discriminator_steps=2), {"program", "objective"}),
    "AdversarialELBO": (lambda: AdversarialELBO(discriminator_steps=2), {"program", "objective"}),
    "WakeSleep": (lambda: WakeSleep(guide_steps=2), {"model", "guide"}),
    "ReweightedWakeSleep": (lambda: ReweightedWakeSleep(3, guide_steps=2), {"model", "guide"}),
}


@pytest.mark.parametrize("name", MAKE)
def test_objectives_with_phases_of_their_own(name):
    make, optimisers = MAKE[name]

    def fit(compile):
        run = pyro_dgm.fit(
            small_vae(), digits_like(), objective=make(), optimizer=ADAM, epochs=3, batch_size=20, seed=0,
            progress=False, compile=compile,
        )  # fmt: skip
        return run

    eager, recorded = fit(False), fit("graph")
    assert eager.steps == 6 and set(eager.optimizer.optimizers) == optimisers
    other = ({"objective", "guide"} & optimisers).pop()
    assert len(eager.history[other]) == 3
    for key in ("train", other):
        assert recorded.history[key] == pytest.approx(eager.history[key], rel=1e-4)
    steps = {
        key: max(float(state["step"]) for state in one.state.values())
        for key, one in eager.optimizer.optimizers.items()
    }
    assert steps[other] == 12 and min(steps.values()) == 6  # two updates for each of the others
