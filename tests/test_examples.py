"""The examples run: ``make docs`` executes every one, which is checked here; each also runs as a script (slow)."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys

import pytest

from tests.hygiene import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
GALLERY = ROOT / "docs" / "gallery"


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
    assert all(path.name.startswith("plot_") for path in EXAMPLES), "sphinx-gallery executes plot_*.py only"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_has_title_and_figure(path):
    text = path.read_text(encoding="utf-8")
    title, underline, *_ = ast.get_docstring(ast.parse(text)).splitlines()
    assert set(underline) == {"="} and len(underline) == len(title)
    assert "plt.show()" in text
    assert "seed=0" in text, "numbers on a page must come out the same again"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_was_executed_for_the_gallery(path):
    if not GALLERY.is_dir():
        pytest.skip("the documentation is not built: make docs")
    stamp = GALLERY / f"{path.name}.md5"
    assert stamp.is_file(), f"{path.name} is not in the gallery: make docs"
    # sphinx-gallery stamps a script once it has run without an error.
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    assert stamp.read_text() == digest, f"{path.name} is newer than the gallery: make docs"
    assert list((GALLERY / "images").glob(f"sphx_glr_{path.stem}_*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_runs_as_a_script(path, tmp_path):
    env = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [], "an example leaves no files behind"
