"""The family contract: a :class:`~pyro.nn.PyroModule` with ``.model`` and ``.guide`` over the same batch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from pyro_dgm.ops.arguments import check_count, check_floating, check_sizes
from pyro_dgm.ops.random_state import seeded
from pyro_dgm.programs import emit_param_messages

__all__ = ["Family", "program_method"]

F = TypeVar("F", bound=Callable[..., Any])


def program_method(fn: F) -> F:
    """Make a method a Pyro callable whose parameters stay on the module.

    Each parameter of the module is emitted as a ``param`` message, which is how ``pyro.infer.SVI`` and Pyro's own
    ELBOs learn what to train; the global param store is never written (``module_local_params`` holds inside, so that
    a :class:`~pyro.nn.PyroModule` given as a network keeps its parameters too).
    """

    @functools.wraps(fn)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        emit_param_messages(self)
        with pyro.settings.context(module_local_params=True):
            return fn(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


class Family(PyroModule):
    """Base of the built-in families.

    A subclass gives ``model(x)`` and ``guide(x)`` (decorated with :func:`program_method`), both inside
    ``pyro.plate("data", len(x))``, and may give ``decode``, ``encode`` and exact answers where it has them
    (``log_prob``, ``posterior``).  ``config()`` gives the JSON-serialisable arguments that rebuild it.

    :param event_shape: shape of one datum.
    """

    #: name of the plate over data, and of the observed site
    plate_name = "data"
    obs_name = "x"
    #: whether the densities of all sites are normalised; if not, objectives for energies train it
    normalized = True
    # What a subclass gives: the generative process with its batch observed, the posterior of its latents given the
    # batch, and the arguments that rebuild it.
    model: Callable[..., Any]
    guide: Callable[..., Any]
    config: Callable[[], dict[str, Any]]

    def __init__(self, event_shape: Sequence[int]) -> None:
        # A PyroModule decides when it is made whether it has a parameter scope of its own.
        with pyro.settings.context(module_local_params=True):
            super().__init__()
        self.event_shape = torch.Size(check_sizes("event_shape", event_shape))

    @property
    def _like(self) -> Tensor:
        """A tensor of the module, whose dtype and device those of its draws are."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        found = next((t for t in tensors if t.is_floating_point()), None)
        return torch.zeros((), device="cpu") if found is None else found

    @torch.no_grad()
    def sample(self, num_samples: int, *context: Any, seed: int | None = None) -> Tensor:
        """New data: latents from the prior, then the observed site.

        :param num_samples: how many.
        :param context: what a conditional model is conditioned on, as in its batches, ``num_samples`` of each.
        :param seed: of the draws; without it they take (and advance) torch's global generator.
        :returns: ``(num_samples, *event_shape)``.
        :raises ValueError: for a number below 1, or a context that does not fit.
        """
        check_count("num_samples", num_samples)
        blank = self._like.new_zeros((num_samples, *self.event_shape))
        self.check_context(num_samples, *context)
        with seeded(seed, blank.device), poutine.block():
            trace = poutine.trace(poutine.uncondition(self.model)).get_trace(blank, *context)
        return torch.as_tensor(trace.nodes[self.obs_name]["value"])

    def check_context(self, length: int, *context: Any) -> None:
        """Refuse a context that does not go with a batch of ``length`` data.

        :raises TypeError: if there is one, and the family is not conditional.
        """
        if context:
            raise TypeError(f"{type(self).__name__} is not conditional, but {len(context)} context arguments came")

    def check_values(self, x: Tensor) -> None:
        """Refuse values that the observed site cannot take: by default, what is not floating point."""
        check_floating("x", x)

    def check_batch(self, x: Tensor, *context: Any) -> None:
        """Check a batch once, before training or capture.

        :param x: the data.
        :param context: what a conditional model is conditioned on.
        :raises TypeError: if ``x`` is no dense tensor of real numbers, or the context does not go with the family.
        :raises ValueError: if its shape is not ``(N, *event_shape)``, it holds no data, is not finite, or has values
            that the observed site cannot take; or for a context of another shape or out of range.
        """
        shape = f"(N, {', '.join(map(str, self.event_shape))})"
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor of shape {shape}, got {type(x).__name__}: torch.as_tensor(x)")
        if x.is_quantized or x.is_complex():
            raise TypeError(f"x must be a tensor of real numbers, got {x.dtype}")
        if x.layout != torch.strided:
            raise TypeError(f"x must be a dense tensor, got layout {x.layout}: x.to_dense()")
        if x.is_meta:
            raise ValueError("x is on the device 'meta', where tensors hold no values")
        if x.dim() != 1 + len(self.event_shape) or x.shape[1:] != self.event_shape:
            one = "; one datum is x[None]" if x.shape == self.event_shape else ""
            raise ValueError(f"x must have shape {shape}, got {tuple(x.shape)}{one}")
        if len(x) == 0:
            raise ValueError(f"x must hold at least one datum, got shape {tuple(x.shape)}")
        if torch.is_floating_point(x) and not bool(torch.isfinite(x).all()):
            raise ValueError(f"x holds {int((~torch.isfinite(x)).sum())} values that are not finite")
        self.check_values(x)
        self.check_context(len(x), *context)
