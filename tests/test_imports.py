"""Who may import whom: the rooms of the package as the design draws them, and what `import pyro_dgm` must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_dgm

PACKAGE = Path(pyro_dgm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = {"ops", "nn", "distributions", "guides"}
#: room -> the rooms it may import.  `programs` is what models and inference meet at.
ALLOWED: dict[str, set[str]] = {
    "ops": set(),
    "nn": {"ops"},
    "capture": {"ops"},
    "programs": {"ops"},
    "distributions": {"ops", "nn"},
    "guides": {"ops", "nn", "distributions", "programs"},
    "models": {*BASE, "programs"},
    "infer.posterior": set(),
    "infer.objectives": {*BASE, "programs", "capture"},
    "infer.train": {*BASE, "programs", "capture", "infer.objectives"},
    "infer.mcmc": {*BASE, "programs", "capture", "infer.posterior"},
    "infer.smc": {*BASE, "programs", "capture", "infer.posterior", "infer.objectives", "infer.mcmc"},
    "infer.diffusion": {*BASE, "programs", "capture", "infer.posterior"},
    "infer.guide_draws": {*BASE, "programs", "infer.objectives", "infer.mcmc"},
    "datasets": {"ops"},
}
INFERENCE = {room for room in ALLOWED if room.startswith("infer.")}
ALLOWED["infer.sample"] = {*BASE, "programs", "capture", *INFERENCE} - {"infer.train"}
ALLOWED["infer"] = {"capture", "programs", *INFERENCE, "infer.sample"}
BELOW_ANALYSIS = {*BASE, "programs", "capture", "infer", *ALLOWED["infer"]}
ALLOWED["analysis"] = BELOW_ANALYSIS
ALLOWED["interop"] = {*BELOW_ANALYSIS, "models"}
BELOW = {*ALLOWED, "recipes"}
ALLOWED["recipes"] = BELOW - {"recipes"}
ALLOWED["cli"] = BELOW
#: rooms on top of all others, which may come in by the front door: `import pyro_dgm`
ON_TOP = {"recipes", "cli"}
#: rooms that may also be imported inside a function, where the user asks for that engine by name
LAZILY: dict[str, set[str]] = {"infer.sample": {"interop"}, "infer.train": {"interop"}, "guides": {"interop"}}
#: optional packages, of the extras: imported by files of interop/, and nowhere when a module is loaded
OPTIONAL = {"blackjax", "flax", "jax", "jaxlib", "lightning", "lightning_fabric", "numpyro", "torchdiffeq", "zuko"}


def room_of(module: str) -> str:
    """'pyro_dgm.infer.mcmc.driver' -> 'infer.mcmc', 'pyro_dgm.nn.mlp' -> 'nn'; the package itself -> ''."""
    room, *rest = module.split(".")[1:] or [""]
    inside = f"{room}.{rest[0]}" if room == "infer" and rest else room
    return inside if inside in ALLOWED else room


def module_of(path: Path, package: Path = PACKAGE) -> str:
    parts = ["pyro_dgm", *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[str, int, bool]]:
    """Every imported name in full, its line, and whether it is imported as the module is loaded."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node not in inside
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno, node not in inside


def violations(path: Path, package: Path = PACKAGE) -> list[str]:
    module = module_of(path, package)
    room = room_of(module)
    found = []
    tree = ast.parse(path.read_text())
    for name, line, at_load in imports(tree, module, path.name == "__init__.py"):
        top = name.partition(".")[0]
        if top in OPTIONAL and (at_load or room != "interop"):
            found.append(f"{path.relative_to(package)}:{line} imports the optional {top}" + " at load" * at_load)
        if top == "pyro_dgm" and room:  # the package's own __init__ is the front door to all rooms
            target = room_of(name)
            if room in ON_TOP and (not target or target in pyro_dgm._NAMES):
                continue
            allowed = ALLOWED[room] | (set() if at_load else LAZILY.get(room, set()))
            if target not in allowed | {room, "__version__"}:
                found.append(f"{path.relative_to(package)}:{line} {room} may not import {target or 'pyro_dgm'}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    assert not violations(path)


def test_every_room_is_drawn() -> None:
    rooms = {room_of(module_of(path)) for path in FILES} - {""}
    assert rooms <= set(ALLOWED), f"add {rooms - set(ALLOWED)} to the design and to ALLOWED"


def test_the_drawing_has_no_circles() -> None:
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [room for room in ALLOWED if room not in order and ALLOWED[room] <= set(order)]
        assert ready, f"a circle among {set(ALLOWED) - set(order)}"
        order += ready


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules of which each reaches all others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for module in edges[stack.pop()] - seen:
                seen.add(module)
                stack.append(module)
        return seen

    within = {module: reached(module) for module in edges}
    groups = {frozenset(o for o in within[m] if m in within[o]) for m in edges if m in within[m]}
    return [set(group) for group in groups]


def import_edges() -> dict[str, set[str]]:
    """Who imports whom, inside functions too.  For type checkers alone, or a package's own front door: left out."""
    modules = {module_of(path): path for path in FILES}
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text())
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))]
        names = {name for name, _, _ in imports(tree, module, path.name == "__init__.py")}
        found = {name if name in modules else name.rpartition(".")[0] for name in names} & set(modules)
        edges[module] = {name for name in found if not f"{module}.".startswith(f"{name}.")}
    return edges


def test_no_file_imports_in_a_circle() -> None:
    assert circles(import_edges()) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("infer/a.py", "from pyro_dgm.models import VAE", "infer may not import models"),
        ("infer/a.py", "from pyro_dgm import analysis", "infer may not import analysis"),
        ("infer/mcmc/a.py", "from ...models.vae import VAE", "infer.mcmc may not import models"),
        ("infer/mcmc/a.py", "from pyro_dgm.infer.objectives import ELBO", "infer.mcmc may not import infer.objectives"),
        ("infer/objectives/a.py", "from ..mcmc import HMC", "infer.objectives may not import infer.mcmc"),
        ("capture/a.py", "from pyro_dgm.programs import program", "capture may not import programs"),
        ("models/a.py", "def f():\n    import pyro_dgm.infer.train.fit", "models may not import infer.train"),
        ("ops/__init__.py", "from ..nn import MLP", "ops may not import nn"),
        ("nn/a.py", "import pyro_dgm", "nn may not import pyro_dgm"),
        ("interop/numpyro.py", "import jax", "imports the optional jax at load"),
        ("infer/a.py", "def f():\n    import jax.numpy", "imports the optional jax"),
        ("infer/sample.py", "def f():\n    from pyro_dgm.interop import numpyro", None),
        ("interop/numpyro.py", "def f():\n    import jax", None),
        ("cli/a.py", "import pyro_dgm\nfrom pyro_dgm import fit, models", None),
        ("recipes/a.py", "from pyro_dgm.cli import main", "recipes may not import cli"),
        ("models/a.py", "from ..nn.mlp import MLP\nfrom pyro_dgm.programs import program\nfrom . import base", None),
    ],
)
def test_the_check_finds_what_it_should(tmp_path: Path, file: str, source: str, message: str | None) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    found = violations(path, tmp_path)
    assert found == [] if message is None else len(found) == 1 and found[0].endswith(message)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_small_and_named_for_what_they_hold(path: Path) -> None:
    assert "utils" not in path.relative_to(PACKAGE).as_posix()
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{lines} lines: one thing a file"


def loaded_by(code: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter has after the code."""
    script = f"{code}\nimport sys\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_loads_neither_extras_nor_the_heavy_half() -> None:
    loaded = loaded_by("import pyro_dgm")
    assert "pyro_dgm" in loaded
    assert not loaded & OPTIONAL
    assert not loaded & {"arviz", "matplotlib", "pandas", "scipy", "sklearn", "xarray"}


def test_importing_every_room_loads_no_extra() -> None:
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    loaded = loaded_by("import " + ", ".join(f"pyro_dgm.{room}" for room in rooms))
    assert not loaded & OPTIONAL
