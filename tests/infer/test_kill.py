"""``kill -9`` in training: what is on disk is a whole checkpoint, and the run that goes on is the undisturbed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_dgm.infer.checkpoint import load_checkpoint
from tests.infer.test_checkpoint import assert_same

ROOT = Path(__file__).parents[2]

#: Forks a process for each fit, so that the imports are waited for once, and kills it at random moments.
SCRIPT = """
import os, random, signal, sys, time
import torch, pyro_dgm
from pyro_dgm.infer.checkpoint import load_checkpoint
from tests.infer.fit_programs import digits_like, small_vae
from tests.infer.test_checkpoint import outcome

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
