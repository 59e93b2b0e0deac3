"""Two runs on one folder, in real processes: one writes, the other is told by whom."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pyro_dgm.infer.train.checkpoints.checkpoint import FolderInUseError, load_checkpoint
from pyro_dgm.infer.train.checkpoints.folder_lock import LOCK, OWNER, locked
from tests.infer.train.checkpoints.test_checkpoint import ROOT, assert_same, outcome
from tests.infer.train.checkpoints.test_damage import fit

#: Forks the writers, so that the imports are waited for once; each prints a line when it is done.
SCRIPT = """
import os, signal, sys, time, torch
from tests.infer.train.checkpoints.test_damage import data, fit, linear
import pyro_dgm
from pyro_dgm.infer.train.checkpoints.checkpoint import load_checkpoint
torch.set_num_threads(1)
folder, mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

def writer(epochs, at=0.0, slow=False, **options):
    pid = os.fork()
    if pid == 0:
        while time.time() < at:
            pass
        pause = [lambda run: time.sleep(0.2)] if slow else []
        try:
            run = fit(epochs, checkpoint_dir=folder, resume=True, callbacks=pause, optimizer=None, **options)
            print("done", run.epochs, flush=True)
        except ValueError as error:
            print(type(error).__name__, error, flush=True)
        except BaseException as error:
            print("unexpected", type(error).__name__, error, flush=True)
        os._exit(0)
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

if mode == "second":
    first = writer(10**6, slow=True)
    while not os.path.exists(folder + "/latest"):
        time.sleep(0.01)
    print("holder", first, flush=True)
    wait(writer(5))
    os.kill(first, signal.SIGKILL)
    wait(first)
    print("killed", load_checkpoint(folder)[2]["epochs_finished"], flush=True)
    wait(writer(load_checkpoint(folder)[2]["epochs_finished"] + 2))
if mode == "at once":
    for i in range(count):
        at = time.time() + 0.05
        for pid in [writer(5 * (i + 1), at, slow=True) for _ in range(2)]:
            wait(pid)
"""


def run_script(folder: Path, mode: str, count: int = 1) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), mode, str(count)], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder, refused, killed, last = run_script(folder, "second")
    assert refused.startswith(f"FolderInUseError checkpoint_dir {folder} is in use by another run (process ")
    assert f"process {holder.split()[1]} on" in refused and "give another folder" in refused
    assert last == f"done {int(killed.split()[1]) + 2}"
    epochs = int(last.split()[1])
    assert_same(outcome(fit(epochs, resume=folder, optimizer=None)), outcome(fit(epochs, optimizer=None)))


def writers_at_once(folder: Path, count: int) -> None:
    lines = run_script(folder, "at once", count)
    assert len(lines) == 2 * count
    assert sorted(line.split()[0] for line in lines) == ["FolderInUseError"] * count + ["done"] * count, lines
    config = load_checkpoint(folder)[2]
    assert config["epochs_finished"] == 5 * count
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[1]) for row in rows] == list(range(1, 5 * count + 1))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_of_two_that_begin_at_once_one_writes_twenty_times(tmp_path: Path) -> None:
    writers_at_once(tmp_path / "run", 20)


def test_in_one_process_too(tmp_path: Path) -> None:
    def inside(run: object) -> None:
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()} on"):
            fit(1, checkpoint_dir=tmp_path, resume=True)
        fit(1, checkpoint_dir=tmp_path / "another")

    fit(1, checkpoint_dir=tmp_path, callbacks=[inside])
    fit(2, checkpoint_dir=tmp_path, resume=True)


def test_the_folder_is_given_back_after_an_error(tmp_path: Path) -> None:
    def fail(run: object) -> None:
        raise RuntimeError("callback")

    with pytest.raises(RuntimeError, match="callback"):
        fit(2, checkpoint_dir=tmp_path, callbacks=[fail])
    with pytest.raises(ValueError, match="holds an earlier run"):
        fit(2, checkpoint_dir=tmp_path)
    assert not (tmp_path / OWNER).exists()
    with pytest.warns(UserWarning, match="is of an earlier run without a checkpoint"):
        assert fit(2, checkpoint_dir=tmp_path, resume=True).epochs == 2


@pytest.mark.parametrize("owner", ["", "\0\0", "[]", '{"process": "x"}', '{"process": 1, "host": "elsewhere"}', None])
def test_an_owner_that_is_no_more_blocks_nobody(owner: str | None, tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / OWNER).write_text(json.dumps({"process": 2**22 + 5}) if owner is None else owner)
    with locked(tmp_path):
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
        (tmp_path / OWNER).write_text(owner or "")
        with pytest.raises(FolderInUseError, match="in use by another run"), locked(tmp_path):
            pass


WORKERS = """
import os, signal, sys, time
from torch.utils.data import DataLoader
import pyro_dgm
from tests.infer.train.fit_programs import noisy_net
from tests.infer.train.checkpoints.test_checkpoint import NoisyRows
loader = DataLoader(NoisyRows(), batch_size=16, num_workers=1, persistent_workers=True)
def kill(run):
    if run.epochs == 2:
        os.kill(os.getpid(), signal.SIGKILL)
pyro_dgm.fit(noisy_net(), loader, epochs=9, seed=0, progress=False, device="cpu", checkpoint_dir=sys.argv[1],
             callbacks=[kill])
"""


@pytest.mark.slow
def test_workers_of_a_killed_run_are_waited_for(tmp_path: Path) -> None:
    import pyro_dgm
    from tests.infer.train.checkpoints.test_checkpoint import NoisyRows
    from tests.infer.train.fit_programs import noisy_net

    done = subprocess.run([sys.executable, "-c", WORKERS, str(tmp_path)], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    loader = torch.utils.data.DataLoader(NoisyRows(), batch_size=16)
    run = pyro_dgm.fit(noisy_net(), loader, epochs=3, progress=False, device="cpu", resume=tmp_path)
    assert run.epochs == 3


# SIGTERM, as Slurm and Kubernetes send it

TERMINATED = """
import sys, time, torch
from tests.infer.train.checkpoints.test_damage import fit
torch.set_num_threads(1)
folder = sys.argv[1]
class Slow:
    closed = False
    def on_epoch_end(self, run):
        if run.epochs == 1:
            print("ready", flush=True)
    def log(self, metrics, step):
        time.sleep(0.05)
    def close(self):
        print("closed", flush=True)
slow = Slow()
run = fit(10**6, checkpoint_dir=folder or None, callbacks=[slow], loggers=slow, resume=bool(folder), batch_size=4,
          optimizer=None)
print("after fit", run.epochs, flush=True)
"""


def terminate(folder: str, number: int = signal.SIGTERM) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINATED, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_sigterm_leaves_a_checkpoint_and_ends_the_process(tmp_path: Path) -> None:
    code, out, err = terminate(str(tmp_path))
    assert code == -signal.SIGTERM and out == "closed\n", err
    assert re.search(r"interrupted after \d+ epochs and \d+ steps; fit\(.*goes on from there", err)
    config = load_checkpoint(tmp_path)[2]
    epochs = config["epochs_finished"] + 2
    options = {"batch_size": 4, "optimizer": None}
    run = fit(epochs, resume=tmp_path, **options)
    assert_same(outcome(run), outcome(fit(epochs, **options)))


@pytest.mark.slow
def test_sigterm_without_a_folder_is_the_systems_own() -> None:
    code, out, err = terminate("")
    assert code == -signal.SIGTERM and out == "" and "interrupted" not in err


def test_sigterm_handlers(tmp_path: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        run = fit(2, checkpoint_dir=tmp_path, callbacks=[lambda run: os.kill(os.getpid(), signal.SIGTERM)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [1, 1] and run.epochs == 2  # a program that handles it keeps doing so
    handlers: list[object] = []
    fit(3, resume=tmp_path, callbacks=[lambda run: handlers.append(signal.getsignal(signal.SIGTERM))])
    assert callable(handlers[0]) and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
