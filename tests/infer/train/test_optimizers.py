"""Several optimisers: whose parameters each has, and that they step as they would alone."""

from __future__ import annotations

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_dgm
from pyro_dgm.infer.train.optimizers import Optimizers
from tests.infer.train.fit_programs import digits_like, noisy_net, small_vae, store_program

fit = functools.partial(pyro_dgm.fit, progress=False, device="cpu")
SGD, Adam = torch.optim.SGD, torch.optim.Adam


def sgd(lr: float) -> Any:
    return functools.partial(SGD, lr=lr)


class Tied(nn.Module):
    """A model and a guide that use one scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.loc = nn.Parameter(torch.tensor(0.5))
        self.prior = nn.Parameter(torch.tensor(-0.5))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.prior, 1.0))
            pyro.sample("x", dist.Normal(z, self.scale.exp()), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc * x, self.scale.exp()))


class Watched(pyro_dgm.infer.ELBO):
    """An ELBO beside which a network learns to predict the bound of a datum."""

    def build_learned(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> nn.Module:
        return nn.Linear(1, 1).to(args[0])

    def surrogate_of(self, particles: Any, bound: Tensor) -> Tensor:
        assert self.learned is not None
        guess = self.learned(torch.ones_like(bound)[:, None])[:, 0]
        return super().surrogate_of(particles, bound) - ((guess - bound.detach()) ** 2).sum()


def changed(m: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {k for k, v in m.state_dict().items() if not torch.equal(v, before[k])}


def copy(m: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in m.state_dict().items()}


# Whose parameters


def test_each_side_is_stepped_by_its_own_optimiser() -> None:
    x = digits_like()
    for trained, prefix in (("model", "decoder"), ("guide", "encoder")):
        m = small_vae()
        before = copy(m)
        rates = {"model": 0.0, "guide": 0.0, trained: 0.1}
        fit(m, x, epochs=1, seed=0, optimizer={side: sgd(rate) for side, rate in rates.items()})
        assert {name.partition(".")[0] for name in changed(m, before)} == {prefix}


def test_two_optimisers_step_as_one_with_two_groups() -> None:
    both, one, x = small_vae(), small_vae(), digits_like()
    run = fit(both, x, epochs=3, batch_size=16, seed=0, optimizer={"model": sgd(0.1), "guide": functools.partial(Adam)})
    assert isinstance(run.optimizer, Optimizers) and run.config["optimizer"] == {"model": "SGD", "guide": "Adam"}
    model = [p for name, p in one.named_parameters() if name.startswith("decoder")]
    guide = [p for name, p in one.named_parameters() if name.startswith("encoder")]
    by_hand = Optimizers({"model": SGD(model, lr=0.1), "guide": Adam(guide)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        order = torch.Generator().manual_seed(0)
        loss_of = pyro_dgm.infer.ELBO()(one.model, one.guide)
        for _ in range(3):
            for index in torch.randperm(len(x), generator=order).split(16):
                by_hand.zero_grad()
                (loss_of(x[index]) * (1 / len(index))).backward()
                by_hand.step()
    for p, q in zip(both.parameters(), one.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_parameter_of_both_sides_needs_a_key_of_its_own() -> None:
    x = torch.randn(30)
    with pytest.raises(ValueError, match="both model and guide use scale: .* needs a key 'shared'"):
        fit(Tied(), x, epochs=1, optimizer={"model": None, "guide": None})
    m = Tied()
    fit(m, x, epochs=1, optimizer={"model": sgd(0.0), "guide": sgd(0.0), "shared": sgd(0.1)})
    assert m.scale.item() != pytest.approx(0.3) and m.loc.item() == 0.5 and m.prior.item() == -0.5


@pytest.mark.uses_param_store
def test_parameters_on_no_module_are_divided_too() -> None:
    pyro.clear_param_store()
    run = fit(store_program(), torch.randn(40), epochs=1, optimizer={"model": None, "guide": None})
    assert isinstance(run.optimizer, Optimizers)
    names = {id(t): name for name, t in run.state.trainable().items()}
    held = {
        key: {names[id(p)] for group in one.param_groups for p in group["params"]}
        for key, one in run.optimizer.optimizers.items()
    }
    store = "param_store."
    assert held["model"] == {store + "scale"}
    assert held["guide"] == {store + "width", store + "net$$$weight", store + "net$$$bias"}
    pyro.clear_param_store()


def test_networks_of_the_objective_have_an_optimiser_of_their_own() -> None:
    x = digits_like(32)
    with pytest.raises(ValueError, match="no key 'objective', whose parameters are objective.learned.weight"):
        fit(small_vae(), x, epochs=1, objective=Watched(), optimizer={"model": None, "guide": None})
    m, objective = small_vae(), Watched()
    before = copy(m)
    still = {"model": sgd(0.0), "guide": sgd(0.0)}
    run = fit(m, x, epochs=200, seed=0, objective=objective, optimizer={**still, "objective": sgd(0.05)})
    assert changed(m, before) == set()
    assert objective.learned is not None
    guess = objective.learned(torch.ones(1, 1)).item()
    assert guess == pytest.approx(sum(run.history["train"][-50:]) / 50, abs=0.2)


def test_keys_without_parameters_are_idle() -> None:
    options = {"model": None, "guide": None, "objective": None, "shared": None}
    run = fit(small_vae(), digits_like(), epochs=1, optimizer=options)
    assert isinstance(run.optimizer, Optimizers) and list(run.optimizer.optimizers) == ["model", "guide"]


def test_looking_for_owners_changes_nothing() -> None:
    x = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
    one, two = noisy_net(), noisy_net()
    runs = [fit(one, x, epochs=2, batch_size=16, seed=0)]
    runs.append(fit(two, x, epochs=2, batch_size=16, seed=0, optimizer={"model": None, "guide": None}))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert runs[0].history["train"] == runs[1].history["train"]


def test_parameters_that_nobody_uses_are_named() -> None:
    m = small_vae()
    m.spare = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match=r"no optimizer trains spare\.weight, spare\.bias"):
        fit(m, digits_like(), epochs=1, optimizer={"model": None, "guide": None})


@pytest.mark.uses_param_store
def test_a_late_parameter_is_refused() -> None:
    pyro.clear_param_store()
    calls = 0

    def model(x: Tensor) -> None:
        nonlocal calls
        calls += 1
        loc = pyro.param("early", torch.tensor(0.0))
        if calls > 6:
            loc = loc + pyro.param("late", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"param_store.late came up during training: with a mapping of optimizers"):
        fit((model, lambda x: None), torch.ones(10), epochs=20, optimizer={"model": None})
    pyro.clear_param_store()


# Clipping and schedules


def test_each_optimiser_is_clipped_by_itself() -> None:
    m, x = small_vae(), digits_like(32)
    before = copy(m)
    run = fit(m, x, epochs=1, clip_norm=1e-3, optimizer={"model": sgd(1.0), "guide": sgd(1.0)})
    for side in ("decoder", "encoder"):
        moved = torch.cat([(v - before[k]).flatten() for k, v in m.state_dict().items() if k.startswith(side)])
        assert moved.norm().item() == pytest.approx(1e-3, rel=0.05)
    assert run.history["gradient_norm"][0] > 0.1


def halved(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [(halved, [0.1 / 8, 0.2 / 8]), ({"guide": halved}, [0.1, 0.2 / 8]), ({}, [0.1, 0.2])],
    ids=["all", "guide", "none"],
)
def test_schedulers(scheduler: Any, rates: list[float]) -> None:
    run = fit(
        small_vae(),
        digits_like(),
        epochs=3,
        optimizer={"model": sgd(0.1), "guide": sgd(0.2)},
        lr_scheduler=scheduler,
    )
    assert run.optimizer is not None
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx(rates)


# Refusals


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"optimizer": {"model": None}}, ValueError, "no key 'guide', whose parameters are encoder"),
        ({"optimizer": {"decoder": None}}, ValueError, "has the key 'decoder'"),
        ({"optimizer": {"model": None, "guide": 3}}, TypeError, r"optimizer\['guide'\] must be None or a callable"),
        ({"optimizer": {"model": None, "guide": lambda p: 3}}, TypeError, r"optimizer\['guide'\]\(parameters\)"),
        ({"optimizer": {"model": pyro.optim.Adam({}), "guide": None}}, TypeError, "must be of torch.optim"),
        ({"optimizer": {"model": torch.optim.LBFGS, "guide": None}}, ValueError, "LBFGS"),
        ({"lr_scheduler": {"model": halved}}, TypeError, "needs optimizer to be one"),
        (
            {"optimizer": {"model": None, "guide": None}, "lr_scheduler": {"prior": halved}},
            ValueError,
            "lr_scheduler has the key 'prior'",
        ),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fit(small_vae(), digits_like(), epochs=1, **change)


def test_the_class_itself() -> None:
    a, b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    with pytest.raises(ValueError, match="at least one"):
        Optimizers({})
    with pytest.raises(ValueError, match="'guide' have a parameter in common"):
        Optimizers({"model": SGD([a], lr=0.1), "guide": SGD([a], lr=0.1)})
    both = Optimizers({"model": SGD([a], lr=0.1), "guide": Adam([b])})
    assert repr(both) == "Optimizers(model=SGD, guide=Adam)" and len(both.param_groups) == 2
    with pytest.raises(ValueError, match="is of the optimizers"):
        both.load_state_dict({"model": {}})
