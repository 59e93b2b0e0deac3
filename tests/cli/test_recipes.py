"""Recipes on the command line, and the user's own data: what is read, said, drawn, and written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from pyro_dgm import recipes
from pyro_dgm.cli.errors import UsageError
from pyro_dgm.cli.fitted import load_fitted
from pyro_dgm.cli.pair_plot import pair_figure
from pyro_dgm.cli.table import load_file, read_table
from tests.cli.test_commands import run

SMALL = ["--set", "num_layers=2", "--hidden", "8", "--quiet"]


def moons(num=200):
    """Two columns in units of their own, far from standard."""
    from sklearn.datasets import make_moons

    x, _ = make_moons(num, noise=0.08, random_state=0)
    return x * [1000.0, 0.01] + [5000.0, -3.0]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "moons.csv"
    pandas.DataFrame(moons(), columns=["income (EUR)", "slope"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("recipes")
    pandas.DataFrame(moons(), columns=["income (EUR)", "slope"]).to_csv(folder / "moons.csv", index=False)
    result = run(
        "fit", "nsf", "--data", folder / "moons.csv", *SMALL, "--epochs", 3, "--batch-size", 50, "--output",
        folder / "run",
    )  # fmt: skip
    return folder / "run", result.output


def test_list_names_every_recipe() -> None:
    out = run("recipes", "list").output
    for name, entry in recipes.RECIPES.items():
        row = next(line for line in out.splitlines() if line.split() and line.split()[0] == name)
        assert str(entry.citation.year) in out and row
    assert "arXiv:1906.04032" in out


def test_show_has_parts_equation_and_reference() -> None:
    out = run("recipes", "show", "nsf", "--event-shape", "3", "--set", "num_layers=4").output
    for text in ("Neural spline flow", "log p(x) = log N", "4 SplineCoupling, 3 Permutation", "ELBO(num_particles=1)",
                 "Adam(lr=0.0005)", "Parts, for data of shape (3,)", "(256, 256)", "arXiv:1906.04032"):  # fmt: skip
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes", "show", "nfs"], "there is no recipe 'nfs'; did you mean 'nsf'"),
        (["recipes", "show", "nsf", "--event-shape", "two"], "'two' is no list of sizes"),
        (["recipes", "show", "nsf", "--set", "bins=3"], "no hyper-parameter 'bins'; it has num_layers"),
        (["fit", "nfs", "--data", "x.csv"], "did you mean 'nsf'"),
        (["fit", "--data", "x.csv"], "--data needs a recipe"),
        (["fit", "nsf", "--columns", "a"], "of your own --data"),
        (["fit", "nsf", "--data", "x.csv", "--dataset", "digits"], "do not go with it"),
        (["fit", "nsf", "--data", "x.csv", "--objective", "ELBO"], "--objective does not go with a recipe"),
        (["fit", "nsf", "--data", "x.csv", "--latent-dim", "2"], "no hyper-parameter 'latent_dim'"),
        (["fit", "nsf", "--data", "x.xlsx"], "--data must end in .csv, .tsv, .npy, .npz"),
    ],
)
def test_bad_usage_is_told_in_a_sentence(arguments, message) -> None:
    assert message in run(*arguments, code=2).stderr


def test_a_missing_file_is_named() -> None:
    assert "there is no file nowhere.csv" in run("fit", "nsf", "--data", "nowhere.csv", code=1).stderr


def test_fit_says_what_it_did_to_the_columns_and_in_which_units_it_tells(fitted) -> None:
    folder, out = fitted
    assert "200 rows of 2 columns (income (EUR), slope), standardised by mean and standard deviation" in out
    assert "train 160, validation 20, test 20" in out
    assert "test: log-likelihood" in out and "nats per datum" in out and "bits per dimension" in out
    config = json.loads((folder / "config.json").read_text())
    test, done = config["test"], config["standardization"]
    assert test["method"] == "exact" and done["columns"] == ["income (EUR)", "slope"]
    assert test["bits_per_dim"] == pytest.approx(-test["bound"] / (2 * math.log(2)))
    assert test["in_units_of_file"] == pytest.approx(test["bound"] - sum(map(math.log, done["scale"])), rel=1e-6)
    hyper = config["recipe"]["hyperparameters"]
    assert (hyper["num_layers"], hyper["hidden"], hyper["batch_size"], hyper["bound"]) == (2, [8], 50, 3.0)


def test_the_run_is_loaded_again_here_and_in_python(fitted) -> None:
    folder, _ = fitted
    loaded, made = load_fitted(folder), recipes.load(folder)
    x = loaded.data.test
    assert torch.equal(loaded.program.log_prob(x), made.program.log_prob(x))
    saved = json.loads((folder / "config.json").read_text())["test"]["bound"]
    assert float(made.program.log_prob(x).mean().detach()) == pytest.approx(saved, abs=1e-5)


def test_samples_are_in_the_units_of_the_file(fitted) -> None:
    folder, _ = fitted
    assert "100 draws from the model" in run("sample", folder, "--num", 100).output
    drawn = pandas.read_csv(folder / "samples.csv")
    assert list(drawn.columns) == ["income (EUR)", "slope"] and len(drawn) == 100
    assert np.allclose(drawn.mean(), moons().mean(0), atol=3 * moons().std(0))
    assert "must end in .csv" in run("sample", folder, "--output", folder / "x.png", code=2).stderr


def test_a_picture_is_drawn(fitted) -> None:
    folder, out = fitted
    assert (folder / "density.png").stat().st_size > 10_000
    assert "160 data and 160 samples of the model" in " ".join(out.split())


def test_a_run_goes_on(table: Path, tmp_path: Path) -> None:
    first = ["fit", "nsf", "--data", table, *SMALL, "--test-particles", 0, "--output", tmp_path / "run"]
    run(*first, "--epochs", 1)
    assert "holds a run already" in run(*first, "--epochs", 1, code=2).stderr
    run("fit", "--resume", tmp_path / "run", "--epochs", 2, "--quiet")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs_finished"] == 2
    assert "cannot be given with --data" in run("fit", "--resume", tmp_path / "run", "--data", table, code=2).stderr


def test_a_changed_file_is_noticed(table: Path, tmp_path: Path) -> None:
    run("fit", "maf", "--data", table, *SMALL, "--test-particles", 0, "--output", tmp_path / "run", "--epochs", 1)
    pandas.DataFrame(moons() * 2, columns=["income (EUR)", "slope"]).to_csv(table, index=False)
    assert "has changed since" in run("sample", tmp_path / "run", code=2).stderr


def test_an_autoencoder_takes_binary_data_as_they_are_and_others_as_gaussian(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    np.save(tmp_path / "binary.npy", torch.rand(60, 4, 4, generator=draws).round().numpy())
    options = ["--set", "latent_dim=2", "--hidden", 8, "--epochs", 1, "--test-particles", 5, "--quiet"]
    out = run("recipes", "fit", "vae", "--data", tmp_path / "binary.npy", *options, "-o", tmp_path / "a").output
    assert "60 rows of shape (4, 4), as they are" in out and "IWAE-5 bound" in out and "bits per dimension" in out
    assert (tmp_path / "a" / "samples.png").is_file()
    np.savez(tmp_path / "grey.npz", x=torch.rand(60, 4, 4, generator=draws).numpy(), labels=np.arange(60))
    out = run("fit", "wae_mmd", "--data", tmp_path / "grey.npz", *options, "-o", tmp_path / "b").output
    assert "all elements together" in out and "no likelihood of the test data" in out
    out = run("fit", "beta_vae", "--data", tmp_path / "grey.npz", *options, "-o", tmp_path / "c").output
    assert "the data are not binary: likelihood=gaussian" in out
    assert recipes.load(tmp_path / "c").hyperparameters["likelihood"] == "gaussian"


def test_a_recipe_on_a_data_set(tmp_path: Path) -> None:
    out = run("fit", "iwae", "--dataset", "digits", "--hidden", 8, "--num-particles", 2, "--epochs", 1, "--batch-size",
              512, "--test-particles", 5, "--quiet", "-o", tmp_path / "a").output  # fmt: skip
    assert "binarised (threshold)" in out
    assert recipes.load(tmp_path / "a").objective.num_particles == 2
    small = ["--set", "num_layers=1", "--set", "hidden_channels=4", "--batch-size", 512, "--test-particles", 2]
    out = run("fit", "glow", "--dataset", "digits", *small, "--epochs", 1, "--quiet", "-o", tmp_path / "glow").output
    assert "as integers from 0 to 16" in out and "IWAE-2 bound" in out and "64 samples of the model" in out
    assert load_fitted(tmp_path / "glow").data.test.max() == 16
    refused = run("fit", "nsf", "--dataset", "digits", *SMALL, "-o", tmp_path / "b", code=2)
    assert "has one value only, and so no density" in refused.stderr


# What is read


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "columns", "values"),
    [
        ("a,b\n1,2\n3,4\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("1,2\n3,4\n", ("x0", "x1"), [[1, 2], [3, 4]]),
        ("a;b\n1;2\n\n3; 4\n", ("a", "b"), [[1, 2], [3, 4]]),
        ('\ufeff"a, b",c\n1e3,-2\n.5,4\n', ("a, b", "c"), [[1000, -2], [0.5, 4]]),
        ("a\n1\n2\n", ("a",), [[1], [2]]),
    ],
)
def test_tables_of_text(tmp_path: Path, text, columns, values) -> None:
    found = read_table(write(tmp_path / "t.csv", text))
    assert found.columns == columns and found.values.tolist() == values


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "a\tname\tb\n1\tx\t2\n3\ty\t4\n")
    assert read_table(path, ["b", "a"]).values.tolist() == [[2, 1], [4, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", r"t\.csv, row 2 \(line 3\), column 'b': 'x' is no number"),
        ("a,b\n1,2\n\n3,\n", r"t\.csv, row 2 \(line 4\), column 'b': the cell is empty"),
        ("a,b\nnan,2\n", r"row 1 \(line 2\), column 'a': nan is not finite"),
        ("a,b\n1,2\n3\n", r"t\.csv, line 3: 1 cells, where the first line has 2"),
        ("a,a\n1,2\n", "two columns named 'a'"),
        ("", "is empty"),
    ],
)
def test_bad_tables_are_named_with_row_and_column(tmp_path: Path, text, message) -> None:
    with pytest.raises(UsageError, match=message):
        read_table(write(tmp_path / "t.csv", text))


def test_other_bad_files(tmp_path: Path, table: Path) -> None:
    def refused(name, array, message, **options):
        path = tmp_path / name
        np.savez(path, **array) if isinstance(array, dict) else np.save(path, array)
        with pytest.raises(UsageError, match=message):
            read_table(path, **options)

    refused("o.npy", np.array([None, 1]), "cannot be read as an array of numbers")
    refused("c.npy", np.zeros(3, complex), "array of real numbers, got complex128")
    refused("n.npy", np.array([[0, 1], [2, np.nan]]), r"row 2, column 'x1': nan is not finite")
    refused("i.npy", np.full((2, 3, 4), np.inf), r"row 1, element \(0, 0\): inf is not finite")
    refused("i2.npy", np.zeros((2, 3, 4)), "--columns is of tables", columns=["a"])
    refused("z.npz", {"a": np.zeros(3), "b": np.zeros(3)}, "holds the arrays a, b: name the one to take x or data")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UsageError, match="cannot be read as an array"):
        read_table(tmp_path / "cut.npy")
    (tmp_path / "latin.csv").write_bytes(b"a\n\xe9\n")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        read_table(tmp_path / "latin.csv")
    with pytest.raises(UsageError, match="no column 'size'; it has income"):
        read_table(table, ["size"])
    short = write(tmp_path / "short.csv", "a\n1\n2\n")
    with pytest.raises(UsageError, match="has 2 rows; at least 10"):
        load_file(short, None, None, None)
    with pytest.raises(UsageError, match="leaves nothing to train on"):
        load_file(table, None, None, 180)


def test_constant_columns_have_no_density(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b\n" + "\n".join(f"{i},7" for i in range(40)) + "\n")
    assert "column 'b' has one value only" in run("fit", "nsf", "--data", path, "-o", tmp_path / "r", code=2).stderr


def test_standardisation_is_of_the_training_data_and_is_undone(table: Path) -> None:
    data = load_file(table, None, True, 20)
    assert torch.allclose(data.train.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(data.train.std(0), torch.ones(2), atol=1e-5)
    back = data.standardization.undo(torch.cat([data.train, data.validation, data.test]).double())
    assert np.allclose(np.sort(back.numpy(), 0), np.sort(moons(), 0), rtol=1e-5)
    assert data.standardization.log_scale(2) == pytest.approx(float(data.standardization.scale.log().sum()))
    as_they_are = load_file(table, ["slope"], False, None)
    assert as_they_are.standardization is None and as_they_are.train.shape == (160, 1)


def test_the_picture_has_named_axes_and_both_kinds_of_points() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    figure = pair_figure(x, x + 1, ["a", "b", "c"])
    axes = figure.axes
    assert len(axes) == 9
    assert [axis.get_xlabel() for axis in axes[-3:]] == ["a", "b", "c"]
    assert [axes[i].get_ylabel() for i in (3, 6)] == ["b", "c"]
    below, above = (axes[i].collections[0].get_offsets() for i in (3, 1))
    assert np.allclose(below, x[:, :2]) and np.allclose(above, x[:, [1, 0]] + 1)
    assert [axes[i].get_title() for i in (0, 4, 8)] == ["a", "b", "c"]
    assert len(pair_figure(x[:, :1], x[:, :1], ["a"]).axes) == 1
    assert len(pair_figure(x.repeat(1, 3), x.repeat(1, 3), list("abcdefghi")).axes) == 36


def test_the_picture_of_two_columns_shows_the_density() -> None:
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    data, samples, density, _ = pair_figure(x, x + 1, ["a", "b"], lambda v: -v.square().sum(-1)).axes
    assert [axis.get_title(loc="left") for axis in (data, samples, density)] == [
        "data", "samples of the model", "density of the model",
    ]  # fmt: skip
    assert all(axis.get_xlabel() == "a" and axis.get_ylabel() == "b" for axis in (data, samples, density))
    image = density.images[0]
    rows, columns = image.get_array().shape
    x0, x1, y0, y1 = image.get_extent()
    row, column = np.unravel_index(np.argmax(image.get_array()), (rows, columns))
    peak = x0 + (column + 0.5) * (x1 - x0) / columns, y0 + (row + 0.5) * (y1 - y0) / rows
    assert np.allclose(peak, 0, atol=0.1)
    assert len(pair_figure(x, x, ["a", "b"]).axes) == 2


def test_the_weights_of_the_best_epoch_are_kept(table: Path, tmp_path: Path) -> None:
    rate = ["--lr", 0.5, "--epochs", 4]  # so large that later epochs are worse
    out = run("fit", "maf", "--data", table, *SMALL, *rate, "--output", tmp_path / "run").output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    best = config["best"]["epoch"]
    assert (f"best in epoch {best}" in out) == (best < 4)
    loaded = load_fitted(tmp_path / "run")
    found = float(loaded.program.log_prob(loaded.data.validation).mean().detach())
    assert found == pytest.approx(max(config["history"]["validation"]), abs=1e-4)
