"""Running a model again over draws of its latents: names of each site's dimensions, its values and densities.

A model is run once as a reference, with its latents at the first draw, to learn its sites; then over all draws, in
chunks, by :func:`torch.vmap`.  Under ``vmap`` the model sees one draw at a time, so that it needs no batching rules
(indexing or reducing over "the first dimension" stays right); where ``vmap`` cannot follow it, draws are looped over.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_dgm.analysis.provenance import Origin, origins
from pyro_dgm.infer.objectives.evaluation.vmap_noise import own_noise
from pyro_dgm.programs.base_of import base_of
from pyro_dgm.programs.drawn_plates import DrawnPlates

__all__ = ["Layout", "Site", "map_draws", "read_layout", "run", "to_numpy"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """A sample site of a model: ``dims`` has one entry for each dimension of its value, the name of the plate that
    dimension belongs to, ``""`` for one that needs a name of its own, ``None`` for one of size 1 to be left out.

    ``num_batch`` of them, on the left, are batch dimensions; ``log_prob_dims`` names those of its log-density.

    Kinds: ``"latent"``, ``"observed"`` (data), ``"deterministic"``, ``"factor"``; ``"computed"`` for an observed site
    whose value the model computed from latents, which is what reparameterisations make; ``"restated"`` for one that
    says once more, by a point mass, what data another site has been given.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dims: tuple[str | None, ...]
    log_prob_dims: tuple[str | None, ...]
    plates: tuple[str, ...]
    value: Tensor
    drawn_shape: tuple[int, ...]  #: shape of a draw from the site, which given values may lack dimensions of
    origin: frozenset[str] | None  #: latents that the value was computed from, where that is known
    mask: Tensor | None  #: of a masked observed site: which elements of its log-density count
    dense: bool  #: whether its log-density is anything but zero


@dataclass
class Layout:
    """Sites of a model and the indices that its plates hold; ``random`` plates drew theirs when the model was run."""

    sites: dict[str, Site] = field(default_factory=dict)
    plates: dict[str, Tensor] = field(default_factory=dict)
    random: set[str] = field(default_factory=set)

    def of_kind(self, kind: str) -> list[Site]:
        """Sites of one kind, in the order in which the model visits them."""
        return [s for s in self.sites.values() if s.kind == kind]


class _Resample(Messenger):
    """Draw observed sites anew; deterministic sites, factors and the sites in ``keep`` stay what they are."""

    def __init__(self, keep: Collection[str]) -> None:
        super().__init__()
        self.keep = keep
        self.last: tuple[str, Any] = ("", None)  #: the site that is being drawn

    def _pyro_sample(self, msg: Any) -> None:
        self.last = (msg["name"], msg["fn"])
        if msg["is_observed"] and msg["name"] not in self.keep and _kind(msg) == "observed":
            msg["is_observed"] = False
            msg["infer"] = {**(msg["infer"] or {}), "was_observed": True}
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])


def _kind(msg: Mapping[str, Any]) -> str:
    infer = msg["infer"] or {}
    if infer.get("_deterministic"):
        return "deterministic"
    base = getattr(msg["fn"], "base_dist", msg["fn"])
    if isinstance(msg["fn"], pyro.distributions.Unit) or isinstance(base, pyro.distributions.Unit):
        return "factor"
    return "observed" if msg["is_observed"] or infer.get("was_observed") else "latent"


def run(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
    resample: bool = False,
    keep: Collection[str] = (),
) -> dict[str, Any]:
    """Run ``model`` with sites (and plates' indices) at ``values``; the trace's sample sites, by name.

    :param resample: draw observed sites from the model instead of keeping the data.
    :param keep: observed sites that are never drawn.
    :raises ValueError: if a site cannot be drawn.
    """
    handler = _Resample(keep)
    with contextlib.ExitStack() as stack:
        trace = stack.enter_context(poutine.trace())
        # A handler nearer to the model is asked first: data are let go before latents are conditioned.
        stack.enter_context(poutine.condition(data=dict(values)))
        if resample:
            stack.enter_context(handler)
        try:
            model(*args, **kwargs)
        except NotImplementedError as error:
            name, fn = handler.last
            if not resample:
                raise
            raise ValueError(
                f"site {name!r} ({type(fn).__name__}) cannot be drawn, as predictive and prior draws need: pass "
                f"posterior_predictive=False and prior=False ({str(error) or 'its distribution has no sample()'})"
            ) from error
    nodes = trace.trace.nodes
    sites = {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample" and not isinstance(node["fn"], _Subsample)
    }
    # Conditioned latents look observed.
    return {name: {**node, "kind": "latent" if name in values else _kind(node)} for name, node in sites.items()}


def log_prob(node: Mapping[str, Any]) -> Tensor:
    """Log-density of a site in nats, one for each element of its batch: masked, but not scaled by subsampling."""
    return scale_and_mask(node["fn"].log_prob(node["value"]), mask=node["mask"])


def read_layout(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], first: Mapping[str, Tensor]
) -> Layout:
    """Run ``model`` once with its latents at ``first`` and learn its sites."""
    layout = Layout()
    with torch.no_grad(), pyro.validation_enabled(False), poutine.trace() as plates, DrawnPlates() as drawing:
        sites = run(model, args, kwargs, first)
    layout.random.update(drawing.drawn)
    found = origins(model, args, kwargs, first)
    for name, node in plates.trace.nodes.items():
        if node["type"] == "sample" and isinstance(node["fn"], _Subsample):
            layout.plates[name] = torch.as_tensor(node["value"])
    for name, node in sites.items():
        layout.sites[name] = _site(name, node, None if found is None else found.get(name))
    return layout


def _site(name: str, node: Mapping[str, Any], origin: Origin | None) -> Site:
    value, fn, kind = torch.as_tensor(node["value"]), node["fn"], node["kind"]
    if kind == "observed":
        point = _is_point(fn, value)
        if origin.value if origin is not None else point:
            kind = "computed"
        elif point:
            kind = "restated"
    frames = {f.dim: f for f in node["cond_indep_stack"] if f.vectorized and f.size != -1}
    shape = tuple(value.shape)
    event_dim = _deterministic_event_dim(shape, frames.values()) if kind == "deterministic" else fn.event_dim
    num_batch = max(len(shape) - event_dim, 0)
    dims = [_dim(frames, i - num_batch, shape[i]) for i in range(num_batch)] + [""] * (len(shape) - num_batch)
    density = value.new_zeros(()) if kind in ("deterministic", "factor") else log_prob(node)
    batch = tuple(density.shape)
    mask = _mask(node, density.shape) if kind == "observed" else None
    if kind == "observed" and origin is not None and origin.mask:
        warnings.warn(
            f"the mask of site {name!r} depends on the latents {sorted(origin.mask)}, so its log_likelihood holds "
            "zeros where it is masked, which arviz.loo counts as data",
            UserWarning,
            stacklevel=2,
        )
        mask = None
    log_prob_dims = tuple(_dim(frames, i - len(batch), batch[i]) for i in range(len(batch)))
    plates = tuple(f.name for f in node["cond_indep_stack"])
    drawn_shape = tuple(fn.batch_shape) + tuple(fn.event_shape)
    return Site(
        name, kind, shape, tuple(dims), log_prob_dims, plates, value, drawn_shape,
        None if origin is None else origin.value, mask, bool((density != 0).any()),
    )  # fmt: skip


def _is_point(fn: Any, value: Tensor) -> bool:
    """Whether a site's law is a point mass at its own value."""
    fn = base_of(fn)
    if not isinstance(fn, pyro.distributions.Delta):
        return False
    point = fn.v
    fits = point.dim() <= value.dim() and all(
        a in (1, b) for a, b in zip(reversed(point.shape), reversed(value.shape), strict=False)
    )
    return fits and torch.equal(point.expand_as(value), value)


def _mask(node: Mapping[str, Any], shape: torch.Size) -> Tensor | None:
    """Which elements of a site's log-density count, or ``None`` where all do."""
    found, fn = [node["mask"]], node["fn"]
    while isinstance(fn, pyro.distributions.MaskedDistribution):
        found.append(fn._mask)
        fn = fn.base_dist
    mask = torch.ones(shape, dtype=torch.bool, device="cpu")
    for part in found:
        if part is not None:
            mask = mask & torch.as_tensor(part).cpu()
    return None if bool(mask.all()) else mask


def _dim(frames: Mapping[int, Any], position: int, size: int) -> str | None:
    frame = frames.get(position)
    if frame is not None and frame.size == size:
        return frame.name
    return None if size == 1 else ""


def _deterministic_event_dim(shape: tuple[int, ...], frames: Iterable[Any]) -> int:
    # pyro.deterministic calls the whole value an event unless it is told otherwise; its plates say what is batch.
    frames = list(frames)
    if frames:
        for event_dim in range(len(shape) - 1, -1, -1):
            places = [(f.dim - event_dim + len(shape), f.size) for f in frames]
            if all(0 <= i < len(shape) and shape[i] == size for i, size in places):
                return event_dim
    return len(shape)


def map_draws(
    fn: Callable[[dict[str, Tensor]], dict[str, Tensor]], values: Mapping[str, Tensor], num_draws: int, chunk_size: int
) -> dict[str, np.ndarray]:
    """Apply ``fn`` to each draw, ``chunk_size`` at a time, and bring what it gives to NumPy: ``(num_draws, ...)``.

    :param values: ``(num_draws, ...)`` tensors; ``fn`` gets the slices of one draw.
    """
    parts: list[dict[str, np.ndarray]] = []
    vectorised = True
    with torch.no_grad(), pyro.validation_enabled(False):
        for start in range(0, num_draws, chunk_size):
            size = min(chunk_size, num_draws - start)
            chunk = {k: v[start : start + size] for k, v in values.items()}
            if vectorised:
                try:
                    index = torch.arange(size, device="cpu")
                    out = torch.vmap(functools.partial(_of_one, fn), randomness="different")(index, chunk)
                except Exception as error:
                    # Whatever is wrong with the model itself comes again from the loop, where it is raised.
                    _LOGGER.info(
                        "the model cannot be vectorised over draws (%s: %s); looping", type(error).__name__, error
                    )
                    vectorised = False
            if not vectorised:
                rows = [fn({k: v[i] for k, v in chunk.items()}) for i in range(size)]
                out = {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
            parts.append({k: to_numpy(v) for k, v in out.items()})
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} if parts else {}


def _of_one(fn: Callable[[dict[str, Tensor]], dict[str, Tensor]], index: Tensor, chunk: dict[str, Tensor]) -> Any:
    with own_noise(index, poison=True):
        return fn(chunk)


def to_numpy(value: Any) -> np.ndarray:
    """A tensor of any device, dtype or gradient state as a NumPy array (half precisions as float32)."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
            value = value.float()
        return value.cpu().resolve_conj().resolve_neg().numpy()
    return np.asarray(value)
