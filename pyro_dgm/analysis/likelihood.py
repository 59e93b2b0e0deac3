"""How probable data are under a program: marginal log-likelihoods, exact or importance sampled, with their errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_dgm.analysis import annealed
from pyro_dgm.analysis.energy_likelihood import energy_log_likelihood, is_unnormalized
from pyro_dgm.analysis.prepared import Prepared
from pyro_dgm.infer.smc.moves import default_kernel
from pyro_dgm.ops.arguments import check_count
from pyro_dgm.ops.log_normalizer import LogNormalizer
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs.one_at_a_time import one_at_a_time
from pyro_dgm.programs.parameters import evaluation_mode

__all__ = ["LogLikelihood", "log_likelihood"]


@dataclass(frozen=True)
class LogLikelihood:
    """Marginal log-likelihoods in nats, and how well they are known.

    :ivar values: estimate of :math:`\\log p(x_n)` for each datum, nats, float64.
    :ivar standard_error: its Monte Carlo standard error for each datum, nats; zero where exact.
    :ivar effective_sample_size: of the importance weights for each datum, between 1 and ``num_particles``; ``None``
        where exact.
    :ivar method: ``"iwae"``, ``"ais"`` or ``"exact"``.
    :ivar num_particles: importance samples, or annealed chains, a datum; 0 where exact.
    :ivar shared: whether the error is one and the same for all data, that of an estimated :math:`\\log Z`.
    """

    values: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor | None
    method: str
    num_particles: int
    shared: bool = False

    @property
    def mean(self) -> float:
        """Mean over data, nats per datum."""
        return float(self.values.mean())

    @property
    def mean_standard_error(self) -> float:
        """Monte Carlo standard error of :attr:`mean`: how much it would change with other importance samples."""
        if self.shared:
            return float(self.standard_error.mean())
        return float(self.standard_error.square().sum().sqrt()) / max(self.values.numel(), 1)

    @property
    def data_standard_error(self) -> float:
        """Standard error of :attr:`mean` over the choice of data: how much it would change with another test set."""
        n = self.values.numel()
        return float(self.values.std()) / math.sqrt(n) if n > 1 else math.nan

    def __repr__(self) -> str:
        unit = ("chains" if self.method == "ais" else "particles") + (" for log Z" if self.shared else "")
        how = "exact" if self.method == "exact" else f"{self.method}, {self.num_particles} {unit}"
        return (
            f"LogLikelihood({self.mean:.4f} nats per datum over {self.values.numel()} data; standard error "
            f"{self.mean_standard_error:.2g} Monte Carlo, {self.data_standard_error:.2g} data; {how})"
        )


@one_at_a_time
def log_likelihood(
    program: Any,
    x: Any,
    method: str = "iwae",
    num_particles: int = 5000,
    chunk_size: int | None = 20_000,
    seed: int | None = None,
    *,
    num_chains: int = 32,
    num_temperatures: int = 500,
    schedule: Any = "sigmoidal",
    initial: str = "prior",
    kernel: Any = None,
    num_steps: int = 1,
) -> Any:
    r"""Estimate the marginal log-likelihood of each datum.

    Use it on held-out data to compare models, whatever they were trained with: always say the number of particles.

    ``"iwae"`` draws from the guide,

    .. math:: \widehat{\log p}(x_n) = \log \frac{1}{K} \sum_{k=1}^{K} w_{nk}, \qquad
              w_{nk} = \frac{p(x_n, z_{nk})}{q(z_{nk} \mid x_n)},

    a lower bound on :math:`\log p(x_n)` in expectation, consistent as K grows.  Its standard error is, by the delta
    method, :math:`\mathrm{sd}(w_n) / (\bar w_n \sqrt K)`, computed in log space.  It is to be believed only where
    ``effective_sample_size`` is well above 1: a guide that misses a mode shows neither the bias nor the error.

    ``"ais"`` anneals from the prior (or the guide) to the joint density, by chains of each datum's own
    (:class:`~pyro_dgm.infer.smc.AIS`): it needs continuous latents, and no good guide.  It is a lower bound in
    expectation too, and warns where the effective sample size of a datum's chains is under 10 %.

    ``"bdmc"`` says how far ``"ais"`` with the same settings can be off: on data *simulated from the model*, in number
    and shape as ``x``, whose latents are known and are exact draws of the posterior, annealing backwards from them
    gives an upper bound.  The result is a :class:`~pyro_dgm.analysis.LogLikelihoodBracket`.  Observed values must
    enter the model at their sites alone: a decoder that is fed the data is not simulated by it.

    ``"exact"`` asks the program's own ``log_prob``.

    Of a density known up to a constant (an energy-based model, without latent sites) ``"ais"`` estimates
    :math:`\log Z`, one for all data, by chains from its base, and ``"iwae"`` and ``"bdmc"`` are refused. The likelihood
    is then an *upper* bound in expectation: where the chains miss a part of the density it is too high.

    :param program: a family, ``pyro_dgm.program(model, guide)`` or a ``(model, guide)`` pair; modules are put in
        ``eval()`` mode meanwhile.
    :param x: a batch: a tensor, or a tuple or mapping of the program's arguments.
    :param method: ``"iwae"``, ``"ais"``, ``"bdmc"`` or ``"exact"``.
    :param num_particles: K, importance samples for each datum, of ``"iwae"``; at least 2.
    :param chunk_size: most particles (or chains) times data that are evaluated at once.  Particles are split first; if
        the data
        alone are more than this they are split too, along the first dimension of every tensor that has their length
        (the program must accept any number of data, as an amortised guide does).  ``None`` does all at once.
    :param seed: seed of the draws; without it they take (and advance) the global generators.
    :param num_chains: of ``"ais"`` and ``"bdmc"``: chains for each datum, at least 2.
    :param num_temperatures: of these: inverse temperatures, 0 and 1 counted.
    :param schedule: of these: see :func:`pyro_dgm.ops.annealing_schedule`.
    :param initial: of these: where chains start, ``"prior"`` or ``"guide"``.
    :param kernel: of these: a kernel of :mod:`pyro_dgm.infer.mcmc` without a model; HMC by a quarter
        turn by default.  Its step size is found at each temperature by a pilot run, one for all data.
    :param num_steps: of these: transitions at each temperature.
    :returns: :class:`LogLikelihood`, for ``"bdmc"`` a pair of them.  Its arrays have the shape of the plates that hold
        every site; with a global latent the weights are joint, and they are scalars, the log-likelihood of the whole
        batch.
    :raises ValueError: for an unknown method, ``"exact"`` where there is no ``log_prob``, too few particles,
        chains or temperatures, discrete latents in annealing, or weights that are not finite.

    Source: Y. Burda, R. Grosse and R. Salakhutdinov (2016), arXiv:1509.00519; annealing of Y. Wu, Y. Burda,
    R. Salakhutdinov and R. Grosse (2017), arXiv:1611.04273; its bracket of R. Grosse, Z. Ghahramani and R. Adams
    (2015), arXiv:1511.02543.

    Example::

        >>> import torch, pyro_dgm
        >>> _ = torch.manual_seed(0)
        >>> m = pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)
        >>> x = torch.randn(10, 3)
        >>> exact = pyro_dgm.analysis.log_likelihood(m, x, method="exact")
        >>> estimate = pyro_dgm.analysis.log_likelihood(m, x, num_particles=2000, seed=0)
        >>> bool(abs(estimate.mean - exact.mean) < 4 * estimate.mean_standard_error)
        True
        >>> by_ais = pyro_dgm.analysis.log_likelihood(m, x, method="ais", num_temperatures=100, seed=0)
        >>> bool(abs(by_ais.mean - exact.mean) < 4 * by_ais.mean_standard_error)
        True
    """
    prepared = Prepared.of(program, x, seed)
    check_count("chunk_size", chunk_size, optional=True)
    if method == "exact":
        return _exact(prepared)
    if method in ("ais", "bdmc"):
        settings = annealed.Annealing(
            num_chains, num_temperatures, schedule, initial, kernel or default_kernel(), num_steps, chunk_size
        )
        return _annealed(prepared, method, settings, kernel)
    if method != "iwae":
        raise ValueError(f"method must be 'iwae', 'ais', 'bdmc' or 'exact', got {method!r}")
    _refuse_unnormalized(prepared, method)
    check_count("num_particles", num_particles, 2, why="a standard error needs two")
    with prepared.evaluating() as whole:
        shape = whole.particles(1, vectorize=True).log_weights.shape[1:]
        size = shape[-1] if len(shape) == 1 else 0
        parts = []
        if chunk_size is not None and size > chunk_size:
            for start in range(0, size, chunk_size):
                rows = slice(start, start + chunk_size)
                part = replace(
                    whole,
                    args=tuple(_rows(a, size, rows) for a in whole.args),
                    kwargs={k: _rows(v, size, rows) for k, v in whole.kwargs.items()},
                )
                parts.append(_moments(part, num_particles, 1, (len(range(size)[rows]),)))
        else:
            together = num_particles if chunk_size is None else max(chunk_size // max(shape.numel(), 1), 1)
            parts.append(_moments(whole, num_particles, together, tuple(shape)))
    first, second = (torch.cat(p) if len(p) > 1 else p[0] for p in zip(*parts, strict=True))
    # log of the mean of w^2 over the square of the mean of w, never below 0 but for rounding
    excess = (second - 2 * first).clamp_min(0.0)
    error = (excess.expm1() / (num_particles - 1)).sqrt()
    return LogLikelihood(first, error, num_particles * (-excess).exp(), "iwae", num_particles)


def exact_log_prob(program: Any) -> Callable[..., Tensor] | None:
    """The exact log-density of data, where a program has it: ``log_prob``, or ``log_marginal``."""
    found = (getattr(program, name, None) for name in ("log_prob", "log_marginal"))
    return next((method for method in found if callable(method)), None)


def _exact(prepared: Prepared) -> LogLikelihood:
    program = prepared.program
    exact = exact_log_prob(program)
    if exact is None:
        raise ValueError(
            f"method='exact' needs a program with log_prob(x), which {type(program).__name__} lacks: "
            "use 'iwae', or 'ais'"
        )
    with torch.no_grad(), evaluation_mode(program.model):
        values = exact(*prepared.args, **prepared.kwargs).detach().double()
    return LogLikelihood(values, torch.zeros_like(values), None, "exact", 0)


def _annealed(prepared: Prepared, method: str, settings: annealed.Annealing, kernel: Any) -> Any:
    if method == "bdmc":
        _refuse_unnormalized(prepared, method)
    of = (prepared.program, prepared.args, prepared.kwargs)
    with prepared.evaluating(probed=False):
        if method == "ais" and _is_unnormalized(prepared):
            values, log_z = energy_log_likelihood(*of, settings, kernel)
            assert log_z.ess is not None
            error, ess = (t.expand(values.shape) for t in (log_z.standard_error, log_z.ess))
            return LogLikelihood(values, error, ess, "ais", settings.num_chains, shared=True)
        if method == "ais":
            return _of_chains(annealed.annealed(*of, settings))
        lower, upper, data = annealed.bracketed(*of, settings)
    return annealed.LogLikelihoodBracket(_of_chains(lower), _of_chains(upper), data)


def _is_unnormalized(prepared: Prepared) -> bool:
    # A look, which draws nothing from the run's random numbers.
    with forked_rng(prepared.device), evaluation_mode(prepared.program.model):
        return is_unnormalized(prepared.program, prepared.args, prepared.kwargs)


def _refuse_unnormalized(prepared: Prepared, method: str) -> None:
    if _is_unnormalized(prepared):
        raise ValueError(
            f"method={method!r} is for programs with latent sites, and this one is a density known up to a constant: "
            "method='ais' estimates its log Z"
        )


def _of_chains(found: LogNormalizer) -> LogLikelihood:
    assert found.log_weights is not None
    return LogLikelihood(found.value, found.standard_error, found.ess, "ais", found.log_weights.shape[0])


def _rows(value: Any, size: int, rows: slice) -> Any:
    return value[rows] if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size else value


def _moments(part: Prepared, num_particles: int, together: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logarithms of the means of the weights and of their squares, accumulated over chunks of particles."""
    first = second = None
    done = 0
    while done < num_particles:
        k = min(together, num_particles - done)
        log_w = part.particles(k, vectorize=True).log_weights.double()
        if tuple(log_w.shape[1:]) != shape:
            raise ValueError(
                f"chunk_size: a part of the data gives weights of shape {tuple(log_w.shape[1:])}, not {shape}: this "
                "program does not accept part of its data; pass chunk_size=None"
            )
        if bool((log_w.isnan() | (log_w == math.inf)).any()):
            bad = int((log_w.isnan() | (log_w == math.inf)).flatten(1).any(0).sum())
            raise ValueError(f"log p - log q is not finite for {bad} of {max(log_w[0].numel(), 1)} data")
        one, two = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
        first = one if first is None else torch.logaddexp(first, one)
        second = two if second is None else torch.logaddexp(second, two)
        done += k
    assert first is not None and second is not None
    return first - math.log(num_particles), second - math.log(num_particles)
