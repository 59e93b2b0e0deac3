"""Dynamically binarised MNIST, one stochastic layer: VAE, IWAE-50 and DReG-50 beside their papers' figures.

    python benchmarks/mnist_literature.py --device cuda --minutes 30 --write

Network of the papers: 784-200-200-50, Tanh, and its mirror; batches of 20.  The papers train for 3 280 epochs in eight
stages of falling learning rate; here each row has ``--minutes`` of wall clock, and the table says how many epochs that
was.  Without a CUDA device the rows are not run (a CPU would need days for the papers' budget), and the table says so;
``--device cpu`` runs them all the same, for a look.

Published: VAE and IWAE, Y. Burda, R. Grosse and R. Salakhutdinov (2016), arXiv:1509.00519, table 1; DReG, G. Tucker, D.
Lawson, S. Gu and C. J. Maddison (2019), arXiv:1810.04152 (its IWAE-DReG), as IWAE-5000 test bounds, nats.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any

import results_file
import torch

import pyro_dgm
from pyro_dgm.analysis import log_likelihood
from pyro_dgm.infer import ELBO, IWAE, DReG

ROWS = {"VAE": (lambda: ELBO(), 86.76), "IWAE-50": (lambda: IWAE(50), 84.78), "DReG-50": (lambda: DReG(50), 84.32)}


def train(make: Any, args: argparse.Namespace) -> tuple[float, float, int]:
    """Test bound with its standard error over the data, and the number of epochs there was time for."""
    data = pyro_dgm.datasets.mnist()
    torch.manual_seed(args.seed)
    vae = pyro_dgm.models.VAE((28, 28), 50, "bernoulli", hidden=(200, 200), activation="Tanh")
    end = time.monotonic() + 60 * args.minutes
    share = functools.partial(progress, end=end, total=60 * args.minutes)

    def stop(run: Any) -> None:
        # Burda's stages, 1e-3 * 10^(-i / 7), spread over the time there is.
        stage = min(7, int(8 * share()))
        for group in run.optimizer.param_groups:
            group["lr"] = 1e-3 * 10 ** (-stage / 7)
        if time.monotonic() > end:
            run.stop(f"{args.minutes:g} minutes are over")

    run = pyro_dgm.fit(
        vae, data.train, objective=make(), optimizer=functools.partial(torch.optim.Adam, lr=1e-3, eps=1e-4),
        epochs=3280, batch_size=20, transform=torch.bernoulli, seed=args.seed, device=args.device, callbacks=[stop],
        compile=args.compile,
    )  # fmt: skip
    test = torch.bernoulli(data.test, generator=torch.Generator().manual_seed(args.seed)).to(args.device)
    found = log_likelihood(vae, test, num_particles=args.eval_particles, seed=args.seed)
    return -float(found.mean), float(found.data_standard_error), run.epochs


def progress(end: float, total: float) -> float:
    return 1.0 - max(0.0, end - time.monotonic()) / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, each row")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else None)
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--eval-particles", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="into benchmarks/results.md")
    args = parser.parse_args()
    lines = [
        "### Dynamically binarised MNIST, one stochastic layer, 784-200-200-50\n",
        f"Test negative log-likelihood in nats (IWAE bound, K = {args.eval_particles}, all 10 000 test images "
        f"binarised once), after {args.minutes:g} minutes of training a row.\n",
        "| objective | test NLL | se over data | epochs | published (3 280 epochs) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (make, published) in ROWS.items():
        if args.device is None or name not in args.rows:
            cells = "not run" + (" (no CUDA device)" if args.device is None else "") + " | - | - "
        else:
            nll, error, epochs = train(make, args)
            cells = f"{nll:.2f} | {error:.2f} | {epochs} "
        lines.append(f"| {name} | {cells}| {published:.2f} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(f"\n{table}\n")
    if args.write:
        results_file.write_section("mnist_literature", table)


if __name__ == "__main__":
    main()
