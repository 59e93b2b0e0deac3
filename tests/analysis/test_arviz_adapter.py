"""The ArviZ adapter, on whichever ArviZ is installed: loaded by its path, so that no torch or Pyro is needed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "pyro_dgm" / "analysis" / "arviz_adapter.py"


def load():
    spec = importlib.util.spec_from_file_location("arviz_adapter_alone", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


adapter = load()


def everything():
    rng = np.random.default_rng(0)
    groups = {
        "posterior": {"z": rng.normal(size=(4, 50, 7, 2)), "mu": rng.normal(size=(4, 50))},
        "posterior_predictive": {"x": rng.normal(size=(4, 50, 7, 5))},
        "log_likelihood": {"x": rng.normal(-1.0, 0.1, size=(4, 50, 7))},
        "log_prior": {"z": rng.normal(size=(4, 50, 7)), "mu": rng.normal(size=(4, 50))},
        "sample_stats": {"lp": rng.normal(size=(4, 50)), "diverging": np.zeros((4, 50), bool)},
        "prior": {"mu": rng.normal(size=(1, 20)), "z": rng.normal(size=(1, 20, 7, 2))},
        "prior_predictive": {"x": rng.normal(size=(1, 20, 7, 5))},
        "observed_data": {"x": rng.normal(size=(7, 5))},
        "constant_data": {"mask": np.ones(7, bool), "rate": np.float64(0.5)},
    }
    dims = {
        "posterior": {"z": ["data", "z_dim_0"], "mu": []},
        "posterior_predictive": {"x": ["data", "pixel"]},
        "log_likelihood": {"x": ["data"]},
        "log_prior": {"z": ["data"]},
        "prior": {"z": ["data", "z_dim_0"]},
        "prior_predictive": {"x": ["data", "pixel"]},
        "observed_data": {"x": ["data", "pixel"]},
    }
    return groups, dims


@pytest.fixture(scope="module")
def idata():
    groups, dims = everything()
    attrs = {"seconds": 1.5, "seed": None, "settings": {"a": [1, 2]}, "interrupted": False, "steps": np.int64(3)}
    return adapter.build(groups, dims, {"data": np.arange(7) + 10, "pixel": list("abcde")}, attrs)


def test_kind_of_container(idata):
    import arviz

    kind = "DataTree" if int(arviz.__version__.split(".")[0]) >= 1 else "InferenceData"
    assert type(idata).__name__ == kind
    assert adapter.is_data_tree() == (kind == "DataTree")


def test_groups_values_dims_and_coords(idata):
    groups, dims = everything()
    assert sorted(adapter.group_names(idata)) == sorted(groups)
    for group, variables in groups.items():
        dataset = adapter.get_group(idata, group)
        assert set(dataset.data_vars) == set(variables)
        lead = () if group in adapter.DATA_GROUPS else ("chain", "draw")
        for name, array in variables.items():
            default = [f"{name}_dim_{i}" for i in range(np.ndim(array) - len(lead))]
            assert dataset[name].dims == (*lead, *dims.get(group, {}).get(name, default))
            np.testing.assert_array_equal(dataset[name].values, array)
    posterior = adapter.get_group(idata, "posterior")
    assert posterior["data"].values.tolist() == list(range(10, 17))
    assert posterior["chain"].values.tolist() == [0, 1, 2, 3]
    assert "pixel" not in posterior.coords
    assert adapter.get_group(idata, "observed_data")["pixel"].values.tolist() == list("abcde")


def test_attrs_are_what_netcdf_holds(idata):
    attrs = adapter.get_group(idata, "posterior").attrs
    assert attrs["seconds"] == 1.5
    assert attrs["steps"] == 3
    assert attrs["seed"] == "null"
    assert attrs["interrupted"] == "false"
    assert attrs["settings"] == '{"a": [1, 2]}'
    assert idata.attrs["seconds"] == 1.5


def test_netcdf_round_trip_is_atomic(idata, tmp_path):
    path = tmp_path / "posterior.nc"
    assert adapter.to_netcdf(idata, path) == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]
    back = adapter.from_netcdf(path)
    assert adapter.group_names(back) == adapter.group_names(idata)
    for name in adapter.group_names(idata):
        assert adapter.get_group(back, name).equals(adapter.get_group(idata, name))
    path.unlink()  # it was read whole, and closed
    assert float(adapter.get_group(back, "posterior")["mu"].mean()) == pytest.approx(
        float(adapter.get_group(idata, "posterior")["mu"].mean())
    )


def test_failed_write_leaves_the_old_file_and_nothing_else(idata, tmp_path):
    path = tmp_path / "posterior.nc"
    path.write_bytes(b"old")
    bad = adapter.build({"posterior": {"mu": np.zeros((1, 4))}})
    adapter.get_group(bad, "posterior")  # readable
    broken = adapter.build({"posterior": {"mu": np.array([[object()] * 4], dtype=object)}})
    with pytest.raises(Exception, match=r"object|serializ|dtype|convert"):
        adapter.to_netcdf(broken, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]


def test_from_netcdf_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        adapter.from_netcdf(tmp_path / "nothing.nc")


def test_summary_loo_rhat_ess(idata):
    table = adapter.summary(idata, var_names=["z", "mu"])
    assert len(table) == 7 * 2 + 1
    assert any("r_hat" in c for c in table.columns)
    loo = adapter.loo(idata)
    groups, _ = everything()
    # Nearly equal densities: leaving one out changes little from the log of the mean density.
    lppd = np.log(np.exp(groups["log_likelihood"]["x"]).mean((0, 1))).sum()
    assert float(getattr(loo, "elpd", getattr(loo, "elpd_loo", np.nan))) == pytest.approx(lppd, abs=0.2)
    assert set(adapter.rhat(idata).data_vars) == {"z", "mu"}
    assert dict(adapter.ess(idata, ["z"]).sizes) == {"data": 7, "z_dim_0": 2}
    assert float(adapter.rhat(idata)["mu"]) == pytest.approx(1.0, abs=0.1)
    assert 100 < float(adapter.ess(idata)["mu"]) < 400
    assert 50 < float(adapter.ess(idata, method="tail")["mu"]) < 400


def test_plots_are_figures(idata):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    for plot in (adapter.plot_trace, adapter.plot_rank):
        figure = plot(idata, ["z", "mu"], {"data": 10})
        assert isinstance(figure, Figure)
        assert len(figure.axes) >= 3  # z has two elements at the datum chosen, mu one
        plt.close(figure)


def test_one_chain_and_more_chains_than_draws():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        one = adapter.build({"posterior": {"mu": np.random.default_rng(0).normal(size=(1, 100))}})
        many = adapter.build({"posterior": {"mu": np.zeros((20, 3))}})
    assert len(adapter.summary(one)) == 1
    assert dict(adapter.get_group(many, "posterior").sizes) == {"chain": 20, "draw": 3}


def test_empty_groups_are_left_out():
    idata = adapter.build({"posterior": {"mu": np.zeros((1, 5))}, "prior": {}})
    assert adapter.group_names(idata) == ["posterior"]
    with pytest.raises(KeyError, match="no group 'prior'"):
        adapter.get_group(idata, "prior")


@pytest.mark.parametrize(
    ("groups", "dims", "coords", "message"),
    [
        ({"posteriors": {"mu": np.zeros((1, 5))}}, None, None, "groups must be among"),
        ({"posterior": {"mu": np.zeros(5)}}, None, None, r"posterior/mu must be \(chain, draw"),
        ({"posterior": {"mu": np.zeros((1, 5, 2))}}, {"posterior": {"mu": []}}, None, "has 1 dimensions to name"),
        (
            {"posterior": {"a": np.zeros((1, 5, 2)), "b": np.zeros((1, 5, 3))}},
            {"posterior": {"a": ["n"], "b": ["n"]}},
            None,
            "posterior/b has 3 along 'n', another variable 2",
        ),
        (
            {"posterior": {"a": np.zeros((1, 5, 2))}},
            {"posterior": {"a": ["n"]}},
            {"n": [1, 2, 3]},
            "coords: posterior has other sizes",
        ),
    ],
)
def test_bad_input(groups, dims, coords, message):
    with pytest.raises(ValueError, match=message):
        adapter.build(groups, dims, coords)


def test_the_file_alone_imports_neither_torch_nor_pyro_nor_arviz():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('alone', {str(SOURCE)!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "bad = {'torch', 'pyro', 'pyro_dgm', 'arviz', 'xarray', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_further_labels_along_a_dimension_and_loo_of_what_is_not_masked(idata, tmp_path):
    """A site of (7, 5) elements of which four count: one dimension of them, and where each was."""
    rng = np.random.default_rng(1)
    values, rows, columns = rng.normal(-1.0, 0.1, size=(4, 50, 4)), [0, 0, 3, 6], list("abba")
    groups, dims = everything()
    groups["log_likelihood"] = {"x": values}
    dims["log_likelihood"] = {"x": ["x_unmasked"]}
    labels = {"log_likelihood": {"x_data": ("x_unmasked", rows), "x_pixel": ("x_unmasked", columns)}}
    made = adapter.build(groups, dims, {"data": np.arange(7) + 10}, labels=labels)
    path = adapter.to_netcdf(made, tmp_path / "masked.nc")
    for tree in (made, adapter.from_netcdf(path)):
        likelihood = adapter.get_group(tree, "log_likelihood")
        assert likelihood["x"].dims == ("chain", "draw", "x_unmasked")
        assert likelihood["x_data"].values.tolist() == rows
        assert likelihood["x_pixel"].values.tolist() == columns
        assert adapter.get_group(tree, "posterior")["data"].values.tolist() == list(range(10, 17))
        found = adapter.loo(tree)
        assert found.n_data_points == 4
        # draws of the log-likelihood that hardly vary: leaving one out changes little
        weights = -np.log(np.exp(-values).mean((0, 1))).sum()
        elpd = getattr(found, "elpd_loo" if hasattr(found, "elpd_loo") else "elpd")  # ArviZ 0.23, and 1.x
        assert float(elpd) == pytest.approx(weights, abs=0.05)
