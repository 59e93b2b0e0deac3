"""Guides of a VAE on static binarised MNIST: mean-field, and normalizing flows, everything else equal.

    python benchmarks/mnist_flow_guides.py --write

The decoder is 20-400-784, and every guide has an encoder with one hidden layer of 400.  Data, their order, steps,
batch size, optimiser and learning rate are the same for all, and the last step's weights are taken for all.  The set is
Larochelle's *static* binarisation.  Test log-likelihoods are importance sampled (IWAE bound, ``--eval-particles``) on
test images that are drawn once, the same for every run; differences to the mean-field guide of the same seed are
paired by image.

Each run is kept in ``--output`` as soon as it ends, and is not done again: ``--write`` on finished runs makes the
table.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import results_file
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_dgm
from pyro_dgm.analysis import log_likelihood
from pyro_dgm.guides import AmortizedFlow
from pyro_dgm.infer import ELBO
from pyro_dgm.models import VAE

LATENT_DIM, HIDDEN = 20, (400,)
#: arguments of ``AmortizedFlow`` for each guide; ``None`` is the mean-field one
GUIDES: dict[str, dict[str, Any] | None] = {
    "mean-field": None,
    "planar": {"transform": "planar", "num_layers": 16, "num_features": 64},
    "sylvester": {
        "transform": "sylvester",
        "num_layers": 4,
        "num_features": 64,
        "options": {"num_reflections": 8},
    },
    "iaf": {
        "transform": "affine_autoregressive",
        "num_layers": 4,
        "num_features": 64,
        "options": {"hidden": (128, 128)},
    },
    "spline": {
        "transform": "spline_autoregressive",
        "num_layers": 2,
        "num_features": 64,
        "options": {"hidden": (128, 128)},
    },
}
BASELINE = "mean-field"


def made(name: str) -> VAE:
    settings = GUIDES[name]
    guide = None if settings is None else AmortizedFlow((28, 28), LATENT_DIM, hidden=HIDDEN, **settings)
    return VAE((28, 28), LATENT_DIM, "bernoulli", hidden=HIDDEN, guide=guide)


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a VAE with this guide, and evaluate it."""
    data = pyro_dgm.datasets.binarized_mnist()
    torch.manual_seed(seed)
    vae = made(name)
    run = pyro_dgm.fit(
        vae,
        data.train,
        objective=ELBO(),
        optimizer=functools.partial(torch.optim.Adam, lr=options.learning_rate, fused=True),
        lr_scheduler=functools.partial(CosineAnnealingLR, T_max=options.epochs),
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=seed,
        device="cpu",
        compile=True,
        progress=False,
    )
    began = time.perf_counter()
    test = log_likelihood(vae, test_images(data.test, options.eval_data), num_particles=options.eval_particles, seed=0)
    with torch.no_grad():
        elbo = ELBO(num_particles=20).bound(vae.model, vae.guide, test_images(data.test, options.eval_data))
    return {
        "guide": name,
        "seed": seed,
        "guide_parameters": sum(p.numel() for key, p in vae.named_parameters() if not key.startswith("decoder")),
        "train_bound": run.history["train"][-1],
        "train_seconds": sum(run.history["seconds"]),
        "eval_seconds": time.perf_counter() - began,
        "test_elbo": float(elbo.mean()),
        "monte_carlo_error": test.mean_standard_error,
        "median_effective_sample_size": float(test.effective_sample_size.median()),  # type: ignore[union-attr]
        "log_likelihood": test.values.tolist(),
    }


def test_images(images: Tensor, count: int) -> Tensor:
    """A fixed random choice of test images."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]]


def table(results: dict[tuple[str, int], dict[str, Any]], seeds: list[int], options: argparse.Namespace) -> str:
    """The pooled standard error holds both test images and seeds: that of the seeds' mean differences."""
    rows = [
        "| guide | its parameters | IWAE log-likelihood, mean of seeds | test ELBO | difference to mean-field, by seed "
        "| pooled | in standard errors | training s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in GUIDES:
        runs = [results[name, seed] for seed in seeds if (name, seed) in results]
        if not runs:
            continue
        pairs = [
            torch.tensor(run["log_likelihood"]) - torch.tensor(results[BASELINE, run["seed"]]["log_likelihood"])
            for run in runs
            if (BASELINE, run["seed"]) in results
        ]
        cells = ["-", "-", "-"]
        if name != BASELINE and pairs:
            by_seed = ", ".join(f"{float(d.mean()):+.2f} ({float(d.std()) / len(d) ** 0.5:.2f})" for d in pairs)
            mean, error = pooled(torch.stack(pairs))
            cells = [by_seed, f"{mean:+.2f} ({error:.2f})", f"{mean / error:+.1f}"]
        likelihoods = torch.tensor([run["log_likelihood"] for run in runs])
        elbo = sum(run["test_elbo"] for run in runs) / len(runs)
        seconds = sum(run["train_seconds"] for run in runs) / len(runs)
        rows.append(
            f"| {name} | {runs[0]['guide_parameters']:,} | {float(likelihoods.mean()):.2f} | {elbo:.2f} | "
            f"{' | '.join(cells)} | {seconds:.0f} |"
        )
    worst = max(run["monte_carlo_error"] for run in results.values())
    head = (
        "## Guides of a VAE, static binarised MNIST\n\n"
        f"Decoder 20-400-784, encoders 784-400, {options.epochs} epochs of batches of {options.batch_size}, Adam from "
        f"{options.learning_rate:g} by a cosine to 0, ELBO with one draw, seeds {', '.join(map(str, seeds))}. "
        f"Log-likelihood in nats a datum on {options.eval_data} test images, IWAE with {options.eval_particles} draws "
        f"(its Monte Carlo error is at most {worst:.3f}). In brackets: standard errors, by seed over paired test "
        "images, pooled over images and seeds. Flow guides have parameters in addition, as told.\n\n"
    )
    return head + "\n".join(rows)


def pooled(differences: Tensor) -> tuple[float, float]:
    """Mean of ``(seeds, images)`` differences, and its standard error over seeds and images.

    Two-way layout: the variance of the grand mean is that between seeds plus that between images, each of which holds
    the residual once, which is therefore taken off once.
    """
    seeds, images = differences.shape
    mean = differences.mean()
    over_images = differences.mean(0).var() / images
    if seeds == 1:
        return float(mean), float(over_images.sqrt())
    over_seeds = differences.mean(1).var() / seeds
    rest = differences - differences.mean(0) - differences.mean(1, keepdim=True) + mean
    residual = rest.square().sum() / ((seeds - 1) * (images - 1)) / (seeds * images)
    variance = (over_images + over_seeds - residual).clamp(min=float(torch.maximum(over_images, over_seeds)))
    return float(mean), float(variance.sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guides", nargs="+", choices=sorted(GUIDES), default=list(GUIDES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--eval-particles", type=int, default=5000)
    parser.add_argument("--eval-data", type=int, default=500, help="test images")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_flow_guides"))
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    shared = ("epochs", "batch_size", "learning_rate", "eval_particles", "eval_data")
    settings = {key: getattr(options, key) for key in shared}
    results = {}
    for seed in options.seeds:
        for name in options.guides:
            wanted = {**settings, "guide": json.loads(json.dumps(GUIDES[name]))}
            path = options.output / f"{name}-{seed}.json"
            kept = json.loads(path.read_text()) if path.exists() else {}
            if kept.get("settings") != wanted:
                kept = {"settings": wanted, **measured(name, seed, options)}
                path.write_text(json.dumps(kept))
            results[name, seed] = kept
            print({key: value for key, value in kept.items() if key not in ("settings", "log_likelihood")}, flush=True)
            values = torch.tensor(kept["log_likelihood"])
            print(f"{name}, seed {seed}: {float(values.mean()):.2f} nats", flush=True)
    body = table(results, options.seeds, options)
    print(body)
    if options.write:
        results_file.write_section("mnist_flow_guides", body)


if __name__ == "__main__":
    main()
