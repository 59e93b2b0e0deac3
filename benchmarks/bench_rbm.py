"""A 784-16 RBM on static binarised MNIST: exact likelihoods of CD-1, CD-10 and PCD-1, and annealing against them.

    python benchmarks/bench_rbm.py --write

With 16 hidden units log Z is a sum of 65 536 terms, so that test log-likelihoods are exact and annealed importance
sampling can be held against the truth, forward and reverse.  A plain numpy implementation of the same machine,
trained for the same 10 epochs, reached -172.3 (CD-1), -156.8 (CD-10) and -151.9 (PCD-1) nats.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
import warnings

import results_file
import torch

import pyro_dgm
from pyro_dgm.infer import ContrastiveDivergence, PersistentCD
from pyro_dgm.models import RBM

REFERENCE = {"CD-1": -172.3, "CD-10": -156.8, "PCD-1": -151.9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--num-hidden", type=int, default=16)
    parser.add_argument("--num-temperatures", type=int, default=10_000)
    parser.add_argument("--num-chains", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--objectives", nargs="+", default=["CD-1", "CD-10", "PCD-1"])
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    args = parser.parse_args()

    data = pyro_dgm.datasets.binarized_mnist()
    made = {
        "CD-1": lambda: ContrastiveDivergence(1),
        "CD-10": lambda: ContrastiveDivergence(10),
        "PCD-1": lambda: PersistentCD(1, num_chains=100),
    }
    rows = []
    for name in args.objectives:
        torch.manual_seed(args.seed)
        rbm = RBM(784, args.num_hidden, event_shape=(28, 28))
        rbm.initialize_bias(data.train)
        # The learning rate falls in a straight line to nothing, which a persistent chain needs.
        steps = args.epochs * math.ceil(len(data.train) / args.batch_size)
        decay = functools.partial(
            torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=steps
        )
        run = pyro_dgm.fit(
            rbm,
            data.train,
            objective=made[name](),
            optimizer=functools.partial(torch.optim.SGD, lr=args.learning_rate),
            lr_scheduler=decay,
            lr_scheduler_interval="step",
            epochs=args.epochs,
            batch_size=args.batch_size,
            seed=args.seed,
            progress=False,
        )
        exact = rbm.log_normalizer("exact")
        train, test = (float(rbm.log_likelihood(x, exact).mean()) for x in (data.train, data.test))
        seconds = sum(run.history["seconds"])
        row = f"| {name} | {test:.2f} | {train:.2f} | {REFERENCE[name]} | {seconds:.0f} | {float(exact):.3f} |"
        print(row, flush=True)
        for direction in ("forward", "reverse"):
            start = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                estimate = rbm.log_normalizer(
                    "ais", args.num_temperatures, args.num_chains, direction=direction, data=data.train, seed=args.seed
                )
            seconds = time.perf_counter() - start
            assert estimate.ess is not None
            mark = " (warned)" if caught else ""
            row += (
                f" {float(estimate) - float(exact):+.3f} +- {float(estimate.standard_error):.3f} | "
                f"{float(estimate.bound) - float(exact):+.3f} +- {float(estimate.bound_standard_error):.3f} | "
                f"{float(estimate.ess):.0f} of {args.num_chains}{mark} |"
            )
            print(direction, estimate, f"exact {float(exact):.3f}, {seconds:.0f} s", flush=True)
        rows.append(row)
    table = (
        f"### Static binarised MNIST, 784-{args.num_hidden} RBM, {args.epochs} epochs\n\n"
        f"Exact log-likelihoods, nats per image (test: all 10 000; training: all 50 000). SGD from "
        f"{args.learning_rate:g}, falling in a line to 0, batch {args.batch_size}; PCD with 100 chains. AIS from base "
        f"rates with {args.num_temperatures} temperatures (the three-part schedule): its log Z minus the exact one, "
        "and the mean of the chains' own logarithms minus the exact one, which is a bound in expectation: below for "
        "forward chains, above for reverse ones from exact draws.\n\n"
        "| objective | test | training | numpy reference, test | training s | exact log Z | forward AIS - exact "
        "| forward mean - exact | ESS | reverse AIS - exact | reverse mean - exact | ESS |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )
    print(table)
    if args.write:
        results_file.write_section("bench_rbm", table)


if __name__ == "__main__":
    main()
