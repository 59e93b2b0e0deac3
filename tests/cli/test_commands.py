"""The commands as users run them: what they write, what they print, how they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import pyro_dgm
from pyro_dgm.analysis import arviz_adapter
from pyro_dgm.cli.fitted import load_fitted
from pyro_dgm.cli.main import app

TINY = ["--hidden", "8", "--latent-dim", "2", "--batch-size", "256", "--test-particles", "5", "--quiet"]


def run(*args: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def in_a_process(*args: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pyro_dgm.cli", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "run"
    result = run("fit", *TINY, "--objective", "IWAE(3)", "--epochs", 2, "--output", folder)
    assert "test: IWAE-5 bound" in result.output
    assert "binarised (threshold)" in result.output
    return folder


def test_version_and_help() -> None:
    process = in_a_process("--version")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, f"pyro-dgm {pyro_dgm.__version__}")
    overall = run("--help").output
    for command in ("demo", "fit", "sample", "compare", "doctor"):
        assert command in overall
        text = run(command, "--help").output
        assert "Example" in text
        assert f"pyro-dgm {command}" in text
        assert "Exit codes" in text
    assert "quick" not in run("demo", "--help").output


def test_help_does_not_wait_for_torch() -> None:
    heavy = ("torch", "pyro", "arviz", "matplotlib")
    code = f"import sys, pyro_dgm.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fit_writes_what_rebuilds_the_program(fitted: Path) -> None:
    config = json.loads((fitted / "config.json").read_text())
    assert config["command"]["objective"] == "IWAE(3)"
    assert config["command"]["binarize"] == "threshold"
    assert len(config["history"]["validation"]) == 2
    assert config["test"]["num_particles"] == 5
    assert config["test"]["monte_carlo_standard_error"] > 0
    loaded = load_fitted(fitted)
    weights = load_file(fitted / "weights.safetensors")
    state = loaded.program.state_dict()
    assert all(any(torch.equal(w, v) for v in state.values()) for w in weights.values())
    again = pyro_dgm.analysis.log_likelihood(loaded.program, loaded.data.test, num_particles=5, seed=0)
    assert again.mean == pytest.approx(config["test"]["bound"], abs=1e-5)


def test_resume_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    run("fit", *TINY, "--epochs", 4, "--output", tmp_path / "whole")
    run("fit", *TINY, "--epochs", 2, "--output", tmp_path / "parts")
    run("fit", "--resume", tmp_path / "parts", "--epochs", 4, "--quiet")
    whole, parts = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["command"]["epochs"] == 4
    refused = run("fit", "--resume", tmp_path / "parts", "--lr", 0.1, code=2)
    assert "cannot be given with --lr" in refused.stderr


def test_fit_other_family_and_dynamic_data(tmp_path: Path) -> None:
    run("fit", "--family", "LinearGaussian", "--set", "guide_covariance=full", "--latent-dim", 2, "--epochs", 1,
        "--batch-size", 512, "--quiet", "--output", tmp_path / "lg")  # fmt: skip
    loaded = load_fitted(tmp_path / "lg")
    assert loaded.program.guide_covariance == "full"
    assert loaded.settings.binarize is None
    table = run("compare", tmp_path / "lg", "--objective", "ELBO", "--num-data", 4, "--num-replicates", 2)
    assert "Reference (exact)" in table.output
    result = run("fit", *TINY, "--binarize", "dynamic", "--epochs", 1, "--output", tmp_path / "dynamic")
    assert "drawn anew" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "mnits"], "there is no data set 'mnits'; there are binarized_mnist, digits, mnist"),
        (["--objective", "IWEA(5)"], "there is no objective 'IWEA'; there are AdversarialELBO, BetaTC, CIWAE"),
        (["--objective", "IWAE(-1)"], "num_particles must be an integer of at least 1"),
        (["--family", "GAN"], "there is no family 'GAN'; there are"),
        (["--family", "LinearGaussian", "--hidden", "3"], "has no option 'hidden'"),
        (["--binarize", "none"], "outside {0, 1}"),
        (["--hidden", "a,b"], "no list of widths"),
        (["--latent-dim", "0"], "latent-dim"),
        (["--lr", "-1"], "--lr must be positive"),
        (["--epochs", "many"], "epochs"),
        (["--device", "cuda:99"], "device that is there"),
        (["--test-particles", "1"], "at least 2"),
        (["--set", "latent_dim"], "KEY=VALUE"),
    ],
)
def test_bad_usage_is_told_in_a_sentence(options: list[str], message: str, tmp_path: Path) -> None:
    result = run("fit", "--output", tmp_path / "out", *options, code=2)
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output + result.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_written_over(fitted: Path) -> None:
    before = (fitted / "weights.safetensors").read_bytes()
    result = run("fit", *TINY, "--epochs", 1, "--output", fitted, code=2)
    assert f"pyro-dgm fit --resume {fitted}" in result.stderr
    assert (fitted / "weights.safetensors").read_bytes() == before


def test_a_loss_that_is_not_finite_ends_with_1(tmp_path: Path) -> None:
    # A step this large puts the weights beyond what floats can square.
    result = run(
        "fit", *TINY, "--likelihood", "gaussian", "--lr", 1e30, "--epochs", 5, "--output", tmp_path / "x", code=1
    )
    assert "not finite" in result.stderr.lower()
    assert "Traceback" not in result.stderr


def test_missing_data_end_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRO_DGM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # no network
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    (tmp_path / "data").write_text("no folder")
    result = run("fit", "--dataset", "mnist", "--output", tmp_path / "x", code=1)
    assert "Put the file train-images-idx3-ubyte.gz" in result.stderr


def test_ctrl_c_ends_with_130_and_says_how_to_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = in_a_process("fit", *TINY, "--epochs", 100_000, "--compile", "graph", "--output", folder)
    deadline = time.monotonic() + 60
    while not (folder / "checkpoints" / "latest").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"go on with: pyro-dgm fit --resume {folder}" in stderr
    assert "Traceback" not in stderr
    # What it left can be used as it is, and gone on with.
    run("sample", folder, "--num", 4)
    done = int((folder / "checkpoints" / "latest").read_text().split("-")[1])
    run("fit", "--resume", folder, "--epochs", done + 1, "--quiet")
    assert json.loads((folder / "config.json").read_text())["epochs_finished"] == done + 1


def test_sample_from_the_model(fitted: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    run("sample", fitted, "--num", 9, "--output", tmp_path / "a.png")
    run("sample", fitted, "--num", 9, "--no-mean", "--output", tmp_path / "b.png")
    a, b = imread(tmp_path / "a.png"), imread(tmp_path / "b.png")
    assert a.shape == b.shape
    assert a.std() < b.std()  # means of a hardly trained decoder are grey, draws are black or white


@pytest.mark.parametrize("method", ["guide", "hmc", "mala", "nuts-numpyro"])
def test_sample_latents_given_data(method: str, fitted: Path, tmp_path: Path) -> None:
    path = tmp_path / "posterior.nc"
    result = run("sample", fitted, "--rows", "1,4", "--method", method, "--num-samples", 20, "--num-chains", 2,
                 "--warmup-steps", 20, "--output", path)  # fmt: skip
    assert "largest R-hat" in result.output
    idata = arviz_adapter.from_netcdf(path)
    assert {"posterior", "posterior_predictive", "log_likelihood", "log_prior", "sample_stats", "observed_data"} == set(
        arviz_adapter.group_names(idata)
    )
    z = arviz_adapter.get_group(idata, "posterior")["z"]
    assert (z.sizes["chain"], z.sizes["draw"], z["data"].values.tolist()) == (2, 20, [1, 4])
    observed = arviz_adapter.get_group(idata, "observed_data")["x"].values
    assert torch.equal(torch.as_tensor(observed), load_fitted(fitted).data.test[[1, 4]])


def test_bad_samples(fitted: Path, tmp_path: Path) -> None:
    for options, message in (
        (["--rows", "0", "--method", "gibs"], "no 'gibs'; there are guide, hmc, chees, mala"),
        (["--rows", "400"], "not among the rows 0 to 359"),
        (["--rows", "0", "--split", "tset"], "no 'tset'; there are train, validation, test"),
        (["--output", str(tmp_path / "a.nc")], "must end in .png"),
        (["--output", str(tmp_path / "no" / "a.png")], "no folder"),
    ):
        assert message in run("sample", fitted, *options, code=2).stderr
    assert "holds no config.json" in run("sample", tmp_path, code=2).stderr
    (tmp_path / "config.json").write_text("{}")
    assert "was not written by pyro-dgm" in run("sample", tmp_path, code=2).stderr


def test_compare(fitted: Path, tmp_path: Path) -> None:
    options = ("compare", fitted, "--num-data", 8, "--num-replicates", 3, "--reference-particles", 50)
    result = run(*options, "--objective", "ELBO", "--objective", "DReG(4)", "--output", tmp_path / "t.json")
    table = json.loads((tmp_path / "t.json").read_text())
    assert [r["estimator"] for r in table["rows"]] == ["ELBO", "DReG(4)"]
    assert f"{table['rows'][1]['bound']:.3f}" in result.output
    assert "Reference (iwae, 50 particles)" in result.output
    run(*options, "--objective", "ELBO", "--output", tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().startswith("estimator,")
    assert "must end in" in run(*options, "--output", tmp_path / "t.txt", code=2).stderr
    assert "no exact log-likelihood" in run("compare", fitted, "--reference", "exact", code=2).stderr


def test_compare_of_broken_weights_ends_with_1(fitted: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = {k: torch.full_like(v, float("nan")) for k, v in load_file(fitted / "weights.safetensors").items()}
    save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text((fitted / "config.json").read_text())
    result = run("compare", tmp_path, "--objective", "ELBO", "--num-data", 4, "--num-replicates", 2, code=1)
    assert "not finite" in result.stderr or "nan" in result.stderr


def test_doctor() -> None:
    process = in_a_process("doctor")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert torch.__version__ in out
    for label in ("system", "device", "threads", "data folder"):
        assert label in out
    assert "no bad version or combination found" in out


def test_doctor_ends_with_1_when_it_finds_something(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A distribution's metadata first on the path is how an old version looks to Python.
    info = tmp_path / "pyro_ppl-1.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyro-ppl\nVersion: 1.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = run("doctor", code=1)
    assert "a saved parameter store cannot be loaded" in " ".join(result.output.split())


@pytest.mark.parametrize("how", ["empty", "cut", "nul", "flip", "latin"])
@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_a_damaged_file_is_named_without_a_traceback(name: str, how: str, fitted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fitted, tmp_path / "run")
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    (folder / name).write_bytes(
        {
            "empty": b"", "cut": content[:middle], "nul": bytes(len(content)), "latin": b"\xff" + content,
            "flip": content[:-9] + bytes([content[-9] ^ 0x04]) + content[-8:],
        }[how]
    )  # fmt: skip
    result = CliRunner().invoke(app, ["sample", str(folder), "--num", "4"])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert str(folder / name) in result.output.replace("\n", "") and "Traceback" not in result.output


def test_resume_of_a_damaged_checkpoint_is_told_and_leaves_the_folder(fitted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fitted, tmp_path / "run")
    for state in (folder / "checkpoints").glob("epoch-*/state.pt"):
        state.write_bytes(state.read_bytes()[:-40])
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    result = CliRunner().invoke(app, ["fit", "--resume", str(folder), "--epochs", "4", "--quiet"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert "state.pt is damaged" in result.output and "Nothing was removed" in result.output
    assert "Traceback" not in result.output
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_logger_that_is_not_there_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, option in (("torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")):
        monkeypatch.setitem(sys.modules, module, None)  # as import finds one that is not installed
        result = CliRunner().invoke(app, ["fit", "--log", option, "--output", str(tmp_path / "run"), *TINY])
        assert result.exit_code == 2 and "pip install" in result.output and isinstance(result.exception, SystemExit)
    assert not (tmp_path / "run").exists()


def test_settings_of_the_wrong_type_are_told(fitted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fitted, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    for key, value in (("epochs", "ten"), ("lr", [1]), ("family_arguments", None)):
        command = {**config["command"], key: value}
        (folder / "config.json").write_text(json.dumps({"command": command}))
        assert f"for the setting '{key}'" in run("sample", folder, code=2).output
