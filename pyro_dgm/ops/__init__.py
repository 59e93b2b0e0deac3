"""Pure tensor maths: imports torch and nothing else."""

from pyro_dgm.ops.divergences import gaussian_total_correlation, mmd, sliced_wasserstein
from pyro_dgm.ops.logmeanexp import log_mean_exp, normalized_ess

__all__ = ["gaussian_total_correlation", "log_mean_exp", "mmd", "normalized_ess", "sliced_wasserstein"]
