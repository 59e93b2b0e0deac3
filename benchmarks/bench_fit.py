"""Whole epochs of training, data loading included: ``pyro_dgm.fit`` beside pythae's trainer.

    python benchmarks/bench_fit.py --write

Both train a 784-400-20 VAE on the same binarised digits.  They take epochs in turn, each waiting at the end of its own
for the other, so that whatever else the machine does hits both; a ratio is of two neighbouring epochs, the median over
them with quartiles beside it.  pythae (``pip install --no-deps pythae pydantic imageio``) is in no extra.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import threading
import time
from typing import Any

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


def train_ours(turns: Turns, images: Tensor, batch: int, epochs: int, compile: bool | str) -> None:
    torch.manual_seed(0)
    vae = pyro_dgm.models.VAE((28, 28), 20, hidden=(400,))

    def between(run: Any) -> None:
        turns.give("pyro_dgm")
        if run.epochs < epochs:
            turns.take("pyro_dgm")

    turns.take("pyro_dgm")
    pyro_dgm.fit(vae, images, epochs=epochs, batch_size=batch, seed=0, compile=compile, callbacks=[between])


def train_pythae(turns: Turns, images: Tensor, batch: int, epochs: int, folder: str) -> None:
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
            output_dir=folder, num_epochs=epochs, learning_rate=1e-3, per_device_train_batch_size=batch, no_cuda=True
        ),
        callbacks=[Wait()],
    )
    trainer.train()


def race(images: Tensor, batch: int, epochs: int, compile: bool | str) -> dict[str, list[float]]:
    turns = Turns(("pyro_dgm", "pythae"))
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        other = threading.Thread(target=train_pythae, args=(turns, images, batch, epochs, folder))
        other.start()
        train_ours(turns, images, batch, epochs, compile)
        other.join()
    logging.disable(logging.NOTSET)
    # The first epoch of either is left out: ours compiles in it.
    return {name: values[1:] for name, values in turns.times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 128, 512])
    parser.add_argument("--compile", default="True", help="True, False, graph, objective, step or block")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results.md")
    args = parser.parse_args()
    compile = {"True": True, "False": False}.get(args.compile, args.compile)
    images = pyro_dgm.datasets.binarized_mnist().train[: args.images].reshape(-1, 28, 28)
    lines = [
        "### Whole epochs, data loading included\n",
        f"`fit` beside pythae's `BaseTrainer`: a 784-400-20 VAE, {len(images)} statically binarised MNIST images, "
        f"{args.epochs - 1} epochs each in turn, after one that is not counted (ours compiles in it). Milliseconds a "
        "step, and how many times as long pythae takes: median over epochs (quartiles).\n",
        "| batch | `fit` ms | pythae ms | pythae / `fit` |",
        "| --- | --- | --- | --- |",
    ]
    for batch in args.batches:
        times = race(images, batch, args.epochs, compile)
        steps = -(-len(images) // batch)
        ratios = [a / b for a, b in zip(times["pythae"], times["pyro_dgm"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        ms = {name: 1e3 * statistics.median(values) / steps for name, values in times.items()}
        lines.append(f"| {batch} | {ms['pyro_dgm']:.2f} | {ms['pythae']:.2f} | {middle:.2f} ({low:.2f}-{high:.2f}) |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(f"\n{table}\n")
    if args.write:
        results_file.write_section("bench_fit", table)


if __name__ == "__main__":
    main()
