"""Pure tensor maths: imports torch and nothing else."""

from pyro_dgm.ops.divergences import gaussian_total_correlation, mmd, sliced_wasserstein
from pyro_dgm.ops.logmeanexp import log_mean_exp, normalized_ess
from pyro_dgm.ops.schedules import CyclicalSchedule, LinearSchedule, SigmoidSchedule

__all__ = [
    "CyclicalSchedule",
    "LinearSchedule",
    "SigmoidSchedule",
    "gaussian_total_correlation",
    "log_mean_exp",
    "mmd",
    "normalized_ess",
    "sliced_wasserstein",
]
