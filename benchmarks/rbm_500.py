"""An RBM with 500 hidden units on static MNIST within a budget of CPU minutes: CD-25, then PCD, log Z by AIS.

    python benchmarks/rbm_500.py --write --picture docs/_static/rbm_500.png

Salakhutdinov and Murray (2008), "On the quantitative analysis of deep belief networks", report an estimated log Z of
451.28 and -86.34 nats a test image for the machine of this size that they trained with CD-25.  Here one thread has a
budget of CPU seconds for training, during which the learning rate of either phase falls in a straight line; what is
evaluated is an average of the weights over the last part of the second.  Annealing runs forward from base rates and
backward from the persistent chains, after many more sweeps: the machine is too large for exact draws, so the backward
estimate is an upper bound as far as those chains have mixed.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from pathlib import Path

import results_file
import torch
from torch import Tensor

import pyro_dgm
from pyro_dgm.infer import ContrastiveDivergence, PersistentCD
from pyro_dgm.infer.objectives.energies import EnergyObjective
from pyro_dgm.models import RBM

PAPER = "| Salakhutdinov and Murray (2008), CD-25 | | | 451.28 | | -86.34 | |"


class Batches:
    """Shuffled batches, epoch after epoch."""

    def __init__(self, data: Tensor, size: int, seed: int) -> None:
        self.data, self.size, self.generator = data, size, torch.Generator().manual_seed(seed)
        self.order, self.at, self.taken = torch.empty(0, dtype=torch.int64), 0, 0

    def next(self) -> Tensor:
        if self.at + self.size > len(self.order):
            self.order, self.at = torch.randperm(len(self.data), generator=self.generator), 0
        rows = self.order[self.at : self.at + self.size]
        self.at += self.size
        self.taken += self.size
        return self.data[rows]


def train(
    rbm: RBM, objective: EnergyObjective, batches: Batches, seconds: float, args: argparse.Namespace, rate: float,
    averaged: RBM | None = None,
) -> int:  # fmt: skip
    """Steps for so many CPU seconds; returns their number.

    :param averaged: gets the mean of the weights over the last third, evenly.
    """
    module = objective(rbm.model, rbm.guide)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=rate, momentum=args.momentum, weight_decay=args.weight_decay)
    began, steps, kept, shown = time.process_time(), 0, 0, 0.0
    while (spent := time.process_time() - began) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - spent / seconds)
        x = batches.next()
        optimizer.zero_grad()
        (module(x) / len(x)).backward()
        optimizer.step()
        steps += 1
        if averaged is not None and spent > 2 / 3 * seconds:
            kept += 1
            with torch.no_grad():
                for mean, now in zip(averaged.parameters(), rbm.parameters(), strict=True):
                    mean.lerp_(now, 1 / kept)
        if spent - shown > 60:
            shown = spent
            print(
                f"{objective}: {spent:.0f} s, {steps} steps, epoch {batches.taken / len(batches.data):.1f}", flush=True
            )
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of CPU, for training")
    parser.add_argument("--cd-share", type=float, default=0.2, help="of the minutes, for CD-25")
    parser.add_argument("--num-hidden", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--num-chains", type=int, default=100, help="persistent ones")
    parser.add_argument("--k", type=int, default=1, help="sweeps of the persistent chains in a step")
    parser.add_argument("--cd-rate", type=float, default=0.1)
    parser.add_argument("--pcd-rate", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--num-temperatures", type=int, default=14_500)
    parser.add_argument("--ais-chains", type=int, default=100)
    parser.add_argument("--sweeps", type=int, default=10_000, help="of the chains that the reverse run starts from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    args = parser.parse_args()
    torch.set_num_threads(1)

    data = pyro_dgm.datasets.binarized_mnist()
    torch.manual_seed(args.seed)
    rbm = RBM(784, args.num_hidden, event_shape=(28, 28))
    rbm.initialize_bias(data.train)
    averaged = copy.deepcopy(rbm)
    batches = Batches(data.train, args.batch_size, args.seed)
    budget = 60 * args.minutes
    steps = train(rbm, ContrastiveDivergence(25), batches, args.cd_share * budget, args, args.cd_rate)
    epochs = batches.taken / len(data.train)
    notes = f"CD-25 for {steps} steps ({epochs:.1f} epochs) of {args.cd_share * args.minutes:g} CPU minutes"
    pcd = PersistentCD(args.k, num_chains=args.num_chains, initial="data")
    steps = train(rbm, pcd, batches, (1 - args.cd_share) * budget, args, args.pcd_rate, averaged)
    epochs = batches.taken / len(data.train) - epochs
    notes += f", then PCD-{args.k} for {steps} steps ({epochs:.1f} epochs) of {(1 - args.cd_share) * args.minutes:g}"
    print(notes, flush=True)

    assert pcd.chains is not None
    rows, means = [], []
    for title, model in (("last weights", rbm), ("averaged weights", averaged)):
        torch.manual_seed(args.seed)
        law = model.distribution()
        with torch.no_grad():
            few = pcd.chains[torch.arange(args.ais_chains) % len(pcd.chains)]
            chains = law.mcmc_step(few, args.sweeps)
            hidden = law.hidden_logits(chains.flatten(1)).sigmoid()
            means.append(law.visible_eta((torch.rand_like(hidden) < hidden).float()).sigmoid())
        for direction in ("forward", "reverse"):
            start = time.process_time()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = model.log_normalizer(
                    "ais", args.num_temperatures, args.ais_chains, direction=direction, data=data.train,
                    target_samples=chains if direction == "reverse" else None, seed=args.seed,
                )  # fmt: skip
            test, training = (float(model.log_likelihood(x, found).mean()) for x in (data.test, data.train))
            assert found.ess is not None
            mark = " (warned)" if caught else ""
            rows.append(
                f"| {title} | {direction} | {float(found.ess):.0f} of {args.ais_chains}{mark} | {float(found):.2f} +- "
                f"{float(found.standard_error):.2f} | {float(found.bound):.2f} +- "
                f"{float(found.bound_standard_error):.2f} | {test:.2f} | {training:.2f} |"
            )
            print(rows[-1], f"{time.process_time() - start:.0f} s", flush=True)
    if args.picture:
        picture(args.picture, means[1].reshape(-1, 28, 28), averaged.weight.detach())
    table = (
        f"### Static binarised MNIST, 784-{args.num_hidden} RBM, {args.minutes:g} CPU minutes of one thread\n\n"
        f"50 000 training images, batches of {args.batch_size}, {args.num_chains} persistent chains; {notes}. The "
        f"learning rate falls in a straight line from {args.cd_rate:g} (CD) and {args.pcd_rate:g} (PCD) to 0. AIS with "
        f"{args.num_temperatures:,} temperatures and {args.ais_chains} chains, forward from base rates, reverse from "
        f"the persistent chains after {args.sweeps:,} more sweeps, which are no exact draws. Bound: mean of the "
        "chains' own logarithms, below log Z in expectation forward, above it reverse from exact draws. Nats a test "
        "(10 000) and training image.\n\n"
        "| weights | AIS | ESS | log Z | bound | test | training |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join([*rows, PAPER])
    )
    print(table)
    if args.write:
        results_file.write_section("rbm_500", table)


def picture(path: Path, means: Tensor, weight: Tensor) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    filters = weight.T.reshape(-1, 28, 28)
    strongest = filters.flatten(1).norm(dim=1).argsort(descending=True)[:50]
    panels = (
        (means[:50], "pixel means, chains after thousands of sweeps", {"vmin": 0, "vmax": 1, "cmap": "gray_r"}),
        (filters[strongest], "weights of the 50 strongest hidden units", {"vmin": -2, "vmax": 2, "cmap": "RdBu_r"}),
    )
    for axis, (images, title, style) in zip(axes, panels, strict=True):
        grid = images.reshape(5, 10, 28, 28).permute(0, 2, 1, 3).reshape(140, 280)
        shown = axis.imshow(grid, **style)
        axis.set_title(title, fontsize="medium")
        axis.axis("off")
        figure.colorbar(shown, ax=axis, shrink=0.6)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
