"""Pyro's and zuko's transforms under the contract of this library's, and where they are known to fail.

``FAILURES`` is the one source of the strict expected failures in ``test_foreign_transforms.py`` and of the table in
``docs/models/flow.md``, which this script writes::

    python -m tests.contracts.foreign_cases
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyro.distributions import transforms as p

from pyro_dgm.distributions.transforms import Bijection, Wrapped
from tests.contracts.transform_cases import Case

PAGE = Path(__file__).parents[2] / "docs/models/flow.md"
BEGIN, END = "% The table is written by tests/contracts/foreign_cases.py.", "% End of the table."


@dataclass(frozen=True)
class Foreign:
    """A transform of another package.

    :param make: gives the bijection from a number of elements; takes ``context_dim`` as a keyword where
        ``conditional``.
    :param conditional: whether it takes a context.
    :param inverse: tolerance of the inverse in float64.
    :param plane: whether its density on the plane is looked at, and in which direction it has one.
    """

    make: Callable[..., Bijection]
    conditional: bool = False
    inverse: float = 1e-8
    plane: str = "inverse"

    def case(self) -> Case:
        return Case(partial(self.make, 3), conditional=self.conditional, inverse=self.inverse)

    def on_the_plane(self) -> Bijection:
        made = self.make(2)
        return made if self.plane == "inverse" else made.inv


def _pyro(make: Callable[[int], Any]) -> Callable[..., Bijection]:
    return lambda dim: Wrapped(make(dim), dim)


def _conditional(make: Callable[[int, int], Any], plain: Callable[[int], Any]) -> Callable[..., Bijection]:
    """A conditional transform with a context, and the plain one of its name without."""
    return lambda dim, context_dim=0: (
        Wrapped(make(dim, context_dim), dim, context_dim) if context_dim else Wrapped(plain(dim), dim)
    )


def _zuko(name: str, **options: Any) -> Callable[..., Bijection]:
    def make(dim: int, context_dim: int = 0) -> Bijection:
        from pyro_dgm.interop.zuko import ZukoBijection, import_zuko

        flow = getattr(import_zuko().flows, name)(dim, context=context_dim, **options)
        return ZukoBijection(flow, context_dim)

    return make


def _batchnorm(dim: int) -> Any:
    made = p.batchnorm(dim)
    made.eval()
    return made


H = [8]
PYRO: dict[str, Foreign] = {
    "affine_autoregressive": Foreign(
        _conditional(
            lambda d, c: p.conditional_affine_autoregressive(d, c, hidden_dims=H),
            lambda d: p.affine_autoregressive(d, hidden_dims=H),
        ),
        conditional=True,
    ),
    "affine_coupling": Foreign(
        _conditional(
            lambda d, c: p.conditional_affine_coupling(d, c, hidden_dims=H),
            lambda d: p.affine_coupling(d, hidden_dims=H),
        ),
        conditional=True,
    ),
    "batchnorm": Foreign(_pyro(_batchnorm)),
    "block_autoregressive": Foreign(_pyro(p.block_autoregressive), plane="forward"),
    "householder": Foreign(
        _conditional(lambda d, c: p.conditional_householder(d, c, hidden_dims=H), p.householder), conditional=True
    ),
    "matrix_exponential": Foreign(
        _conditional(
            lambda d, c: p.conditional_matrix_exponential(d, c, hidden_dims=H, iterations=16),
            lambda d: p.matrix_exponential(d, iterations=16),
        ),
        conditional=True,
    ),
    "neural_autoregressive": Foreign(
        _conditional(
            lambda d, c: p.conditional_neural_autoregressive(d, c, hidden_dims=H),
            lambda d: p.neural_autoregressive(d, hidden_dims=H),
        ),
        conditional=True,
        plane="forward",
    ),
    "planar": Foreign(
        _conditional(lambda d, c: p.conditional_planar(d, c, hidden_dims=H), p.planar),
        conditional=True,
        plane="forward",
    ),
    "polynomial": Foreign(_pyro(lambda d: p.polynomial(d, hidden_dims=H)), plane="forward"),
    "radial": Foreign(
        _conditional(lambda d, c: p.conditional_radial(d, c, hidden_dims=H), p.radial),
        conditional=True,
        plane="forward",
    ),
    "spline": Foreign(
        _conditional(
            lambda d, c: p.conditional_spline(d, c, hidden_dims=H, count_bins=4), lambda d: p.spline(d, count_bins=4)
        ),
        conditional=True,
    ),
    "spline-quadratic": Foreign(_pyro(lambda d: p.spline(d, count_bins=4, order="quadratic"))),
    "spline_autoregressive": Foreign(
        _conditional(
            lambda d, c: p.conditional_spline_autoregressive(d, c, hidden_dims=H, count_bins=4),
            lambda d: p.spline_autoregressive(d, hidden_dims=H, count_bins=4),
        ),
        conditional=True,
    ),
    "spline_autoregressive-quadratic": Foreign(
        _pyro(lambda d: p.spline_autoregressive(d, hidden_dims=H, count_bins=4, order="quadratic"))
    ),
    "spline_coupling": Foreign(_pyro(lambda d: p.spline_coupling(d, hidden_dims=H, count_bins=4))),
    "sylvester": Foreign(_pyro(lambda d: p.sylvester(d, count_transforms=2)), plane="forward"),
}
W = {"transforms": 1, "hidden_features": (8,)}
ZUKO: dict[str, Foreign] = {
    "MAF": Foreign(_zuko("MAF", **W), conditional=True),
    "NSF": Foreign(_zuko("NSF", bins=4, **W), conditional=True),
    "NICE": Foreign(_zuko("NICE", **{**W, "transforms": 2}), conditional=True),
    "RealNVP": Foreign(_zuko("RealNVP", **{**W, "transforms": 2}), conditional=True),
    "NAF": Foreign(_zuko("NAF", network={"hidden_features": (8,)}, **W), conditional=True, inverse=1e-6),
    "SOSPF": Foreign(_zuko("SOSPF", degree=2, polynomials=2, **W), conditional=True, inverse=1e-6),
    "BPF": Foreign(_zuko("BPF", degree=4, **W), conditional=True, inverse=1e-6),
    "GF": Foreign(_zuko("GF", components=3, **W), conditional=True, inverse=1e-6),
}
FOREIGN: dict[str, Foreign] = {
    **{f"pyro {name}": case for name, case in PYRO.items()},
    **{f"zuko {name}": case for name, case in ZUKO.items()},
}

#: the contract's checks, by the name of the function in ``test_transform.py``, and how the page calls them
CLAUSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "inverse": ("test_inverse", ()),
    "log-determinant": ("test_log_determinant_is_that_of_the_jacobian", ()),
    "distributions": ("test_what_torch_asks_of_a_transform", ()),
    "gradients, forward": ("test_gradients_reach_every_parameter", ("forward",)),
    "gradients, inverse": ("test_gradients_reach_every_parameter", ("inverse",)),
    "gradients of the inverse": ("test_the_gradient_of_the_inverse_is_that_of_differences", ()),
    "optimiser step": ("test_log_probabilities_follow_an_optimiser_step", ()),
    "context": ("test_context_broadcasts_over_the_batch", ()),
    "shape errors": ("test_bad_shapes_are_refused", ()),
    "float32 extremes": ("test_extremes_in_single_precision_are_finite", ()),
    "copies": ("test_copies_and_saved_weights", ()),
    "vmap": ("test_vmap", ()),
    "composition": ("test_composed_with_itself", ()),
}

#: known failures: transforms, clauses that fail for one reason, and the reason
KNOWN: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
    (
        ("pyro affine_autoregressive",),
        (
            "inverse",
            "distributions",
            "gradients of the inverse",
            "vmap",
        ),
        "the inverse mixes float32 with the dtype of the parameters",
    ),
    (
        (
            "pyro affine_autoregressive",
            "pyro affine_coupling",
            "pyro block_autoregressive",
            "pyro neural_autoregressive",
            "pyro planar",
            "pyro polynomial",
            "pyro radial",
            "pyro spline",
            "pyro spline-quadratic",
            "pyro spline_autoregressive",
            "pyro spline_coupling",
            "pyro sylvester",
        ),
        ("optimiser step",),
        "a transform that was called cannot be deep-copied: it keeps tensors of the graph",
    ),
    (
        (
            "pyro block_autoregressive",
            "pyro sylvester",
        ),
        (
            "inverse",
            "distributions",
            "gradients, inverse",
            "gradients of the inverse",
            "float32 extremes",
            "vmap",
        ),
        "the inverse exists only for values in the cache",
    ),
    (
        ("pyro matrix_exponential",),
        (
            "inverse",
            "vmap",
        ),
        "the log-determinant lacks the batch shape",
    ),
    (("pyro matrix_exponential",), ("log-determinant",), "the log-determinant lacks the batch shape"),
    (
        (
            "pyro matrix_exponential",
            "zuko GF",
        ),
        ("context",),
        "values differ by more than the tolerance",
    ),
    (
        ("pyro neural_autoregressive",),
        (
            "inverse",
            "distributions",
            "gradients, inverse",
            "gradients of the inverse",
            "context",
            "float32 extremes",
            "vmap",
        ),
        "there is no inverse",
    ),
    (
        (
            "pyro planar",
            "pyro radial",
        ),
        (
            "inverse",
            "distributions",
            "gradients, inverse",
            "gradients of the inverse",
            "context",
            "float32 extremes",
            "vmap",
        ),
        "the inverse exists only for values in the cache",
    ),
    (
        ("pyro polynomial",),
        (
            "inverse",
            "distributions",
            "gradients, inverse",
            "gradients of the inverse",
            "vmap",
        ),
        "the inverse exists only for values in the cache",
    ),
    (
        (
            "pyro polynomial",
            "pyro sylvester",
        ),
        ("log-determinant",),
        "with random parameters the log-determinant differs from the Jacobian's",
    ),
    (
        (
            "pyro polynomial",
            "zuko GF",
        ),
        ("float32 extremes",),
        "values or gradients are not finite",
    ),
    (
        (
            "pyro spline",
            "pyro spline-quadratic",
            "pyro spline_autoregressive",
            "pyro spline_coupling",
        ),
        ("vmap",),
        "selects by a mask, which has no fixed shape under vmap",
    ),
    (
        ("pyro spline_autoregressive-quadratic",),
        (
            "inverse",
            "log-determinant",
            "distributions",
            "gradients, forward",
            "gradients, inverse",
            "gradients of the inverse",
            "optimiser step",
            "float32 extremes",
            "copies",
            "vmap",
            "composition",
        ),
        "the quadratic spline raises an error",
    ),
    (
        ("zuko NAF",),
        (
            "inverse",
            "distributions",
            "context",
        ),
        "values differ by more than the tolerance",
    ),
    (
        (
            "zuko NAF",
            "zuko SOSPF",
            "zuko BPF",
            "zuko GF",
        ),
        ("vmap",),
        "its autograd function does not support vmap",
    ),
]

FAILURES: dict[tuple[str, str], str] = {
    (name, clause): reason for names, clauses, reason in KNOWN for name in names for clause in clauses
}


def table() -> str:
    """Which transforms fail which clauses, and why, in Markdown."""
    rows = ["| transform | fails | why |", "| --- | --- | --- |"]
    for name in FOREIGN:
        reasons = dict.fromkeys(FAILURES[key] for key in FAILURES if key[0] == name)
        for reason in reasons:
            clauses = [c for c in CLAUSES if FAILURES.get((name, c)) == reason]
            rows.append(f"| {_called(name)} | {', '.join(clauses)} | {reason} |")
    whole = [_called(name) for name in FOREIGN if not any(key[0] == name for key in FAILURES)]
    rows.append(f"| {', '.join(whole)} | nothing | |")
    return "\n".join(rows)


def _called(name: str) -> str:
    package, transform = name.split(" ")
    transform, _, variant = transform.partition("-")
    return f"{package} `{transform}`" + (f" ({variant})" if variant else "")


def on_the_page(text: str) -> str:
    """The table that a page has now."""
    return text.split(BEGIN)[1].split(END)[0].strip()


if __name__ == "__main__":
    page = PAGE.read_text()
    PAGE.write_text(page.replace(on_the_page(page), table()))
