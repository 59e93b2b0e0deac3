"""Parallel tempering around any kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.infer.mcmc.chains import select
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.kernels.hmc import HMC
from pyro_dgm.infer.mcmc.potentials.base import Position, Potential
from pyro_dgm.infer.mcmc.potentials.tempered import (
    TemperedPotential,
    closes_round,
    equal_rejection,
    follow,
    ladder_of,
    swap_acceptance,
    swap_order,
    take,
)

__all__ = ["ParallelTempering"]


@dataclass(frozen=True)
class TemperedState(KernelState):
    """A state of the cold replicas, with what the inner kernel's states have besides tensors.

    :ivar inner: a state of the inner kernel, for the fields of its own; where chains are is not read from it.
    """

    inner: KernelState | None = None


class ParallelTempering(Kernel):
    r"""Parallel tempering: every chain has hotter replicas, and swaps with them; for separated modes.

    Replica :math:`r` of a chain is moved by the inner kernel at :math:`e^{-\beta_r U / T}`,
    :math:`1 = \beta_0 > \ldots > \beta_{R-1}`; then neighbours are swapped with probability

    .. math:: \min\Bigl(1, e^{(\beta_r - \beta_{r+1}) (U_r - U_{r+1}) / T}\Bigr)

    in even pairs after one transition and odd pairs after the next.  That order is *non-reversible*: a replica travels
    on in its direction until a swap is refused, so that the time of a round trip does not grow with the number of
    rungs, where choosing pairs at random would have it diffuse.  In the warm-up the ladder is tuned, in rounds that
    double, until all neighbours refuse equally often, which is where round trips are most frequent; more rungs are
    needed if they refuse more than about half of the time.

    Only the cold replicas, :math:`\beta = 1`, are chains: draws, statistics and divergences are theirs, and
    ``n_steps`` counts the gradients of all replicas, and ``acceptance_rate`` is the probability that the cold one
    moved, by itself or by a swap.  All replicas of all chains ride in the leading dimension of
    the inner kernel, each in units of :math:`\beta_r^{-1/2}`, so that one step size and one mass matrix fit hot and
    cold.  :meth:`statistics` says what the swaps do.  An inner kernel with a bias (:class:`Langevin`) keeps it.

    :param model: a Pyro model, or an inner kernel with its model or potential; or
    :param potential_fn: :math:`U` over chains, a dict of ``(chains, ...)`` tensors to ``(chains,)``.
    :param kernel: inner kernel, any of ours that has no ladder or conditionals of its own; :class:`HMC` by default.
    :param num_temperatures: :math:`R`, replicas a chain, at least 2.
    :param max_temperature: :math:`1 / \beta_{R-1}`: hot enough that the modes are joined there.  A flat density has no
        law, so on unbounded latents keep it finite.
    :param inverse_temperatures: :math:`\beta`, falling from 1, instead of these two.
    :param adapt_ladder: whether to tune :math:`\beta` between its two ends in the warm-up.
    :param settings: of the :class:`HMC` within, where ``kernel`` is not given (its ``temperature``, ``init_strategy``
        and ``compile`` are this kernel's).
    :raises ValueError: for a setting out of range, or an inner kernel that cannot be tempered; the message names it.

    Source: S. Syed, A. Bouchard-Cote, G. Deligiannidis and A. Doucet (2022), "Non-reversible parallel tempering: a
    scalable highly parallel MCMC scheme", arXiv:1905.02939; C. J. Geyer (1991), "Markov chain Monte Carlo maximum
    likelihood".

    Example::

        >>> import torch
        >>> from pyro_dgm.infer.mcmc import HMC, MCMC, ParallelTempering
        >>> def modes(u):  # two, at -10 and 10
        ...     return -torch.logaddexp(-0.5 * (u["x"] - 10).square(), -0.5 * (u["x"] + 10).square())
        >>> kernel = ParallelTempering(HMC(potential_fn=modes), num_temperatures=6)
        >>> mcmc = MCMC(kernel, num_samples=300, warmup_steps=200, num_chains=8, seed=0, progress=False)
        >>> mcmc.run(initial_params={"x": torch.full((8,), 10.0)})
        >>> bool(0.3 < (mcmc.get_samples()["x"] > 0).double().mean() < 0.7)
        True
    """

    name = "parallel-tempering"
    #: a ladder of its own: it cannot ride in another
    tempers = False

    def __init__(
        self,
        model: Callable[..., Any] | Kernel | None = None,
        potential_fn: Callable[[Position], Tensor] | None = None,
        *,
        kernel: Kernel | None = None,
        num_temperatures: int = 8,
        max_temperature: float = 100.0,
        inverse_temperatures: Sequence[float] | None = None,
        adapt_ladder: bool = True,
        **settings: Any,
    ) -> None:
        if isinstance(model, Kernel):
            if kernel is not None:
                raise ValueError("give the inner kernel once: first, or as kernel=")
            kernel, model = model, None
        if kernel is not None and not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be a pyro_dgm.infer.mcmc.Kernel, got {type(kernel).__name__}")
        if kernel is not None and settings:
            raise ValueError(f"{sorted(settings)} are settings of the inner kernel: give them to it")
        kernel = HMC(**settings) if kernel is None else kernel
        if not getattr(kernel, "tempers", True):
            raise ValueError(f"kernel must be one that can be tempered, got {type(kernel).__name__}")
        own = kernel.model is not None or kernel.potential_fn is not None
        if own and (model is not None or potential_fn is not None):
            raise ValueError("the inner kernel already has a model or potential of its own; give it once")
        super().__init__(
            kernel.model if own else model,
            kernel.potential_fn if own else potential_fn,
            temperature=kernel.temperature,
            init_strategy=kernel.init_strategy,
            compile=kernel.compile,
        )
        self.ladder = ladder_of(num_temperatures, max_temperature, inverse_temperatures)
        self.kernel, self.adapt_ladder = kernel, bool(adapt_ladder)
        self.uses_gradient = kernel.uses_gradient
        self.discrete = getattr(kernel, "discrete", False)
        self.adjusted = kernel.adjusted
        self.varying_steps = kernel.varying_steps
        self.min_chains = -(-kernel.min_chains // len(self.ladder))
        self.initial_step_size = kernel.initial_step_size

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_inner"}

    def condition(self, *args: Any, **kwargs: Any) -> Potential:
        inner = _copy(self.kernel)
        inner.model, inner.potential_fn = self.model, self.potential_fn
        self._inner, self.potential = inner, inner.condition(*args, **kwargs)
        return self.potential

    def init(self, params: Position, generator: torch.Generator) -> KernelState:
        plain = super().init(params, generator)
        state = TemperedState(**{f.name: getattr(plain, f.name) for f in fields(plain)})
        betas, hot = state.potential.new_tensor([self.ladder]), len(self.ladder) - 1
        chains = state.num_chains
        labels = torch.zeros(chains, hot + 1, dtype=torch.int64, device=betas.device)
        labels[:, 0] = 1  # has been cold
        start = {**state.position, " U": state.potential, **{f" g {k}": g for k, g in state.gradient.items()}}
        replicas = {k: v.unsqueeze(1).expand(-1, hot + 1, *v.shape[1:]) for k, v in start.items()}
        extra = {
            "inverse temperatures": betas,
            "trip": labels,
            "round trips": torch.zeros_like(labels[:, 0]),
            "swap acceptance": betas.new_zeros(chains, hot),
            "swaps": betas.new_zeros(chains, hot),
            "taken": torch.zeros_like(labels[:, 0]),
            "rejection": betas.new_zeros(1, hot),
        }
        state = replace(state, extra={**extra, **{f"hot {k}": v[:, 1:].clone() for k, v in replicas.items()}})
        kernel = self._at(state)
        inner = self._replicas(state)
        first = kernel.init(inner.position, generator)
        state = self._learnt(state, first)
        types = {"accepted": torch.bool, "diverging": torch.bool, "n_steps": torch.int64}
        infos = {
            f"inner {f.name}": torch.zeros_like(labels, dtype=types.get(f.name, betas.dtype)) for f in fields(Info)
        }
        return replace(state, extra={**state.extra, **infos})

    # Replicas, to and from the inner kernel

    def _at(self, state: KernelState) -> Kernel:
        """The inner kernel, on the potential of replicas at this ladder."""
        betas = state.extra["inverse temperatures"][0].repeat(state.num_chains)
        kernel = _copy(self._inner)
        kernel.potential = TemperedPotential(self.potential, betas, scaled=not self.discrete)
        return kernel

    def _all(self, state: KernelState) -> dict[str, Tensor]:
        """Position, potential (`` U``) and gradient (`` g name``) of all replicas, ``(chains, R, ...)``, cold first."""
        cold = {**state.position, " U": state.potential, **{f" g {k}": g for k, g in state.gradient.items()}}
        return {k: torch.cat([v.unsqueeze(1), state.extra[f"hot {k}"]], 1) for k, v in cold.items()}

    def _replicas(self, state: KernelState) -> KernelState:
        """All replicas as chains of the inner kernel."""
        assert isinstance(state, TemperedState)
        flat = {k: v.flatten(0, 1) for k, v in self._all(state).items()}
        betas = state.extra["inverse temperatures"][0].repeat(state.num_chains)
        tempered = TemperedPotential(self.potential, betas, scaled=not self.discrete)
        shape = (state.num_chains, len(self.ladder))
        shared = {f.name: getattr(state, f.name) for f in fields(KernelState)}
        own = {
            "position": tempered.scale({k: flat[k] for k in state.position}),
            "potential": betas * flat[" U"],
            "gradient": tempered.temper_gradient({k: flat[f" g {k}"] for k in state.gradient}),
            "extra": {
                k.removeprefix("kept "): v.flatten(0, 1) if v.shape[:2] == shape else v
                for k, v in state.extra.items()
                if k.startswith("kept ")
            },
        }
        return KernelState(**{**shared, **own}) if state.inner is None else replace(state.inner, **{**shared, **own})

    def _learnt(self, state: KernelState, inner: KernelState) -> TemperedState:
        """What the inner kernel carries, apart from where its chains are."""
        assert isinstance(state, TemperedState)
        shape = (state.num_chains, len(self.ladder))
        kept = {
            f"kept {k}": v.reshape(*shape, *v.shape[1:]) if v.dim() and len(v) == shape[0] * shape[1] else v
            for k, v in inner.extra.items()
        }
        return replace(
            state,
            step_size=inner.step_size,
            inverse_mass=inner.inverse_mass,
            num_steps=inner.num_steps,
            warmup=inner.warmup,
            extra={**state.extra, **kept},
            inner=replace(inner, position={}, gradient={}, extra={}),
        )

    # Transition

    def steps_at(self, state: KernelState) -> int:
        return self._inner.steps_at(self._replicas(state))

    def noise(self, state: KernelState) -> dict[str, Tensor]:
        inner = self._at(state).noise(self._replicas(state))
        swap = state.extra["swap acceptance"]
        return {
            **{f"inner {k}": v for k, v in inner.items()},
            "swap": torch.rand(swap.shape, generator=state.generator, dtype=swap.dtype, device=swap.device),
            "parity": torch.full((), state.iteration % 2, dtype=torch.int64, device=swap.device),
        }

    def transition(self, state: KernelState, noise: Mapping[str, Tensor]) -> tuple[KernelState, Info]:
        betas, extra = state.extra["inverse temperatures"], state.extra
        kernel, chains, rungs = self._at(state), state.num_chains, len(self.ladder)
        shape = (chains, rungs)
        numbers = {k.removeprefix("inner "): v for k, v in noise.items() if k.startswith("inner ")}
        inner, info = kernel.transition(self._replicas(state), numbers)
        tempered = kernel.potential
        assert isinstance(tempered, TemperedPotential)
        replicas = {
            **tempered.unscale(inner.position),
            " U": inner.potential / tempered.betas,
            **{f" g {k}": v for k, v in tempered.untemper_gradient(inner.gradient).items()},
        }
        # A replica that stayed is where it was to the bit, not there and back through other units.
        stayed = {k: v.flatten(0, 1) for k, v in self._all(state).items()}
        replicas = select(info.accepted, replicas, stayed)
        replicas = {k: v.reshape(*shape, *v.shape[1:]) for k, v in replicas.items()}

        energies = replicas[" U"]
        acceptance = swap_acceptance(betas[0] / self.temperature, energies)
        order = swap_order(noise["swap"] < acceptance, noise["parity"])
        replicas = {k: take(v, order) for k, v in replicas.items()}
        trip, done = follow(extra["trip"].gather(1, order))

        infos = {f.name: getattr(info, f.name).reshape(shape) for f in fields(Info)}
        new = self._learnt(state, inner)
        new = replace(
            new,
            position={k: replicas[k][:, 0] for k in state.position},
            potential=replicas[" U"][:, 0],
            gradient={k: replicas[f" g {k}"][:, 0] for k in state.gradient},
            extra={
                **new.extra,
                **{f"hot {k}": v[:, 1:] for k, v in replicas.items()},
                **{f"inner {k}": v for k, v in infos.items()},
                "swap acceptance": acceptance,
                "swaps": extra["swaps"] + acceptance,
                "taken": extra["taken"] + 1,
                "trip": trip,
                "round trips": extra["round trips"] + done,
            },
        )
        moved = torch.zeros_like(infos["accepted"][:, 0])
        for k, v in state.position.items():
            moved = moved | (new.position[k] != v).reshape(chains, -1).any(-1)
        # The cold replica moves by itself or by a swap with its neighbour, which has its turn at even parity.
        swapped = acceptance[:, 0] * (noise["parity"] == 0)
        return new, Info(
            1.0 - (1.0 - infos["acceptance_rate"][:, 0]) * (1.0 - swapped),
            moved,
            infos["diverging"][:, 0],
            new.potential / self.temperature,
            infos["n_steps"].sum(1),
        )

    def statistics(self, state: KernelState) -> dict[str, Tensor]:
        """How the swaps have gone since the warm-up.

        :returns: ``swap_acceptance``, the mean over chains and transitions between each two neighbours, cold ones
            first, ``(R - 1,)``; ``round_trips`` from cold to hot and back of each chain, ``(chains,)``;
            ``inverse_temperatures``, ``(R,)``.
        """
        swaps = state.extra["swaps"] / state.extra["taken"].clamp(min=1).unsqueeze(-1)
        return {
            "swap_acceptance": swaps.mean(0),
            "round_trips": state.extra["round trips"],
            "inverse_temperatures": state.extra["inverse temperatures"][0],
        }

    # Warm-up

    def start_warmup(self, state: KernelState, num_steps: int) -> KernelState:
        return self._learnt(state, self._at(state).start_warmup(self._replicas(state), num_steps))

    def adapt(self, state: KernelState, info: Info) -> KernelState:
        of_replicas = Info(**{f.name: state.extra[f"inner {f.name}"].flatten() for f in fields(Info)})
        state = self._learnt(state, self._at(state).adapt(self._replicas(state), of_replicas))
        if not self.adapt_ladder:
            return state
        rejection = state.extra["rejection"] + (1.0 - state.extra["swap acceptance"]).mean(0, keepdim=True)
        betas = state.extra["inverse temperatures"]
        if closes_round(state.iteration):
            betas = equal_rejection(betas[0], rejection[0])[None]
            rejection = torch.zeros_like(rejection)
        return replace(state, extra={**state.extra, "inverse temperatures": betas, "rejection": rejection})

    def finish_warmup(self, state: KernelState) -> KernelState:
        state = self._learnt(state, self._at(state).finish_warmup(self._replicas(state)))
        anew = {k: torch.zeros_like(state.extra[k]) for k in ("round trips", "swaps", "taken")}
        return replace(state, warmup=None, extra={**state.extra, **anew})


def _copy(kernel: Kernel) -> Kernel:
    # As it is: copy.copy would take off what it was bound to.
    twin = object.__new__(type(kernel))
    twin.__dict__.update(kernel.__dict__)
    return twin
