"""Checkpoints: a resumed run is the same run to the bit, and no moment of a crash loses the last one."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

import pyro_dgm
from pyro_dgm.infer.train.callbacks import Callback
from pyro_dgm.infer.train.checkpoints.checkpoint import (
    CheckpointFolder,
    load_checkpoint,
    load_weights,
    resolve_checkpoint,
)
from tests.hygiene import ROOT
from tests.infer.train.fit_programs import auto_program, digits_like, noisy_net, small_vae, store_program

fit = functools.partial(pyro_dgm.fit, progress=False, device="cpu")


class Interrupt:
    """Ctrl-C, for real, on a training batch: as a transform it comes in the middle of an epoch."""

    def __init__(self, after: int, transform: Callable[[Any], Any] | None = None) -> None:
        self.left, self.transform = after, transform

    def __call__(self, batch: Any) -> Any:
        if torch.is_grad_enabled() and signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            self.left -= 1  # not on the batches that are looked at before training, nor in validation
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return batch if self.transform is None else self.transform(batch)


class NoisyRows(Dataset[Any]):
    """Items with noise from NumPy's, Python's and torch's global generators."""

    def __init__(self) -> None:
        self.x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 50

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.x[i] + 0.1 * float(np.random.randn()) + 0.1 * random.random() + 0.1 * torch.randn(3)


def rows() -> torch.Tensor:
    return torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


def loader(own_generator: bool) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3) if own_generator else None
    return DataLoader(NoisyRows(), batch_size=16, shuffle=True, generator=generator)


def store_case() -> Any:
    pyro.clear_param_store()
    return store_program()


Adam = torch.optim.Adam
CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]] = {
    "vae": (small_vae, digits_like, {}),
    "dynamic binarisation, clipping, cosine": (
        small_vae,
        lambda: digits_like() * 0.8 + 0.1,
        {
            "transform": torch.bernoulli,
            "validation": digits_like(20),
            "clip_norm": 0.5,
            "lr_scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        },
    ),
    "steps of a one-cycle schedule": (
        small_vae,
        digits_like,
        {"lr_scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, 50), "lr_scheduler_interval": "step"},
    ),
    "plateau, SGD with momentum": (
        small_vae,
        digits_like,
        {
            "optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
            "lr_scheduler": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
            "validation": digits_like(20),
        },
    ),
    "early stopping": (
        small_vae,
        lambda: digits_like(20),
        {"optimizer": lambda p: Adam(p, lr=0.2), "early_stopping": 5, "validation": digits_like(20, seed=6)},
    ),
    "dropout and batch statistics": (noisy_net, rows, {"validation": rows()}),
    "loader": (noisy_net, lambda: loader(False), {"batch_size": None}),
    "loader with a generator": (noisy_net, lambda: loader(True), {"batch_size": None}),
    "dataset": (noisy_net, NoisyRows, {}),
    "autoguide": (auto_program, lambda: rows()[:, 0], {"num_data": 50}),
    "pyro.param": (store_case, lambda: rows()[:, 0], {}),
    "no seed": (small_vae, digits_like, {"seed": None}),
    "two optimisers, clipping, schedules": (
        small_vae,
        digits_like,
        {
            "optimizer": {"model": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "guide": None},
            "clip_norm": 0.5,
            "lr_scheduler": {
                "model": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
                "guide": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
            },
            "validation": digits_like(20),
        },
    ),
    "accumulated": (small_vae, digits_like, {"accumulate": 2, "transform": torch.bernoulli}),
    "accumulated, loader": (noisy_net, lambda: loader(False), {"batch_size": None, "accumulate": 3}),
    "importance weighted, particles": (small_vae, digits_like, {"objective": pyro_dgm.infer.IWAE(num_particles=4)}),
}


def outcome(run: Any) -> dict[str, Any]:
    """All that must agree to the bit; the time it took need not."""
    history = {k: v for k, v in run.history.items() if k != "seconds"}
    return {
        "history": history,
        "weights": run.state.snapshot(),
        "optimizer": run.optimizer.state_dict(),
        "epochs": run.epochs,
        "steps": run.steps,
        "best": run.best,
        "stop": run.stop_reason,
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            assert_same(p, q, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.uses_param_store
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stop", ["after an epoch", "within an epoch"])
def test_resumed_run_is_the_same_run(name: str, stop: str, tmp_path: Path) -> None:
    program, data, options = CASES[name]
    options = {"batch_size": 16, "seed": 11, **options}

    def start(**change: Any) -> Any:
        torch.manual_seed(99)  # what the caller's state is must not matter to a resumed run
        return fit(program(), data(), **{"epochs": 10, **options, **change})

    whole = outcome(start())
    if stop == "after an epoch":
        part = start(epochs=5, checkpoint_dir=tmp_path)
        assert part.epochs == 5 and not part.interrupted
    else:
        part = start(checkpoint_dir=tmp_path, transform=Interrupt(7, options.get("transform")))
        assert part.interrupted and part.checkpoint.name.count("-step-") == 1
    torch.manual_seed(123), np.random.seed(4), random.seed(5)
    change: dict[str, Any] = {"seed": None} if options["seed"] is None else {}
    if stop == "within an epoch":  # the same transform, which does not come to interrupt again
        change["transform"] = Interrupt(10**9, options.get("transform"))
    run = fit(program(), data(), epochs=10, checkpoint_dir=tmp_path, resume=True, **{**options, **change})
    assert_same(outcome(run), whole)
    pyro.clear_param_store()


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    whole = outcome(fit(noisy_net(), loader(False), epochs=4, seed=0))
    run = fit(noisy_net(), loader(False), epochs=4, seed=0, checkpoint_dir=tmp_path, transform=Interrupt(1))
    for after in (1, 2, 1, 4, 3):
        assert run.interrupted
        run = fit(
            noisy_net(), loader(False), epochs=4, checkpoint_dir=tmp_path, resume=True, transform=Interrupt(after)
        )
    run = fit(noisy_net(), loader(False), epochs=4, resume=tmp_path, transform=Interrupt(10**9))
    assert not run.interrupted
    assert_same(outcome(run), whole)


def test_resume_puts_the_callers_random_state_back(tmp_path: Path) -> None:
    fit(small_vae(), digits_like(), epochs=1, checkpoint_dir=tmp_path)
    torch.manual_seed(8), random.seed(9)
    before = torch.get_rng_state(), random.getstate()
    fit(small_vae(), digits_like(), epochs=2, resume=tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_resume_true_starts_where_there_is_nothing_yet(tmp_path: Path) -> None:
    run = fit(small_vae(), digits_like(), epochs=2, checkpoint_dir=tmp_path / "new", resume=True)
    assert run.epochs == 2
    again = fit(small_vae(), digits_like(), epochs=2, checkpoint_dir=tmp_path / "new", resume=True)
    assert again.epochs == 2 and again.steps == run.steps and again.history == run.history


def test_what_a_folder_holds(tmp_path: Path) -> None:
    x = digits_like(40)
    bounds: list[float] = []
    run = fit(
        small_vae(),
        x,
        epochs=6,
        seed=0,
        optimizer=lambda p: Adam(p, lr=0.3),
        validation=x,
        checkpoint_dir=tmp_path,
        callbacks=[lambda run: bounds.append(run.history["validation"][-1])],
    )
    best = bounds.index(max(bounds)) + 1
    assert run.checkpoint == tmp_path / "epoch-000006" and run.best_checkpoint == tmp_path / f"epoch-{best:06d}"
    assert {p.name for p in tmp_path.iterdir() if p.name != ".lock"} == {
        "latest",
        "best",
        "metrics.csv",
        "epoch-000006",
        f"epoch-{best:06d}",
    }
    assert {p.name for p in run.checkpoint.iterdir()} == {"weights.safetensors", "state.pt", "config.json"}
    # The weights are the program's own state_dict, for anyone's safetensors.
    saved = load_file(run.checkpoint / "weights.safetensors")
    assert_same(saved, dict(run.program.state_dict()))
    config = json.loads((run.checkpoint / "config.json").read_text())
    assert config["program_config"] == run.program.config() and config["history"] == run.history
    assert config["best"]["bound"] == max(bounds)


def test_checkpoint_every(tmp_path: Path) -> None:
    names = []
    folder = tmp_path / "c"

    def look(run: Any) -> None:
        names.append(None if run.checkpoint is None else run.checkpoint.name)

    run = fit(small_vae(), digits_like(), epochs=5, checkpoint_dir=folder, checkpoint_every=2, callbacks=[look])
    assert names == [None, None, "epoch-000002", "epoch-000002", "epoch-000004"]
    assert run.checkpoint is not None and run.checkpoint.name == "epoch-000005"


def test_tied_weights_are_saved_once_and_come_back(tmp_path: Path) -> None:
    def tied() -> Any:
        m = noisy_net()
        m.encoder[4].bias = torch.nn.Parameter(torch.zeros(4))
        m.register_parameter("alias", m.encoder[4].bias)
        return m

    a = tied()
    fit(a, rows(), epochs=2, seed=0).save(tmp_path)
    b = tied()
    load_weights(b, tmp_path)
    assert_same(dict(b.state_dict()), dict(a.state_dict()))
    assert b.alias is b.encoder[4].bias


def test_run_save_and_load_weights(tmp_path: Path) -> None:
    a, b = small_vae(1), small_vae(2)
    run = fit(a, digits_like(), epochs=1, checkpoint_dir=tmp_path / "checkpoints")
    run.save(tmp_path / "out")
    for source in ("out", "out/weights.safetensors", "checkpoints", "checkpoints/epoch-000001"):
        b = small_vae(2)
        load_weights(b, tmp_path / source)
        assert_same(dict(b.state_dict()), dict(a.state_dict()))
    with pytest.raises(ValueError, match="does not exist"):
        load_weights(b, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="another program"):
        load_weights(noisy_net(), tmp_path / "out")
    other = pyro_dgm.models.VAE(event_shape=(4, 4), latent_dim=3, hidden=(8,))
    with pytest.raises(ValueError, match="has shape"):
        load_weights(other, tmp_path / "out")


@pytest.mark.uses_param_store
def test_parameters_that_appear_late_are_kept(tmp_path: Path) -> None:
    def make() -> Any:
        pyro.clear_param_store()
        calls = 0

        def model(x: torch.Tensor) -> None:
            nonlocal calls
            calls += 1
            loc = pyro.param("early", torch.tensor(0.0))
            if calls > 4:
                loc = loc + pyro.param("late", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)

        return model, lambda x: None

    x = torch.full((10,), 5.0)
    options: dict[str, Any] = {"seed": 0, "optimizer": lambda p: Adam(p, lr=0.1)}
    whole = outcome(fit(make(), x, epochs=20, **options))
    fit(make(), x, epochs=10, checkpoint_dir=tmp_path, **options)
    with pytest.raises(ValueError, match=r"not in the program \['param_store.late'\]"):
        fit(make(), x, epochs=20, resume=tmp_path, **options)
    program = make()
    for _ in range(5):
        program[0](x)  # now it is there
    assert_same(outcome(fit(program, x, epochs=20, resume=tmp_path, **options)), whole)
    pyro.clear_param_store()


# Refusals


def test_an_earlier_run_is_not_written_over(tmp_path: Path) -> None:
    fit(small_vae(), digits_like(), epochs=1, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="resume=True goes on with it"):
        fit(small_vae(), digits_like(), epochs=1, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "seed is 1, the checkpoint's run has 0"),
        ({"batch_size": 8}, "batch_size: saved 16, given 8"),
        ({"data": digits_like(30)}, "data_length: saved 70, given 30"),
        ({"objective": pyro_dgm.infer.IWAE(3)}, "objective: saved 'ELBO', given 'IWAE'"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "optimizer: saved 'Adam', given 'SGD'"),
        ({"optimizer": {"model": None, "guide": None}}, "given {'model': 'Adam', 'guide': 'Adam'}"),
        ({"accumulate": 2}, "accumulate: saved 1, given 2"),
        ({"early_stopping": 3}, r"callbacks: saved \[\], given \['EarlyStopping'\]"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_resuming_another_run_is_refused(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    fit(small_vae(), digits_like(), epochs=1, batch_size=16, seed=0, checkpoint_dir=tmp_path)
    arguments = {"data": digits_like(), "batch_size": 16, "epochs": 2, "resume": tmp_path, **change}
    with pytest.raises(ValueError, match=text):
        fit(small_vae(), arguments.pop("data"), **arguments)


def test_paths_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint"):
        fit(small_vae(), digits_like(), epochs=1, resume=tmp_path)
    run = fit(small_vae(), digits_like(), epochs=1, checkpoint_dir=tmp_path / "c")
    assert run.checkpoint is not None
    (run.checkpoint / "state.pt").unlink()
    with pytest.raises(ValueError, match=r"no whole checkpoint: state.pt is missing"):
        resolve_checkpoint(run.checkpoint)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        CheckpointFolder(tmp_path / "file")
    (run.checkpoint / "state.pt").write_bytes(b"")
    (run.checkpoint / "config.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        load_checkpoint(run.checkpoint)


def test_state_that_would_need_unpickling_is_refused_at_once(tmp_path: Path) -> None:
    class Stateful(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"path": Path("x")}

    with pytest.raises(TypeError, match="a checkpoint may hold tensors, numbers"):
        fit(small_vae(), digits_like(), epochs=1, checkpoint_dir=tmp_path, callbacks=[Stateful()])


# Signals and crashes, in processes of their own

SCRIPT = textwrap.dedent(
    """
    import sys, torch, pyro_dgm
    from tests.infer.train.fit_programs import digits_like, small_vae
    torch.set_num_threads(1)
    folder, epochs, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    run = pyro_dgm.fit(small_vae(), digits_like(), epochs=epochs, batch_size=batch, seed=5, progress=False,
                       device="cpu", checkpoint_dir=folder, resume=True, compile=False)
    print("interrupted" if run.interrupted else "finished", run.epochs, flush=True)
    """
)


def spawn(folder: Path, epochs: int, batch: int = 4) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(epochs), str(batch)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def wait_for(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not (folder / "latest").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, "no checkpoint in a minute"
        time.sleep(0.01)


def test_ctrl_c_leaves_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    process = spawn(tmp_path, epochs=100_000)
    wait_for(tmp_path, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("interrupted") and "goes on from there" in err and str(tmp_path) in err
    _, _, config = load_checkpoint(tmp_path)
    epochs = config["epochs_finished"] + 2
    options: dict[str, Any] = {"epochs": epochs, "batch_size": 4, "seed": 5, "compile": False}
    run = fit(small_vae(), digits_like(), resume=tmp_path, **options)
    if config["epochs_finished"] < 200:
        assert_same(outcome(run), outcome(fit(small_vae(), digits_like(), **options)))
    else:  # a machine that got so far before the signal came: the record is what can be compared cheaply
        assert run.epochs == epochs


def test_second_ctrl_c_is_pythons_own() -> None:
    def twice(run: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(small_vae(), digits_like(), epochs=2, callbacks=[twice])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_handles_the_signal_keeps_doing_so() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        run = fit(small_vae(), digits_like(), epochs=2, callbacks=[lambda run: os.kill(os.getpid(), signal.SIGINT)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1, 1] and not run.interrupted and run.epochs == 2
