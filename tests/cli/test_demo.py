"""The demo at a tiny size: everything it writes, and the report for itself."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyro_dgm.analysis import arviz_adapter
from pyro_dgm.cli.demo_run import FILES, OBJECTIVES
from pyro_dgm.cli.fitted import load_fitted
from pyro_dgm.cli.main import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    result = CliRunner().invoke(app, ["demo", "--quick", "--output", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for words in ("Held-out IWAE-20 bound by objective", "Guide against HMC", "Gradients, of the model's", *OBJECTIVES):
        assert words in result.output
    return folder


class Page(HTMLParser):
    """Every address, section and image of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "poster")]
        self.ids += [str(values["id"])] if "id" in values else []
        if tag == "img":
            self.images.append(values)


def test_everything_is_written(demo: Path) -> None:
    assert {p.name for p in demo.iterdir()} == set(FILES)


def test_the_report_needs_no_other_file(demo: Path) -> None:
    text = (demo / "report.html").read_text()
    page = Page(text)
    assert {a.partition(",")[0] for a in page.addresses if not a.startswith("#")} == {"data:image/png;base64"}
    assert "http" not in re.sub(r"data:[^\"]+", "", text)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"@import|url\(", text)


def test_the_report_has_every_section_and_picture(demo: Path) -> None:
    page = Page((demo / "report.html").read_text())
    sections = [
        "setup",
        "bounds",
        "training",
        "estimators",
        "reconstructions",
        "samples",
        "latent",
        "posterior",
        "chains",
        "files",
    ]
    assert page.ids == sections
    assert {a[1:] for a in page.addresses if a.startswith("#")} == set(sections)
    assert len(page.images) == 11
    for image in page.images:
        assert image["alt"]
        data = base64.b64decode(str(image["src"]).partition(",")[2], validate=True)
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(data) > 3000


def test_the_report_says_what_was_computed(demo: Path) -> None:
    text = (demo / "report.html").read_text()
    results = json.loads((demo / "results.json").read_text())
    for row in results["objectives"]:
        assert row["objective"] in text
        assert f"{row['test']['bound']:.2f}".replace("-", "−") in text
    assert "binarised (threshold)" in text
    assert "A quick run" in text


def test_results_hold_every_figure(demo: Path) -> None:
    results = json.loads((demo / "results.json").read_text())
    assert [row["objective"] for row in results["objectives"]] == list(OBJECTIVES)
    for row in results["objectives"]:
        assert (
            row["test"]["bound"]
            < 0
            < row["test"]["monte_carlo_standard_error"]
            < row["test"]["data_standard_error"] * 10
        )
    best = max(results["objectives"], key=lambda row: row["validation"]["bound"])
    assert results["chosen"] == best["objective"]
    check = results["posterior"]
    assert [m["method"] for m in check["methods"]] == ["guide", "hmc", "mala"]
    assert len(check["table"]) == len(check["rows"]) * results["settings"]["latent_dim"]
    assert len(set(check["labels"])) == len(check["labels"])
    assert len(results["comparison"]["rows"]) == 8


@pytest.mark.parametrize("name", ["posterior.nc", "posterior_guide.nc", "posterior_mala.nc"])
def test_posteriors_open_in_arviz(name: str, demo: Path) -> None:
    results = json.loads((demo / "results.json").read_text())
    idata = arviz_adapter.from_netcdf(demo / name)
    groups = {"posterior", "log_likelihood", "log_prior", "sample_stats", "observed_data"}
    if name == "posterior.nc":
        groups.add("posterior_predictive")
    assert set(arviz_adapter.group_names(idata)) == groups
    z = arviz_adapter.get_group(idata, "posterior")["z"]
    assert z.dims == ("chain", "draw", "data", "latent")
    assert z["data"].values.tolist() == results["posterior"]["rows"]
    if name == "posterior.nc":
        means = [row["hmc"]["mean"] for row in results["posterior"]["table"]]
        assert z.mean(("chain", "draw")).values.ravel().tolist() == pytest.approx(means, abs=1e-6)


def test_the_chosen_fit_can_be_used_by_the_other_commands(demo: Path) -> None:
    loaded = load_fitted(demo)
    results = json.loads((demo / "results.json").read_text())
    from pyro_dgm.analysis import log_likelihood

    again = log_likelihood(loaded.program, loaded.data.test, num_particles=results["particles"], seed=0)
    chosen = next(row for row in results["objectives"] if row["objective"] == results["chosen"])
    assert again.mean == pytest.approx(chosen["test"]["bound"], abs=1e-5)


def test_readme_table_comes_from_the_results(demo: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results:start -->\nold\n<!-- results:end -->\nafter\n")
    script = ROOT / "benchmarks" / "readme_results.py"
    command = [sys.executable, str(script), str(demo / "results.json"), "--readme", str(readme)]
    assert subprocess.run(command, check=False).returncode == 0
    text = readme.read_text()
    results = json.loads((demo / "results.json").read_text())
    assert text.startswith("before\n<!-- results:start -->\n")
    assert text.endswith("<!-- results:end -->\nafter\n")
    assert "\nold\n" not in text
    for row in results["objectives"]:
        assert f"| {row['objective']} |" in text
        assert f"{row['test']['bound']:.2f}" in text
    assert "IWAE-20" in text
    assert "threshold" in text
    assert subprocess.run([*command, "--check"], check=False).returncode == 0
    readme.write_text(text.replace("IWAE-20", "IWAE-21"))
    assert subprocess.run([*command, "--check"], check=False).returncode == 1
