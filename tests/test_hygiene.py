"""The leak fixture fails what it should, and only that: a run of pytest inside pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slow_cases import SLOW_CASES, is_slow

ROOT = Path(__file__).resolve().parent.parent

LEAKY = """
import random, warnings
import numpy as np, pyro, pytest, torch
import pyro.distributions as dist

seen = {}

def test_leak_param(): pyro.param("w", torch.ones(2))
def test_leak_dtype(): torch.set_default_dtype(torch.float64)
def test_leak_validation(): pyro.enable_validation(not pyro.settings.get("validate_infer"))
def test_leak_torch_validation(): torch.distributions.Distribution.set_default_validate_args(False)
def test_leak_setting(): pyro.settings.set(module_local_params=True)
def test_leak_grad(): torch.set_grad_enabled(False)
def test_leak_deterministic(): torch.use_deterministic_algorithms(True)
def test_leak_filters(): warnings.simplefilter("ignore")
def test_leak_handler(): pyro.poutine.trace().__enter__()
def test_leak_numpy(): np.seterr(all="raise")
def test_leak_rng_guard(rng_unchanged):
    with rng_unchanged():
        np.random.rand()

# each follows a leak above, and must find a clean process
def test_clean_state():
    assert torch.get_default_dtype() is torch.float32 and torch.is_grad_enabled()
    assert not pyro.get_param_store().keys() and not pyro.settings.get("module_local_params")
    assert torch.distributions.Distribution._validate_args and not pyro.poutine.runtime._PYRO_STACK

@pytest.mark.uses_param_store
def test_clean_by_mark(): pyro.param("w", torch.ones(2))
def test_clean_by_fixture(uses_param_store): pyro.param("w", torch.ones(2))
def test_clean_again(): assert not pyro.get_param_store().keys()

def test_clean_model():
    with warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pyro.sample("z", dist.Normal(0, 1))

@pytest.fixture(scope="module")
def wide(): return torch.rand(()).item()

@pytest.mark.parametrize("i", [0, 1])
def test_clean_seeded(i, wide):
    draws = (torch.rand(()).item(), np.random.rand(), random.random())
    assert seen.setdefault("draws", draws) == draws or i == 1
    assert i == 0 or seen["draws"] != draws      # another test, other numbers
    with open("draws.txt", "a") as f:
        print(wide, *draws, file=f)

def test_clean_rng_guard(rng_unchanged):
    with rng_unchanged():
        torch.rand(2, generator=torch.Generator().manual_seed(0))

@pytest.mark.slow
def test_slow(): raise AssertionError("deselected without --slow")

@pytest.mark.needs_data("no-such-set")
def test_needs_data(): raise AssertionError("skipped where the set is absent")
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYRO_DGM_DATA", str(pytester.path))
    pytester.makepyfile(test_leaky=LEAKY)
    return pytester


def test_leaks_are_errors_and_nothing_else_is(inner: pytest.Pytester) -> None:
    result = inner.runpytest_subprocess("-p", "tests.hygiene", "-p", "no:cacheprovider", "-rA")
    # Ten tests leak, which is found after their own call passed: a pass and an error each.  Eight are clean.  The
    # generator's guard fails in the test itself.
    result.assert_outcomes(passed=18, errors=10, failed=1, skipped=1, deselected=1)
    result.stdout.fnmatch_lines_random(
        [
            "*param store holds*'w'*",
            "*torch default dtype is torch.float64, was torch.float32*",
            "*pyro setting validate_infer is False, was True*",
            "*torch.distributions validation is False, was True*",
            "*pyro setting module_local_params is True, was False*",
            "*torch gradient mode is False, was True*",
            "*torch deterministic algorithms is True, was False*",
            "*the warning filters are changed*",
            "*handler stack holds*'TraceMessenger'*",
            "*numpy error handling is*",
            "*the call moved the global generator of numpy*",
            "*SKIPPED*needs real data: no folder*no-such-set*",
        ]
    )
    assert "ERROR test_leaky.py::test_clean" not in result.stdout.str()

    # Run without the tests before it, the seeded test draws the same numbers.
    inner.runpytest_subprocess("-p", "tests.hygiene", "-p", "no:cacheprovider", "-k", "test_clean_seeded")
    lines = (inner.path / "draws.txt").read_text().splitlines()
    assert len(lines) == 4 and lines[:2] == lines[2:] and lines[0] != lines[1]
    assert lines[0].split()[0] == lines[1].split()[0]  # the module's fixture drew once


def test_slow_cases_are_of_tests_that_are_there() -> None:
    for file, test, _ in SLOW_CASES:
        text = (ROOT / file).read_text()
        assert f"def {test}(" in text, (file, test)
    kernels = "tests/contracts/test_device.py", "test_kernels_on_a_model"
    assert is_slow(*kernels, "cpu-mclmc") and not is_slow(*kernels, "cpu-hmc")
