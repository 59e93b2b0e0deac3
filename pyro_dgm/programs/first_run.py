"""The first run of a model-guide pair, from which its structure is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

__all__ = ["AddedDims", "FirstRun", "first_run", "guide_messenger"]


def guide_messenger(guide: Callable[..., Any]) -> Any | None:
    """The ``GuideMessenger`` behind a guide that runs the model itself, or ``None``."""
    inner = poutine.unwrap(guide)
    return inner if isinstance(inner, poutine.messenger.Messenger) else None


@dataclass(frozen=True)
class AddedDims:
    """The dimensions that an objective adds to a program's sites: its particles, and the values of marked sites.

    A program may be written for them: ``x.squeeze(-2)`` of an enumerated site, say, or an assertion on a shape.

    :ivar nesting: deepest nesting of plates, as it was given.
    :ivar num_particles: K of the particle plate.
    """

    nesting: int
    num_particles: int

    def traces(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[poutine.Trace, poutine.Trace]:
        """Model and guide trace of one run by Pyro, with its checks."""
        elbo = TraceEnum_ELBO(
            num_particles=self.num_particles,
            max_plate_nesting=self.nesting,
            vectorize_particles=self.num_particles > 1,
            strict_enumeration_warning=False,
        )
        return next(elbo._get_traces(model, guide, args, kwargs))


@dataclass(frozen=True)
class FirstRun:
    """Traces of model and guide.

    :ivar differentiates: whether they can be had with gradients only.
    :ivar added: whether the program runs with :class:`AddedDims` only.
    """

    model_trace: poutine.Trace
    guide_trace: poutine.Trace
    differentiates: bool = False
    added: bool = False


def first_run(model: Any, guide: Any, args: tuple, kwargs: dict, added: AddedDims | None = None) -> FirstRun:
    """Run the pair with one particle and nothing enumerated; where that fails, with the dimensions of ``added``.

    :raises ValueError: where the model is given rows of a plate that the guide draws for itself.
    """
    try:
        return _plain(model, guide, args, kwargs)
    except _OtherRows:
        raise
    except Exception as error:
        if added is None or guide_messenger(guide) is not None:
            raise
        try:
            return FirstRun(*added.traces(model, guide, args, kwargs), added=True)
        except Exception:
            raise error  # noqa: B904 - of the two, the one that knows of no dimensions but the program's own


def _plain(model: Any, guide: Any, args: tuple, kwargs: dict) -> FirstRun:

    def run() -> tuple[poutine.Trace, poutine.Trace]:
        messenger = guide_messenger(guide)
        if messenger is not None:
            guide(*args, **kwargs)
            return messenger.get_traces()
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        rows = _GivenRows(guide_trace)
        # Inside the replay, which would put the guide's rows in the place of those that are given.
        return poutine.trace(poutine.replay(rows(model), trace=guide_trace)).get_trace(*args, **kwargs), guide_trace

    try:
        return FirstRun(*run())
    except RuntimeError as error:
        if "does not require grad" not in str(error):  # what autograd says of a derivative taken under no_grad
            raise
    with torch.enable_grad():
        return FirstRun(*run(), differentiates=True)


class _OtherRows(ValueError):
    """The model is given rows that the guide does not have."""


class _GivenRows(Messenger):
    """Refuses a model whose plate is given rows other than those that the guide draws for itself."""

    def __init__(self, guide_trace: poutine.Trace) -> None:
        super().__init__()
        self.trace = guide_trace

    def _pyro_sample(self, msg: Any) -> None:
        rows, drawn = msg["value"], self.trace.nodes.get(msg["name"])
        if not isinstance(msg["fn"], _Subsample) or not isinstance(rows, torch.Tensor) or drawn is None:
            return
        other = drawn["value"]
        if not isinstance(other, torch.Tensor) or not torch.equal(rows, other.to(rows.device)):
            raise _OtherRows(
                f"the model gives plate {msg['name']!r} its rows (subsample=), but the guide draws rows of its own: "
                "latents of other data would be trained. Give the guide's plate the same rows, to an automatic guide "
                "by create_plates=lambda *args: pyro.plate(name, size, subsample=rows)"
            )
