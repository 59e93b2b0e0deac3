"""A run goes on only as what it was: each difference is named, before anything of the caller's is changed."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_dgm
from pyro_dgm.infer import IWAE, ContrastiveDivergence, DReG, NoiseContrastive
from pyro_dgm.infer.train.callbacks import Callback, EarlyStopping
from pyro_dgm.infer.train.checkpoints.fingerprint import CHECKED_BYTES, checksum, describe, differences
from tests.infer.train.checkpoints.test_checkpoint import assert_same, outcome
from tests.infer.train.fit_programs import digits_like

Adam = torch.optim.Adam


def vae(**options: Any) -> pyro_dgm.models.VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pyro_dgm.models.VAE(**{"event_shape": (4, 4), "latent_dim": 2, "hidden": (8,), **options})


def slower(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)


def later(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 6, gamma=0.5)


def half(batch: torch.Tensor) -> torch.Tensor:
    return (batch > 0.5).to(batch)


def first_of(batch: Any) -> Any:
    return batch[0]


def same(batch: Any) -> Any:
    return batch


class Counter(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_epoch_end(self, run: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


BASE: dict[str, Any] = {
    "objective": lambda: DReG(num_particles=4), "data": digits_like, "batch_size": 16, "seed": 0,
    "validation": lambda: digits_like(20), "lr_scheduler": slower, "optimizer": functools.partial(Adam, lr=0.01),
}  # fmt: skip


def fit(epochs: int, program: Any = None, **changes: Any) -> Any:
    options = {**BASE, **changes}
    for key in ("objective", "data", "validation"):
        options[key] = options[key]() if callable(options[key]) and not hasattr(options[key], "loss") else options[key]
    return pyro_dgm.fit(program or vae(), options.pop("data"), epochs=epochs, progress=False, device="cpu", **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    fit(2, checkpoint_dir=folder)
    return folder


#: what is given, and how the refusal names it
DIFFERENT: dict[str, tuple[Callable[[], Any] | None, dict[str, Any], str]] = {
    "activation": (lambda: vae(activation="Tanh"), {}, "program_config.activation: saved None, given 'Tanh'"),
    "modules": (lambda: vae(activation="Tanh"), {}, r"modules\.[\w.]+: saved 'ReLU\(\)', given 'Tanh\(\)'"),
    "width": (lambda: vae(hidden=(9,)), {}, r"program_config.hidden\[0\]: saved 8, given 9"),
    "depth": (lambda: vae(hidden=(8, 8)), {}, r"program_config.hidden: saved \[8\], given \[8, 8\]"),
    "another program": (lambda: pyro_dgm.models.LinearGaussian(16, 2), {"data": lambda: torch.ones(70, 16),
        "validation": lambda: torch.ones(20, 16)}, "program: saved 'VAE', given 'LinearGaussian'"),
    "dtype": (lambda: vae().double(), {"data": lambda: digits_like().double(),
        "validation": lambda: digits_like(20).double()}, "saved torch.float32, given torch.float64"),
    "objective": (None, {"objective": lambda: IWAE(4)}, "objective: saved 'DReG', given 'IWAE'"),
    "particles": (None, {"objective": lambda: DReG(5)}, "objective.num_particles: saved 4, given 5"),
    "an option of it": (None, {"objective": lambda: DReG(4, vectorize_particles=False)},
        "objective.vectorize_particles: saved True, given False"),
    "validation objective": (None, {"validation_objective": IWAE(3)}, "validation_objective: saved None"),
    "other data": (None, {"data": lambda: 1 - digits_like()}, r"data.data.sha256: saved '\w+', given '\w+'"),
    "one datum": (None, {"data": lambda: digits_like().index_fill(0, torch.tensor([69]), 1.0)}, "data.data.sha256"),
    "length": (None, {"data": lambda: digits_like(71)}, "data_length: saved 70, given 71"),
    "a loader": (None, {"data": lambda: DataLoader(TensorDataset(digits_like()), 16), "batch_size": None,
        "transform": first_of, "validation_transform": same}, "dataset: saved nothing, given 'TensorDataset'"),
    "validation": (None, {"validation": lambda: digits_like(21)}, "validation.data.shape"),
    "no validation": (None, {"validation": None}, "validation: saved {.*, given None"),
    "shuffle": (None, {"shuffle": False}, "shuffle: saved True, given False"),
    "batch size": (None, {"batch_size": 8}, "batch_size: saved 16, given 8"),
    "lr": (None, {"optimizer": functools.partial(Adam, lr=0.1)}, r"optimizer.groups\[0\].lr: saved 0.01, given 0.1"),
    "betas": (None, {"optimizer": functools.partial(Adam, lr=0.01, betas=(0.8, 0.999))},
        r"optimizer.groups\[0\].betas\[0\]: saved 0.9, given 0.8"),
    "weight decay": (None, {"optimizer": functools.partial(Adam, lr=0.01, weight_decay=0.1)},
        r"weight_decay: saved 0, given 0.1"),
    "optimizer": (None, {"optimizer": functools.partial(torch.optim.SGD, lr=0.01)}, "optimizer: saved 'Adam', given"),
    "two optimizers": (None, {"optimizer": {"model": None, "guide": None}}, "optimizer: saved 'Adam', given {"),
    "scheduler": (None, {"lr_scheduler": None}, "lr_scheduler: saved {.*StepLR.*}, given None"),
    "its settings": (None, {"lr_scheduler": later}, "lr_scheduler.step_size: saved 5, given 6"),
    "its interval": (None, {"lr_scheduler_interval": "step"}, "lr_scheduler_interval: saved 'epoch', given 'step'"),
    "clip_norm": (None, {"clip_norm": 0.01}, "clip_norm: saved None, given 0.01"),
    "num_data": (None, {"num_data": 5}, "num_data: saved None, given 5"),
    "accumulate": (None, {"accumulate": 2}, "accumulate: saved 1, given 2"),
    "precision": (None, {"precision": "bf16"}, "precision: saved None, given 'bf16'"),
    "transform": (None, {"transform": half}, "transform: saved None, given 'half'"),
    "validation transform": (None, {"validation_transform": half}, "validation_transform: saved None, given 'half'"),
    "early stopping": (None, {"early_stopping": 3}, r"callbacks: saved \[\], given \['EarlyStopping'\]"),
    "a callback with a state": (None, {"callbacks": [Counter()]}, r"callbacks: saved \[\], given \['Counter'\]"),
    "seed": (None, {"seed": 1}, "seed is 1, the checkpoint's run has 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference_is_named_and_nothing_is_changed(name: str, saved: Path, tmp_path: Path) -> None:
    make, changes, text = DIFFERENT[name]
    folder = shutil.copytree(saved, tmp_path / "run")
    program = vae() if make is None else make()
    weights = {k: v.clone() for k, v in program.state_dict().items()}
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    torch.manual_seed(3)
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=text):
        fit(4, program, checkpoint_dir=folder, resume=True, **changes)
    assert_same(dict(program.state_dict()), weights)
    assert torch.equal(torch.get_rng_state(), random)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files


def test_all_differences_are_named_at_once(saved: Path) -> None:
    with pytest.raises(ValueError, match="not the run saved in") as caught:
        fit(4, resume=saved, batch_size=8, clip_norm=1.0, objective=IWAE(4))
    for text in ("batch_size: saved 16, given 8", "clip_norm: saved None, given 1.0", "objective: saved 'DReG'"):
        assert text in str(caught.value)
    assert "load_weights" in str(caught.value)


def test_an_optimizer_of_the_callers_is_left_as_it_was(saved: Path) -> None:
    program = vae()
    optimizer = Adam(program.parameters(), lr=0.02)
    one_cycle = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=50)
    before = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    with pytest.raises(ValueError, match="lr_scheduler"):
        fit(4, program, resume=saved, optimizer=optimizer, lr_scheduler=one_cycle)
    assert optimizer.state == {}
    for group, want in zip(optimizer.param_groups, before, strict=True):
        assert {k: group[k] for k in want} == want


MAY_DIFFER: dict[str, dict[str, Any]] = {
    "the same": {},
    "epochs": {"epochs": 5},
    "compile": {"compile": False},
    "checkpoint_every": {"checkpoint_every": 3},
    "check_every": {"check_every": 2},
    "a function as callback": {"callbacks": [lambda run: None]},
    "no seed": {"seed": None},
    "the default by another name": {"optimizer": lambda p: Adam(p, lr=0.01, fused=False)},
}


@pytest.mark.parametrize("name", MAY_DIFFER)
def test_what_may_differ(name: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "run")
    changes = dict(MAY_DIFFER[name])
    epochs = changes.pop("epochs", 4)
    assert fit(epochs, checkpoint_dir=folder, resume=True, **changes).epochs == epochs


def test_the_same_objects_may_go_on(tmp_path: Path) -> None:
    """In one process: objective, optimiser and callbacks have changed with the first part."""
    program, objective = vae(), DReG(4)
    optimizer = torch.optim.SGD(program.parameters(), lr=0.01)
    counter, stopping = Counter(), EarlyStopping(50)
    options = {"objective": objective, "optimizer": optimizer, "callbacks": [counter], "early_stopping": stopping}
    whole = fit(4, **{**options, "optimizer": functools.partial(torch.optim.SGD, lr=0.01), "objective": DReG(4),
                      "callbacks": [Counter()], "early_stopping": EarlyStopping(50)})  # fmt: skip
    fit(2, program, checkpoint_dir=tmp_path, **options)
    run = fit(4, program, checkpoint_dir=tmp_path, resume=True, **options)
    assert counter.count == 4
    assert_same(outcome(run)["history"], outcome(whole)["history"])


def test_energy_objectives_go_on_and_are_compared(tmp_path: Path) -> None:
    x = torch.randint(2, (20, 6)).float()
    rbm = pyro_dgm.models.RBM(6, 3)
    start = functools.partial(
        pyro_dgm.fit, rbm, x, batch_size=5, seed=0, progress=False, device="cpu", checkpoint_dir=tmp_path
    )
    pcd = pyro_dgm.infer.PersistentCD()
    start(objective=pcd, epochs=1)
    assert start(objective=pcd, epochs=2, resume=True).epochs == 2
    assert start(objective=pyro_dgm.infer.PersistentCD(), epochs=3, resume=True).epochs == 3
    for other, text in (
        (pyro_dgm.infer.PersistentCD(num_chains=5), "objective.num_chains: saved None, given 5"),
        (ContrastiveDivergence(), "objective: saved 'PersistentCD', given 'ContrastiveDivergence'"),
    ):
        with pytest.raises(ValueError, match=text):
            start(objective=other, epochs=4, resume=True)


def test_descriptions() -> None:
    class Options:
        def __init__(self, width: int, fn: Any = None) -> None:
            self.width, self._fn = width, fn

    assert describe(Options(3, half)) == {"class": "Options", "width": 3, "fn": "half"}
    assert describe(functools.partial(half, batch=2)) == {"function": "half", "arguments": [], "batch": 2}
    assert describe(float("inf")) == "inf" and describe({1: (2, None)}) == {"1": [2, None]}
    assert describe(pyro_dgm.infer.ELBO(beta=0.5)) != describe(pyro_dgm.infer.ELBO())
    assert describe(NoiseContrastive(noise=torch.distributions.Normal(0.0, 1.0))) != describe(
        NoiseContrastive(noise=torch.distributions.Normal(0.0, 2.0))
    )
    objective, program, x = pyro_dgm.infer.ELBO(), vae(), digits_like(4)
    before = describe(objective)
    objective.loss(program.model, program.guide, x)
    assert describe(objective) == before
    assert list(differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3]})) == ["b[1]: saved 2, given 3"]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
)
def test_checksums_of_data(dtype: torch.dtype) -> None:
    x = (torch.arange(24).reshape(4, 6) % 2).to(dtype)
    assert checksum(x) == checksum(x.T.contiguous().T) == checksum(x.clone())
    for i in range(4):
        other = x.clone()
        other[i, 1] = other[i, 0]
        assert checksum(other) != checksum(x)
    assert checksum(x[0, 0]) != checksum(x[0, 1]) and checksum(x[:0])


def test_checksums_are_bounded() -> None:
    rows = 3 * CHECKED_BYTES // 4000
    x = torch.zeros(rows, 1000)
    x[::3] = 1.0
    other = x.clone()
    other[-1] += 1
    assert checksum(x) != checksum(other) and checksum(x) != checksum(1 - x)
    assert checksum(x) == checksum(x.clone())
