"""The command line on a family without latents, whose mean has no closed form."""

from pathlib import Path

from tests.cli.test_commands import run


def test_fit_and_sample(tmp_path: Path) -> None:
    folder = tmp_path / "flow"
    run("fit", "--family", "FlowModel", "--set", "transform=affine_coupling", "--set", "num_layers=2", "--hidden", "8",
        "--epochs", 1, "--output", folder, "--test-particles", 5, "--quiet")  # fmt: skip
    assert "draws from the model" in run("sample", folder).output
    assert (folder / "samples.png").is_file()
