"""The pytest plugin that every test and doctest runs under.

* **Leaks.**  A test that leaves process-wide state changed - Pyro's parameter store or handler stack, a Pyro setting
  (the validation flags are among them), torch's default dtype or device, gradient mode, deterministic flag,
  distribution validation, the warning filters - fails, and the state is put back for the next one.
* **Random numbers.**  Each test starts from a seed made of its name, each wider fixture from one made of its own, and
  the state before is put back: no test depends on which ran before it.  Whether a call that takes a seed leaves the
  user's generators alone is checked where it is called, with the ``rng_unchanged`` fixture.
* **Marks.**  ``slow`` (left out without ``--slow`` or ``-m``; tests/slow_cases.py lists single cases), ``needs_data``,
  ``uses_param_store``.
* **Fixtures.**  ``data_dir``, ``rng_unchanged``, ``uses_param_store``.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK

from tests.slow_cases import is_slow

ROOT = Path(__file__).resolve().parent.parent
#: where a checkout's neighbour may hold the data, used when PYRO_DGM_DATA says nothing
NEIGHBOUR = ROOT.parent / "shared" / "data"


class _TorchRandom:
    """Torch's generator for Hypothesis, which then replays the same draws for the same example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_TORCH_RANDOM = _TorchRandom()  # Hypothesis keeps a weak reference only


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts a background job: Ctrl-C tests need it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYRO_DGM_DATA" not in os.environ and NEIGHBOUR.is_dir():
        os.environ["PYRO_DGM_DATA"] = str(NEIGHBOUR)
    hypothesis.register_random(_TORCH_RANDOM)
    hypothesis.settings.register_profile(
        "pyro_dgm", deadline=None, max_examples=20, derandomize=True, database=None, print_blob=False
    )
    hypothesis.settings.load_profile("pyro_dgm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    addresses = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addresses:  # another name in each process: pytest-xdist cannot share such tests out, and no log can be compared
        raise pytest.UsageError(f"the test's id holds an object's address: {addresses[0]}")
    for item in items:
        file, _, name = item.nodeid.partition("::")
        test, _, case = name.rpartition("::")[2].partition("[")
        if is_slow(file, test, case):
            item.add_marker(pytest.mark.slow)
    if config.getoption("--slow") or config.getoption("markexpr"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


# ------------------------------------------------------------------------------------------------------------- data


def _missing_data(*folders: str) -> str | None:
    root = os.environ.get("PYRO_DGM_DATA")
    if not root:
        return "needs real data: PYRO_DGM_DATA is not set"
    missing = [str(path) for path in (Path(root, folder) for folder in folders or (".",)) if not path.is_dir()]
    return f"needs real data: no folder {', '.join(missing)}" if missing else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("needs_data")
    if marker is not None:
        reason = _missing_data(*marker.args)
        if reason:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder PYRO_DGM_DATA names; the test is skipped where there is none."""
    reason = _missing_data()
    if reason:
        pytest.skip(reason)
    return Path(os.environ["PYRO_DGM_DATA"])


# --------------------------------------------------------------------------------------------------- random numbers


def _seed_everything(name: str) -> None:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _rng_state() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(legacy=False), "python": random.getstate()}


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same_state(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@contextmanager
def _own_random_numbers(name: str) -> Iterator[None]:
    before = _rng_state()
    _seed_everything(name)
    try:
        yield
    finally:
        torch.set_rng_state(before["torch"])
        np.random.set_state(before["numpy"])
        random.setstate(before["python"])


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
    """A fixture wider than one test draws the same numbers whichever test asks for it first."""
    if fixturedef.scope == "function":
        return (yield)
    parameter = repr(getattr(request, "param_index", ""))
    with _own_random_numbers(f"{fixturedef.baseid}::{fixturedef.argname}[{parameter}]"):
        return (yield)


@pytest.fixture
def rng_unchanged() -> Callable[[], AbstractContextManager[None]]:
    """``with rng_unchanged(): f(seed=0)`` fails when ``f`` moved torch's, NumPy's or Python's generator."""

    @contextmanager
    def check() -> Iterator[None]:
        before = _rng_state()
        yield
        after = _rng_state()
        moved = [name for name in before if not _same_state(before[name], after[name])]
        if moved:
            pytest.fail(f"the call moved the global generator of {', '.join(moved)}")

    return check


# ------------------------------------------------------------------------------------------------------------ leaks


def _third_party_modules() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules} - {"pyro_dgm", "tests"}


class _Globals:
    """A snapshot of the state that a library must leave as it found it."""

    def __init__(self) -> None:
        self.values = self.read()
        self.filters = warnings.filters[:]
        self.modules = _third_party_modules()

    @staticmethod
    def read() -> dict[str, Any]:
        return {
            "torch default dtype": torch.get_default_dtype(),
            "torch default device": torch.get_default_device(),
            "torch gradient mode": torch.is_grad_enabled(),
            "torch inference mode": torch.is_inference_mode_enabled(),
            "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "torch anomaly detection": torch.is_anomaly_enabled(),
            "torch number of threads": torch.get_num_threads(),
            "torch float32 matmul precision": torch.get_float32_matmul_precision(),
            "torch.distributions validation": torch.distributions.Distribution._validate_args,
            "numpy error handling": tuple(sorted(np.geterr().items())),
            **{f"pyro setting {name}": value for name, value in pyro.settings.get().items()},
        }

    def leaks(self, param_store: bool) -> list[str]:
        """What differs now, in words."""
        now = self.read()
        found = [f"{k} is {now[k]!r}, was {v!r}" for k, v in self.values.items() if now[k] != v]
        names = list(pyro.get_param_store().keys())
        if names and not param_store:
            found.append(f"pyro's param store holds {names[:5]} ({len(names)} in all)")
        if _PYRO_STACK:
            found.append(f"pyro's handler stack holds {[type(h).__name__ for h in _PYRO_STACK]}")
        # Many libraries add filters when first imported, which is their affair: a test in which one was is let off.
        if warnings.filters != self.filters and _third_party_modules() <= self.modules:
            found.append("the warning filters are changed")
        return found

    def restore(self) -> None:
        pyro.clear_param_store()
        _PYRO_STACK.clear()
        values = self.values
        torch.set_default_dtype(values["torch default dtype"])
        if torch.get_default_device() != values["torch default device"]:
            torch.set_default_device(values["torch default device"])
        torch.set_grad_enabled(values["torch gradient mode"])
        torch.use_deterministic_algorithms(values["torch deterministic algorithms"])
        torch.set_anomaly_enabled(values["torch anomaly detection"])
        torch.set_num_threads(values["torch number of threads"])
        torch.set_float32_matmul_precision(values["torch float32 matmul precision"])
        np.seterr(**dict(values["numpy error handling"]))
        prefix = "pyro setting "
        pyro.settings.set(**{k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)})
        torch.distributions.Distribution.set_default_validate_args(values["torch.distributions validation"])


@pytest.fixture(autouse=True)
def _hygiene(request: pytest.FixtureRequest) -> Iterator[None]:
    """Autouse, so set up before and checked after all other fixtures of the test."""
    before = _Globals()
    with _own_random_numbers(request.node.nodeid):
        yield
    allowed = request.node.get_closest_marker("uses_param_store") or "uses_param_store" in request.fixturenames
    leaks = before.leaks(param_store=bool(allowed))
    before.restore()
    if leaks:
        pytest.fail("the test leaves global state changed: " + "; ".join(leaks), pytrace=False)


@pytest.fixture
def uses_param_store() -> Any:
    """Pyro's parameter store, for tests whose user code calls ``pyro.param``; cleared afterwards."""
    return pyro.get_param_store()
