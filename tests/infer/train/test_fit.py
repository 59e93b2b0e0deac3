"""Training: what it accepts, what it reports, what it leaves alone, and that it reaches the optimum."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_dgm
from pyro_dgm.infer.train.callbacks import EarlyStopping
from tests.infer.train.fit_programs import auto_program, digits_like, noisy_net, small_vae, store_program

fit = functools.partial(pyro_dgm.fit, progress=False, device="cpu")
adam = functools.partial(torch.optim.Adam, lr=0.01)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# The optimum


def test_reaches_the_maximum_likelihood_of_ppca() -> None:
    torch.manual_seed(0)
    truth = pyro_dgm.models.LinearGaussian(4, 1, isotropic=True).double()
    x = truth.marginal().sample((200,)).detach()
    reference = pyro_dgm.models.LinearGaussian(4, 1, isotropic=True).double()
    best = reference.fit_em(x, max_iterations=5000, tolerance=1e-12)[-1]
    m = pyro_dgm.models.LinearGaussian(4, 1, isotropic=True, guide_covariance="full").double()
    run = fit(
        m,
        x,
        epochs=800,
        batch_size=200,
        seed=0,
        optimizer=functools.partial(torch.optim.Adam, lr=0.03),
        lr_scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=800),
    )
    assert m.log_marginal(x).mean().item() == pytest.approx(best, abs=1e-3)
    # The guide is exact at the optimum, so the bound itself is the log-likelihood there, with no noise left.
    assert run.history["train"][-1] == pytest.approx(best, abs=2e-3)


def test_same_trajectory_as_a_hand_written_loop() -> None:
    x = digits_like(64)
    ours, theirs = small_vae(), small_vae()
    run = fit(
        ours, x, epochs=3, batch_size=16, shuffle=False, seed=7, objective=pyro.infer.Trace_ELBO(), optimizer=adam
    )
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(7)
        loss_of = pyro.infer.Trace_ELBO()(theirs.model, theirs.guide)
        optimizer = adam(theirs.parameters())
        for _ in range(3):
            total = 0.0
            for batch in x.split(16):
                optimizer.zero_grad()
                loss = loss_of(batch)
                (loss / 16).backward()
                optimizer.step()
                total += loss.item()
            losses.append(-total / 64)
    assert run.history["train"] == pytest.approx(losses, rel=1e-6)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_step_does_not_depend_on_the_size_of_the_batch() -> None:
    # The same datum twice has the gradient of the datum once, in expectation; with no latents, exactly.
    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x[:, None] * 0)[:, 0], 1.0), obs=x)

    results = []
    for n in (1, 8):
        net = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(net.bias)
        holder = torch.nn.Module()
        holder.net, holder.model, holder.guide = net, model, lambda x: None
        fit(holder, torch.ones(n), epochs=1, batch_size=8, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
        results.append(net.bias.item())
    assert results == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("name", ["ELBO", "STL", "IWAE", "DReG", "RenyiELBO", "TraceGraphELBO"])
def test_every_objective_improves_the_bound(name: str) -> None:
    kwargs: dict[str, Any] = {"num_particles": 3} if name in ("IWAE", "DReG", "RenyiELBO") else {}
    x = digits_like()
    run = fit(
        small_vae(),
        x,
        epochs=8,
        batch_size=32,
        seed=0,
        objective=getattr(pyro_dgm.infer, name)(**kwargs),
        optimizer=adam,
    )
    assert run.history["train"][-1] > run.history["train"][0] + 1.0


@pytest.mark.parametrize(
    "objective",
    [
        pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True),
        pyro.infer.TraceMeanField_ELBO(),
        pyro.infer.TraceGraph_ELBO(),  # has loss_and_grads only
        pyro.infer.RenyiELBO(num_particles=2),
    ],
    ids=lambda o: type(o).__name__,
)
def test_pyros_own_objectives(objective: Any) -> None:
    run = fit(small_vae(), digits_like(), epochs=8, batch_size=32, seed=0, objective=objective, optimizer=adam)
    assert run.history["train"][-1] > run.history["train"][0] + 1.0


def test_gradients_are_per_datum_whoever_computes_them() -> None:
    runs = []
    for objective in (pyro.infer.Trace_ELBO(), pyro.infer.TraceGraph_ELBO()):
        runs.append(fit(small_vae(), digits_like(32), epochs=1, batch_size=32, seed=0, objective=objective))
    first, second = runs
    assert first.history["gradient_norm"] == pytest.approx(second.history["gradient_norm"], rel=1e-5)
    assert first.history["train"] == pytest.approx(second.history["train"], rel=1e-5)


# Data


class Regression(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 1)
        torch.nn.init.zeros_(self.net.weight)
        torch.nn.init.zeros_(self.net.bias)

    def model(self, x: torch.Tensor, y: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.net(x)[:, 0], 1.0), obs=y)

    def guide(self, x: torch.Tensor, y: torch.Tensor) -> None:
        pass


@pytest.mark.parametrize("form", ["tuple", "list", "dict", "tensor dataset", "dataset", "loader", "dict loader"])
def test_forms_of_data(form: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 2)
    y = x @ torch.tensor([1.0, -2.0]) + 0.5

    class Pairs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 50

        def __getitem__(self, i: int) -> Any:
            return {"x": x[i], "y": y[i]} if form == "dict loader" else (x[i], y[i])

    size: int | None = 16
    data: Any
    match form:
        case "tuple":
            data = (x, y)
        case "list":
            data = [x, y]
        case "dict":
            data = {"y": y, "x": x}
        case "tensor dataset":
            data = TensorDataset(x, y)
        case "dataset":
            data = Pairs()
        case _:
            data, size = DataLoader(Pairs(), batch_size=16, shuffle=True), None
    m = Regression()
    run = fit(m, data, epochs=60, batch_size=size, seed=1, optimizer=functools.partial(torch.optim.Adam, lr=0.05))
    assert run.steps == 60 * 4  # the last, ragged batch is kept
    torch.testing.assert_close(m.net.weight.detach(), torch.tensor([[1.0, -2.0]]), atol=0.05, rtol=0)
    assert run.history["train"][-1] == pytest.approx(-0.5 * math.log(2 * math.pi), abs=0.01)


def test_ragged_batches_weigh_as_many_data_as_they_hold() -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(()))

        def model(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

        def guide(self, x: torch.Tensor) -> None:
            pass

    x = torch.arange(7.0)
    m = Fixed()
    exact = dist.Normal(0.0, 1.0).log_prob(x).mean().item()
    for size in (2, 3, 7):
        run = fit(m, x, epochs=1, batch_size=size, validation=x, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
        assert run.history["train"][0] == pytest.approx(exact, rel=1e-6)
        assert run.history["validation"][0] == pytest.approx(exact, rel=1e-6)


def test_num_data_for_programs_that_scale_a_batch_up() -> None:
    x = torch.randn(40, generator=torch.Generator().manual_seed(0))

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(()))

        def model(self, batch: torch.Tensor) -> None:
            with pyro.plate("data", 40, subsample=torch.arange(len(batch))):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=batch)

        def guide(self, batch: torch.Tensor) -> None:
            pass

    run = fit(Scaled(), x, epochs=1, batch_size=10, num_data=40, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    assert run.history["train"][0] == pytest.approx(dist.Normal(0.0, 1.0).log_prob(x).mean().item(), rel=1e-6)


def test_transform_sees_every_batch_and_validation_its_own() -> None:
    x = torch.rand(40, 4, 4)
    seen: list[int] = []

    def binarise(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return torch.bernoulli(batch)

    run = fit(small_vae(), x, epochs=2, batch_size=16, transform=binarise, validation=x[:8], seed=0)
    assert sorted(seen[-8:]) == sorted(2 * [16, 16, 8, 8])
    assert len(set(run.history["train"])) == 2


# Parameters


def test_autoguide_finds_the_posterior_mean_and_leaves_the_store_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(100) + 3.0
    program = auto_program()
    fit(program, x, epochs=400, batch_size=100, seed=0, optimizer=functools.partial(torch.optim.Adam, lr=0.05))
    posterior_mean = x.sum() / (100 + 0.01)
    assert program.guide.median()["mu"].item() == pytest.approx(posterior_mean.item(), abs=0.05)
    assert list(pyro.get_param_store().keys()) == []


def test_two_autoguides_do_not_share_parameters() -> None:
    # Pyro keys them by class name: the second guide would start where the first ended.
    x = torch.randn(20)
    first, second = auto_program(), auto_program()
    fit(first, x + 50, epochs=30, batch_size=20, seed=0, optimizer=functools.partial(torch.optim.Adam, lr=1.0))
    trained = first.guide.locs.mu.item()
    fit(second, x, epochs=1, batch_size=20, seed=0)
    assert abs(second.guide.locs.mu.item()) < 10
    assert first.guide.locs.mu.item() == trained


@pytest.mark.uses_param_store
def test_plain_functions_with_pyro_param_and_module() -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)
    x = 2.0 * torch.randn(400)
    run = fit(
        store_program(), x, epochs=150, batch_size=100, seed=0, optimizer=functools.partial(torch.optim.Adam, lr=0.02)
    )
    assert not set(pyro.get_param_store().keys())
    assert set(run.program.param_store) == {"scale", "width", "net$$$weight", "net$$$bias"}
    # The marginal is N(0, 1 + scale^2), of variance 4.
    assert run.program.param_store["scale"].item() == pytest.approx(math.sqrt(3), abs=0.15)
    assert run.history["train"][-1] > run.history["train"][0]
    pyro.clear_param_store()


@pytest.mark.uses_param_store
def test_parameters_that_appear_later_are_trained() -> None:
    pyro.clear_param_store()
    calls = 0

    def model(x: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        loc = pyro.param("early", torch.tensor(0.0))
        if calls > 4:
            loc = loc + pyro.param("late", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    fit(
        (model, lambda x: None), torch.full((10,), 5.0), epochs=20, optimizer=functools.partial(torch.optim.SGD, lr=0.1)
    )
    early, late = pyro.param("early").item(), pyro.param("late").item()
    assert 0 < late < early
    assert early + late == pytest.approx(5.0, abs=0.2)
    pyro.clear_param_store()


def test_an_optimizer_over_some_parameters_trains_those() -> None:
    m = small_vae()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    fit(m, digits_like(), epochs=1, optimizer=torch.optim.Adam(m.encoder.parameters(), lr=0.01))
    changed = {k.split(".")[0] for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"encoder"}


def test_frozen_parameters_stay() -> None:
    m = small_vae()
    m.decoder.requires_grad_(False)
    before = [p.clone() for p in m.decoder.parameters()]
    fit(m, digits_like(), epochs=1, optimizer=adam)
    assert all(torch.equal(p, q) for p, q in zip(m.decoder.parameters(), before, strict=True))


def test_parameters_of_an_objective_are_trained() -> None:
    class Learned(torch.nn.Module):
        def __init__(self, model: Any, guide: Any) -> None:
            super().__init__()
            self.temperature = torch.nn.Parameter(torch.tensor(0.0))
            self.loss = pyro.infer.Trace_ELBO()(model, guide)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.loss(x) + len(x) * (self.temperature - 1) ** 2

    made: list[Learned] = []

    def objective(model: Any, guide: Any) -> Learned:
        made.append(Learned(model, guide))
        return made[-1]

    sgd = functools.partial(torch.optim.SGD, lr=0.05)  # the error of the temperature falls by 0.9 a step
    fit(small_vae(), digits_like(), epochs=50, objective=objective, optimizer=sgd)
    assert len(made) == 1 and made[0].temperature.item() == pytest.approx(1 - 0.9**50, abs=1e-5)


# Randomness and modes


def test_a_seed_gives_the_run_again_and_puts_the_callers_state_back() -> None:
    x = digits_like()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    a, b, c = small_vae(), small_vae(), small_vae()
    runs = [fit(m, x, epochs=2, batch_size=16, seed=s) for m, s in ((a, 0), (b, 0), (c, 1))]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    assert equal(a, b) and runs[0].history["train"] == runs[1].history["train"]
    assert not equal(a, c)


def test_without_a_seed_the_global_generator_is_used() -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        m = small_vae()
        torch.manual_seed(seed)
        fit(m, digits_like(), epochs=1, batch_size=16)
        results.append((m, torch.get_rng_state()))
    assert equal(results[0][0], results[1][0]) and not equal(results[0][0], results[2][0])
    assert not torch.equal(results[0][1], torch.Generator().manual_seed(0).get_state())


def test_validation_changes_nothing_in_training() -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    plain, watched = noisy_net(), noisy_net()
    fit(plain, x, epochs=3, batch_size=16, seed=0)
    run = fit(
        watched, x, epochs=3, batch_size=16, seed=0, validation=x[:20], validation_objective=pyro_dgm.infer.IWAE(5)
    )
    assert equal(plain, watched)
    assert watched.training and all(m.training for m in watched.modules())
    assert len(run.history["validation"]) == 3 and run.monitor == "validation"


def test_validation_is_in_evaluation_mode_and_draws_the_same_numbers() -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    run = fit(noisy_net(), x, epochs=2, validation=x, seed=0, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    # Batch statistics move in training, dropout is off: without a step only they can tell the epochs apart.
    frozen = noisy_net().eval()
    frozen.encoder[1].momentum = 0.0
    still = fit(frozen, x, epochs=2, validation=x, seed=0, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    assert still.history["validation"][0] == still.history["validation"][1]
    assert run.history["validation"][0] != run.history["validation"][1]


def test_the_first_look_leaves_running_statistics_alone() -> None:
    m = noisy_net()
    x = torch.randn(32, 3)
    fit(m, x, epochs=1, batch_size=16)
    assert int(m.encoder[1].num_batches_tracked) == 2


# Optimisation


def test_clipping_bounds_the_step_and_reports_the_norm_before_it() -> None:
    m, x = small_vae(), digits_like(32)
    before = torch.cat([p.detach().flatten().clone() for p in m.parameters()])
    run = fit(m, x, epochs=1, batch_size=32, clip_norm=1e-3, optimizer=functools.partial(torch.optim.SGD, lr=1.0))
    moved = torch.cat([p.detach().flatten() for p in m.parameters()]) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=0.05)
    assert run.history["gradient_norm"][0] > 0.1


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_schedulers(interval: str) -> None:
    run = fit(
        small_vae(),
        digits_like(64),
        epochs=3,
        batch_size=16,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        lr_scheduler_interval=interval,
    )
    factor = 0.5 if interval == "epoch" else 0.5**4
    assert run.history["learning_rate"] == pytest.approx([1e-3, 1e-3 * factor, 1e-3 * factor**2])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_scheduler_watches_the_bound(mode: str) -> None:
    def plateau(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, patience=0, factor=0.1)

    x = digits_like(64)
    run = fit(small_vae(), x, epochs=5, seed=0, validation=x, optimizer=adam, lr_scheduler=plateau)
    assert np.all(np.diff(run.history["validation"]) > 0)
    assert run.history["learning_rate"] == [0.01] * 5  # it rises, in whatever sense the mode has


def test_early_stopping_stops_and_restores_the_best() -> None:
    x = digits_like(40)
    weights = []

    def keep(run: Any) -> None:
        weights.append({k: v.clone() for k, v in run.program.state_dict().items()})

    m = small_vae()
    run = fit(
        m,
        x[:20],
        validation=x[20:],
        epochs=500,
        seed=0,
        optimizer=functools.partial(torch.optim.Adam, lr=0.1),
        early_stopping=3,
        callbacks=[keep],
    )
    assert run.epochs < 500 and "no better validation bound" in run.stop_reason
    assert run.best is not None and run.epochs == run.best.epoch + 3
    assert run.best.bound == max(run.history["validation"])
    assert all(torch.equal(v, weights[run.best.epoch - 1][k]) for k, v in m.state_dict().items())


def test_callbacks_see_the_run_and_can_stop_it() -> None:
    seen = []

    def watch(run: Any) -> None:
        seen.append((run.epochs, run.history["train"][-1]))
        if run.epochs == 3:
            run.stop("enough")

    run = fit(small_vae(), digits_like(), epochs=10, callbacks=[watch])
    assert [e for e, _ in seen] == [1, 2, 3] and run.epochs == 3 and run.stop_reason == "enough"


def test_the_record_of_a_run() -> None:
    x = digits_like(40)
    run = fit(small_vae(), x, epochs=3, batch_size=16, validation=x, seed=0)
    frame = run.to_frame()
    assert list(frame.columns) == ["train", "validation", "gradient_norm", "learning_rate", "seconds"]
    assert frame.shape == (3, 5) and list(frame.index) == [1, 2, 3]
    assert run.steps == 9 and all(s > 0 for s in run.history["seconds"])
    assert "epochs=3" in repr(run) and run.config["program_config"]["latent_dim"] == 2
    without = fit(small_vae(), x, epochs=1)
    assert "validation" not in without.to_frame() and without.history["validation"] == []


def test_progress_shows_the_bound_and_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    x = digits_like(40)
    pyro_dgm.fit(small_vae(), x, epochs=2, validation=x, device="auto")
    shown = capsys.readouterr().out
    assert "device cpu (auto)" in shown or "device cuda:0 (auto)" in shown
    assert "bound -" in shown and "validation -" in shown and "2/2" in shown
    fit(small_vae(), x, epochs=1)
    assert capsys.readouterr().out == ""


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"epochs": 0}, ValueError, "epochs must be an integer of at least 1"),
        ({"epochs": 2.0}, TypeError, "epochs must be an integer of at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm must be positive"),
        ({"seed": -1}, ValueError, "seed must be an integer"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"objective": "elbo"}, TypeError, "objective must be an ELBO"),
        ({"objective": pyro_dgm.infer.ELBO}, TypeError, "must be an instance, ELBO()"),
        ({"validation_objective": 3}, TypeError, "validation_objective must be an ELBO"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be None, a callable"),
        ({"optimizer": lambda p: 1}, TypeError, "must give a torch.optim.Optimizer, got int"),
        ({"optimizer": torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])}, ValueError, "none of the program's"),
        ({"optimizer": pyro.optim.Adam({"lr": 0.1})}, TypeError, "must be of torch.optim"),
        ({"optimizer": torch.optim.LBFGS}, ValueError, "LBFGS"),
        ({"lr_scheduler": lambda o: 1}, TypeError, "must give a scheduler"),
        ({"lr_scheduler_interval": "batch"}, ValueError, "lr_scheduler_interval must be"),
        ({"data": digits_like().double()}, ValueError, "data is torch.float64.*x.to"),
        ({"data": digits_like() * 0.5}, ValueError, "outside"),
        ({"data": digits_like()[:, :3]}, ValueError, "must have shape"),
        ({"data": digits_like() / 0}, ValueError, "not finite"),
        ({"data": digits_like().numpy()}, TypeError, "torch.as_tensor"),
        ({"data": (digits_like(), 3)}, TypeError, "holding int"),
        ({"data": (digits_like(5), digits_like(6))}, ValueError, r"data\[1\] has 6 data, data\[0\] has 5"),
        ({"data": torch.zeros(0, 4, 4)}, ValueError, "empty"),
        ({"data": ()}, ValueError, "no tensor"),
        ({"data": {1: digits_like()}}, TypeError, "must be strings"),
        ({"validation": digits_like().double()}, ValueError, "validation is torch.float64"),
        ({"data": DataLoader(TensorDataset(digits_like())), "batch_size": 3}, ValueError, "leave out batch_size"),
        ({"callbacks": [3]}, TypeError, "callbacks must hold functions"),
        ({"early_stopping": 0}, ValueError, "patience must be an integer of at least 1"),
        ({"check_every": 0}, ValueError, "check_every"),
        ({"resume": True}, ValueError, "resume=True needs the checkpoint_dir"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, dict) else "",
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    m = small_vae()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    arguments: dict[str, Any] = {"data": digits_like(), "epochs": 1, **change}
    with pytest.raises(error, match=text):
        fit(m, arguments.pop("data"), **arguments)
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())


def test_no_parameters_is_an_error() -> None:
    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="no parameters to train"):
        fit((model, lambda x: None), torch.zeros(3), epochs=1)
    with pytest.raises(TypeError, match=r"must have .model and .guide"):
        fit(model, torch.zeros(3), epochs=1)


def test_early_stopping_arguments() -> None:
    for bad in ({"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.nan}, {"monitor": "loss"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            EarlyStopping(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs fit"):
        fit(small_vae(), digits_like(), epochs=1, early_stopping=EarlyStopping(monitor="validation"))
