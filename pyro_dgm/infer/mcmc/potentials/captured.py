"""A model's potential as one compiled graph, for samplers and optimisers of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_dgm.infer.mcmc.initial import device_of, initial_position, new_generator
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs.parameters import local_parameters

__all__ = ["CapturedPotential", "capture_potential"]


class CapturedPotential:
    """What :func:`capture_potential` gives: a compiled function from unconstrained positions to value and gradient.

    :ivar shapes: shape of each latent's unconstrained values, chains leading.
    :ivar constrain: from positions to constrained values and log-Jacobians.
    """

    def __init__(self, potential: ModelPotential, position: dict[str, Tensor]) -> None:
        self.potential = potential
        self.shapes = {name: tuple(u.shape) for name, u in position.items()}
        self.constrain = potential.constrain

    def __call__(self, position: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Potential energies, ``(chains,)`` in nats, and their gradients in the shapes of ``position``."""
        return self.potential(position)


def capture_potential(
    model: Callable[..., Any], *args: Any, num_chains: int = 1, backend: str = "inductor", **kwargs: Any
) -> CapturedPotential:
    r"""A Pyro model's potential energy and its gradient over chains, as one compiled graph.

    .. math:: U(u) = -\log p(x, z(u)) - \log \left| \frac{\partial z}{\partial u} \right|

    with u the unconstrained latents.  The samplers of :mod:`pyro_dgm.infer.mcmc` do this by themselves; this function
    is for a sampler or an optimiser of your own.  Parameters of the model and the data are read at each call, not
    copied: they may change in place.

    :param model: a Pyro model with continuous latents.
    :param args: its positional arguments, and ``kwargs`` the others.
    :param num_chains: number of positions evaluated at once.
    :param backend: ``"inductor"`` compiles (seconds, once), ``"aten"`` only records.
    :returns: a function from a dict of ``(num_chains, ...)`` tensors to ``(U, gradients)``.
    :raises CannotCapture: (a ``RuntimeError``) if the model is not the same operations at every position.
    :raises ValueError: for a discrete latent, a subsampled plate or no latent, naming the site.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_dgm.infer import capture_potential
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> potential = capture_potential(model, torch.ones(5), num_chains=3, backend="aten")
        >>> value, gradient = potential({"scale": torch.zeros(3)})
        >>> value.shape, gradient["scale"].shape
        (torch.Size([3]), torch.Size([3]))
    """
    check_count("num_chains", num_chains)
    if backend not in ("inductor", "aten"):
        raise ValueError(f"backend must be 'inductor' or 'aten', got {backend!r}")
    with local_parameters(model):
        potential = ModelPotential(model, args, kwargs, compile=backend == "inductor")
        with forked_rng():
            generator = new_generator(0, device_of(model, args, kwargs))
            position = initial_position(potential, "uniform", num_chains, generator, None)
        potential.capture(position)
    return CapturedPotential(potential, position)
