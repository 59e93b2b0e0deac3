"""Whether JAX is there, and its precision."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["precision_of", "require"]


def require(who: str) -> None:
    """:raises ImportError: if the extra ``numpyro`` is not installed."""
    try:
        import jax  # noqa: F401
        import numpyro  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{who} needs JAX and NumPyro: pip install 'pyro-dgm[numpyro]'") from error


@contextmanager
def precision_of(x64: bool) -> Iterator[None]:
    """JAX in 64 or 32 bits inside, in this thread; nothing of the process changes."""
    import jax

    context: Callable[..., Any]
    if hasattr(jax, "enable_x64"):
        context = jax.enable_x64
    else:  # before JAX 0.8
        context = importlib.import_module("jax.experimental").enable_x64
    with context(x64):
        yield
