"""Stochastic gradient Langevin dynamics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_dgm.infer.mcmc.chains import per_chain
from pyro_dgm.infer.mcmc.kernels.base import Info, KernelState
from pyro_dgm.infer.mcmc.kernels.langevin import Langevin
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.minibatch import FunctionMinibatches, MinibatchPotential, ModelMinibatches
from pyro_dgm.ops.arguments import check_choice, check_number, check_positive

__all__ = ["SGLD"]


@dataclass(frozen=True, kw_only=True)
class PreconditionedState(KernelState):
    """A state with the mean squares of gradients.

    :ivar squares: discounted mean of the squared gradients of ``U / T``, as ``position``.
    :ivar decay: factor of the old mean in each update, a scalar; 1 after the squares are frozen.
    """

    squares: Position
    decay: Tensor

    shared = KernelState.shared | {"decay"}


class SGLD(Langevin):
    r"""Stochastic gradient Langevin dynamics (SGLD): Langevin steps with gradients of mini-batches, for global latents
    (weights of a network, for example) given too many data for full gradients.

    .. math:: u' = u - \frac{\epsilon_t^2}{2 T} G \nabla \hat U(u) + \epsilon_t G^{1/2} \xi, \qquad \xi \sim N(0, I)

    with :math:`\hat U` the potential estimated from a mini-batch, scaled up to all data, and :math:`G` the identity or
    a diagonal. The step of the paper is :math:`\epsilon^2` here. A subsampled plate of a Pyro model defines the
    mini-batch: ``pyro.plate("data", len(x), subsample_size=100)``. Every chain draws its own in every transition, with
    replacement. For a model without such a plate the kernel is :class:`Langevin`.

    **Bias.** In addition to the bias of :class:`Langevin`, the gradient's noise raises the temperature: if its variance
    is :math:`S`, draws from a Gaussian posterior of variance :math:`s^2` have variance
    :math:`T s^2 \bigl(1 + \epsilon^2 S / (4 T^2)\bigr) / \bigl(1 - \epsilon^2 / (4 T s^2)\bigr)`. Both biases vanish
    as :math:`\epsilon \to 0`: give a falling ``schedule``, or make sure that :math:`\epsilon^2 S` is small.

    **Preconditioning** (``"rmsprop"``) scales each coordinate by the size of its gradients,
    :math:`g = \nabla \hat U / T`:

    .. math:: V' = a V + (1 - a)\, g \odot g, \qquad G = \operatorname{diag}\bigl(1 / (\lambda + \sqrt{V'})\bigr)

    separately for each chain. If :math:`G` changes with :math:`u`, the drift needs another term,
    :math:`\tfrac{\epsilon^2}{2} \Gamma`, :math:`\Gamma_i = \sum_j \partial G_{ij} / \partial u_j`. It is left out, as
    in the published algorithm, which gives a bias of order :math:`(1 - a)`. By default :math:`G` is learnt in the
    warm-up and then frozen, so that :math:`\Gamma = 0` and draws do not have this bias; ``freeze_preconditioner=False``
    is the published algorithm. Without a warm-up nothing is frozen.

    ``lp`` and ``energy`` of a draw are estimates from its mini-batch, and not comparable between draws. Divergence,
    temperature and clipping are as in :class:`Langevin`.

    :param model: a Pyro model, its data subsampled by plates; or
    :param potential_fn: with ``batch_size``, :math:`\hat U` as a function of a dict of ``(chains, ...)`` tensors and of
        indices ``(chains, batch_size)``, giving ``(chains,)``; without ``batch_size``, of the dict alone.
    :param step_size: :math:`\epsilon`.
    :param num_data: number of data that a ``potential_fn`` indexes.
    :param batch_size: data in a mini-batch of a ``potential_fn``.
    :param schedule: see :class:`Langevin`; :class:`PolynomialDecay` is the published one.
    :param preconditioner: ``None`` or ``"rmsprop"``.
    :param decay: :math:`a`, in [0, 1).
    :param damping: :math:`\lambda`, in units of the gradient of :math:`U / T`.
    :param freeze_preconditioner: whether :math:`G` stays as the warm-up left it.
    :param max_grad_norm: see :class:`Langevin`.
    :param max_grad_value: see :class:`Langevin`.
    :param temperature: of the target; 1 for the posterior. :class:`Kernel` says more on this and the next four.
    :param init_strategy: where chains start: ``"uniform"``, ``"prior"`` or a per-site function.
    :param compile: whether to compile gradients and transitions: ``True``, ``False`` or ``"auto"``.
    :param transforms: from constrained to unconstrained space, by latent.
    :param max_plate_nesting: number of dimensions that the model's plates may take; found automatically by default.
    :raises ValueError: for a setting out of range, or a latent inside a subsampled plate; the message names it.

    Source: M. Welling and Y. W. Teh (2011), "Bayesian learning via stochastic gradient Langevin dynamics"; C. Li, C.
    Chen, D. Carlson and L. Carin (2016), "Preconditioned stochastic gradient Langevin dynamics for deep neural
    networks", arXiv:1512.07666.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_dgm.infer.mcmc import MCMC, SGLD
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x), subsample_size=50) as i:
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x[i])
        >>> x = torch.randn(1000) + 3.0
        >>> mcmc = MCMC(SGLD(model, step_size=0.02), 100, 100, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(x)
        >>> abs(float(mcmc.get_samples()["mean"].mean()) - 3.0) < 0.1
        True
    """

    name = "sgld"
    independent_chains = False  # a mini-batch of all chains is one evaluation
    #: its potential is an estimate, so chains cannot be swapped by it
    tempers = False

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[..., Tensor] | None = None,
        step_size: float = 0.1,
        *,
        num_data: int | None = None,
        batch_size: int | None = None,
        schedule: Callable[[int], float] | None = None,
        preconditioner: str | None = None,
        decay: float = 0.99,
        damping: float = 1e-5,
        freeze_preconditioner: bool = True,
        max_grad_norm: float | None = None,
        max_grad_value: float | None = None,
        temperature: float = 1.0,
        init_strategy: str | Callable[[Any], Tensor] = "uniform",
        compile: bool | str = "auto",
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(
            model,
            potential_fn,
            step_size,
            schedule=schedule,
            max_grad_norm=max_grad_norm,
            max_grad_value=max_grad_value,
            temperature=temperature,
            init_strategy=init_strategy,
            compile=compile,
            transforms=transforms,
            max_plate_nesting=max_plate_nesting,
        )
        if (num_data is None) != (batch_size is None):
            raise ValueError(f"give num_data and batch_size both, got {num_data!r} and {batch_size!r}")
        if num_data is not None and batch_size is not None:
            if model is not None:
                raise ValueError("num_data and batch_size are for potential_fn; a model's plate has both")
            if not (isinstance(batch_size, int) and isinstance(num_data, int) and 1 <= batch_size <= num_data):
                raise ValueError(f"batch_size must be from 1 to num_data = {num_data!r}, got {batch_size!r}")
        check_choice("preconditioner", preconditioner, None, "rmsprop")
        check_number("decay", decay, within="[0, 1)")
        check_positive("damping", damping)
        self.num_data, self.batch_size = num_data, batch_size
        self.preconditioner, self.freeze_preconditioner = preconditioner, bool(freeze_preconditioner)
        self.decay, self.damping = float(decay), float(damping)

    def potential_of_function(self, fn: Callable[..., Tensor]) -> Potential:
        if self.num_data is None or self.batch_size is None:
            return super().potential_of_function(fn)
        return FunctionMinibatches(fn, self.num_data, self.batch_size)

    def potential_of_model(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Potential:
        options = {"transforms": self.given_transforms, "max_plate_nesting": self.max_plate_nesting}
        return ModelMinibatches(model, args, kwargs, **options)

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        state = super().init(params, generator)
        value, gradient = self._evaluate(state.position, self._indices(state))
        state = replace(state, potential=value, gradient=gradient)
        if self.preconditioner is None:
            return state
        squares = {k: (g / self.temperature).square() for k, g in gradient.items()}
        return PreconditionedState.extending(state, squares=squares, decay=value.new_full((), self.decay))

    def _indices(self, state: KernelState) -> dict[str, Tensor]:
        if not isinstance(self.potential, MinibatchPotential):
            return {}
        indices = self.potential.indices(state.num_chains, state.generator, state.potential.device)
        return {f"indices {k}": v for k, v in indices.items()}

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        return {**super().noise(state), **self._indices(state)}

    def _evaluate(self, position: Position, noise: Mapping[str, Tensor]) -> tuple[Tensor, Position]:
        potential = self.potential
        if not isinstance(potential, MinibatchPotential) or not potential.plates:
            return potential(position)
        return potential.on(position, {k: noise[f"indices {k}"] for k in potential.plates})

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        if self.preconditioner is None:
            return super().transition(state, noise)
        assert isinstance(state, PreconditionedState)
        state = replace(state, step_size=noise.get("step size", state.step_size))
        gradient = self._clipped(state.gradient)
        step = state.step_size
        squares, proposal = {}, {}
        for k, v in state.position.items():
            g = gradient[k] / self.temperature
            a = per_chain(state.decay, v)
            squares[k] = a * state.squares[k] + (1.0 - a) * g.square()
            scale = 1.0 / (self.damping + squares[k].sqrt())
            drift = per_chain(0.5 * step.square(), v) * scale * g
            proposal[k] = v - drift + per_chain(step, v) * scale.sqrt() * noise[f"noise {k}"]
        return self._settle(replace(state, squares=squares), proposal, noise, self.temperature)

    def finish_warmup(self, state: KernelState) -> KernelState:
        state = super().finish_warmup(state)
        if isinstance(state, PreconditionedState) and self.freeze_preconditioner:
            state = replace(state, decay=torch.ones_like(state.decay))
        return state
