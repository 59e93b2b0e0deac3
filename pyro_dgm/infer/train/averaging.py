"""Averages of the weights along the path of the optimiser, which often predict better than the last weights."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.ops.arguments import check_count, check_number

__all__ = ["EMA", "SWA", "WeightAverage"]


class WeightAverage(ABC):
    """Base of the averages that ``fit(averaging=...)`` takes.

    Training goes on with the weights themselves.  Validation, checkpoints' ``weights.safetensors`` and the program
    that ``fit`` gives back have the average.  Buffers, as the running statistics of BatchNorm, are not averaged.
    """

    #: whether it takes in the weights after each step; else after each epoch
    each_step = False

    def __init__(self) -> None:
        self.count = 0
        self.values: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    @abstractmethod
    def share(self, epoch: int) -> float:
        """The weight of the next values in the new average; 0 leaves them out.

        :param epoch: finished epochs.
        """

    def begin(self) -> WeightAverage:
        """The same average, of nothing yet: each fit has its own."""
        new = copy.copy(self)
        new.count, new.values, new._weights = 0, {}, {}
        return new

    def follow(self, weights: Mapping[str, Tensor]) -> None:
        """Say which weights are averaged, by name; those that are new begin at their present values."""
        self._weights = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
        if self.count:
            for name, tensor in self._weights.items():
                self.values.setdefault(name, tensor.detach().clone())

    @torch.no_grad()
    def update(self, epoch: int) -> None:
        """Take in the present weights."""
        share = self.share(epoch)
        if share == 0.0:
            return
        self.count += 1
        if self.count == 1:
            self.values = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
        else:
            names = list(self._weights)
            torch._foreach_lerp_([self.values[n] for n in names], [self._weights[n].detach() for n in names], share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average, in place."""
        for name, value in self.values.items():
            now = self._weights[name].clone()
            self._weights[name].copy_(value)
            value.copy_(now)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the program has the average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, Any]:
        """The state, while the program has the average: what is stored is the weights themselves."""
        return {"count": self.count, "weights": dict(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`; the program has the average, and then the weights."""
        self.count = state["count"]
        self.values = {name: value.to(self._weights[name].device).clone() for name, value in state["weights"].items()}
        self.swap()


class EMA(WeightAverage):
    r"""An exponential moving average of the weights, taken after each step.

    .. math:: \bar\theta_t = d_t \bar\theta_{t-1} + (1 - d_t)\, \theta_t, \qquad
        d_t = \min\left(d, \tfrac{1 + t}{10 + t}\right)

    Usual for diffusion models and GANs, whose last weights are noisy.

    :param decay: :math:`d`, in (0, 1): about :math:`1 / (1 - d)` steps are averaged.
    :param warmup: begin with the smaller :math:`d_t`, so that the first weights are soon forgotten; else :math:`d`.
    :raises ValueError: for a ``decay`` outside (0, 1).

    Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992.  The warm-up is that of
    TensorFlow's ``ExponentialMovingAverage``.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import EMA
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> run = pyro_dgm.fit(m, torch.randn(20, 3), epochs=3, seed=0, averaging=EMA(0.99), progress=False)
        >>> run.averaging.count
        3
    """

    each_step = True

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        super().__init__()
        check_number("decay", decay, within="(0, 1)")
        self.decay, self.warmup = float(decay), bool(warmup)

    def share(self, epoch: int) -> float:
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.warmup else self.decay
        return 1 - decay


class SWA(WeightAverage):
    r"""Stochastic weight averaging: the mean of the weights at the ends of the last epochs.

    .. math:: \bar\theta = \frac{1}{n} \sum_{i=1}^n \theta_{e_i}

    Use it with a constant or cyclical learning rate that keeps the weights moving.

    :param start_epoch: the first epoch, from 1, whose weights are taken in; before it there is no average.
    :param every: epochs between two that are taken in.
    :raises ValueError: for numbers below 1.

    Izmailov et al., Averaging weights leads to wider optima and better generalization, 2018, arXiv:1803.05407.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm.infer import SWA
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> run = pyro_dgm.fit(m, torch.randn(20, 3), epochs=5, seed=0, averaging=SWA(start_epoch=3), progress=False)
        >>> run.averaging.count
        3
    """

    def __init__(self, start_epoch: int = 1, every: int = 1) -> None:
        super().__init__()
        self.start_epoch = check_count("start_epoch", start_epoch)
        self.every = check_count("every", every)

    def share(self, epoch: int) -> float:
        since = epoch - self.start_epoch
        return 1 / (self.count + 1) if since >= 0 and since % self.every == 0 else 0.0
