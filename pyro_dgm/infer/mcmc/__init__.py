"""Markov chain Monte Carlo over a leading chain dimension: a driver, and kernels that run in Pyro's driver too."""

from pyro_dgm.infer.mcmc.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.driver import MCMC
from pyro_dgm.infer.mcmc.hmc import HMC
from pyro_dgm.infer.mcmc.mala import MALA

#: every kernel by the name that ``sample_posterior(method=...)`` takes; the contract tests run over it
KERNELS: dict[str, type[Kernel]] = {"hmc": HMC, "mala": MALA}

__all__ = ["HMC", "KERNELS", "MALA", "MCMC", "Info", "Kernel", "KernelState"]
