"""A convolutional energy on digits or MNIST: persistent chains at temperature 1, beside the papers' short-run recipe.

    python benchmarks/ebm_mnist.py --data digits --write --picture docs/_static/ebm_digits.png
    python benchmarks/ebm_mnist.py --data mnist --write --picture docs/_static/ebm_mnist.png

Two models of one network are trained for as many epochs: by persistent contrastive divergence with a replay buffer at
temperature 1, and by the short runs of Nijkamp et al. (2019), arXiv:1904.09770: chains that begin at uniform noise each
time, and whose noise is so small against their gradient steps that their temperature is near 1e-5.  Then long chains
begin at held-out data.  If the model's density is what it should be, they stay where data are: their energies and their
distances to the nearest training datum are those of held-out data.

A density that Langevin steps can follow is smooth on the scale of a step.  That of images is not, so the data of the
first model have normal noise, new in each batch, whose standard deviation is twice the step size; the density that is
learnt is that of noisy images.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import results_file
import torch
from torch import Tensor

import pyro_dgm
from pyro_dgm.infer import PersistentCD
from pyro_dgm.infer.mcmc import MALA
from pyro_dgm.models import EBM

#: what differs between the data sets
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {
        "num_train": 1437,
        "channels": [64, 128],
        "batch_size": 10,
        "num_chains": 100,
        "learning_rate": 4e-3,
        "long": 3000,
    },
    "mnist": {
        "num_train": 4000,
        "channels": [32, 64, 128],
        "batch_size": 20,
        "num_chains": 50,
        "learning_rate": 3e-3,
        "long": 3000,
    },
}


@dataclass
class Trained:
    """A model, its data and how its training went."""

    title: str
    ebm: EBM
    train: Tensor
    held: Tensor
    start: str
    k: int
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __call__(self, run: Any) -> None:
        """Note how far energies of chains and data are apart after an epoch."""
        self.gaps.append(run.history["train"][-1])
        print(f"{self.title}: epoch {run.epochs}, gap {self.gaps[-1]:+.3g} nats", flush=True)


def load(name: str, num_train: int) -> tuple[Tensor, Tensor]:
    """Training and test images in [-1, 1], grey levels spread evenly over their widths."""
    data = getattr(pyro_dgm.datasets, name)()
    levels = {"digits": 17, "mnist": 256}[name]
    generator = torch.Generator().manual_seed(0)

    def spread(x: Tensor) -> Tensor:
        return 2 * (x * (levels - 1) + torch.rand(x.shape, generator=generator)) / levels - 1

    return spread(data.train[:num_train]), spread(data.test[:1000])


def noisy(x: Tensor, noise: float) -> Tensor:
    """The data that a model is of; as ``transform`` of ``fit`` it is drawn anew for each batch."""
    return x + noise * torch.randn_like(x)


def train_pcd(args: argparse.Namespace, train: Tensor, test: Tensor) -> Trained:
    torch.manual_seed(args.seed)
    held = noisy(test, args.noise)
    ebm = EBM(train.shape[1:], "conv", args.channels, temperature=1.0, step_size=args.step_size)
    ebm.initialize_base(noisy(train, args.noise))
    trained = Trained("PCD, T = 1", ebm, noisy(train, args.noise), held, "base", args.k)
    pcd = PersistentCD(num_steps=args.k, num_chains=args.num_chains, buffer=args.buffer)
    fit(trained, train, args.noise, pcd, args.batch_size, args.learning_rate, args)
    return trained


def train_short_run(args: argparse.Namespace, train: Tensor, test: Tensor) -> Trained:
    # The papers write x' = x - lambda grad E + sigma xi: T = sigma^2 / (2 lambda), here with lambda = 1.
    temperature = args.short_sigma**2 / 2
    torch.manual_seed(args.seed)
    held = noisy(test, args.short_noise)
    uniform = dist.Uniform(-torch.ones(train.shape[1:]), 1.0).to_event(train.dim() - 1)
    ebm = EBM(
        train.shape[1:],
        "conv",
        args.channels,
        base=None,
        temperature=temperature,
        step_size=args.short_sigma,
        initial=uniform,
    )
    title = f"short runs, T = {temperature:.2g}"
    trained = Trained(title, ebm, noisy(train, args.short_noise), held, "noise", args.short_k)
    fresh = PersistentCD(num_steps=args.short_k, num_chains=args.short_batch_size, reinit=1.0)
    fit(
        trained,
        train,
        args.short_noise,
        fresh,
        args.short_batch_size,
        args.short_learning_rate,
        args,
    )
    return trained


def fit(
    trained: Trained,
    train: Tensor,
    noise: float,
    objective: PersistentCD,
    batch_size: int,
    learning_rate: float,
    args: argparse.Namespace,
) -> None:
    steps = args.epochs * math.ceil(len(train) / batch_size)
    start = time.process_time()
    pyro_dgm.fit(
        trained.ebm,
        train,
        objective=objective,
        transform=functools.partial(noisy, noise=noise),
        optimizer=lambda p: torch.optim.Adam(p, lr=learning_rate, betas=(0.0, 0.999)),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.01, steps),
        lr_scheduler_interval="step",
        epochs=args.epochs,
        batch_size=batch_size,
        callbacks=[trained],
        seed=args.seed,
        progress=False,
    )
    trained.seconds = time.process_time() - start


def nearest(x: Tensor, train: Tensor) -> Tensor:
    """Distance to the nearest training datum, root mean square over pixels."""
    flat = train.flatten(1)
    return torch.cdist(x.flatten(1), flat).amin(1) / flat.shape[1] ** 0.5


@contextlib.contextmanager
def moved_by(ebm: EBM, kernel: Any) -> Iterator[None]:
    before, ebm.kernel = ebm.kernel, kernel
    try:
        yield
    finally:
        ebm.kernel = before


class LongRun:
    """Chains from data, and from where the model's own begin, held against held-out data."""

    HEAD = (
        "| model | chains from | steps | energy - held-out data's, nats | sd | distance | on data |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )

    def __init__(self, trained: Trained, chains: int, long: int, seed: int) -> None:
        self.trained, self.chains, self.long, self.seed = trained, chains, long, seed
        self.lines: list[str] = []
        self.images: dict[str, Tensor] = {}
        self.distances = nearest(trained.held, trained.train)
        self.level = float(trained.ebm.free_energy(trained.held).detach().double().mean())

    @torch.no_grad()
    def run(self) -> None:
        of, law = self.trained, self.trained.ebm.distribution()
        self.images[f"data of {of.title}"] = of.held
        self.row("(held-out data)", 0, of.held)
        starts = {
            "held-out data": of.held[: self.chains],
            of.start: law.initial_state(self.chains),
        }
        for name, state in starts.items():
            torch.manual_seed(self.seed)
            done = 0
            for upto in (of.k, 10 * of.k, self.long):
                state, done = law.mcmc_step(state, upto - done), upto
                self.row(name, upto, state)
                self.images[f"{of.title}: {upto} steps from {name}"] = state

    @torch.no_grad()
    def run_adjusted(self) -> float:
        """The same from data by MALA, whose law is the model's exactly; its rate of acceptance."""
        torch.manual_seed(self.seed)
        state = self.trained.held[: self.chains]
        with moved_by(self.trained.ebm, MALA(step_size=self.trained.ebm.step_size)):
            law = self.trained.ebm.distribution()
            state = law.mcmc_step(state, self.long)
            self.row("held-out data, by MALA", self.long, state)
            accepted = []
            for _ in range(50):
                new = law.mcmc_step(state, 1)
                accepted.append((new != state).flatten(1).any(1).float().mean())
                state = new
        return float(torch.stack(accepted).mean())

    def row(self, start: str, steps: int, x: Tensor) -> None:
        energy = self.trained.ebm.free_energy(x).double() - self.level
        distance = nearest(x, self.trained.train)
        on_data = (distance < self.distances.quantile(0.99)).float().mean()
        mean, sd = f"{float(energy.mean()):+,.1f}", f"{float(energy.std()):,.1f}"
        self.lines.append(
            f"| {self.trained.title} | {start} | {steps:,} | {mean} | {sd} | {float(distance.mean()):.3f} | "
            f"{float(on_data):.0%} |"
        )
        print(self.lines[-1], flush=True)


def picture(path: Path, rows: dict[str, Tensor]) -> None:
    """One row of images for each entry."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(len(rows), 1, figsize=(7, 0.8 * len(rows)), layout="constrained")
    for axis, (title, images) in zip(axes, rows.items(), strict=True):
        edge = images.new_full((12, images.shape[1], 1), -1.0)
        axis.imshow(
            torch.cat([*torch.cat([images[:12], edge], 2)], 1),
            cmap="gray_r",
            vmin=-1.2,
            vmax=1.2,
        )
        axis.set_title(title, fontsize=7, loc="left", pad=2)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    with Image.open(path) as image:  # a page loads it: grey, in few levels
        image.convert("L").quantize(16).save(path, optimize=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(SETTINGS), default="digits")
    parser.add_argument(
        "--num-train",
        type=int,
        help="these and the next five: by default as SETTINGS has them",
    )
    parser.add_argument("--channels", type=int, nargs="+")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--num-chains", type=int, help="persistent chains moved in a training step")
    parser.add_argument("--learning-rate", type=float, help="of Adam, falling in a line to 1 %%")
    parser.add_argument("--long", type=int, help="steps of the long chains")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--k", type=int, default=20, help="Langevin steps in a training step")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.2,
        help="standard deviation of the noise on the data",
    )
    parser.add_argument("--step-size", type=float, default=0.1, help="of Langevin steps")
    parser.add_argument("--buffer", type=int, default=200)
    parser.add_argument("--short-k", type=int, default=100)
    parser.add_argument("--short-noise", type=float, default=0.03)
    parser.add_argument(
        "--short-sigma",
        type=float,
        default=0.005,
        help="noise of a step, whose gradient step is 1",
    )
    parser.add_argument("--short-batch-size", type=int, default=50)
    parser.add_argument("--short-learning-rate", type=float, default=1e-3)
    parser.add_argument("--chains", type=int, default=100, help="long chains")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    parser.set_defaults(**SETTINGS[parser.parse_known_args()[0].data])
    return parser.parse_args()


def caption(args: argparse.Namespace) -> list[str]:
    """What the table has to say of its figures."""
    return [
        f"Images in [-1, 1], stride-2 convolutions of {args.channels} channels.",
        f"*PCD*: temperature 1, data with normal noise of standard deviation {args.noise:g}, {args.k} Langevin steps",
        f"of size {args.step_size:g} in a training step, {args.num_chains} chains out of a replay buffer of",
        f"{args.buffer}, none restarted; batches of {args.batch_size}, Adam (0, 0.999) from {args.learning_rate:g},",
        f"falling in a line to 1 %. *Short runs*: noise {args.short_noise:g}, {args.short_k} steps",
        f"x - grad E + {args.short_sigma:g} xi from uniform noise each time; batches of {args.short_batch_size}, Adam",
        f"from {args.short_learning_rate:g}, likewise. Then {args.chains} chains each, by the model's own steps where",
        "nothing else is said.",
        "*Gap*: energy of the chains of training less that of data, nats, mean over an epoch (its number in brackets).",
        "*Energy*: F(x) = E(x) / T - log p0(x), its mean over chains less that over held-out images; sd over chains.",
        "*Distance*: to the nearest training image (with noise, as held-out ones have), root mean square a pixel.",
        "*On data*: chains nearer than the 99 % quantile of held-out images.",
    ]


def main() -> None:
    args = arguments()
    train, test = load(args.data, args.num_train)
    lines: list[str] = []
    images: dict[str, Tensor] = {}
    notes: list[str] = []
    for make in (train_pcd, train_short_run):
        trained = make(args, train, test)
        gaps = trained.gaps
        shown = ", ".join(f"{gaps[e - 1]:+,.2f} ({e})" for e in (1, 2, 5, 10, 15, 20) if e <= len(gaps))
        notes.append(f"{trained.title}: {trained.seconds:.0f} CPU seconds; gap {shown}.")
        print(notes[-1], flush=True)
        long = LongRun(trained, args.chains, args.long, args.seed)
        long.run()
        if make is train_pcd:
            notes.append(f"MALA of step size {args.step_size:g} kept {long.run_adjusted():.0%} of its proposals.")
        lines += long.lines
        images |= long.images
    if args.picture:
        picture(args.picture, images)
    table = (
        f"### {args.data}: a convolutional energy, {args.epochs} epochs of {len(train)} images\n\n"
        + " ".join(caption(args))
        + "\n\n"
        + "\n".join(f"- {note}" for note in notes)
        + f"\n\n{LongRun.HEAD}\n"
        + "\n".join(lines)
    )
    print(table)
    if args.write:
        results_file.write_section(f"ebm_{args.data}", table)


if __name__ == "__main__":
    main()
