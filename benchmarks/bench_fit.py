"""Whole epochs of training, data loading included: ``pyro_dgm.fit`` beside pythae's trainer and a loop by hand.

    python benchmarks/bench_fit.py --write

All train a 784-400-20 VAE on the same binarised digits; the loop by hand is eager PyTorch with a shuffled
``DataLoader`` and Adam, as tutorials have it.  They take epochs in turn, each waiting at the end of its own
for the others, so that whatever else the machine does hits all; a ratio is of two neighbouring epochs, the median over
them with quartiles beside it.  pythae (``pip install --no-deps pythae pydantic imageio``) is in no extra.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import statistics
import tempfile
import threading
import time
from typing import Any

# Each contender's thread has a pool of its own, which must not spin on the cores while it is another's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import results_file
import torch
from torch import Tensor, nn

import pyro_dgm


class Turns:
    """Epochs in turn: a contender's epoch begins with :meth:`take` and ends with :meth:`give`."""

    def __init__(self, contenders: tuple[str, ...]) -> None:
        self.contenders, self.turn = contenders, 0
        self.changed = threading.Condition()
        self.times: dict[str, list[float]] = {name: [] for name in contenders}
        self.started: dict[str, float] = {}

    def take(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.contenders[self.turn % len(self.contenders)] == name)
        self.started[name] = time.perf_counter()

    def give(self, name: str) -> None:
        self.times[name].append(time.perf_counter() - self.started[name])
        with self.changed:
            self.turn += 1
            self.changed.notify_all()


def train_ours(turns: Turns, images: Tensor, batch: int, epochs: int, compile: bool | str, device: str) -> None:
    torch.manual_seed(0)
    vae = pyro_dgm.models.VAE((28, 28), 20, hidden=(400,))

    def between(run: Any) -> None:
        turns.give("pyro_dgm")
        if run.epochs < epochs:
            turns.take("pyro_dgm")

    turns.take("pyro_dgm")
    pyro_dgm.fit(
        vae, images, epochs=epochs, batch_size=batch, seed=0, compile=compile, device=device, callbacks=[between]
    )


def train_by_hand(turns: Turns, images: Tensor, batch: int, epochs: int, device: str) -> None:
    sizes = {"encoder": (784, 400), "loc": (400, 20), "log_scale": (400, 20), "decoder": (20, 400), "out": (400, 784)}
    net = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()}).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(images.flatten(1), batch_size=batch, shuffle=True)
    for _ in range(epochs):
        turns.take("by hand")
        total = 0.0
        for x in loader:
            x = x.to(device)
            hidden = net["encoder"](x).relu()
            loc, log_scale = net["loc"](hidden), net["log_scale"](hidden)
            z = loc + log_scale.exp() * torch.randn_like(loc)
            logits = net["out"](net["decoder"](z).relu())
            reconstruction = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
            loss = (reconstruction + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        turns.give("by hand")


def train_pythae(turns: Turns, images: Tensor, batch: int, epochs: int, folder: str, device: str) -> None:
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.latent_dim = 20
            self.hidden = nn.Linear(784, 400)
            self.loc, self.log_covariance = nn.Linear(400, 20), nn.Linear(400, 20)

        def forward(self, x: Tensor) -> Any:
            hidden = self.hidden(x.flatten(1)).relu()
            return ModelOutput(embedding=self.loc(hidden), log_covariance=self.log_covariance(hidden))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.net = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid())

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).reshape(-1, 1, 28, 28))

    class Wait(TrainingCallback):
        def on_epoch_begin(self, training_config: Any, **kwargs: Any) -> None:
            turns.take("pythae")

        def on_epoch_end(self, training_config: Any, **kwargs: Any) -> None:
            turns.give("pythae")

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    trainer = BaseTrainer(
        model=VAE(config, encoder=Encoder(), decoder=Decoder()),
        train_dataset=BaseDataset(images[:, None], torch.zeros(len(images))),
        training_config=BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            learning_rate=1e-3,
            per_device_train_batch_size=batch,
            no_cuda=device == "cpu",
        ),
        callbacks=[Wait()],
    )
    trainer.train()


def race(images: Tensor, batch: int, epochs: int, compile: bool | str, device: str) -> dict[str, list[float]]:
    peers = ("by hand", *(("pythae",) if importlib.util.find_spec("pythae") else ()))
    turns = Turns(("pyro_dgm", *peers))
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        others = [threading.Thread(target=train_by_hand, args=(turns, images, batch, epochs, device))]
        if "pythae" in peers:
            others.append(threading.Thread(target=train_pythae, args=(turns, images, batch, epochs, folder, device)))
        for other in others:
            other.start()
        train_ours(turns, images, batch, epochs, compile, device)
        for other in others:
            other.join()
    logging.disable(logging.NOTSET)
    # The first epoch of each is left out: ours compiles in it.
    return {name: values[1:] for name, values in turns.times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 128, 512])
    parser.add_argument(
        "--compile", default="True", help="True, False, graph, objective, reduce-overhead, step or block"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results.md")
    args = parser.parse_args()
    compile = {"True": True, "False": False}.get(args.compile, args.compile)
    images = pyro_dgm.datasets.binarized_mnist().train[: args.images].reshape(-1, 28, 28)
    lines = [
        "### Whole epochs, data loading included" + ("" if args.device == "cpu" else f", on {args.device}") + "\n",
        f"`fit` beside pythae's `BaseTrainer` and an eager loop by hand: a 784-400-20 VAE, {len(images)} statically "
        f"binarised MNIST images, {args.epochs - 1} epochs each in turn, after one that is not counted (ours compiles "
        "in it). Milliseconds a step, and how many times as long the others take: median over epochs (quartiles).\n",
        "| batch | `fit` ms | pythae ms | by hand ms | pythae / `fit` | by hand / `fit` |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for batch in args.batches:
        times = race(images, batch, args.epochs, compile, args.device)
        steps = -(-len(images) // batch)
        ms = [
            f"{1e3 * statistics.median(times[n]) / steps:.2f}" if n in times else "-"
            for n in ("pyro_dgm", "pythae", "by hand")
        ]
        lines.append(f"| {batch} | {' | '.join(ms)} | {ratio(times, 'pythae')} | {ratio(times, 'by hand')} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(f"\n{table}\n")
    if args.write:
        results_file.write_section("bench_fit" + ("" if args.device == "cpu" else f"-{args.device}"), table)


def ratio(times: dict[str, list[float]], other: str) -> str:
    if other not in times:
        return "-"
    ratios = [a / b for a, b in zip(times[other], times["pyro_dgm"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
