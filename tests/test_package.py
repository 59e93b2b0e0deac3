"""The package's face: its version, and that every name it promises is there."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_dgm

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    "pyro_dgm",
    *(m.name for m in pkgutil.walk_packages(pyro_dgm.__path__, "pyro_dgm.") if "__main__" not in m.name),
]

#: what others call, keyword names included (a signature may have more)
SIGNATURES = {
    "program": "model guide",
    "fit": "program data objective optimizer epochs batch_size validation seed device progress callbacks "
    "checkpoint_dir resume compile",
    "sample_posterior": "method num_samples num_chains warmup_steps seed",
    "compare_elbos": "program x estimators num_replicates reference",
    "to_arviz": "",
    "analysis.elbo_surgery": "program x num_samples seed",
    "analysis.mutual_information": "program x num_samples seed",
    "analysis.active_units": "program x threshold seed",
    "models.VAE": "event_shape latent_dim likelihood",
    "models.LinearGaussian": "",
    "models.RBM": "num_visible num_hidden visible",
    "models.RBM.log_normalizer": "method num_temperatures num_chains",
    "models.DBM": "num_visible hidden",
    "models.BoltzmannMachine": "num_visible",
    "analysis.log_likelihood": "program x method num_particles",
    "infer.ContrastiveDivergence": "num_steps",
    "infer.PersistentCD": "num_steps num_chains buffer",
    "infer.smc.AIS": "initial target kernel num_temperatures schedule",
    "infer.smc.SMCSampler": "initial target kernel",
    "infer.smc.bdmc": "ais target_samples",
    "infer.ELBO": "num_particles max_plate_nesting vectorize_particles strict_enumeration_warning "
    "beta free_bits capacity",
    "infer.STL": "num_particles",
    "infer.IWAE": "num_particles",
    "infer.DReG": "num_particles",
    "infer.MIWAE": "num_particles num_outer num_inner",
    "infer.PIWAE": "num_particles num_outer num_inner",
    "infer.CIWAE": "num_particles beta",
    "infer.RenyiELBO": "num_particles alpha",
    "infer.CUBO": "num_particles n",
    "infer.TVO": "num_particles num_partitions",
    "infer.TraceGraphELBO": "num_particles",
    "infer.TraceEnumELBO": "num_particles",
    "infer.ScoreFunction": "num_particles baseline",
    "infer.VIMCO": "num_particles",
    "infer.NVIL": "num_particles",
    "infer.VarGrad": "num_particles",
    "infer.RELAX": "num_particles",
    "infer.REBAR": "num_particles temperature",
    "infer.WakeSleep": "num_particles",
    "infer.ReweightedWakeSleep": "num_particles phi",
    "infer.MMDELBO": "num_particles alpha lam kernel",
    "infer.SlicedWasserstein": "num_particles lam",
    "infer.BetaTC": "num_particles alpha beta gamma num_data",
    "infer.DIP": "num_particles",
    "infer.FactorVAE": "num_particles gamma hidden network",
    "infer.AdversarialELBO": "num_particles hidden network",
    "infer.continuous_relaxation": "fn sites method temperature",
    "infer.CapturedELBO": "objective",
    "infer.capture_potential": "model num_chains",
    "infer.mcmc.MCMC": "kernel num_samples warmup_steps num_chains chain_method",
    "infer.mcmc.HMC": "model potential_fn",
    "infer.mcmc.MALA": "model potential_fn",
    "datasets.digits": "",
    "datasets.mnist": "",
    "datasets.binarized_mnist": "",
    "datasets.dynamic_binarization": "x generator",
}


def resolve(path: str) -> object:
    value: object = pyro_dgm
    done = "pyro_dgm"
    for name in path.split("."):
        done += f".{name}"
        if not hasattr(value, name) and inspect.ismodule(value):
            importlib.import_module(done)
        value = getattr(value, name)
    return value


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|(a|b|rc)\d+)?", pyro_dgm.__version__)
    assert importlib.metadata.version("pyro-dgm") == pyro_dgm.__version__


def test_changelog_and_citation_know_the_version() -> None:
    released = re.fullmatch(r"\d+\.\d+\.\d+", pyro_dgm.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{pyro_dgm.__version__}]" in changelog if released else "## [Unreleased]" in changelog
    citation = re.search(r"^version: *\"?([^\"\n]+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert citation[1] == pyro_dgm.__version__


@pytest.mark.parametrize("module", MODULES)
def test_every_promised_name_is_there(module: str) -> None:
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", ())
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(loaded, name, None) is not None, f"{module}.__all__ promises {name}"


def test_top_level_names_are_listed() -> None:
    assert set(dir(pyro_dgm)) >= set(pyro_dgm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        pyro_dgm.no_such_name  # noqa: B018


@pytest.mark.parametrize("path", sorted(SIGNATURES))
def test_signatures(path: str) -> None:
    value = resolve(path)
    assert callable(value)
    parameters = inspect.signature(value).parameters
    missing = set(SIGNATURES[path].split()) - set(parameters)
    # a constructor that passes its keywords on to Pyro's shows them as **kwargs
    passes_on = isinstance(value, type) and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if passes_on:
        missing -= set().union(*(inspect.signature(base).parameters for base in inspect.getmro(value)[1:-1]))
    assert not missing, f"{path}{inspect.signature(value)} lacks {sorted(missing)}"


@pytest.mark.parametrize("path", sorted(SIGNATURES))
def test_public_names_are_documented(path: str) -> None:
    text = inspect.getdoc(resolve(path))
    assert text is not None
    assert len(text) > 80


def test_dependencies_are_pinned() -> None:
    """constraints.txt is the set that CI installs: each base dependency is in it, to the version installed here."""
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for requirement in importlib.metadata.requires("pyro-dgm") or ():
        if "extra ==" in requirement and not re.search(r"extra == .(dev|docs).", requirement):
            continue
        name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()
        assert name in pins, f"{requirement} is not pinned in constraints.txt"
        assert importlib.metadata.version(name).split("+")[0] == pins[name]


def test_modules_that_have_moved_import_under_their_old_names():
    from pyro_dgm.infer.moved import MOVED

    script = "import warnings, importlib\nwarnings.simplefilter('error', DeprecationWarning)\n"
    script += "import pyro_dgm.infer\nwarnings.simplefilter('always')\n"
    for old, new in MOVED.items():
        script += (
            f"a, b = importlib.import_module('pyro_dgm.infer.{old}'), importlib.import_module('pyro_dgm.infer.{new}')\n"
        )
        script += "assert a is b and b.__spec__.name == b.__name__, (a, b.__spec__)\n"
    script += "from pyro_dgm.infer.checkpoint import load_weights\nimport pyro_dgm.infer.train.loggers\n"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "pyro_dgm.infer.checkpoint is now pyro_dgm.infer.train.checkpoints.checkpoint" in run.stderr
