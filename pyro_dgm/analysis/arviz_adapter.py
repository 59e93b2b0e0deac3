"""The one file that knows which ArviZ is installed.

ArviZ 0.23 (the last for Python 3.11) keeps its groups in an ``InferenceData``, ArviZ >= 1.0 (Python >= 3.12) in an
:class:`xarray.DataTree`; signatures differ too.  Everything else in the library goes through the functions here.
NumPy is all that is imported with the file, so that it loads, and is tested, without torch or Pyro.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "GROUPS",
    "build",
    "ess",
    "from_netcdf",
    "get_group",
    "group_names",
    "is_data_tree",
    "loo",
    "plot_rank",
    "plot_trace",
    "rhat",
    "summary",
    "to_netcdf",
]

#: groups that :func:`build` takes, in the order in which they are kept
GROUPS = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)
#: groups without the dimensions (chain, draw)
DATA_GROUPS = ("observed_data", "constant_data")
_SAMPLE_DIMS = ("chain", "draw")


def _arviz() -> Any:
    with warnings.catch_warnings():
        # 0.23 warns of its own successor at import, to users who can do nothing about it on Python 3.11.
        warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")
        import arviz
    return arviz


def is_data_tree() -> bool:
    """Whether the installed ArviZ gives :class:`xarray.DataTree` (>= 1.0) rather than ``InferenceData``."""
    return int(_arviz().__version__.split(".")[0]) >= 1


def build(
    groups: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    labels: Mapping[str, Mapping[str, tuple[str, Any]]] | None = None,
) -> Any:
    """Make ArviZ's container of arrays, their dimensions and coordinates.

    :param groups: group name to variable name to array; arrays are ``(chain, draw, *rest)``, in the data groups
        ``rest`` alone.  Groups without variables are left out.
    :param dims: group name to variable name to the names of the dimensions in ``rest``, all of them.  Where a
        variable is not named its dimensions are ``<variable>_dim_0``, ``<variable>_dim_1``, ...
    :param coords: dimension name to labels; dimensions not named are labelled 0, 1, ...
    :param attrs: attributes of the whole and of the group ``posterior``; what netCDF cannot hold is written as JSON.
    :param labels: group name to coordinate name to a dimension of that group and further labels along it.
    :returns: ``arviz.InferenceData`` (ArviZ 0.23) or :class:`xarray.DataTree` (ArviZ >= 1.0).
    :raises ValueError: for a group that is not one of :data:`GROUPS`, a variable without the dimensions that it must
        have, or coordinates of the wrong length.

    Example::

        >>> import numpy as np
        >>> from pyro_dgm.analysis import arviz_adapter
        >>> idata = arviz_adapter.build({"posterior": {"z": np.zeros((2, 10, 3))}}, {"posterior": {"z": ["data"]}})
        >>> dict(arviz_adapter.get_group(idata, "posterior").sizes)
        {'chain': 2, 'draw': 10, 'data': 3}
    """
    dims, coords, clean = dims or {}, dict(coords or {}), clean_attrs(attrs or {})
    unknown = [g for g in groups if g not in GROUPS]
    if unknown:
        raise ValueError(f"groups must be among {GROUPS}, got {unknown}")
    arrays = {g: {k: np.asarray(v) for k, v in groups[g].items()} for g in GROUPS if groups.get(g)}
    datasets = {}
    for group, variables in arrays.items():
        names = {k: _names(group, k, v, dims.get(group, {}).get(k)) for k, v in variables.items()}
        sizes = _sizes(group, variables, names)
        wrong = {d: (len(coords[d]), n) for d, n in sizes.items() if d in coords and len(coords[d]) != n}
        if wrong:
            raise ValueError(f"coords: {group} has other sizes than the labels given, (labels, size): {wrong}")
        used = {d: c for d, c in coords.items() if d in sizes}
        datasets[group] = _dataset(group, variables, names, used).assign_coords((labels or {}).get(group, {}))
    if "posterior" in datasets:
        datasets["posterior"].attrs.update(clean)
    az = _arviz()
    if is_data_tree():
        import xarray

        tree = xarray.DataTree.from_dict(datasets)
        tree.attrs.update(clean)
        return tree
    return az.InferenceData(attrs=clean, **datasets)


def _names(group: str, name: str, array: np.ndarray, given: Sequence[str] | None) -> list[str]:
    lead = 0 if group in DATA_GROUPS else 2
    if array.ndim < lead:
        raise ValueError(f"groups: {group}/{name} must be (chain, draw, ...), got shape {array.shape}")
    if given is None:
        return [f"{name}_dim_{i}" for i in range(array.ndim - lead)]
    if len(given) != array.ndim - lead:
        raise ValueError(f"dims: {group}/{name} has {array.ndim - lead} dimensions to name, got {list(given)}")
    return list(given)


def _sizes(group: str, variables: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    lead = () if group in DATA_GROUPS else _SAMPLE_DIMS
    for variable, array in variables.items():
        for dim, size in zip((*lead, *names[variable]), array.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(f"dims: {group}/{variable} has {size} along {dim!r}, another variable {sizes[dim]}")
    return sizes


def _dataset(group: str, variables: dict[str, np.ndarray], names: dict[str, list[str]], coords: dict[str, Any]) -> Any:
    # One call for each group: a site has fewer dimensions in log_likelihood and log_prior than in posterior, and
    # from_dict has one table of dimensions for all groups.
    az = _arviz()
    with warnings.catch_warnings():
        # One draw from each of many chains is what a guide may well give.
        warnings.filterwarnings("ignore", message="More chains")
        warnings.filterwarnings("ignore", message="Found chain dimension to be longer")
        if is_data_tree():
            lead = [] if group in DATA_GROUPS else list(_SAMPLE_DIMS)
            tree = az.from_dict({group: variables}, dims=names, coords=coords, sample_dims=lead, index_origin=0)
            return tree[group].to_dataset()
        # from_dict of 0.23 has no group log_prior, though InferenceData has.
        slot = "posterior" if group == "log_prior" else group
        idata = az.from_dict(**{slot: variables}, dims=names, coords=coords, index_origin=0)
        scalars = [f"{k}_dim_0" for k, v in variables.items() if v.ndim == 0]
        return idata[slot].squeeze(scalars, drop=True)  # 0.23 makes vectors of them


def clean_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as netCDF can hold them: numbers and strings as they are, the rest as JSON text."""
    out: dict[str, Any] = {}
    for key, value in attrs.items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool) or value is None:
            out[key] = json.dumps(value)
        elif isinstance(value, (str, int, float)):
            out[key] = value
        else:
            out[key] = json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v))
    return out


def group_names(idata: Any) -> list[str]:
    """Names of the groups that ``idata`` holds."""
    names = idata.children if hasattr(idata, "children") else idata.groups()
    return [str(name) for name in names]


def get_group(idata: Any, name: str) -> Any:
    """One group, as an :class:`xarray.Dataset`.

    :raises KeyError: if there is no such group; the message names those there are.
    """
    if name not in group_names(idata):
        raise KeyError(f"no group {name!r}; there are {group_names(idata)}")
    node = idata[name]
    return node.to_dataset() if hasattr(node, "to_dataset") and hasattr(node, "children") else node


def to_netcdf(idata: Any, path: str | os.PathLike[str]) -> str:
    """Write ``idata`` to a netCDF file; the file appears under its name only when it is complete.

    :returns: the path.
    :raises FileNotFoundError: if the folder does not exist.
    """
    target = os.path.abspath(os.fspath(path))
    handle, partial = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".partial-", suffix=".nc")
    os.close(handle)
    try:
        os.unlink(partial)  # h5netcdf wants to make the file itself
        idata.to_netcdf(partial, engine="h5netcdf")
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
    return target


def from_netcdf(path: str | os.PathLike[str]) -> Any:
    """Read what :func:`to_netcdf` wrote, into memory (the file is closed).

    :raises FileNotFoundError: if there is no such file.
    """
    source = os.path.abspath(os.fspath(path))
    if not os.path.exists(source):
        raise FileNotFoundError(f"path: there is no file {source}")
    # Xarray leaves a warning filter behind when it reads.
    if is_data_tree():
        import xarray

        with warnings.catch_warnings(), xarray.open_datatree(source, engine="h5netcdf") as tree:
            return tree.load()
    az = _arviz()
    with warnings.catch_warnings(), az.rc_context({"data.load": "eager"}):
        return az.from_netcdf(source, engine="h5netcdf")


def summary(idata: Any, var_names: Sequence[str] | None = None, kind: str = "all", group: str = "posterior") -> Any:
    """``arviz.summary``: a :class:`pandas.DataFrame`, a row for each element of each variable.

    :param var_names: variables to tabulate; all of them if not given.
    :param kind: ``"all"``, ``"stats"`` or ``"diagnostics"``.
    :param group: group to tabulate.
    """
    with warnings.catch_warnings():
        # Of one chain R-hat is undefined, and stands as NaN in the table.
        warnings.filterwarnings("ignore", message=".*[Ss]hape validation failed.*")
        names = list(var_names) if var_names is not None else None
        return _arviz().summary(idata, var_names=names, kind=kind, group=group)


def loo(idata: Any, var_name: str | None = None, pointwise: bool = True) -> Any:
    """``arviz.loo``: PSIS leave-one-out expected log predictive density, from the group ``log_likelihood``."""
    return _arviz().loo(idata, var_name=var_name, pointwise=pointwise)


def rhat(idata: Any, var_names: Sequence[str] | None = None) -> Any:
    """Rank-normalised split R-hat of each element of the posterior, as an :class:`xarray.Dataset`."""
    return _per_element("rhat", idata, var_names)


def ess(idata: Any, var_names: Sequence[str] | None = None, method: str = "bulk") -> Any:
    """Effective sample size (``"bulk"`` or ``"tail"``) of each element, as an :class:`xarray.Dataset`."""
    return _per_element("ess", idata, var_names, method=method)


def _per_element(function: str, idata: Any, var_names: Sequence[str] | None, **options: Any) -> Any:
    posterior = get_group(idata, "posterior")
    if var_names is not None:
        posterior = posterior[list(var_names)]
    result = getattr(_arviz(), function)(posterior, **options)
    return result if not hasattr(result, "children") else next(iter(result.children.values())).to_dataset()


def plot_trace(idata: Any, var_names: Sequence[str] | None = None, coords: Mapping[str, Any] | None = None) -> Any:
    """Trace plots of the posterior, as a :class:`matplotlib.figure.Figure`; ``coords`` selects elements to draw."""
    return _plot("plot_trace", idata, var_names, coords)


def plot_rank(idata: Any, var_names: Sequence[str] | None = None, coords: Mapping[str, Any] | None = None) -> Any:
    """Rank plots of the posterior, as a :class:`matplotlib.figure.Figure`; ``coords`` selects elements to draw."""
    return _plot("plot_rank", idata, var_names, coords)


def _plot(function: str, idata: Any, var_names: Sequence[str] | None, coords: Mapping[str, Any] | None) -> Any:
    names = list(var_names) if var_names is not None else None
    selection = {k: list(np.atleast_1d(v)) for k, v in (coords or {}).items()}
    draw = getattr(_arviz(), function)
    if is_data_tree():
        collection = draw(idata, var_names=names, coords=selection, backend="matplotlib")
        return collection.viz["figure"].item()
    axes = draw(idata, var_names=names, coords=selection, backend="matplotlib")
    return np.ravel(axes)[0].figure
