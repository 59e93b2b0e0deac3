"""What each process of tests/infer/train/test_distributed.py does: several fits; their outcome goes to a file."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_dgm
from tests.infer.train.fit_programs import auto_program, digits_like, noisy_net, small_vae

fit = functools.partial(pyro_dgm.fit, progress=False, device="cpu")
sgd = functools.partial(torch.optim.SGD, lr=0.05)


class GivenNoise(torch.nn.Module):
    """A VAE whose noise comes with the data, so that each datum's bound is the same in every process."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.encoder, self.decoder = torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)
            self.unused = torch.nn.Linear(2, 2) if unused else None
        self.double()

    def model(self, x: torch.Tensor, noise: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor, noise: torch.Tensor) -> None:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        q = dist.Normal(loc, log_scale.exp()).to_event(1)
        z = loc + log_scale.exp() * noise
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(z, log_density=q.log_prob(z), event_dim=1))


def pairs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, 2, generator=generator, dtype=torch.float64)


def loader(n: int) -> Any:
    return DataLoader(TensorDataset(*pairs(n)), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))


#: fits whose outcome must not depend on the number of processes; the last batch of 41 data is one datum, of 37 five
SAME: dict[str, tuple[Any, dict[str, Any]]] = {
    "unequal parts": (lambda: pairs(37), {"batch_size": 8}),
    "a part without data": (lambda: pairs(41), {"batch_size": 8, "clip_norm": 0.5}),
    "loader": (lambda: loader(37), {}),
    "loader, a part without data": (lambda: loader(41), {}),
    "decay, which must leave an unused parameter alone": (
        lambda: pairs(37),
        {"batch_size": 8, "optimizer": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5)},
    ),
    "two optimisers": (
        lambda: pairs(37),
        {"batch_size": 8, "optimizer": {"model": sgd, "guide": functools.partial(torch.optim.Adam, lr=0.02)}},
    ),
    "accumulated": (lambda: pairs(37), {"batch_size": 8, "accumulate": 3}),
}


def same(name: str) -> dict[str, Any]:
    """One of the fits of :data:`SAME`."""
    data, options = SAME[name]
    unused = "unused" in name
    run = fit(
        GivenNoise(unused), data(), **{"epochs": 2, "seed": 4, "optimizer": sgd, "validation": pairs(11), **options}
    )
    return outcome(run)


def outcome(run: Any) -> dict[str, Any]:
    return {
        "weights": {k: v.clone() for k, v in run.program.state_dict().items()},
        "history": {k: v for k, v in run.history.items() if k != "seconds"},
        "epochs": run.epochs,
        "steps": run.steps,
        "best": None if run.best is None else (run.best.epoch, run.best.bound),
        "stop": run.stop_reason,
        "interrupted": run.interrupted,
    }


def vae_fit(**options: Any) -> Any:
    """A noisy fit, on the processes that there are."""
    return fit(small_vae(), digits_like(70), **{"epochs": 4, "batch_size": 16, "seed": 5, **options})


def in_training() -> bool:
    """Not on the batches that are looked at before training, nor in validation."""
    return torch.is_grad_enabled() and signal.getsignal(signal.SIGINT) is not signal.default_int_handler


class InterruptOne:
    """Ctrl-C on one process only, in the middle of the second epoch."""

    def __init__(self, rank: int) -> None:
        self.here, self.seen = rank, 0

    def __call__(self, batch: Any) -> Any:
        if in_training():
            self.seen += 1
            if self.here == 1 and self.seen == 7:
                os.kill(os.getpid(), signal.SIGINT)
        return batch


class Note:
    """Notes a random number for each training batch, where it is asked to."""

    def __init__(self, note: bool = True) -> None:
        self.noting = note
        self.draws: list[float] = []

    def __call__(self, batch: Any) -> Any:
        if self.noting and in_training():
            self.draws.append(torch.rand(()).item())
        return batch


def raised(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def late_parameter() -> None:
    """A parameter that is there only from the sixth call on."""
    calls = 0

    def model(x: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        loc = pyro.param("early", torch.tensor(0.0))
        if calls > 5:
            loc = loc + pyro.param("late", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    fit((model, lambda x: None), torch.ones(10), epochs=20)


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {name: same(name) for name in SAME}
    note = Note()
    found["noisy"] = outcome(vae_fit(transform=note, validation=digits_like(20)))
    found["noise"] = note.draws
    note = Note()
    vae_fit(seed=None, transform=note, epochs=1)
    found["noise without a seed"] = note.draws
    m = GivenNoise()
    with torch.no_grad():
        for p in m.parameters():
            p.add_(rank)  # what another process begins with does not count
    m.register_buffer("flag", torch.tensor(rank == 0))
    m.register_buffer("small", torch.full((3, 2), float(rank), dtype=torch.bfloat16).T)
    found["begun apart"] = outcome(fit(m, pairs(20), epochs=1, seed=0))
    found["statistics"] = outcome(fit(noisy_net(), torch.randn(48, 3), epochs=2, batch_size=16, seed=0))
    stop = [lambda run: run.stop("enough") if run.rank == 1 and run.epochs == 2 else None]
    found["stopped by one"] = outcome(vae_fit(callbacks=stop, epochs=9))
    fast = functools.partial(torch.optim.Adam, lr=0.2)
    early = {"validation": digits_like(20, seed=6), "early_stopping": 3, "optimizer": fast, "epochs": 200}
    found["early stopping"] = outcome(vae_fit(**early))

    found["whole"] = outcome(vae_fit())
    # The group is the user's to destroy; the next fit makes another.
    torch.distributed.destroy_process_group()
    found["after destroying"] = outcome(vae_fit())
    part = vae_fit(checkpoint_dir=folder / "part", transform=InterruptOne(rank))
    found["part"] = outcome(part)
    if rank == 0:
        shutil.copytree(folder / "part", folder / "middle")
    found["part steps"] = part.steps
    found["part checkpoint"] = str(part.checkpoint)
    found["resumed"] = outcome(vae_fit(checkpoint_dir=folder / "part", resume=True, transform=InterruptOne(0)))
    vae_fit(checkpoint_dir=folder / "three", epochs=3)
    note = Note()
    found["from one process"] = outcome(vae_fit(checkpoint_dir=folder / "one", resume=True, transform=note))
    found["noise after one process"] = note.draws

    found["errors"] = [
        raised(lambda: fit(auto_program(), torch.randn(20), epochs=1)),
        raised(late_parameter),
        raised(lambda: vae_fit(devices=3)),
    ]
    # Alone on request, even here.
    found["alone"] = outcome(vae_fit(devices=1))
    torch.save(found, folder / f"rank-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
