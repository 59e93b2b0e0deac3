"""Data parallel training, in real processes that talk by gloo."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_dgm.infer.train.batches import TensorBatches
from pyro_dgm.infer.train.checkpoints.checkpoint import load_checkpoint
from pyro_dgm.infer.train.distributed import ALONE, Group, joined, own_device
from pyro_dgm.infer.train.interrupt import InterruptRequest
from tests.hygiene import ROOT
from tests.infer.train.checkpoints.test_checkpoint import assert_same
from tests.infer.train.distributed_worker import (
    SAME,
    GivenNoise,
    InterruptOne,
    Note,
    fit,
    outcome,
    pairs,
    same,
    vae_fit,
)
from tests.infer.train.fit_programs import digits_like

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def call(command: list[str], timeout: float = 180) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What two processes found."""
    pytest.importorskip("lightning_fabric", reason="the extra 'distributed' is not installed")
    vae_fit(checkpoint_dir=folder / "one", epochs=2, transform=Note(False))
    call([*TORCHRUN, "-m", "tests.infer.train.distributed_worker", str(folder)])
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", SAME)
def test_the_update_is_that_of_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    alone = same(name)
    for found in ranks:
        assert found[name]["steps"] == alone["steps"]
        for key, value in alone["weights"].items():
            torch.testing.assert_close(found[name]["weights"][key], value, rtol=0, atol=1e-9)
        for key, values in alone["history"].items():
            assert found[name]["history"][key] == pytest.approx(values, abs=1e-9), key


@pytest.mark.parametrize(
    "name",
    [
        *SAME,
        "noisy",
        "begun apart",
        "statistics",
        "stopped by one",
        "early stopping",
        "whole",
        "resumed",
        "after destroying",
    ],
)
def test_the_processes_agree_to_the_bit(name: str, ranks: list[dict[str, Any]]) -> None:
    assert_same(ranks[0][name], ranks[1][name])


@pytest.mark.parametrize("name", ["noise", "noise without a seed", "noise after one process"])
def test_each_process_draws_its_own_noise(name: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (set(found[name]) for found in ranks)
    assert len(first) == len(second) > 4 and not first & second


def test_all_begin_with_the_weights_of_the_first(ranks: list[dict[str, Any]]) -> None:
    weights = ranks[1]["begun apart"]["weights"]
    assert weights["flag"] and torch.equal(weights["small"], torch.zeros(2, 3, dtype=torch.bfloat16))
    m = GivenNoise()
    fit(m, pairs(20), epochs=1, seed=0)
    for name, value in m.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9)


def test_the_bound_is_of_all_data(ranks: list[dict[str, Any]]) -> None:
    # Another draw of the noise of the same training: near, and not the same.
    alone = vae_fit(validation=digits_like(20))
    assert ranks[0]["noisy"]["history"]["validation"] == pytest.approx(alone.history["validation"], abs=0.6)


def test_one_process_that_stops_stops_all(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert (found["stopped by one"]["epochs"], found["stopped by one"]["stop"]) == (2, "enough")
        early = found["early stopping"]
        assert early["epochs"] == early["best"][0] + 3 < 200 and "no better validation bound" in early["stop"]


def test_ctrl_c_on_one_process_stops_all_and_the_run_goes_on(ranks: list[dict[str, Any]], folder: Path) -> None:
    for found in ranks:
        assert found["part"]["interrupted"] and found["part"]["epochs"] == 1
        assert found["part steps"] == 7 and "epoch-000001-step-000002" in found["part checkpoint"]
        assert_same(found["resumed"], found["whole"])
        assert_same(found["after destroying"], found["whole"])
    with open(folder / "part" / "metrics.csv", newline="") as file:
        assert [int(float(row["epoch"])) for row in csv.DictReader(file)] == [1, 2, 3, 4]
    assert len(load_checkpoint(folder / "part")[1]["ranks"]) == 2


def test_resuming_with_another_number_of_processes(ranks: list[dict[str, Any]], folder: Path) -> None:
    for found in ranks:
        assert found["from one process"]["epochs"] == 4
    assert_same(ranks[0]["from one process"], ranks[1]["from one process"])
    # It began with the epochs that one process had made ...
    alone = outcome(vae_fit())
    assert ranks[0]["from one process"]["history"]["train"][:2] == alone["history"]["train"][:2]
    # ... and what two processes made, one goes on with.
    run = vae_fit(resume=folder / "middle", transform=InterruptOne(0))  # in an epoch's middle, at that
    assert (run.epochs, run.steps) == (4, 4 * 5)
    assert run.history["train"][:1] == ranks[0]["whole"]["history"]["train"][:1]
    run = vae_fit(resume=folder / "three")
    assert run.epochs == 4 and run.history["train"][:3] == ranks[0]["whole"]["history"]["train"][:3]


def test_one_device_is_a_process_by_itself(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert_same(found["alone"], outcome(vae_fit()))


def test_what_cannot_be_divided_is_refused(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        one_bound, late, count = found["errors"]
        assert "training on 2 devices divides a batch" in one_bound and "num_data" in one_bound
        assert "param_store.late came up during training" in late
        assert "devices is 3, but 2 processes were started" in count


def test_the_command_starts_processes(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="the extra 'distributed' is not installed")
    out = tmp_path / "run"
    tiny = ["--hidden", "8", "--latent-dim", "2", "--batch-size", "256", "--test-particles", "5", "--quiet"]
    options = ["--devices", "2", "--epochs", "2", "--accumulate", "2", *tiny, "-o", str(out)]
    done = call([sys.executable, "-m", "pyro_dgm.cli", "fit", *options])
    assert done.stdout.count("wrote ") == 1 and done.stdout.count("test: IWAE-5 bound") == 1
    assert (out / "weights.safetensors").is_file() and len(load_checkpoint(out / "checkpoints")[1]["ranks"]) == 2
    config = json.loads((out / "config.json").read_text())
    assert config["command"]["accumulate"] == 2 and config["steps_taken"] == 2 * 3  # 5 batches of 256 an epoch


@pytest.mark.slow
def test_the_command_under_torchrun_and_on_one_process_again(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    tiny = ["--hidden", "8", "--latent-dim", "2", "--batch-size", "256", "--test-particles", "0", "--quiet"]
    call([*TORCHRUN, "-m", "pyro_dgm.cli", "fit", "--epochs", "2", *tiny, "-o", out])
    call([sys.executable, "-m", "pyro_dgm.cli", "fit", "--resume", out, "--epochs", "3", "--quiet"])
    call([*TORCHRUN, "-m", "pyro_dgm.cli", "fit", "--resume", out, "--epochs", "4", "--quiet"])
    rows = (Path(out) / "checkpoints" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 5
    again = subprocess.run([*TORCHRUN, "-m", "pyro_dgm.cli", "fit", "-o", out], capture_output=True, text=True,
                           cwd=ROOT, env=ENVIRONMENT, timeout=120)  # fmt: skip
    assert again.returncode != 0 and "holds a run already" in again.stderr


# Parts, without processes


@pytest.mark.parametrize(("count", "size"), [(8, 2), (7, 2), (1, 3), (0, 2), (10, 4)])
def test_parts_are_the_whole(count: int, size: int) -> None:
    parts = [Group(rank, size).part(count) for rank in range(size)]
    whole = [i for part in parts for i in range(count)[part]]
    assert whole == list(range(count))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


def test_batches_of_all_ranks_are_the_batches() -> None:
    x = torch.arange(23)
    cpu = torch.device("cpu")
    whole = list(TensorBatches(x, 5, True, 3, cpu).epoch())
    parts = [list(TensorBatches(x, 5, True, 3, cpu, group=Group(rank, 3)).epoch()) for rank in range(3)]
    for batch, *mine in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(mine), batch)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)  # as Python marks what cannot be imported
    with pytest.raises(ImportError, match=r"pip install 'pyro-dgm\[distributed\]'"):
        fit(GivenNoise(), pairs(8), epochs=1, devices=2)


def test_a_signal_that_comes_twice_at_once_is_one() -> None:
    # torchrun passes on the Ctrl-C that its processes have had from the terminal.
    with InterruptRequest(echo=0.2) as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.requested
        time.sleep(0.25)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_alone() -> None:
    for devices in (None, 1):
        with joined(devices, "cpu") as group:
            assert group is ALONE
    assert ALONE.gather(3) == [3] and ALONE.broadcast(3) == 3 and ALONE.total(1.0, 2.0) == [1.0, 2.0]
    assert own_device(ALONE, torch.device("cpu"), "auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="give 'cuda'"):
        own_device(Group(0, 2), torch.device("cuda", 1), "cuda:1")
    for bad in (0, -1, 2.0, True, "2"):
        with pytest.raises((ValueError, TypeError), match="devices must be an integer of at least 1"):
            joined(bad, "cpu").__enter__()  # type: ignore[arg-type]


ENDING = """
import sys, time, torch, pyro_dgm
torch.set_num_threads(1)
torch.manual_seed(0)
m = pyro_dgm.models.LinearGaussian(event_dim=6, latent_dim=2)
mode, out = sys.argv[1:]
def fail(run):
    if run.rank == 1 and mode == "error":
        raise RuntimeError("on one of them")
run = pyro_dgm.fit(m, torch.randn(400, 6), epochs=3, batch_size=40, seed=0, progress=False, callbacks=[fail])
if mode == "destroyed":
    torch.distributed.destroy_process_group()
if run.rank == 0:
    time.sleep(1)  # what a script does after training: a bound on test data, say
    open(out, "a").write("result ")
"""


def end_of_a_script(folder: Path, mode: str, count: int) -> None:
    script, out = folder / "script.py", folder / "out.txt"
    script.write_text(ENDING)
    for _ in range(count):
        done = subprocess.run(
            [*TORCHRUN, str(script), mode, str(out)], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT,
            timeout=120,
        )  # fmt: skip
        assert "terminate called" not in done.stderr, done.stderr
        assert (done.returncode == 0) == (mode != "error"), done.stderr
        assert mode != "error" or "on one of them" in done.stderr
    assert mode == "error" or out.read_text() == "result " * count


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["left", "destroyed", "error"])
def test_no_process_is_aborted_at_its_end(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric", reason="the extra 'distributed' is not installed")
    end_of_a_script(tmp_path, mode, 3 if mode == "error" else 10)
