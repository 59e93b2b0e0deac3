"""A Pyro model's log-density as a pure JAX function, held against torch before it is given out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, fx

from pyro_dgm.capture.static_graph import record
from pyro_dgm.infer.mcmc.initial import draw_initial, radius_of
from pyro_dgm.infer.mcmc.potentials.base import Position
from pyro_dgm.infer.mcmc.potentials.model import ModelPotential
from pyro_dgm.infer.mcmc.potentials.vectorized import value_and_grad
from pyro_dgm.interop.jax_check import differences, explain_mismatch, jitted_value_and_grad
from pyro_dgm.interop.jax_setup import precision_of, require
from pyro_dgm.interop.jaxlower import CannotConvert, Lowered, drop_unread_inputs, functional_graph, lower, lowerings
from pyro_dgm.interop.jaxlower.table import jax_dtype
from pyro_dgm.ops.arguments import check_choice
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs import owner_modules
from pyro_dgm.programs.batch import model_and_guide
from pyro_dgm.programs.parameters import evaluation_mode

__all__ = ["JaxDensity", "to_jax"]

#: "uniform", "prior", or a function of Pyro's from a site to its value
InitStrategy = str | Callable[[Any], Tensor]


def to_jax(
    program_or_model: Any, *args: Any, on_missing: str = "error", init_strategy: InitStrategy = "uniform", **kwargs: Any
) -> JaxDensity:
    r"""A Pyro model's log-density given data, as a pure JAX function of its unconstrained latents.

    .. math:: \log p(x, z(u)) + \log \left| \frac{\partial z}{\partial u} \right|

    with :math:`z(u)` the ``biject_to`` of each latent's support.  Use it with any JAX sampler or optimiser;
    :func:`~pyro_dgm.interop.numpyro.run_nuts` gives it to NumPyro.  Modules are in evaluation mode while it is made.

    The model runs once, its tensor operations are recorded, and each is replaced by JAX's by a table of rules.  Value
    and gradient are compared with torch's at three random points, and the function is refused where they differ.

    :param program_or_model: a program, or a bare Pyro model, whose latents are continuous.
    :param args: the model's positional arguments (data), and ``kwargs`` the others.
    :param on_missing: what happens to an operation without a rule: ``"error"`` names it; ``"callback"`` has torch do
        it at every call by ``jax.pure_callback``, and its gradient too, which is right and slow (chain by chain, on
        the host).
    :param init_strategy: where the points of the check lie, and chains begin: ``"uniform"`` on (-2, 2) in unconstrained
        space, ``"prior"``, or a function of :mod:`pyro.infer.autoguide.initialization`, for models whose density is not
        finite around zero.
    :returns: a function of ``(position, arrays)``, see :class:`JaxDensity`.
    :raises CannotConvert: (a ``RuntimeError``) for an operation without a rule, or a mismatch with torch, naming it;
        :class:`~pyro_dgm.infer.CannotCapture`, its base, if the model is not the same operations at every position.
    :raises ValueError: for a discrete latent, a subsampled plate or no latent, naming the site.
    :raises ImportError: if JAX is not installed.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_dgm.interop.numpyro import to_jax
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> density = to_jax(model, torch.ones(5))
        >>> density
        JaxDensity({'scale': ()}, arrays={args[0]: (5,)}, float32)
        >>> import jax, jax.numpy as jnp
        >>> value, gradient = jax.vmap(jax.value_and_grad(density))({"scale": jnp.zeros(3)})
        >>> gradient["scale"].shape
        (3,)
    """
    require("to_jax")
    check_choice("on_missing", on_missing, "error", "callback")
    model, _ = model_and_guide(program_or_model)
    with evaluation_mode(program_or_model, model):
        density = JaxDensity(ModelPotential(model, args, kwargs), on_missing, init_strategy)
        density.check()
    return density


class JaxDensity:
    r"""Log-density of a Pyro model's unconstrained latents as a pure function of JAX arrays, of one chain.

    .. math:: \log p(x, z(u)) + \log \left| \frac{\partial z}{\partial u} \right|

    Made by :func:`~pyro_dgm.interop.numpyro.to_jax`.  ``density(position, arrays)`` works under ``jax.jit``,
    ``jax.vmap`` and ``jax.grad``.  Weights and data are its second argument: a jitted function that takes them as an
    argument is not compiled anew when they change; where they are left out the present ones are used, which a jitted
    function makes constants.

    JAX computes in 32 bits unless told otherwise, for the whole process or inside a context.  A model of float64 needs
    64 bits: ``with density.precision(): ...``.

    :ivar shapes: shape of each latent's unconstrained values, by site.
    :ivar arrays: the weights, buffers and data that the density reads, by name.
    :ivar externals: the tensors that they are read from, by name.
    :ivar x64: whether it needs JAX in 64 bits.
    :ivar error: the largest relative difference from torch's value and gradients at the points of the check.
    :ivar callbacks: names of the operations that torch still does, called back (``on_missing="callback"``).
    """

    def __init__(
        self, potential: ModelPotential, on_missing: str = "error", init_strategy: InitStrategy = "uniform"
    ) -> None:
        if not callable(init_strategy) and init_strategy not in ("uniform", "prior"):
            raise ValueError(f"init_strategy must be 'uniform', 'prior' or a function, got {init_strategy!r}")
        self.potential, self.init_strategy = potential, init_strategy
        self.shapes = {name: tuple(latent.shape) for name, latent in potential.latents.items()}
        self.names = list(self.shapes)
        examples = [torch.zeros(i.shape, dtype=i.dtype, device=i.device) for i in potential.latents.values()]

        def flat(*values: Tensor) -> list[Tensor]:
            return [-potential._single(dict(zip(self.names, values, strict=True)))]

        with torch.no_grad():
            recorded = record(flat, examples)
            self.graph: fx.GraphModule = functional_graph(
                recorded.graph, [*examples, *recorded.externals], lowerings().keys()
            )
        read = drop_unread_inputs(self.graph, keep=len(examples))
        used = [recorded.externals[i - len(examples)] for i in read]
        self.externals: dict[str, Tensor] = dict(zip(self._names_of(used), used, strict=True))
        self.lowered: Lowered = lower(self.graph, on_missing)
        self.x64 = torch.float64 in self.lowered.input_dtypes
        self.callbacks = self.lowered.callbacks
        self.error = float("nan")
        self.refresh()

    def refresh(self) -> None:
        """Read weights and data from torch again, after a training step or a change in place."""
        import jax.numpy as jnp

        with self.precision():
            self.arrays = {k: jnp.asarray(t.detach().cpu().numpy()) for k, t in self.externals.items()}

    @contextmanager
    def precision(self) -> Iterator[None]:
        """JAX in the precision of the model inside, as it was afterwards."""
        with precision_of(self.x64):
            yield

    def __call__(self, position: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> Any:
        """Log-density in nats, a scalar.

        :param position: unconstrained values by site, each of the shape in :attr:`shapes`.
        :param arrays: what stands in the place of :attr:`arrays`.
        :raises ValueError: for other sites, names or shapes.
        :raises RuntimeError: if the model is of float64 and JAX is in 32 bits.
        """
        arrays = self.arrays if arrays is None else arrays
        _check_names("position", position, self.shapes)
        _check_names("arrays", arrays, {k: tuple(t.shape) for k, t in self.externals.items()})
        self.check_precision()
        return self.lowered(*(position[k] for k in self.names), *(arrays[k] for k in self.externals))[0]

    def flat(self, position: Mapping[str, Any], arrays: Mapping[str, Any]) -> list[Any]:
        """Both in the order of the inputs of :attr:`lowered`."""
        return [*(position[k] for k in self.names), *(arrays[k] for k in self.externals)]

    def check_precision(self) -> None:
        """:raises RuntimeError: if the model is of float64 and JAX is in 32 bits."""
        if self.x64 and jax_dtype(torch.float64) != "float64":
            raise RuntimeError(
                "the model is of float64 and JAX is in 32 bits here: call inside `with density.precision():`, or "
                "numpyro.enable_x64() at the beginning of the program"
            )

    def constrain(self, draws: Mapping[str, Any]) -> Position:
        """The sites' own values of unconstrained draws ``(draws, ...)``, as tensors of the sites' dtypes."""
        return self.potential.constrain(self.to_torch(draws))[0]

    def to_torch(self, position: Mapping[str, Any]) -> Position:
        """Arrays as tensors of the latents' dtypes, on their devices."""
        import numpy as np

        return {
            k: torch.from_numpy(np.array(position[k])).to(latent.device, latent.dtype)
            for k, latent in self.potential.latents.items()
        }

    def torch_value_and_grad(self, position: Position) -> tuple[Tensor, Position]:
        """Torch's log-density and its gradient, of one chain."""
        with pyro.validation_enabled(False):
            return value_and_grad(lambda u: -self.potential._single(u), position)

    def value_and_grad(self, position: Mapping[str, Any]) -> tuple[Tensor, Position]:
        """JAX's log-density and its gradient, of one chain, as tensors."""
        import numpy as np

        with self.precision():
            inputs = self.lowered.cast(self.flat({k: v.cpu().numpy() for k, v in position.items()}, self.arrays))
            value, grads = jitted_value_and_grad()(self.lowered, len(self.names), inputs)
            return torch.from_numpy(np.array(value)), self.to_torch(dict(zip(self.names, grads, strict=True)))

    @property
    def device(self) -> torch.device:
        """Of the latents in torch."""
        return next(iter(self.potential.latents.values())).device

    def draw(self, count: int, attempt: int = -1) -> Position:
        """Unconstrained positions ``(count, ...)`` by ``init_strategy``, from torch's global generator.

        :param attempt: how many draws had no finite density before, less one: the later ones lie nearer to zero.
        """
        generator = torch.default_generator
        if self.device.type == "cuda":
            generator = torch.cuda.default_generators[self.device.index or 0]
        return draw_initial(self.potential, self.init_strategy, count, generator, radius_of(attempt))

    def points(self, count: int, seed: int) -> list[Position]:
        """Unconstrained positions at which torch's value and gradient are finite.

        Uniform on (-2, 2), or as ``init_strategy`` says.

        :raises ValueError: if there are none among 100 draws; the message names the sites.
        """
        found: list[Position] = []
        position: Position = {}
        with forked_rng(self.device, seed):
            for attempt in range(100 + count):
                # A strategy may give the same point each time: they are to differ.
                drawn = self.draw(1, attempt - len(found) - 1)
                spread = 0.05 * radius_of(attempt - len(found) - 1)
                position = {k: v[0] + spread * torch.rand_like(v[0]) for k, v in drawn.items()}
                try:
                    value, grads = self.torch_value_and_grad(position)
                except torch.linalg.LinAlgError:
                    continue
                if all(bool(torch.isfinite(t).all()) for t in (value, *grads.values())):
                    found.append(position)
                    if len(found) == count:
                        self.potential.check_valid({k: torch.stack([p[k] for p in found]) for k in position})
                        return found
        why = self.potential.explain({k: v[None] for k, v in position.items()})
        raise ValueError(f"no {count} positions with a finite log-density in {100 + count} draws: {why}")

    def check(self, num_points: int = 3, seed: int = 0, rtol: float | None = None) -> float:
        """Hold value and gradient against torch's at random points; sets and gives back :attr:`error`.

        :param rtol: how much may differ, relative to the largest of the gradient's norms and to the value; four roots
            of the precision by default, 6e-8 where all is of float64, 1.4e-3 where anything is of float32.
        :raises CannotConvert: on a mismatch, with the latent and the operation.
        """
        rtol = 4 * self._coarsest**0.5 if rtol is None else rtol
        worst = 0.0
        for point in self.points(num_points, seed):
            found = differences(self.torch_value_and_grad(point), self.value_and_grad(point))
            bad = [f"{what} by {size:.2g}" for what, size in found.items() if not size <= rtol]
            if bad:
                raise CannotConvert(
                    f"what became of the model in JAX is not the model: relative to their sizes {', '.join(bad)} "
                    f"(at most {rtol:.1g} allowed); {explain_mismatch(self, point, 0.1 * rtol)}"
                )
            worst = max(worst, *found.values())
        self.error = worst
        return worst

    @property
    def _coarsest(self) -> float:
        """Rounding of the coarsest type in the graph: data from NumPy are float64 beside priors of float32."""
        found = [(n.op, n.meta.get("val")) for n in self.graph.graph.nodes]
        # Numbers of Python become float32 scalars where torch mixes them with others, which loses nothing.
        kinds = {
            v.dtype
            for op, v in found
            if isinstance(v, Tensor) and v.is_floating_point() and (v.dim() or op == "placeholder")
        }
        return max(torch.finfo(kind).eps for kind in kinds or {torch.float64 if self.x64 else torch.float32})

    def _names_of(self, externals: list[Tensor]) -> list[str]:
        known: dict[int, str] = {}
        for name, value in pyro.get_param_store().named_parameters():
            known[id(value)] = name
        for owner in owner_modules(self.potential.model):
            for name, tensor in (*owner.named_parameters(), *owner.named_buffers()):
                known.setdefault(id(tensor), name)
        for i, arg in enumerate(self.potential.args):
            known.setdefault(id(arg), f"args[{i}]")
        for name, arg in self.potential.kwargs.items():
            known.setdefault(id(arg), name)
        names: list[str] = []
        for i, tensor in enumerate(externals):
            name = known.get(id(tensor), f"tensor {i}")
            names.append(name if name not in names else f"{name} ({i})")
        return names

    def __repr__(self) -> str:
        arrays = ", ".join(f"{k}: {tuple(v.shape)}" for k, v in self.arrays.items())
        return f"JaxDensity({self.shapes}, arrays={{{arrays}}}, {'float64' if self.x64 else 'float32'})"


def _check_names(argument: str, given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    import jax.numpy as jnp

    if not isinstance(given, Mapping) or set(given) != set(shapes):
        got = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f"{argument} must have the names {sorted(shapes)}, got {got}")
    for name, shape in shapes.items():
        if jnp.shape(given[name]) != shape:
            raise ValueError(
                f"{argument}[{name!r}] must have shape {shape}, got {jnp.shape(given[name])}; "
                "the density is of one chain, jax.vmap gives it more"
            )
