"""Static binarised MNIST, MLP VAE: train under an objective, report the IWAE-5000 test bound.

    python benchmarks/mnist_vae.py --objective ELBO --write

The set is Larochelle's *static* binarisation (50 000 / 10 000 / 10 000).  The network is 784-400-400-20 unless told
otherwise, with its mirror as decoder.  Training stops early on the validation bound, and the best epoch's weights are
put back.  Published figures beside it are pythae's reproductions on binarised MNIST (C. Chadebec, L. Vincent and
S. Allassonniere, 2022, arXiv:2206.08309), at that library's own budget and networks.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path

import results_file
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

import pyro_dgm
from pyro_dgm.analysis import log_likelihood
from pyro_dgm.infer import OBJECTIVES
from pyro_dgm.infer.train.callbacks import EarlyStopping
from pyro_dgm.models import VAE

PUBLISHED = {"ELBO": "89.78 (VAE)", "IWAE": "86.82-87.85 (IWAE)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=sorted(OBJECTIVES), default="ELBO")
    parser.add_argument("--num-particles", type=int, default=1)
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400])
    parser.add_argument("--latent-dim", type=int, default=20)
    parser.add_argument("--activation", choices=["ReLU", "Tanh", "SiLU"], default="ReLU")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--patience", type=int, default=20, help="epochs without a better validation bound")
    parser.add_argument(
        "--lr-patience", type=int, default=8, help="such epochs before the learning rate falls to 0.3 of it"
    )
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-particles", type=int, default=5000)
    parser.add_argument("--eval-data", type=int, default=10_000, help="test images; fewer is said in the table")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_vae"))
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint of the same settings")
    parser.add_argument("--write", action="store_true", help="write the row into benchmarks/results.md")
    args = parser.parse_args()

    data = pyro_dgm.datasets.binarized_mnist()
    torch.manual_seed(args.seed)
    vae = VAE((28, 28), args.latent_dim, "bernoulli", hidden=args.hidden, activation=args.activation)
    objective = OBJECTIVES[args.objective](num_particles=args.num_particles)
    sizes = "-".join(map(str, [*args.hidden, args.latent_dim]))
    folder = args.output / f"{args.objective}-{args.num_particles}-{sizes}-{args.activation}-{args.seed}"
    run = pyro_dgm.fit(
        vae,
        data.train,
        objective=objective,
        optimizer=functools.partial(torch.optim.Adam, lr=args.learning_rate, fused=True),
        lr_scheduler=functools.partial(
            ReduceLROnPlateau, mode="max", factor=0.3, patience=args.lr_patience, min_lr=3e-5
        ),
        epochs=args.epochs,
        batch_size=args.batch_size,
        validation=data.validation,
        early_stopping=EarlyStopping(patience=args.patience),
        seed=args.seed,
        checkpoint_dir=folder,
        resume=True if args.resume else None,
    )
    start = time.perf_counter()
    test = log_likelihood(vae, data.test[: args.eval_data], num_particles=args.eval_particles, seed=args.seed)
    seconds = time.perf_counter() - start
    assert run.best is not None
    result = {
        "objective": args.objective,
        "num_particles": args.num_particles,
        "epochs": run.epochs,
        "best_epoch": run.best.epoch,
        "validation_bound": run.best.bound,
        "train_seconds": sum(run.history["seconds"]),
        "test_nll": -float(test.mean),
        "monte_carlo_error": float(test.mean_standard_error),
        "data_error": float(test.data_standard_error),
        "eval_particles": args.eval_particles,
        "eval_data": args.eval_data,
        "eval_seconds": seconds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=2))
    run.save(folder / "final")
    row = (
        f"| {args.objective} (K = {args.num_particles}) | {result['test_nll']:.2f} | {result['data_error']:.2f} | "
        f"{result['monte_carlo_error']:.4f} | {-run.best.bound:.2f} | {run.best.epoch} of {run.epochs} | "
        f"{result['train_seconds']:.0f} | {PUBLISHED.get(args.objective, '-')} |"
    )
    table = (
        f"### Static binarised MNIST, 784-{sizes} MLP VAE ({args.activation}), "
        f"{args.objective}\n\n"
        f"Test negative log-likelihood in nats, IWAE bound with K = {args.eval_particles} on {args.eval_data} test "
        f"images; batch {args.batch_size}, Adam {args.learning_rate:g}.\n\n"
        "| objective | test NLL | se over data | Monte Carlo se | validation loss | best epoch | training s "
        "| published |\n"
        f"| --- | --- | --- | --- | --- | --- | --- | --- |\n{row}"
    )
    print(table)
    if args.write:
        results_file.write_section(f"mnist_vae-{folder.name}", table)


if __name__ == "__main__":
    main()
