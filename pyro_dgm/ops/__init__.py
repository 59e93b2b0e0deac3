"""Pure tensor maths: imports torch and nothing else."""

from pyro_dgm.ops.annealing import anneal, annealing_schedule
from pyro_dgm.ops.binary import binary_states, log_sum_over_binary
from pyro_dgm.ops.divergences import gaussian_total_correlation, mmd, sliced_wasserstein
from pyro_dgm.ops.langevin import langevin_step
from pyro_dgm.ops.log_normalizer import LogNormalizer, log_mean_exp_error
from pyro_dgm.ops.logmeanexp import log_mean_exp, normalized_ess
from pyro_dgm.ops.rational_quadratic import rational_quadratic
from pyro_dgm.ops.schedules import CyclicalSchedule, LinearSchedule, SigmoidSchedule
from pyro_dgm.ops.tables import ResultTable

__all__ = [
    "CyclicalSchedule",
    "LinearSchedule",
    "LogNormalizer",
    "ResultTable",
    "SigmoidSchedule",
    "anneal",
    "annealing_schedule",
    "binary_states",
    "gaussian_total_correlation",
    "langevin_step",
    "log_mean_exp",
    "log_mean_exp_error",
    "log_sum_over_binary",
    "mmd",
    "normalized_ess",
    "rational_quadratic",
    "sliced_wasserstein",
]
