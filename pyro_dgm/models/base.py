"""The family contract: a :class:`~pyro.nn.PyroModule` with ``.model`` and ``.guide`` over the same batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK, effectful
from torch import Tensor
from torch.distributions import constraints

from pyro_dgm.programs import parameters_announced

__all__ = ["Family", "program_method"]

F = TypeVar("F", bound=Callable[..., Any])


def program_method(fn: F) -> F:
    """Make a method a Pyro callable whose parameters stay on the module.

    Each parameter of the module is announced by a ``param`` message, which is how ``pyro.infer.SVI`` and Pyro's own
    ELBOs learn what to train; the global param store is never written (``module_local_params`` holds inside, so that
    a :class:`~pyro.nn.PyroModule` given as a network keeps its parameters too).
    """

    @functools.wraps(fn)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        _announce_parameters(self)
        with pyro.settings.context(module_local_params=True):
            return fn(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _announce_parameters(module: torch.nn.Module) -> None:
    # Pyro's own announcement of module-local parameters lacks `unconstrained`, which SVI.step calls.
    if not _PYRO_STACK or not parameters_announced():
        return
    for name, parameter in module.named_parameters():
        # The id keeps two modules of one class apart: a trace drops the second of two params of one name.
        full = f"{type(module).__name__}.{id(module)}.{name}"
        value = parameter.view_as(parameter)
        setattr(value, "unconstrained", functools.partial(_identity, parameter))  # noqa: B010
        effectful(lambda *_, value=value, **__: value, type="param")(
            full, value, constraint=constraints.real, name=full
        )


def _identity(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    return parameter


class Family(PyroModule):
    """Base of the built-in families.

    A subclass gives ``model(x)`` and ``guide(x)`` (decorated with :func:`program_method`), both inside
    ``pyro.plate("data", len(x))``, and may give ``decode``, ``encode`` and exact answers where it has them
    (``log_marginal``, ``posterior``).  ``config()`` gives the JSON-serialisable arguments that rebuild it.

    :param event_shape: shape of one datum.
    """

    #: name of the plate over data, and of the observed site
    plate_name = "data"
    obs_name = "x"
    # What a subclass gives: the generative process with its batch observed, the posterior of its latents given the
    # batch, and the arguments that rebuild it.
    model: Callable[..., Any]
    guide: Callable[..., Any]
    config: Callable[[], dict[str, Any]]

    def __init__(self, event_shape: Sequence[int]) -> None:
        # A PyroModule decides when it is made whether it has a parameter scope of its own.
        with pyro.settings.context(module_local_params=True):
            super().__init__()
        self.event_shape = torch.Size(int(s) for s in event_shape)
        if any(s <= 0 for s in self.event_shape):
            raise ValueError(f"event_shape must hold positive sizes, got {tuple(event_shape)}")

    def check_batch(self, x: Tensor) -> None:
        """Check a batch once, before training or capture.

        :raises TypeError: if ``x`` is no tensor.
        :raises ValueError: if its shape is not ``(N, *event_shape)`` or it is not finite.
        """
        if not isinstance(x, Tensor):
            raise TypeError(
                f"x must be a tensor of shape (N, {', '.join(map(str, self.event_shape))}), got {type(x).__name__}"
            )
        if x.dim() != 1 + len(self.event_shape) or x.shape[1:] != self.event_shape:
            raise ValueError(f"x must have shape (N, *{tuple(self.event_shape)}), got {tuple(x.shape)}")
        if torch.is_floating_point(x) and not bool(torch.isfinite(x).all()):
            raise ValueError(f"x holds {int((~torch.isfinite(x)).sum())} values that are not finite")
