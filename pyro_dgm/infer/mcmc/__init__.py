"""Markov chain Monte Carlo over a leading chain dimension: a driver, and kernels that run in Pyro's driver too."""

from pyro_dgm.infer.mcmc.driver import MCMC
from pyro_dgm.infer.mcmc.kernels.adjusted_mclmc import AdjustedMCLMC
from pyro_dgm.infer.mcmc.kernels.annealed_langevin import AnnealedLangevin
from pyro_dgm.infer.mcmc.kernels.base import Info, Kernel, KernelState
from pyro_dgm.infer.mcmc.kernels.chees import ChEES
from pyro_dgm.infer.mcmc.kernels.flowmc import FlowMC
from pyro_dgm.infer.mcmc.kernels.gibbs import Gibbs
from pyro_dgm.infer.mcmc.kernels.gibbs_with_gradients import GibbsWithGradients
from pyro_dgm.infer.mcmc.kernels.hmc import HMC
from pyro_dgm.infer.mcmc.kernels.langevin import Langevin
from pyro_dgm.infer.mcmc.kernels.mala import MALA
from pyro_dgm.infer.mcmc.kernels.mclmc import MCLMC
from pyro_dgm.infer.mcmc.kernels.neutra import NeuTra
from pyro_dgm.infer.mcmc.kernels.parallel_tempering import ParallelTempering
from pyro_dgm.infer.mcmc.kernels.random_walk import RandomWalk
from pyro_dgm.infer.mcmc.kernels.sgld import SGLD
from pyro_dgm.infer.mcmc.kernels.step_schedule import PolynomialDecay

#: every kernel by the name that ``sample_posterior(method=...)`` takes; the contract tests run over it
KERNELS: dict[str, type[Kernel]] = {
    kernel.name: kernel
    for kernel in (
        HMC,
        ChEES,
        MALA,
        MCLMC,
        AdjustedMCLMC,
        ParallelTempering,
        FlowMC,
        NeuTra,
        RandomWalk,
        Langevin,
        AnnealedLangevin,
        SGLD,
    )
}

#: kernels of discrete states, by name; these want more than a model with continuous latents (see each)
DISCRETE_KERNELS: dict[str, type[Gibbs] | type[GibbsWithGradients]] = {
    "gibbs": Gibbs,
    "gibbs-with-gradients": GibbsWithGradients,
}

__all__ = [
    "DISCRETE_KERNELS",
    "HMC",
    "KERNELS",
    "MALA",
    "MCLMC",
    "MCMC",
    "SGLD",
    "AdjustedMCLMC",
    "AnnealedLangevin",
    "ChEES",
    "FlowMC",
    "Gibbs",
    "GibbsWithGradients",
    "Info",
    "Kernel",
    "KernelState",
    "Langevin",
    "NeuTra",
    "ParallelTempering",
    "PolynomialDecay",
    "RandomWalk",
]
