"""``pyro-dgm doctor``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import typer

from pyro_dgm.cli.errors import FAILED, guarded

__all__ = ["Finding", "doctor", "find_bad_pairs"]

BASE = (
    "pyro-dgm", "torch", "pyro-ppl", "arviz", "xarray", "numpy", "scipy", "scikit-learn", "safetensors", "rich",
    "typer", "pooch", "filelock", "matplotlib", "jinja2", "h5netcdf", "h5py",
)  # fmt: skip
OPTIONAL = ("jax", "numpyro", "zuko", "lightning-fabric", "lightning", "pytorch-lightning")


@dataclass(frozen=True)
class Finding:
    """Something about the installation: ``bad`` is to be mended, else it is to be known."""

    bad: bool
    text: str


def find_bad_pairs(
    versions: Mapping[str, str], python: tuple[int, int], zuko_switches_validation_off: bool = False
) -> list[Finding]:
    """Known bad versions and combinations among what is installed.

    :param versions: distribution names to versions.
    :param python: major and minor version of the interpreter.
    :param zuko_switches_validation_off: whether ``import zuko`` was seen to switch torch's argument validation off.

    >>> [f.bad for f in find_bad_pairs({"pyro-ppl": "1.9.1", "torch": "2.13.0"}, (3, 11))]
    [True]
    """
    from packaging.version import InvalidVersion, Version

    found: list[Finding] = []
    known: dict[str, Version] = {}
    for name, text in versions.items():
        try:
            known[name] = Version(text)
        except InvalidVersion:
            found.append(Finding(False, f"{name} has the version {text!r}, which cannot be compared"))

    def below(name: str, bound: str) -> bool:
        return name in known and known[name] < Version(bound)

    if below("pyro-ppl", "1.9.2") and not below("torch", "2.6"):
        found.append(
            Finding(
                True,
                f"pyro-ppl {known['pyro-ppl']} with torch {versions.get('torch', '>= 2.6')}: a saved parameter store "
                "cannot be loaded, as torch.load refuses what it holds. pip install 'pyro-ppl>=1.9.2'",
            )
        )
    if below("arviz", "0.23"):
        found.append(
            Finding(
                True, f"arviz {known['arviz']} is older than what to_arviz is tested with. pip install 'arviz>=0.23'"
            )
        )
    if "arviz" in known and known["arviz"] >= Version("1.0") and python < (3, 12):
        found.append(
            Finding(
                True,
                f"arviz {known['arviz']} needs Python >= 3.12, this is {python[0]}.{python[1]}. pip install 'arviz<1'",
            )
        )
    for name in ("lightning", "pytorch-lightning", "lightning-fabric"):
        if name in known and known[name] in (Version("2.6.2"), Version("2.6.3")):
            found.append(
                Finding(
                    True,
                    f"{name} {known[name]} was withdrawn: releases 2.6.2 and 2.6.3 of lightning carried code that "
                    "steals credentials (GHSA-w37p-236h-pfx3). Remove it, and change this machine's credentials",
                )
            )
    if zuko_switches_validation_off:
        found.append(
            Finding(
                False,
                "import zuko switches argument validation of torch.distributions off for the whole process: values "
                "outside a support then give wrong densities, not errors. Switch it on again after the import: "
                "torch.distributions.Distribution.set_default_validate_args(True)",
            )
        )
    return found


def _unmet(versions: Mapping[str, str]) -> list[Finding]:
    """Requirements of the installed package that what is installed does not meet."""
    from importlib import metadata

    from packaging.requirements import Requirement

    found = []
    for text in metadata.requires("pyro-dgm") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            found.append(Finding(True, f"{requirement.name} is not installed. pip install '{requirement}'"))
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(
                Finding(True, f"{requirement.name} {version} is installed, pyro-dgm needs {requirement.specifier}")
            )
    return found


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _zuko_switches_validation_off() -> bool:
    """Looked up in a process of its own: the import would do it to this one."""
    import subprocess

    code = (
        "import torch; D = torch.distributions.Distribution; before = D._validate_args; import zuko; "
        "print(before and not D._validate_args)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return run.stdout.strip() == "True"


@guarded
def doctor() -> None:
    """Show versions, device, threads and data folder, and look for versions known not to work together.

    Paste the output into a bug report.

    **Example**

    - `pyro-dgm doctor && pyro-dgm demo`

    **Exit codes**: 0 nothing bad found; 1 a bad version or combination is installed
    """
    import platform

    from pyro_dgm.cli.terminal import console
    from pyro_dgm.ops.tables import text_table

    out = console()
    installed = {name: version for name in (*BASE, *OPTIONAL) if (version := _version(name)) is not None}
    rows = [
        [name, installed.get(name, "not installed" if name in BASE else "- (optional)")] for name in (*BASE, *OPTIONAL)
    ]
    out.print(text_table("Versions", ["package", "version"], [["python", platform.python_version()], *rows], left=2))
    machine = text_table("Machine", ["", ""], _machine(), left=2)
    machine.columns[0].no_wrap = True  # a long path wraps, and squeezes nothing
    out.print(machine)
    findings = find_bad_pairs(
        installed, sys.version_info[:2], "zuko" in installed and _zuko_switches_validation_off()
    ) + _unmet(installed)
    for finding in findings:
        out.print(
            f"[bold {'red' if finding.bad else 'yellow'}]{'bad' if finding.bad else 'note'}[/]: {finding.text}",
            soft_wrap=True,
        )
    bad = sum(f.bad for f in findings)
    if bad:
        out.print(f"{bad} to be mended")
        raise typer.Exit(FAILED)
    out.print("no bad version or combination found")


def _machine() -> list[list[str]]:
    import os
    import platform

    import torch

    from pyro_dgm.datasets import data_folder

    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda})"
    elif torch.version.cuda is not None:
        device = f"cpu (torch is built for CUDA {torch.version.cuda}, but finds no device)"
    else:
        device = "cpu"
    folder = data_folder()
    sets = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    return [
        ["system", f"{platform.system()} {platform.machine()}"],
        ["device", device],
        ["threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"],
        ["data folder", f"{folder} ({', '.join(sets) if sets else 'digits only: it is empty or missing'})"],
    ]
