"""An energy network as a distribution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_dgm.distributions.chains import check_kernel, run_chains
from pyro_dgm.distributions.replay_buffer import ReplayBuffer
from pyro_dgm.distributions.unnormalized import UnnormalizedDistribution
from pyro_dgm.ops.arguments import check_positive

__all__ = ["EnergyDistribution"]


class EnergyDistribution(UnnormalizedDistribution):
    r"""A distribution given by an energy: a network's, or any function's, on its own or tilting a known distribution.

    .. math:: p(x) = \frac{p_0(x) \, e^{-E(x) / T}}{Z} \qquad\text{or}\qquad p(x) = \frac{e^{-E(x) / T}}{Z}

    ``log_prob`` is :math:`\log p_0(x) - E(x) / T`, without :math:`\log Z`.  At a ``pyro.sample`` site it is a prior:

    - *fixed*, it works in every program.  An ELBO, and the posterior's draws by MCMC, need its ``log_prob`` alone;
      :math:`\log Z` is a constant, so that a bound is too large by it and everything else is right.
    - *learned*, its gradient is not that of ``log_prob``, for :math:`\log Z` moves too: an ELBO refuses it, and
      :class:`~pyro_dgm.infer.ShortRunML` trains it.

    As the law of observed data it is trained by the objectives for energies
    (:class:`~pyro_dgm.infer.PersistentCD`, :class:`~pyro_dgm.infer.DenoisingScoreMatching`, ...).

    **Base.**  A base decays in the tails where a network does not, so that there is a :math:`Z` at all, gives chains a
    start, and carries the support.  Without one the support is all reals, and the energy itself must grow in the tails.

    **Temperature.**  Draws are draws of :math:`p`, at its own :math:`T`; nothing else heats or cools them. Recipes that
    move by :math:`\lambda` times the gradient with noise :math:`\sigma` have :math:`T = \sigma^2 / (2 \lambda)`, often
    near 1e-5: say so by ``temperature``, with ``step_size`` :math:`\sigma`.

    **Draws.**  ``sample`` runs chains for ``num_steps`` transitions: Langevin steps, which are never rejected and have
    a bias that vanishes with the step size, or those of a ``kernel``, whose step size is the one it was made with.
    They begin at draws of ``initial``; with a ``buffer``, mostly where earlier chains have ended.  They are as good as
    the chains have mixed, and those that share a buffer are not independent from call to call.

    :param energy: :math:`E`, from ``(N, *event_shape)`` to ``(N,)``, in nats times :math:`T`; with ``noise_level`` from
        ``(N, *event_shape)`` and levels ``(N,)``.
    :param event_shape: shape of a value; that of ``base`` by default.
    :param base: :math:`p_0`, normalised, without batch dimensions.
    :param temperature: :math:`T`, positive.
    :param step_size: :math:`\epsilon` of Langevin steps, in unconstrained coordinates.
    :param num_steps: transitions of ``sample``.
    :param kernel: of :mod:`pyro_dgm.infer.mcmc`, without model and potential, instead of Langevin steps.
    :param buffer: a :class:`ReplayBuffer` for the chains of ``sample``.
    :param initial: where chains begin; ``base`` by default, or independent standard normals.
    :param noise_level: for an energy that takes one, :math:`E(x, \sigma)`, that of the density at this site.
    :raises TypeError: for objects of another kind than wanted.
    :raises ValueError: for a number out of range, shapes that do not fit; in use, for energies of another shape than
        ``(N,)``, and in ``sample`` and ``mcmc_step`` for energies that are not finite.

    Source: Y. LeCun, S. Chopra, R. Hadsell, M. Ranzato and F. Huang (2006), "A tutorial on energy-based learning"; the
    tilted base: J. Xie, Y. Lu, S.-C. Zhu and Y. N. Wu (2016), "A theory of generative ConvNet", arXiv:1602.03264.

    Example::

        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_dgm.distributions import EnergyDistribution
        >>> def double_well(z):
        ...     return (z.square() - 1).square().sum(-1)
        >>> prior = EnergyDistribution(double_well, base=dist.Normal(torch.zeros(1), 2.0).to_event(1), num_steps=50)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", prior)
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> import pyro_dgm
        >>> x = torch.tensor([[0.5], [-2.0]])
        >>> pyro_dgm.sample_posterior(model, x, method="hmc", num_samples=50, seed=0, progress=False)
        Posterior(method='hmc', {z: (4, 50, 2, 1)})
    """

    def __init__(
        self,
        energy: Callable[..., Tensor],
        event_shape: Sequence[int] | None = None,
        base: Any = None,
        *,
        temperature: float = 1.0,
        step_size: float = 0.1,
        num_steps: int = 100,
        kernel: Any = None,
        buffer: ReplayBuffer | None = None,
        initial: Any = None,
        noise_level: float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not callable(energy):
            raise TypeError(f"energy must be a function from (N, *event_shape) to (N,), got {type(energy).__name__}")
        positive = [("temperature", temperature), ("step_size", step_size)]
        for argument, value in positive + ([] if noise_level is None else [("noise_level", noise_level)]):
            check_positive(argument, value)
        for argument, given in (("base", base), ("initial", initial)):
            if given is not None and not (hasattr(given, "event_shape") and callable(getattr(given, "sample", None))):
                raise TypeError(f"{argument} must be a distribution, got {type(given).__name__}")
        if event_shape is None and base is None:
            raise ValueError("give event_shape, or a base that has one")
        shape = torch.Size(base.event_shape if event_shape is None else event_shape)
        for argument, given in (("base", base), ("initial", initial)):
            if given is not None and (given.batch_shape != () or given.event_shape != shape):
                raise ValueError(
                    f"{argument} must have event shape {tuple(shape)} and no batch dimensions (declare them as the "
                    f"event's with .to_event), got batch {tuple(given.batch_shape)}, event {tuple(given.event_shape)}"
                )
        if base is not None and getattr(base, "normalized", True) is False:
            raise ValueError(f"base must be normalised, got {type(base).__name__}: add its energy to this one's")
        if buffer is not None:
            if not isinstance(buffer, ReplayBuffer):
                raise TypeError(f"buffer must be a ReplayBuffer, got {type(buffer).__name__}")
            if buffer.event_shape != shape:
                raise ValueError(f"buffer must hold states of shape {tuple(shape)}, got {tuple(buffer.event_shape)}")
        self.energy, self.base, self.initial = energy, base, initial
        self.temperature, self.step_size = float(temperature), float(step_size)
        self.kernel = None if kernel is None else check_kernel(kernel)
        self.buffer, self.noise_level = buffer, noise_level
        super().__init__(torch.Size(), shape, num_steps, validate_args)

    @property
    def support(self) -> Any:
        if self.base is not None:
            return self.base.support
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        r""":math:`\log p_0(x) - E(x) / T`, nats, without :math:`\log Z`."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self._log_prob(value, self.noise_level)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def noisy_log_prob(self, value: Tensor, noise_level: Tensor) -> Tensor:
        r"""The density at another noise level, for an energy that takes one.

        :param noise_level: :math:`\sigma`, one for each value, of their batch shape.
        :raises ValueError: for an energy that takes none.
        """
        if self.noise_level is None:
            raise ValueError("the energy takes no noise level: make the distribution with noise_level= if it does")
        return self._log_prob(value, noise_level)

    def _log_prob(self, value: Tensor, noise_level: float | Tensor | None) -> Tensor:
        batch = value.shape[: value.dim() - len(self.event_shape)]
        flat = value.reshape(-1, *self.event_shape)
        if noise_level is None:
            energy = self.energy(flat)
        else:
            level = torch.as_tensor(noise_level, dtype=flat.dtype, device=flat.device)
            energy = self.energy(flat, level.expand(batch).reshape(-1))
        if not isinstance(energy, Tensor) or energy.shape != flat.shape[:1]:
            got = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
            raise ValueError(
                f"energy must give one number for each value, shape ({flat.shape[0]},), got {got} for values "
                f"{tuple(flat.shape)}: sum over the event, or take the last dimension off with .squeeze(-1)"
            )
        log_prob = -energy.reshape(batch) / self.temperature
        return log_prob if self.base is None else log_prob + self.base.log_prob(value)

    # Chains

    @torch.no_grad()
    def initial_state(self, num_chains: int) -> Tensor:
        """Draws of ``initial``, of the base, or of independent standard normals."""
        start = self.base if self.initial is None else self.initial
        if start is None:
            start = self._standard_normal()
        return start.sample((num_chains,))

    def _standard_normal(self) -> Any:
        owner: Any = self.energy
        while isinstance(owner, functools.partial):
            owner = owner.func
        owner = getattr(owner, "__self__", owner)
        like = next(owner.parameters(), torch.zeros(())) if isinstance(owner, nn.Module) else torch.zeros(())
        return dist.Normal(like.new_zeros(self.event_shape), 1.0, validate_args=False).to_event(len(self.event_shape))

    def mcmc_step(self, state: Tensor, num_steps: int = 1) -> Tensor:
        """Langevin steps of every chain, or transitions of the kernel, which begins anew.

        :raises ValueError: if energies are not finite where the chains come to.
        """
        return run_chains(
            self.state_log_prob,
            state,
            num_steps,
            step_size=self.step_size,
            kernel=self.kernel,
            support=self.support,
            what=type(self).__name__,
        )

    def state_log_prob(self, state: Tensor) -> Tensor:
        return self._log_prob(state, self.noise_level)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Approximate draws, one from each of as many chains."""
        shape = torch.Size(sample_shape) + self.batch_shape
        count = shape.numel()
        begin = self.initial_state(count) if self.buffer is None else self.buffer.begin(count, self.initial_state)
        state = self.mcmc_step(begin, self.num_steps)
        if self.buffer is not None:
            self.buffer.add(state)
        return state.reshape(shape + self.event_shape)

    def __repr__(self) -> str:
        base = "" if self.base is None else f", base={type(self.base).__name__}"
        return f"EnergyDistribution(event_shape={tuple(self.event_shape)}{base}, temperature={self.temperature:g})"
