"""Priors of latent vectors: modules that give the distribution of one datum's latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_dgm.ops.arguments import check_count

__all__ = ["PRIORS", "Prior", "register"]


class Prior(nn.Module):
    """The contract: ``forward(*vectors)`` gives a distribution of event shape ``(latent_dim,)``.

    Its parameters are trained with those of the model. ``vectors`` are the context vectors of a conditional model, of
    shape ``batch + (context_dim,)``; the distribution then has that batch shape, else none.

    :param latent_dim: length of a latent.
    :param context_dim: length of the context vectors; 0 where the model is not conditional.
    :raises TypeError, ValueError: for a size that is no integer, or out of range, or a context that the prior cannot
        take.
    """

    #: whether it can depend on a context
    conditional = False

    def __init__(self, latent_dim: int, context_dim: int = 0) -> None:
        super().__init__()
        self.latent_dim = check_count("latent_dim", latent_dim)
        self.context_dim = check_count("context_dim", context_dim, 0)
        if context_dim and not self.conditional:
            raise ValueError(
                f"{type(self).__name__} does not depend on a context, but context_dim is {context_dim}: of the priors "
                "by name, 'normal' and 'flow' do"
            )

    forward: Callable[..., TorchDistribution]

    def config(self) -> dict[str, Any]:
        """What ``pyro_dgm.distributions.priors.prior`` rebuilds it from, for JSON: its name there and options."""
        names = {made: name for name, made in PRIORS.items()}
        return {"name": names.get(type(self), type(self).__name__)}

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}" + (f", context_dim={self.context_dim}" if self.context_dim else "")


class PosteriorPrior(Prior):
    """A prior that is made of the guide: it is given the guide's distribution of a latent, a function of data."""

    #: shape of one datum
    event_shape: tuple[int, ...]

    def given(self, posterior: Callable[[Tensor], TorchDistribution]) -> TorchDistribution:
        """The prior, where ``posterior(x)`` is the guide's distribution of the latents of data ``x``."""
        return self(posterior)


#: the library's priors by the name that families take
PRIORS: dict[str, type[Prior]] = {}

P = TypeVar("P", bound=type[Prior])


def register(name: str) -> Callable[[P], P]:
    """Enter a prior in :data:`PRIORS`."""

    def enter(made: P) -> P:
        PRIORS[name] = made
        return made

    return enter
