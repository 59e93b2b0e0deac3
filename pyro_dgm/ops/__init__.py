"""Pure tensor maths: imports torch and nothing else."""

from pyro_dgm.ops.logmeanexp import log_mean_exp, normalized_ess

__all__ = ["log_mean_exp", "normalized_ess"]
