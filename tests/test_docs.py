"""The documentation keeps up with the code: its examples run, its lists are whole, the errors it quotes exist."""

from __future__ import annotations

import doctest
import importlib
import io
import re
from collections.abc import Iterable
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests.hygiene import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if not {"_build", "gallery", "generated"} & set(p.parts))
ROOMS = [
    "models",
    "infer",
    "infer.mcmc",
    "infer.smc",
    "infer.objectives.energies",
    "infer.objectives",
    "analysis",
    "analysis.arviz_adapter",
    "datasets",
    "distributions",
    "guides",
    "nn",
    "ops",
    "recipes",
]
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    text = page.read_text(encoding="utf-8")
    return [(m[1], m[2], text[: m.start(2)].count("\n")) for m in BLOCK.finditer(text)]


def run_page(page: Path) -> None:
    """Run a page's blocks one after another in one namespace, and compare what prompts show with what comes out."""
    names: dict[str, object] = {"__name__": page.stem}
    for kind, code, line in blocks(page):
        if kind == "python":
            with redirect_stdout(io.StringIO()):
                exec(compile("\n" * line + code, str(page), "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(code, names, page.stem, str(page), line)
        report = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        runner.run(test, out=report.write, clear_globs=False)
        names.update(test.globs)
        assert runner.summarize(verbose=False).failed == 0, report.getvalue()


@pytest.mark.uses_param_store
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Estimated shape parameter of Pareto")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(DOCS)))
def test_what_a_page_shows_runs(page):
    run_page(page)


def test_a_wrong_output_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```pycon\n>>> x + 1\n3\n```\n")
    with pytest.raises(AssertionError, match="Expected"):
        run_page(page)


def test_the_reference_lists_every_public_name():
    pages = "".join(p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md"))
    entries = re.findall(r"^   ([\w.]+)$|`(pyro_dgm[\w.]+)`|^\.\. auto\w+:: (\S+)$", pages, re.MULTILINE)
    listed = {name.rpartition(".")[2] for entry in entries for name in entry}
    public = {name for room in ROOMS for name in importlib.import_module(f"pyro_dgm.{room}").__all__}
    assert public - listed == set()


def test_tables_hold_every_part():
    from pyro_dgm.infer import OBJECTIVES
    from pyro_dgm.infer.mcmc import KERNELS
    from pyro_dgm.models import FAMILIES

    for page, names in (("objectives.md", OBJECTIVES), ("samplers.md", KERNELS), ("models/index.md", FAMILIES)):
        rows = [line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        missing = [name for name in names if not any(re.search(rf"\b{name}\b", row) for row in rows)]
        assert not missing, f"{page} has no row for {missing}"


def recipe_rows() -> list[str]:
    from pyro_dgm.recipes import RECIPES

    rows = ["| recipe | method | reference |", "| --- | --- | --- |"]
    flows_first = sorted(RECIPES.items(), key=lambda item: "flows" not in item[1].make.__module__)
    for name, entry in flows_first:
        citation = entry.citation
        where = f"arXiv:{citation.arxiv}" if citation.arxiv else citation.venue
        paper = f"{citation.authors} ({citation.year}), {where}"
        rows.append(f"| {{func}}`~pyro_dgm.recipes.{name}` | {entry.title} | {paper} |")
    return rows


def test_the_table_of_recipes_is_that_of_the_registry():
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    table = page.partition("<!-- recipes:start -->\n")[2].partition("<!-- recipes:end -->")[0].splitlines()
    wanted = recipe_rows()
    assert table == wanted, "docs/recipes.md must have these rows:\n" + "\n".join(wanted)


def test_quoted_errors_exist():
    source = (
        "".join(p.read_text(encoding="utf-8") for p in (ROOT / "pyro_dgm").rglob("*.py"))
        .replace("{{", "{")
        .replace("}}", "}")
    )
    table = (DOCS / "own_model.md").read_text(encoding="utf-8").partition("## Errors")[2]
    quoted = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(quoted) > 8
    assert [text for text in quoted if text not in source] == []


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_contributing_names_files_and_names_that_exist():
    paths = set(re.findall(r"`((?:pyro_dgm|tests|docs)/[\w./]*)`", CONTRIBUTING))
    assert len(paths) > 30
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []
    entries = re.findall(r"`([A-Z_`, or]+)` in `(tests/[\w./]+|pyro_dgm/[\w./]+)`", CONTRIBUTING)
    for names, path in entries:
        for name in re.findall(r"[A-Z_]{3,}", names):
            assert name in (ROOT / path).read_text(encoding="utf-8") or name == "TRANSFORMS", f"{path} has no {name}"


def test_the_map_of_the_rooms_is_whole():
    package = ROOT / "pyro_dgm"
    rooms = [p.parent.relative_to(package).as_posix() for p in package.rglob("__init__.py") if p.parent != package]
    rooms = [room for room in rooms if not room.startswith(("interop/", "cli/")) and room != "infer"]
    rows = "".join(line for line in CONTRIBUTING.splitlines() if line.startswith("| `"))
    assert [room for room in rooms if f"`{room}/`" not in rows] == []


class Page(HTMLParser):
    """Anchors of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.anchors.add(named.get("id") or "")
        self.links.add((named.get("href") if tag == "a" else named.get("src")) or "")


def broken_links(site: Path, names: Iterable[str]) -> list[str]:
    """Links of some pages of a site to files or anchors that do not exist."""
    pages: dict[Path, Page] = {}

    def page(path: Path) -> Page:
        if path not in pages:
            pages[path] = Page(path.read_text(encoding="utf-8"))
        return pages[path]

    broken = []
    for name in names:
        path = (site / name).resolve()
        for link in page(path).links:
            file, anchor = urldefrag(link)
            if ":" in file:  # another site, or data
                continue
            target = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            # Sphinx writes a source page again only when the source has changed: its anchors may be old.
            check_anchor = anchor and target.suffix == ".html" and "_modules" not in target.parts
            if not target.exists() or (check_anchor and unquote(anchor) not in page(target).anchors):
                broken.append(f"{name}: {link}")
    return broken


def test_links_of_the_built_pages_lead_somewhere():
    site = DOCS / "_build" / "html"
    if not (site / "index.html").is_file():
        pytest.skip("the documentation is not built: make docs")
    sources = [p.relative_to(DOCS) for kind in ("*.md", "*.rst") for p in DOCS.rglob(kind)]
    names = [str(p.with_suffix(".html")) for p in sources if p.parts[0] not in ("_build", "_templates")]
    assert len(names) > 100
    assert broken_links(site, names) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here">b</a> <a href="b.html#gone">b</a> <a href="c.html">c</a>')
    (tmp_path / "b.html").write_text('<p id="here"><img src="d.png"></p><a href="https://pyro.ai/x#y">Pyro</a>')
    found = broken_links(tmp_path, ["a.html", "b.html"])
    assert sorted(found) == ["a.html: b.html#gone", "a.html: c.html", "b.html: d.png"]
