"""Damaged checkpoints: the newest whole one is taken, or the fit is refused by the file's name; nothing is removed."""

from __future__ import annotations

import functools
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_dgm
from pyro_dgm.infer.train.checkpoints.checkpoint import (
    DamagedFileError,
    load_checkpoint,
    load_weights,
    resolve_checkpoint,
)
from pyro_dgm.infer.train.checkpoints.saved_files import read_weights
from tests.infer.train.checkpoints.test_checkpoint import ROOT, assert_same, outcome

FILES = ("weights.safetensors", "state.pt", "config.json")
Damage = Callable[[bytes], bytes | None]
DAMAGES: dict[str, Damage] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) * 2 // 3],
    "nul": lambda content: bytes(len(content)),
    "flip": lambda content: content[:-9] + bytes([content[-9] ^ 0x04]) + content[-8:],
    "pickle": lambda content: pickle.dumps(print),
    "missing": lambda content: None,
}
POINTERS: dict[str, Damage] = {
    **DAMAGES,
    "cut": lambda content: content[:6],
    "nothing there": lambda content: b"epoch-000099\n",
    "elsewhere": lambda content: b"../../other\n",
}


def data() -> torch.Tensor:
    return torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def linear(seed: int = 1) -> pyro_dgm.models.LinearGaussian:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return pyro_dgm.models.LinearGaussian(event_dim=3, latent_dim=1)


def worse(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Away from the optimum, so that the best epoch is the first."""
    return torch.optim.SGD(parameters, lr=0.05, maximize=True)


def fit(epochs: int, program: Any = None, **options: Any) -> Any:
    program = program or linear()
    return pyro_dgm.fit(
        program,
        data(),
        epochs=epochs,
        seed=0,
        progress=False,
        device="cpu",
        **{"optimizer": worse, "compile": False, **options},
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint is of epoch 1, the latest of epoch 3."""
    folder = tmp_path_factory.mktemp("two") / "run"
    fit(3, checkpoint_dir=folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    run = fit(3, checkpoint_dir=folder, optimizer=None, checkpoint_every=3)
    assert run.checkpoint == run.best_checkpoint
    return folder


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return outcome(fit(5))


def damage(path: Path, how: Damage) -> None:
    content = how(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run, but for the lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


@pytest.mark.parametrize("how", POINTERS)
def test_latest_is_damaged(how: str, two: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "run")
    damage(folder / "latest", POINTERS[how])
    with pytest.raises(ValueError, match="holds an earlier run"):
        fit(5, checkpoint_dir=folder)
    with pytest.warns(UserWarning, match=r"latest .*Taking .*epoch-000003, the newest checkpoint that is whole"):
        run = fit(5, checkpoint_dir=folder, resume=True)
    assert_same(outcome(run), whole)
    # What was there is another run's, as far as anybody can tell.
    assert {"epoch-000001", "epoch-000003", "epoch-000005"} <= {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_latest_checkpoint_is_damaged(
    name: str, how: str, two: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(two, tmp_path / "run")
    damage(folder / "epoch-000003" / name, DAMAGES[how])
    before = contents(folder)
    with pytest.warns(UserWarning, match=rf"epoch-000003/{name} .*Taking .*epoch-000001"):
        run = fit(5, checkpoint_dir=folder, resume=True)
    assert_same(outcome(run), whole)
    after = contents(folder)
    for path, content in before.items():
        if path.startswith("epoch"):
            assert after[path] == content, path
    if name != "state.pt":
        with pytest.raises(DamagedFileError, match=name):
            load_weights(linear(), folder / "epoch-000003")


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_only_checkpoint_is_damaged(name: str, how: str, one: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(one, tmp_path / "run")
    damage(folder / "epoch-000003" / name, DAMAGES[how])
    before, program = contents(folder), linear(7)
    weights = {k: v.clone() for k, v in program.state_dict().items()}
    for call in (
        lambda: fit(5, program, checkpoint_dir=folder, resume=True, optimizer=None),
        lambda: fit(5, program, resume=folder, optimizer=None),
        lambda: fit(5, program, resume=folder / "epoch-000003", optimizer=None),
        lambda: load_checkpoint(folder),
    ):
        with pytest.raises(DamagedFileError, match=name) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="holds an earlier run"):
        fit(5, program, checkpoint_dir=folder, optimizer=None)
    assert_same(dict(program.state_dict()), weights)
    assert contents(folder) == before


@pytest.mark.parametrize("how", POINTERS)
def test_best_is_damaged(how: str, two: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "run")
    damage(folder / "best", POINTERS[how])
    with pytest.warns(UserWarning, match=r"best .*; it is epoch-000001"):
        run = fit(5, checkpoint_dir=folder, resume=True)
    assert run.best_checkpoint == folder / "epoch-000001" and (folder / "epoch-000001" / "state.pt").exists()
    assert (folder / "best").read_text() == "epoch-000001\n"


def test_latest_and_every_checkpoint_are_gone(two: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "run")
    for name in ("epoch-000001", "epoch-000003"):
        shutil.rmtree(folder / name)
    with pytest.raises(DamagedFileError, match=r"no checkpoint that is whole: .*latest names epoch-000003"):
        fit(5, checkpoint_dir=folder, resume=True)
    assert (folder / "metrics.csv").is_file()


@pytest.mark.parametrize("left", ["best", "epoch-000003", "metrics.csv", "latest"])
def test_a_new_run_is_not_begun_over_the_rest_of_another(left: str, two: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "run")
    for entry in folder.iterdir():
        if entry.name != left:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"holds an earlier run \({left}\)"):
        fit(5, checkpoint_dir=folder)
    assert contents(folder) == before


def test_going_on_from_an_older_checkpoint_keeps_the_newer_one(two: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "run")
    fit(2, resume=folder / "epoch-000001")
    assert {p.name for p in folder.glob("epoch-*")} == {"epoch-000001", "epoch-000003", "epoch-000002"}
    assert resolve_checkpoint(folder).name == "epoch-000002"


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_is_read(name: str, two: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "run") / "epoch-000003"
    path, want = folder / name, load_checkpoint(two / "epoch-000003")
    content = path.read_bytes()
    bits = random.Random(name).sample(range(8 * len(content)), 150)
    harmless = 0
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = load_checkpoint(folder)
        except ValueError as error:
            if str(folder) not in str(error):
                raise
            continue
        assert_same(found, want)  # as blanks in JSON or in the head of safetensors, which mean nothing
        harmless += 1
    assert harmless <= {"config.json": 20, "weights.safetensors": 10, "state.pt": 0}[name]


def test_weights_by_themselves_are_checked(tmp_path: Path) -> None:
    run = fit(1)
    saved = run.save(tmp_path / "saved") / "weights.safetensors"
    alone = shutil.copy(saved, tmp_path / "alone.safetensors")
    program = linear(5)
    load_weights(program, alone)
    assert_same(dict(program.state_dict()), dict(run.program.state_dict()))
    for path in (saved, alone):
        for how in ("empty", "cut", "nul", "flip"):
            content = path.read_bytes()
            damage(path, DAMAGES[how])
            program = linear(5)
            before = {k: v.clone() for k, v in program.state_dict().items()}
            with pytest.raises(DamagedFileError, match=path.name):
                load_weights(program, path)
            assert_same(dict(program.state_dict()), before)
            path.write_bytes(content)
    assert not [p for p in saved.parent.iterdir() if p.name.startswith(".")]


def test_another_programs_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    values = {
        "a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.zeros((), dtype=torch.float64),
        "c": torch.tensor([True, False]), "d": torch.zeros(0, 4),
    }  # fmt: skip
    save_file(values, tmp_path / "x.safetensors")
    assert_same(read_weights(tmp_path / "x.safetensors"), values)


def as_the_version_before(checkpoint: Path) -> None:
    """A checkpoint as format 1 was written."""
    config = json.loads((checkpoint / "config.json").read_text())
    for key in ("sha256", "settings", "run_id", "is_best"):
        del config[key]
    (checkpoint / "config.json").write_text(json.dumps({**config, "format": 1}))


def test_the_format_before_is_read_and_what_it_lacks_is_said(two: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "run")
    for name in ("epoch-000001", "epoch-000003"):
        as_the_version_before(folder / name)
    with pytest.warns(UserWarning, match=r"does not hold modules, optimizer, .*: these are not compared"):
        run = fit(5, checkpoint_dir=folder, resume=True)
    assert_same(outcome(run), whole)
    assert {"epoch-000001", "epoch-000003"} <= {p.name for p in folder.iterdir()}  # it did not say whose they were


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"step,epoch,train\n\x00\x00\x00\n", "NUL bytes"),
        (b"\xff\xfe\n", "decode"),
        (b"epoch,train\n1,2.0\n", "no column 'step'"),
        (b"step,epoch\n1,1,5\n", "not 2 columns"),
        (b"step,epoch\nx,1\n", "invalid literal"),
    ],
)
def test_a_damaged_table_is_named_before_anything_is_loaded(
    content: bytes, text: str, one: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(one, tmp_path / "run")
    (folder / "metrics.csv").write_bytes(content)
    before, program = contents(folder), linear(7)
    weights = {k: v.clone() for k, v in program.state_dict().items()}
    with pytest.raises(ValueError, match=rf"metrics.csv is damaged \(.*{text}.*mend it, or move it away"):
        fit(5, program, checkpoint_dir=folder, resume=True, optimizer=None)
    assert contents(folder) == before
    assert_same(dict(program.state_dict()), weights)


FULL = """
import resource, sys, torch
from tests.infer.train.checkpoints.test_damage import fit
folder, limit = sys.argv[1], int(sys.argv[2])
def fill(run):  # files may from now on have so many bytes, as on a disk that is full
    if run.epochs == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    fit(5, checkpoint_dir=folder, callbacks=[fill])
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
# within the weights, the state, config.json
@pytest.mark.parametrize(
    "limit", [pytest.param(100, marks=pytest.mark.slow), 400, pytest.param(3000, marks=pytest.mark.slow)]
)
def test_a_full_disk_leaves_the_last_good_checkpoint(limit: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder), str(limit)], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "OSError" in done.stdout and "epoch-000002 could not be written" in done.stdout
    assert f"the last good one is {folder / 'epoch-000001'}" in done.stdout
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".tmp")]
    assert load_checkpoint(folder)[2]["epochs_finished"] == 1
    assert fit(3, checkpoint_dir=folder, resume=True).epochs == 3


def test_nothing_is_unpickled(one: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return functools.partial(open, str(tmp_path / "boom"), "w"), ()

    folder = shutil.copytree(one, tmp_path / "run")
    as_the_version_before(folder / "epoch-000003")  # whose state has no checksum that would tell
    for write in (lambda path: path.write_bytes(pickle.dumps(Bomb())), lambda path: torch.save(Bomb(), path)):
        write(folder / "epoch-000003" / "state.pt")
        with pytest.raises(DamagedFileError, match=r"state.pt is damaged \(torch cannot read it"):
            load_checkpoint(folder)
    assert not (tmp_path / "boom").exists()
