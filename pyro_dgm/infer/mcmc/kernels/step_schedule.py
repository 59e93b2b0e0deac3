"""Step sizes that fall as a run goes on."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_dgm.ops.arguments import check_number, check_positive

__all__ = ["PolynomialDecay"]


@dataclass(frozen=True)
class PolynomialDecay:
    r"""A factor :math:`(1 + t / b)^{-\gamma}` for the Langevin time step :math:`\epsilon^2 / 2`, ``t`` transitions into
    a run; so :math:`\epsilon` itself is multiplied by its square root.

    With :math:`\gamma` in (0.5, 1] the sum of the steps is infinite and that of their squares finite. The bias of
    :class:`~pyro_dgm.infer.mcmc.Langevin` and :class:`~pyro_dgm.infer.mcmc.SGLD` then vanishes in the long run, while
    chains move more and more slowly. The first factor is 1, so the kernel's ``step_size`` is the first step.

    :param offset: :math:`b`, in transitions; positive.
    :param exponent: :math:`\gamma`, in (0, 1]; 0.55 as published.
    :raises ValueError: for a parameter out of range.

    Source: M. Welling and Y. W. Teh (2011), "Bayesian learning via stochastic gradient Langevin dynamics", whose
    :math:`\epsilon_t = a (b + t)^{-\gamma}` is :math:`\epsilon^2` here.

    Example::

        >>> from pyro_dgm.infer.mcmc import PolynomialDecay
        >>> decay = PolynomialDecay(offset=100.0, exponent=1.0)
        >>> decay(0), decay(300)
        (1.0, 0.5)
    """

    offset: float = 1000.0
    exponent: float = 0.55

    def __post_init__(self) -> None:
        check_positive("offset", self.offset)
        check_number("exponent", self.exponent, within="(0, 1]")

    def __call__(self, iteration: int) -> float:
        """The factor of :math:`\\epsilon` at a transition; the first has number 0."""
        return float((1.0 + iteration / self.offset) ** (-0.5 * self.exponent))
