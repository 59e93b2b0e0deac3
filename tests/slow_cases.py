"""Cases of the suite that `make test` leaves to `make test-slow`, beside the tests that are marked ``slow`` themselves.

Most are cases of a parametrised test whose like stays: a second kernel under the same driver, another estimator under
the same check. Each entry is a test's file and name, and a pattern for the cases in brackets; an empty pattern means
the whole test.
"""

from __future__ import annotations

import re

__all__ = ["SLOW_CASES", "is_slow"]

FLOW_KERNELS = "neutra|flowmc"

#: file, test, and a regular expression that is searched for in the id of the case
SLOW_CASES: tuple[tuple[str, str, str], ...] = (
    ("tests/analysis/test_compare.py", "test_guide_signal_falls_with_particles_for_iwae_and_rises_for_dreg", ""),
    ("tests/analysis/test_information.py", "test_parts_of_a_bound_against_a_sum_over_data", "200000"),
    ("tests/contracts/test_device.py", "test_flow_guides", ""),
    ("tests/contracts/test_device.py", "test_flows", "uniform|variational"),
    ("tests/contracts/test_device.py", "test_kernels_on_a_model", f"{FLOW_KERNELS}|mclmc|tempering|mala"),
    ("tests/contracts/test_kernel.py", "test_runs_in_both_drivers", f"{FLOW_KERNELS}|tempering|adjusted"),
    ("tests/contracts/test_transform.py", "test_a_recorded_graph_gives_the_same", "continuous"),
    ("tests/contracts/test_transform.py", "test_the_density_on_the_plane_integrates_to_one", "continuous|transformer"),
    ("tests/guides/test_amortized.py", "test_a_correlated_posterior_is_found_exactly", "low_rank"),
    ("tests/guides/test_flow.py", "test_a_correlated_posterior", "coupling|spline"),
    ("tests/guides/test_flow.py", "test_a_global_and_local_latents", "rows"),
    (
        "tests/guides/test_flow.py",
        "test_path_derivative_gradients_have_the_mean_of_plain_ones",
        "Hierarchy|spline",
    ),
    ("tests/infer/mcmc/test_driver.py", "test_same_seed_same_draws_and_global_generator_untouched", FLOW_KERNELS),
    (
        "tests/infer/mcmc/test_driver.py",
        "test_same_seed_same_draws_and_global_generator_untouched",
        "(mclmc|tempering|adjusted).*sequential",
    ),
    ("tests/infer/mcmc/test_improper.py", "test_a_flat_priors_posterior_is_the_likelihood", "numpyro"),
    ("tests/infer/mcmc/test_masked.py", "test_draws_of_masked_elements_are_of_the_prior", "numpyro"),
    ("tests/infer/mcmc/test_parallel_tempering.py", "test_a_model_in_every_driver", ""),
    ("tests/infer/mcmc/test_parallel_tempering.py", "test_cold_draws_have_exact_moments_whatever_is_within", "mclmc"),
    ("tests/infer/mcmc/test_pyro_adapter.py", "test_one_chain", f"{FLOW_KERNELS}|mclmc|tempering"),
    ("tests/infer/mcmc/test_targets.py", "test_the_neck_of_a_funnel", "HMC"),
    ("tests/infer/objectives/bounds/test_discrete.py", "test_enumerated_model_beside_a_sampled_latent", ""),
    ("tests/infer/objectives/bounds/test_sbn.py", "test_variance_orderings", ""),
    ("tests/infer/objectives/test_captured.py", "test_compiled_by_inductor", "DReG"),
    ("tests/infer/test_flow_prior.py", "test_automatic_guides_and_importance_weighted_bounds", "AutoNormal"),
    ("tests/infer/test_sample_posterior.py", "test_one_argument_swaps_the_inference", FLOW_KERNELS),
    ("tests/infer/train/test_captured_step.py", "test_compiled_block_of_a_bayesian_regression", ""),
    (
        "tests/infer/train/test_fit_compile.py",
        "test_a_step_that_is_not_finite_stops_before_the_weights_take_it",
        "block",
    ),
    ("tests/infer/train/test_fit_compile.py", "test_every_depth_trains_as_the_eager_run", "block"),
    ("tests/infer/train/test_fit_compile.py", "test_resumed_to_the_bit", "block"),
    ("tests/infer/train/test_precision.py", "test_captured_it_is_the_same", "inductor"),
    ("tests/infer/train/test_precision.py", "test_fit", "step"),
    ("tests/models/test_latent_ebm.py", "test_prior_learns_the_aggregate_posterior", ""),
)


def is_slow(file: str, test: str, case: str) -> bool:
    """Whether a case is left to ``make test-slow``.

    :param file: path of its file, from the repository's root.
    :param test: name of its function.
    :param case: what stands in brackets behind the name.
    """
    return any(file == f and test == t and (not p or re.search(p, case)) for f, t, p in SLOW_CASES)
