"""What every way of drawing from a posterior gives back, and what :func:`pyro_dgm.to_arviz` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Posterior"]


@dataclass
class Posterior:
    """Draws of a program's latents given data, with what produced them.

    :ivar samples: latent sites, each ``(chains, draws, *site_shape)`` in the constrained space, ``site_shape`` being
        the site's batch shape (plates) followed by its event shape.
    :ivar sample_stats: what the sampler says of each draw, each ``(chains, draws)``: ``"lp"``, ``"diverging"``,
        ``"acceptance_rate"``, ``"step_size"``, ``"n_steps"``, ``"energy"`` for MCMC; ``"log_p"``, ``"log_q"`` for
        guides.  ArviZ's names.
    :ivar method: name of what drew them (``"guide"``, ``"hmc"``, ``"mala"``, ...).
    :ivar model: the Pyro model, or ``None`` for a bare potential.
    :ivar args: positional arguments (data) that the model was conditioned on.
    :ivar kwargs: keyword arguments likewise.
    :ivar attrs: settings and timings worth keeping (``num_warmup``, ``seconds``, ``seed``, ...).
    """

    samples: dict[str, Tensor]
    sample_stats: dict[str, Tensor] = field(default_factory=dict)
    method: str = ""
    model: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return next(iter(self.samples.values())).shape[0]

    @property
    def num_draws(self) -> int:
        """Number of draws a chain."""
        return next(iter(self.samples.values())).shape[1]

    def __getitem__(self, name: str) -> Tensor:
        return self.samples[name]

    def flat(self) -> dict[str, Tensor]:
        """The draws of all chains in one leading dimension, ``(chains * draws, *site_shape)``."""
        return {name: v.flatten(0, 1) for name, v in self.samples.items()}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}: {tuple(v.shape)}" for k, v in self.samples.items())
        return f"Posterior(method={self.method!r}, {{{shapes}}})"
