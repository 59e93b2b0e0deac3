"""The folder that a fit leaves behind: weights, a configuration that rebuilds the program, and the data's name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pyro_dgm.cli.build import build_family, is_flat
from pyro_dgm.cli.data import Data, load_data
from pyro_dgm.cli.errors import UsageError, bad_usage_if_raised
from pyro_dgm.cli.table import load_file

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "FitSettings",
    "Fitted",
    "bound_row",
    "load_fitted",
    "read_settings",
    "save_fitted",
    "write_settings",
]

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


@dataclass
class FitSettings:
    """All that ``pyro-dgm fit`` was asked for: with these it can go on, and its data can be loaded again."""

    dataset: str = "digits"
    binarize: str | None = None
    num_validation: int | None = None
    family: str = "VAE"
    family_arguments: dict[str, Any] = field(default_factory=dict)
    objective: str = "ELBO"
    num_particles: int | None = None
    epochs: int = 100
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    seed: int = 0
    device: str = "auto"
    compile: str = "auto"
    precision: str | None = None
    checkpoint_every: int = 1
    test_particles: int = 100
    recipe: dict[str, Any] | None = None
    file: str | None = None
    columns: list[str] | None = None
    standardize: bool | None = None
    num_levels: int | None = None

    def data(self) -> Data:
        """The data, loaded again as they were."""
        if self.file is not None:
            return load_file(Path(self.file), self.columns, self.standardize, self.num_validation)
        if self.recipe is not None:
            data = load_data(self.dataset, self.binarize, num_validation=self.num_validation)
            return data if self.num_levels is None else data.as_levels(self.num_levels)
        return load_data(self.dataset, self.binarize, num_validation=self.num_validation, flat=is_flat(self.family))


@dataclass
class Fitted:
    """A fitted program with its settings and data."""

    directory: Path
    program: Any
    settings: FitSettings
    config: dict[str, Any]
    data: Data


def save_fitted(run: Any, settings: FitSettings, directory: Path, data: Data | None = None, **more: Any) -> None:
    """Write ``weights.safetensors`` and ``config.json``, with what the data were standardised by."""
    if settings.recipe is not None:
        more["recipe"] = settings.recipe
    if data is not None and data.standardization is not None:
        more["standardization"] = {"columns": list(data.columns), **data.standardization.config()}
    run.save(directory, command=asdict(settings), **more)


def write_settings(settings: FitSettings, directory: Path) -> None:
    """Write the settings before the first step, so that a killed run can be resumed."""
    from pyro_dgm.infer.train.checkpoints.saved_files import read_config, write_config

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CONFIG
    earlier = read_config(path) if path.is_file() else {}  # what a finished run has written stays, till the next one
    write_config({**earlier, "command": asdict(settings)}, path, earlier.pop("sha256", None))


def read_settings(directory: Path) -> tuple[FitSettings, dict[str, Any]]:
    """Settings and whole configuration of a folder.

    :raises UsageError: if it was not left by ``pyro-dgm fit`` or ``demo``, or is damaged.
    """
    from pyro_dgm.infer.train.checkpoints.saved_files import DamagedFileError, read_config

    path = directory / CONFIG
    if not path.is_file():
        raise UsageError(f"{directory} holds no {CONFIG}: give a folder that pyro-dgm fit or demo wrote")
    try:
        config = read_config(path)
    except DamagedFileError as error:
        raise UsageError(str(error)) from error
    command = config.get("command") if isinstance(config, dict) else None
    if not isinstance(command, dict):
        raise UsageError(f"{path} was not written by pyro-dgm fit or demo: it has no entry 'command'")
    known = {f.name for f in fields(FitSettings)}
    unknown = [key for key in command if key not in known]
    if unknown:
        raise UsageError(f"{path} has the setting {unknown[0]!r}, which this version of pyro-dgm does not know")
    wrong = [f.name for f in fields(FitSettings) if f.name in command and not _fits(command[f.name], f.type)]
    if wrong:
        raise UsageError(f"{path} has {command[wrong[0]]!r} for the setting {wrong[0]!r}")
    return FitSettings(**command), config


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value from JSON is of a setting's type."""
    kinds = {
        "str": str,
        "int": int,
        "float": (int, float),
        "None": type(None),
        "dict[str, Any]": dict,
        "bool": bool,
        "list[str]": list,
    }
    return any(isinstance(value, kinds[kind.strip()]) for kind in str(annotation).split("|"))  # type: ignore[arg-type]


def bound_row(found: Any) -> dict[str, float]:
    """A bound and its errors, for JSON."""
    return {
        "bound": found.mean,
        "monte_carlo_standard_error": found.mean_standard_error,
        "data_standard_error": found.data_standard_error,
    }


def load_fitted(directory: Path) -> Fitted:
    """Rebuild the program from its configuration, with its weights, and load its data.

    Of a run that was killed before it finished the latest checkpoint is taken.

    :raises UsageError: if the folder is none of ours or holds no weights.
    """
    from pyro_dgm.infer.train.checkpoints.checkpoint import load_weights

    settings, config = read_settings(directory)
    program = _build(settings, directory)
    finished = (directory / "weights.safetensors").is_file()
    try:
        load_weights(program, directory if finished else directory / CHECKPOINTS)
    except ValueError as error:
        raise UsageError(f"{directory}: {error}") from error
    program.eval()
    data = settings.data()
    _check_standardization(directory, config, data)
    return Fitted(directory, program, settings, config, data)


def _build(settings: FitSettings, directory: Path) -> Any:
    """The program that settings describe, with initial weights."""
    if settings.recipe is None:
        return build_family(settings.family, settings.family_arguments)
    from pyro_dgm import recipes

    if not {"name", "event_shape", "hyperparameters"} <= set(settings.recipe):
        raise UsageError(f"{directory / CONFIG} does not say what its recipe was built from")
    with bad_usage_if_raised(str(directory / CONFIG)):
        made = recipes.get(
            settings.recipe["name"], settings.recipe["event_shape"], hyperparameters=settings.recipe["hyperparameters"]
        )
    return made.program


def _check_standardization(directory: Path, config: dict[str, Any], data: Data) -> None:
    """Refuse a file that has changed since: weights are of data in other units."""
    saved = config.get("standardization")
    if saved is not None and data.standardization is not None:
        now = data.standardization.config()
        if any(saved[key] != now[key] for key in now):
            raise UsageError(f"{data.name} has changed since {directory} was fitted: its columns have other means")
