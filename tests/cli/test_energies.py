"""``pyro-dgm compare --energies`` as users run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pyro_dgm.cli.energies import DEFAULT_ENERGY_OBJECTIVES, eight_normals, parse_energy_objective
from pyro_dgm.cli.errors import UsageError
from pyro_dgm.infer import ContrastiveDivergence
from tests.cli.test_commands import run

# Hardly trained, a density is as broad as the base.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the density.s mass is in the outermost cells:RuntimeWarning")


def test_the_default_objectives_in_one_table(tmp_path: Path) -> None:
    result = run("compare", "--energies", "--epochs", 1, "--output", tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    assert [row["objective"] for row in content["rows"]] == list(DEFAULT_ENERGY_OBJECTIVES)
    assert (content["num_data"], content["epochs"]) == (4000, 1)
    for row in content["rows"]:
        assert row["objective"] in result.output and f"{row['kl']:.3f}" in result.output
        assert row["failure"] == "" and 0 < row["tv"] < 1
    assert content["rows"][0]["log_z_learned"] is None  # JSON has no NaN
    assert content["rows"][-1]["log_z_learned"] is not None


def test_objectives_and_files_of_ones_own(tmp_path: Path) -> None:
    options = ("compare", "--energies", "--epochs", 1, "--objective", "ContrastiveDivergence(2)", "--seed", 3)
    first = run(*options, "-o", tmp_path / "t.csv")
    assert "ContrastiveDivergence(2)" in first.output and "NCE" not in first.output
    text = (tmp_path / "t.csv").read_text()
    assert text.startswith("objective,kl,")
    run(*options, "-o", tmp_path / "again.csv")
    first_kl, second_kl = (
        (tmp_path / name).read_text().splitlines()[1].split(",")[1] for name in ("t.csv", "again.csv")
    )
    assert first_kl == second_kl
    run(*options, "-o", tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give RUN, a folder that pyro-dgm fit or demo wrote; or --energies"),
        (["runs/a", "--energies"], "--energies trains a model of its own: leave RUN out"),
        (["--energies", "--num-data", 3], "--num-data does not go with --energies"),
        (["runs/a", "--epochs", 3], "--epochs does not go without --energies"),
        (["--energies", "--objective", "IWAE(5)"], "there is no objective for energies 'IWAE'; there are Contrastive"),
        (["--energies", "--objective", "ShortRunML"], "there is no objective for energies 'ShortRunML'"),
        (["--energies", "--objective", "ContrastiveDivergence(0)"], "num_steps must be an integer of at least 1"),
        (["--energies", "-o", "a.txt"], "--output must end in .json, .csv or .png"),
    ],
)
def test_bad_usage_ends_with_2(options: list[object], message: str) -> None:
    assert message in " ".join(run("compare", *options, code=2).stderr.split())


def test_all_failing_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_dgm.cli.energies.LEARNING_RATE", 1e30)
    result = run("compare", "--energies", "--epochs", 1, "--objective", "ScoreMatching", code=1)
    assert "every objective failed: ScoreMatching: " in result.stderr


def test_specifications() -> None:
    assert parse_energy_objective("ContrastiveDivergence(7)").num_steps == 7
    assert isinstance(parse_energy_objective("PersistentCD"), ContrastiveDivergence)
    with pytest.raises(UsageError, match="noise_levels must be positive"):
        parse_energy_objective("DenoisingScoreMatching(-1)")


def test_the_target_is_lopsided() -> None:
    law = eight_normals()
    heavy, light = law.log_prob(torch.tensor([[-2.0, 0.0], [2.0, 0.0]])).exp()
    assert float(heavy / light) == pytest.approx(3.0, rel=1e-3)
    below = float((law.sample((20_000,))[:, 1] < 0).double().mean())
    # Three heavy modes and none of the light ones below; half of either of the two on the axis.
    exact = (3 * 3 + 0.5 * 3 + 0.5 * 1) / 16
    assert abs(below - exact) < 4.5 * (exact * (1 - exact) / 20_000) ** 0.5
