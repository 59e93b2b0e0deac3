"""``kill -9`` in training: what is on disk is a whole checkpoint, and the run that goes on is the undisturbed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_dgm.infer.train.checkpoints.checkpoint import load_checkpoint
from tests.hygiene import ROOT
from tests.infer.train.checkpoints.test_checkpoint import assert_same

#: Forks a process for each fit, so that the imports are waited for once, and kills it at random moments.
SCRIPT = """
import os, random, signal, sys, time
import torch, pyro_dgm
from pyro_dgm.infer.train.checkpoints.checkpoint import load_checkpoint
from tests.infer.train.fit_programs import digits_like, small_vae
from tests.infer.train.checkpoints.test_checkpoint import outcome

folder, epochs, kills = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)

def train(name, **options):
    run = pyro_dgm.fit(small_vae(), digits_like(), epochs=epochs, batch_size=16, seed=5, progress=False, device="cpu",
                       validation=digits_like(20), **options)
    torch.save(outcome(run), f"{folder}/{name}.pt")

def in_a_process(fn, *args, **options):
    pid = os.fork()
    if pid == 0:
        try:
            fn(*args, **options)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert ended(in_a_process(train, "whole")) == 0
delays, checkpoints, seen = random.Random(0), f"{folder}/checkpoints", []
for i in range(kills):
    before = os.path.exists(f"{checkpoints}/latest") and open(f"{checkpoints}/latest").read()
    pid = in_a_process(train, "part", checkpoint_dir=checkpoints, resume=True)
    while not os.path.exists(f"{checkpoints}/latest") or open(f"{checkpoints}/latest").read() == before:
        time.sleep(0.001)  # at least one epoch each time, so that the kills are spread over the run
    time.sleep(delays.uniform(0.0, 0.05))
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL, "it was done before it could be killed: give it more epochs"
    weights, training, config = load_checkpoint(checkpoints)
    assert len(config["history"]["train"]) == config["epochs_finished"] > 0
    seen.append(config["epochs_finished"])
assert ended(in_a_process(train, "part", checkpoint_dir=checkpoints, resume=True)) == 0
print(*seen)
"""


def kill_and_compare(folder: Path, epochs: int, kills: int) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(epochs), str(kills)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    whole, part = (torch.load(folder / f"{name}.pt", weights_only=False) for name in ("whole", "part"))
    assert_same(part, whole)
    checkpoints = folder / "checkpoints"
    config: dict[str, Any] = load_checkpoint(checkpoints)[2]
    assert config["epochs_finished"] == epochs
    assert not [p.name for p in checkpoints.iterdir() if p.name.startswith(".tmp-")]
    rows = (checkpoints / "metrics.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[2]) for row in rows] == whole["history"]["train"]
    return [int(epoch) for epoch in done.stdout.split()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_three_moments(tmp_path: Path) -> None:
    seen = kill_and_compare(tmp_path, epochs=60, kills=3)
    assert seen == sorted(set(seen))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_twenty_moments(tmp_path: Path) -> None:
    seen = kill_and_compare(tmp_path, epochs=300, kills=20)
    assert len(set(seen)) == 20


#: Kills at each call that changes the disk, from the first to the last of a save: it is the order that is tested.
POINTS = """
import os, shutil, signal, sys
from pathlib import Path
import torch
from pyro_dgm.infer.train.checkpoints.checkpoint import load_checkpoint
from tests.infer.train.checkpoints.test_checkpoint import assert_same, outcome
from tests.infer.train.checkpoints.test_damage import data, fit
from tests.infer.objectives.test_metric import distance

base, first, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)

def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)

def lr(optimizer):  # the second epoch is the best one; what follows goes the other way
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 2 else -5.0)

def train(folder):
    return fit(4, checkpoint_dir=folder, objective=distance, optimizer=sgd, lr_scheduler=lr, validation=data(),
               resume=True)

def armed(number, left):
    # After the number-th of these calls, or in its place, comes the end.
    def arm(owner, name):
        original = getattr(owner, name)
        def call(*args, **kwargs):
            left[0] -= 1
            last = left[0] == 0  # a call may be within another
            if last and number % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(owner, name, call)
    for owner, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (Path, "rename"), (shutil, "rmtree")):
        arm(owner, name)

whole = train(base + "/whole")
want, best = outcome(whole), whole.best_checkpoint.name
assert best == "epoch-000002" and whole.checkpoint.name == "epoch-000004", (best, whole.history["train"])
killed, number = 0, first
while True:
    folder = f"{base}/{number}"
    pid = os.fork()
    if pid == 0:
        armed(number, [number // 2 + 1])
        train(folder)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), (number, code)
    if code == 0:
        break
    killed += 1
    if Path(folder, "latest").exists():
        config = load_checkpoint(folder)[2]
        assert len(config["history"]["train"]) == config["epochs_finished"]
    run = train(folder)
    assert_same(outcome(run), want, str(number))
    kept = sorted(p.name for p in Path(folder).iterdir() if p.is_dir())
    assert run.best_checkpoint.name.startswith(best), (number, kept)
    assert load_checkpoint(run.best_checkpoint)[2]["epochs_finished"] == 2, (number, kept)
    assert len(kept) == 2, (number, kept)
    assert not list(Path(folder).glob(".tmp-*")), number
    number += step
print(killed)
"""


def kill_at_points(folder: Path, first: int, step: int) -> int:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", POINTS, str(folder), str(first), str(step)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_some_calls_that_change_the_disk(tmp_path: Path) -> None:
    assert kill_at_points(tmp_path, 3, 17) >= 4


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_every_call_that_changes_the_disk(tmp_path: Path) -> None:
    assert kill_at_points(tmp_path, 0, 1) >= 60
