"""Training the normalizing flow of a kernel in its warm-up."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_dgm.distributions.transforms import Bijection, Compose, ElementwiseAffine
from pyro_dgm.infer.mcmc.mass_matrix import flatten, unflatten
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.ops.random_state import forked_rng

__all__ = ["Flow", "FlowTraining", "check_flow", "log_normal", "make_flow"]

#: a kernel's argument ``flow``: a bijection, or a function that makes one from the number of dimensions
Flow = Bijection | Callable[[int], Bijection]

#: most elements of draws that are kept for training
MOST_ELEMENTS = 2**24
#: largest norm of a gradient; longer ones are scaled down to it
LARGEST_GRADIENT = 10.0


def log_normal(z: Tensor) -> Tensor:
    """Log-density of independent standard normals, ``(..., D)`` to ``(...)``."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def check_flow(flow: object) -> None:
    """:raises TypeError: if it is neither a bijection nor a function."""
    if flow is not None and not callable(flow):
        raise TypeError(
            f"flow must be a pyro_dgm Bijection, or a function from a number of dimensions to one, "
            f"got {type(flow).__name__}"
        )


def make_flow(flow: Flow, position: Position, generator: torch.Generator) -> Bijection:
    """Make the flow of a run, over all elements of the latents, one after another.

    :param flow: a bijection, which is copied, or a function from the number of dimensions to one.
    :param position: of the chains.
    :param generator: used to draw initial parameters.
    :raises TypeError: if the function returns something else.
    :raises ValueError: if the bijection is over other events, or takes a context.
    """
    flat = flatten(position)
    dim, device = flat.shape[1], flat.device
    if isinstance(flow, Bijection):
        made: object = copy.deepcopy(flow)
    else:
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        with forked_rng(device, seed):
            made = flow(dim)
    if not isinstance(made, Bijection):
        raise TypeError(f"flow({dim}) must give a pyro_dgm Bijection, got {type(made).__name__}")
    if tuple(made.event_shape) != (dim,) or tuple(made.out_shape) != (dim,):
        raise ValueError(
            f"flow must be over the {dim} elements of the latents, event shape ({dim},) on both sides, got "
            f"{tuple(made.event_shape)} and {tuple(made.out_shape)}"
        )
    if made.context_dim:
        raise ValueError(f"flow must take no context, got context_dim={made.context_dim}")
    return made.to(device=device, dtype=flat.dtype).requires_grad_(False).eval()


class FlowTraining:
    r"""The training of a flow: recent draws of the chains, an optimiser, and two losses.

    The flow is :math:`f = a \circ g`, where :math:`g` is the flow that was given and :math:`a` an affine map that
    scales and shifts each coordinate, so that :math:`g` works at unit scale.

    :param flow: :math:`g`.
    :param generator: used to choose draws, and for draws from the base distribution.
    :param total_steps: steps over which the learning rate falls to zero, by a cosine.
    :param learning_rate: of Adam, at the beginning.
    :param batch_size: draws in each step.
    :param dtype: of the draws, by default that of the flow's parameters.
    """

    def __init__(
        self,
        flow: Bijection,
        generator: torch.Generator,
        total_steps: int,
        learning_rate: float,
        batch_size: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        dtype = next((p.dtype for p in flow.parameters()), None) if dtype is None else dtype
        self.whitening = ElementwiseAffine(flow.event_shape).to(device=generator.device, dtype=dtype)
        self.flow: Bijection = Compose([flow, self.whitening])
        self.generator, self.batch_size = generator, batch_size
        self.total_steps, self.learning_rate, self.steps = total_steps, learning_rate, 0
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=learning_rate)
        self.draws: list[Tensor] = []
        self.seen = self.loops = 0
        #: loss of the last step, nats
        self.loss = float("nan")

    def observe(self, position: Position) -> None:
        """Add the present positions to the draws, and drop the older half of all draws seen so far."""
        flat = flatten(position).detach()
        self.draws.append(flat)
        self.seen += 1
        most = min((self.seen + 1) // 2, max(1, MOST_ELEMENTS // flat.numel()))
        del self.draws[:-most]

    def whiten(self) -> None:
        """Set the affine map to the mean and the standard deviation of the stored draws."""
        rows = torch.cat(self.draws)
        rows = rows[torch.isfinite(rows).all(-1)]
        n = len(rows)
        # Shrunk a little towards 1e-3, as a mass matrix is: few draws may agree in a coordinate.
        variance = (n / (n + 5.0)) * rows.var(0, correction=0) + 1e-3 * 5.0 / (n + 5.0)
        shift, log_scale = rows.mean(0), 0.5 * variance.log()
        with torch.no_grad():
            self.whitening.bias.copy_(torch.cat([shift, log_scale]))

    def fit_to_draws(self, num_steps: int) -> Bijection:
        r"""Take steps on the negative log-likelihood, :math:`-E_u \log q(u)`, of the stored draws."""
        rows = torch.cat(self.draws)

        def loss() -> Tensor:
            device = rows.device
            chosen = torch.randint(len(rows), (self.batch_size,), generator=self.generator, device=device)
            z, log_det = self.flow.inverse_and_log_det(rows[chosen])
            return -(log_normal(z) + log_det)

        return self._minimise(loss, num_steps)

    def fit_to_potential(self, num_steps: int, potential: Potential, like: Position, temperature: float) -> Bijection:
        r"""Take steps on the divergence to the target, :math:`E_z[U(f(z)) / T - \log |\det \partial f / \partial z|]`.

        Base draws at which the potential or its gradient is not finite are left out of the mean.

        :param like: a position, for names, shapes and type.
        """
        first = flatten({k: v[:1] for k, v in like.items()})
        shapes = {k: v[:1].expand(self.batch_size, *v.shape[1:]) for k, v in like.items()}

        def loss() -> Tensor:
            z = torch.randn(
                (self.batch_size, first.shape[1]), generator=self.generator, dtype=first.dtype, device=first.device
            )
            u, log_det = self.flow.forward_and_log_det(z)
            value, gradient = potential(unflatten(u.detach(), shapes))
            slope = flatten(gradient)
            # Its value is U; its derivative is that of the inner product of u with U's gradient, taken as a constant.
            surrogate = value + (slope * (u - u.detach())).sum(-1)
            finite = torch.isfinite(value) & torch.isfinite(slope).all(-1)
            return (surrogate / temperature - log_det)[finite]

        return self._minimise(loss, num_steps)

    def _minimise(self, losses: Callable[[], Tensor], num_steps: int) -> Bijection:
        """Take steps of Adam on the mean of the losses, and return the flow with constant parameters."""
        self.loops += 1
        skipped = 0
        self.flow.requires_grad_(True).train()
        parameters = list(self.flow.parameters())
        with torch.enable_grad():
            for _ in range(num_steps):
                rate = 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.steps / self.total_steps)))
                self.steps += 1
                values = losses()
                if not len(values):  # the target was not finite at any draw
                    skipped += 1
                    continue
                self.optimizer.param_groups[0]["lr"] = self.learning_rate * rate
                self.optimizer.zero_grad()
                loss = values.mean()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
                if not math.isfinite(norm):
                    skipped += 1
                    continue
                self.optimizer.step()
                self.loss = float(loss.detach())
        if 2 * skipped > num_steps:
            warnings.warn(
                f"{skipped} of {num_steps} steps of the flow's training had no finite loss or gradient and were "
                "left out: lower learning_rate, or give more chains",
                RuntimeWarning,
                stacklevel=2,
            )
        return self.flow.requires_grad_(False).eval()
