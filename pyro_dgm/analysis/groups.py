"""The groups of ArviZ's container, filled one after another from draws and their model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_dgm.analysis import arviz_adapter
from pyro_dgm.analysis.replay import Layout, Site, log_prob, map_draws, read_layout, run, to_numpy
from pyro_dgm.infer.posterior import Posterior
from pyro_dgm.ops.random_state import forked_rng
from pyro_dgm.programs.parameters import evaluation_mode

__all__ = ["Conversion"]


class Conversion:
    """One conversion: the groups' arrays and dimensions, filled one after another."""

    def __init__(
        self,
        posterior: Posterior,
        dims: Mapping[str, Sequence[str]],
        coords: Mapping[str, Any],
        chunk_size: int,
        own: Posterior | None = None,
    ) -> None:
        self.posterior, self.user_dims, self.user_coords = posterior, dims, coords
        self.chunk_size = chunk_size
        self.own = own  #: the draws with the data that they were drawn given, where the model gets other data now
        self.model, self.args, self.kwargs = posterior.model, posterior.args, posterior.kwargs
        self.flat = {k: v.detach() for k, v in posterior.flat().items()}
        self.device = next(iter(self.flat.values())).device
        self.num_draws = posterior.num_chains * posterior.num_draws
        self.layout = Layout()
        self.undrawn: set[str] = set()  # latents of the model without draws
        self.predicted: list[Site] = []  # those of them that are to be predicted
        self.pinned: dict[str, Tensor] = {}
        self.groups: dict[str, dict[str, np.ndarray]] = {}
        self.dims: dict[str, dict[str, list[str]]] = {}
        self.labels: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
        self.known: set[str] = set()  # names that dims may be given for

    def build(self, log_likelihood: bool, log_prior: bool, posterior_predictive: bool, prior: bool | int) -> Any:
        """Fill the groups that are asked for and hand them to ArviZ."""
        with evaluation_mode(self.model):
            if self.model is not None:
                with forked_rng(self.device):
                    self._read_model(log_likelihood or log_prior or posterior_predictive)
            self._add_draws()
            if self.model is not None:
                with forked_rng(self.device):
                    self._add_replayed(log_likelihood, log_prior)
                self._add_data()
                if posterior_predictive:
                    self._add_predictive()
                if prior:
                    self._add_prior(500 if prior is True else int(prior))
        for name, value in self.posterior.sample_stats.items():
            self._put("sample_stats", name, to_numpy(value), [""] * (value.ndim - 2))
        attrs = {
            "inference_library": "pyro-ppl",
            "inference_library_version": pyro.__version__,
            "method": self.posterior.method,
            **self.posterior.attrs,
        }
        used = {d for group in self.dims.values() for names in group.values() for d in names}
        self._refuse_unknown(used)
        indices = {self._label(k): to_numpy(v) for k, v in self.layout.plates.items()}
        coords = {k: v for k, v in {**indices, **self.user_coords}.items() if k in used}
        return arviz_adapter.build(self.groups, self.dims, coords, attrs, self.labels)

    def _refuse_unknown(self, used: set[str]) -> None:
        known = {*self.known, *self.layout.sites, *self.flat}
        unknown = [name for name in self.user_dims if name not in known]
        if unknown:
            raise ValueError(f"dims: there is no site {unknown}; there are {sorted(known)}")
        masked = {dim for group in self.labels.values() for dim in group}
        unknown = [dim for dim in self.user_coords if dim not in used | masked]
        if unknown:
            raise ValueError(f"coords: there is no dimension {unknown}; there are {sorted(used - {''})}")

    # Reading the model

    def _read_model(self, depends_on_draws: bool) -> None:
        assert self.model is not None
        try:
            inspect.signature(self.model).bind(*self.args, **self.kwargs)
        except TypeError as error:
            raise ValueError(
                f"data: the model's arguments are not known ({error}); give them as to_arviz(result, data=...)"
            ) from error
        first = {k: v[0] for k, v in self.flat.items()}
        self.layout = read_layout(self.model, self.args, self.kwargs, first)
        self.pinned = {k: self.layout.plates[k] for k in self.layout.random}
        latents = self.layout.of_kind("latent")
        self.undrawn = {s.name for s in latents if s.name not in self.flat}
        data = self._sites_of_own_data(first) if self.undrawn else set()
        self.predicted = [s for s in latents if s.name in self.undrawn & data]
        without = [s.name for s in latents if s.name in self.undrawn - data]
        if without and depends_on_draws:
            raise ValueError(
                f"result has no draws of the model's latent sites {without} (enumerated or left out?), on which the "
                "densities depend: pass log_likelihood=False, log_prior=False, posterior_predictive=False. (A site is "
                "predicted where the data that the result keeps have it observed, and data= or args= do not.)"
            )
        for site in latents:
            drawn = sorted(set(site.plates) & self.layout.random)
            if drawn and site.name in self.flat:
                raise ValueError(
                    f"latent site {site.name!r} lies in plate {drawn[0]!r}, which draws its subsample at random: which "
                    "rows the draws belong to is unknown. Give that plate subsample=, or draw for the full data"
                )
            if site.name in self.flat and site.shape != site.drawn_shape:
                raise ValueError(
                    f"result: draws of {site.name!r} have shape {site.shape}, the model's site has {site.drawn_shape}"
                )

    def _sites_of_own_data(self, first: Mapping[str, Tensor]) -> set[str]:
        """Sites that were observed when the draws were made."""
        if self.own is None or self.own.model is None or (self.own.args, self.own.kwargs) == ((), {}):
            return set()
        with torch.no_grad(), pyro.validation_enabled(False):
            sites = run(self.own.model, self.own.args, self.own.kwargs, first)
        return {name for name, node in sites.items() if node["kind"] == "observed"}

    def _add_draws(self) -> None:
        for name, value in self.flat.items():
            site = self.layout.sites.get(name)
            self._put_draws("posterior", name, to_numpy(value), site.dims if site else [""] * (value.ndim - 1))

    def _add_replayed(self, log_likelihood: bool, log_prior: bool) -> None:
        wanted: dict[str, tuple[str, Site]] = {}
        for site in self.layout.sites.values():
            groups = {
                "observed": [("log_likelihood", log_likelihood)],
                "latent": [("log_prior", log_prior and site.name not in self.undrawn)],
                "deterministic": [("posterior", self._follows(site))],
                # What is not masked out of its density is no likelihood of data: the Jacobian of a transform, say.
                "computed": [("posterior", self._follows(site)), ("log_prior", log_prior and site.dense)],
            }.get(site.kind, [])
            wanted.update({f"{group}/{site.name}": (group, site) for group, ask in groups if ask})
        if not wanted:
            return

        def evaluate(values: dict[str, Tensor]) -> dict[str, Tensor]:
            nodes = run(self.model, self.args, self.kwargs, {**values, **self.pinned})  # type: ignore[arg-type]
            return {
                k: nodes[s.name]["value"] if g == "posterior" else log_prob(nodes[s.name])
                for k, (g, s) in wanted.items()
            }

        for key, array in map_draws(evaluate, self.flat, self.num_draws, self.chunk_size).items():
            group, site = wanted[key]
            if group == "log_likelihood" and site.mask is not None:
                self._put_unmasked(site, array)
                continue
            self._put_draws(group, site.name, array, site.dims if group == "posterior" else site.log_prob_dims)

    def _follows(self, site: Site) -> bool:
        """Whether a site's value follows from the latents that have draws."""
        return not self.undrawn if site.origin is None else not site.origin & self.undrawn

    def _add_data(self) -> None:
        observed = [*self.layout.of_kind("observed"), *self.layout.of_kind("restated")]
        for site in observed:
            self._put("observed_data", site.name, to_numpy(site.value), site.dims)
        names = inspect.signature(self.model).bind(*self.args, **self.kwargs).arguments  # type: ignore[arg-type]
        for name, value in names.items():
            # *args and **kwargs of a model arrive as a tuple and a mapping.
            items = (
                {f"{name}_{i}": v for i, v in enumerate(value)}
                if isinstance(value, tuple)
                else value
                if isinstance(value, Mapping)
                else {name: value}
            )
            for key, item in items.items():
                if isinstance(item, (Tensor, np.ndarray)) and not any(_same(item, s.value) for s in observed):
                    array = to_numpy(item)
                    self._put("constant_data", key, array, [""] * array.ndim)

    def _add_predictive(self) -> None:
        sites, keep = [*self.layout.of_kind("observed"), *self.predicted], self._kept()

        def draw(values: dict[str, Tensor]) -> dict[str, Tensor]:
            nodes = run(self.model, self.args, self.kwargs, {**values, **self.pinned}, True, keep)  # type: ignore[arg-type]
            return {s.name: nodes[s.name]["value"] for s in sites}

        for name, array in map_draws(draw, self.flat, self.num_draws, self.chunk_size).items():
            self._put_draws("posterior_predictive", name, array, self._drawn_dims(self.layout.sites[name], array))

    def _add_prior(self, num_draws: int) -> None:
        sites, keep = [s for s in self.layout.sites.values() if s.kind not in ("factor", "restated")], self._kept()
        predicted = [s.name for s in self.predicted]

        def draw(values: dict[str, Tensor]) -> dict[str, Tensor]:
            nodes = run(self.model, self.args, self.kwargs, self.pinned, True, keep)  # type: ignore[arg-type]
            return {s.name: nodes[s.name]["value"] for s in sites}

        for name, array in map_draws(draw, {}, num_draws, self.chunk_size).items():
            site = self.layout.sites[name]
            group = "prior_predictive" if site.kind == "observed" or name in predicted else "prior"
            self._put(group, name, *self._squeeze(array[None], 2, self._drawn_dims(site, array)))

    def _kept(self) -> set[str]:
        return {s.name for s in self.layout.sites.values() if s.kind in ("computed", "restated")}

    # Naming

    def _drawn_dims(self, site: Site, array: np.ndarray) -> Sequence[str | None]:
        # Data may be given without a plate's dimension and broadcast; draws always have it.
        if array.shape[1:] == site.shape:
            return site.dims
        return [*site.log_prob_dims, *[""] * (array.ndim - 1 - len(site.log_prob_dims))]

    def _put_draws(self, group: str, name: str, array: np.ndarray, dims: Sequence[str | None]) -> None:
        chains = (self.posterior.num_chains, self.posterior.num_draws)
        self._put(group, name, *self._squeeze(array.reshape(chains + array.shape[1:]), 2, dims))

    def _put_unmasked(self, site: Site, array: np.ndarray) -> None:
        """The log-likelihood of the elements that are not masked, in one dimension: the others are no data.

        That dimension has a coordinate for each dimension that it is made of, which says where an element was.
        """
        assert site.mask is not None
        mask = site.mask.numpy()
        if not mask.any():
            return
        variable = site.name.replace("/", ".")
        dim = f"{variable}_unmasked"
        kept = [d for d in site.log_prob_dims if d is not None]
        at = [i for i, d in zip(np.nonzero(mask), site.log_prob_dims, strict=True) if d is not None]
        names = self._names(site.name, "log_likelihood", kept)
        for name, plate, position in zip(names, kept, at, strict=True):
            labels = self.user_coords.get(name, to_numpy(self.layout.plates[plate]) if plate else None)
            values = position if labels is None else np.asarray(labels)[position]
            coordinate = name if name.startswith(f"{variable}_") else f"{variable}_{name}"
            self.labels.setdefault("log_likelihood", {})[coordinate] = (dim, values)
        shape = (self.posterior.num_chains, self.posterior.num_draws, -1)
        self.groups.setdefault("log_likelihood", {})[variable] = array[:, mask].reshape(shape)
        self.dims.setdefault("log_likelihood", {})[variable] = [dim]

    @staticmethod
    def _squeeze(array: np.ndarray, lead: int, dims: Sequence[str | None]) -> tuple[np.ndarray, list[str]]:
        gone = tuple(lead + i for i, d in enumerate(dims) if d is None)
        return np.squeeze(array, gone), [d for d in dims if d is not None]

    def _put(self, group: str, name: str, array: np.ndarray, dims: Sequence[str | None]) -> None:
        if group == "observed_data":
            array, dims = self._squeeze(array, 0, dims)
        variable = name.replace("/", ".")
        self.known.add(name)
        self.groups.setdefault(group, {})[variable] = array
        self.dims.setdefault(group, {})[variable] = self._names(name, group, dims)

    def _names(self, name: str, group: str, dims: Sequence[str | None]) -> list[str]:
        variable = name.replace("/", ".")
        names: list[str] = []
        for dim in dims:
            names.append(
                self._label(dim)
                if dim
                else f"{variable}_dim_{sum(1 for n in names if n.startswith(variable + '_dim_'))}"
            )
        own = list(self.user_dims.get(name, ()))
        return self._own_names(name, group, names, own) if own else names

    def _own_names(self, name: str, group: str, names: list[str], own: list[str]) -> list[str]:
        site = self.layout.sites.get(name)
        full = len([d for d in site.dims if d is not None]) if site else len(names)
        if len(own) > full:
            raise ValueError(f"dims[{name!r}] names {len(own)} dimensions {own}, the site has {full}")
        # They name a site's last dimensions; a density has only the first of these.
        start = full - len(own)
        return [n if i < start else own[i - start] for i, n in enumerate(names)]

    def _label(self, plate: str) -> str:
        plate = plate.replace("/", ".")
        variables = {s.replace("/", ".") for s in (*self.layout.sites, *self.flat)} | {"chain", "draw"}
        return f"{plate}_plate" if plate in variables else plate


def _same(argument: Any, observed: Tensor) -> bool:
    if argument is observed:
        return True
    tensor = torch.as_tensor(argument)
    same_kind = tensor.dtype == observed.dtype and tensor.device == observed.device
    return tensor.shape == observed.shape and same_kind and bool(torch.equal(tensor, observed))
