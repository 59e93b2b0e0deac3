"""The five tables of the flow papers (POWER, GAS, HEPMASS, MINIBOONE, BSDS300) with the published protocol.

    python benchmarks/maf_tables.py --tables power miniboone --unpickle --write

**What to fetch.**  ``data.tar.gz`` of https://zenodo.org/record/1161203 (about 800 MB; G. Papamakarios, 2018), unpacked
into the folder ``maf`` of the data folder (``PYRO_DGM_DATA``, or ``--folder``), so that there are

    maf/power/data.npy          maf/gas/ethylene_CO.pickle       maf/BSDS300/BSDS300.hdf5 (needs h5py)
    maf/miniboone/data.npy      maf/hepmass/1000_train.csv and maf/hepmass/1000_test.csv

Tables that are not there are named, and the exit code is 2.  GAS is a pickle of pandas, and a pickle can run any code
when it is read: give ``--unpickle`` for a file that you trust.

**Preprocessing** as in G. Papamakarios, T. Pavlakou and I. Murray (2017), arXiv:1705.07057, appendix D, and the code
that goes with it.  Every table is standardised; the figures are test log-likelihoods in nats of standardised rows.

**Protocol** of C. Durkan, A. Bekasov, I. Murray and G. Papamakarios (2019), arXiv:1906.04032: 10 steps, each a spline
of 8 bins on [-3, 3] with a network of 256 units, a linear map between steps (a permutation and a learned LU matrix),
Adam from 3e-4 by a cosine to 0, gradients clipped to a norm of 5, the weights of the best validation step.

What differs: the paper has residual networks of two blocks with two layers each, and tunes steps, batch size and
dropout for each table.  Our autoregressive networks have four residual layers after the first, our couplings plain
networks of three, and neither has dropout.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import results_file
import torch
from torch import Tensor

from pyro_dgm.datasets.cache import data_folder
from pyro_dgm.models import FlowModel

Array = np.ndarray[Any, Any]
Parts = tuple[Array, Array, Array]

FILES = {
    "power": ("power/data.npy",),
    "gas": ("gas/ethylene_CO.pickle",),
    "hepmass": ("hepmass/1000_train.csv", "hepmass/1000_test.csv"),
    "miniboone": ("miniboone/data.npy",),
    "bsds300": ("BSDS300/BSDS300.hdf5",),
}
FLOWS = ("spline_autoregressive", "spline_coupling")
#: test log-likelihoods and two standard errors, as the papers print them
PUBLISHED: dict[str, dict[str, str]] = {
    "MAF (10), arXiv:1705.07057": {
        "power": "0.24 ± 0.01", "gas": "10.08 ± 0.02", "hepmass": "-17.73 ± 0.02", "miniboone": "-12.24 ± 0.45",
        "bsds300": "154.93 ± 0.28",
    },
    "RQ-NSF (C), arXiv:1906.04032": {
        "power": "0.64 ± 0.01", "gas": "13.09 ± 0.02", "hepmass": "-14.75 ± 0.03", "miniboone": "-9.67 ± 0.47",
        "bsds300": "157.54 ± 0.28",
    },
    "RQ-NSF (AR), arXiv:1906.04032": {
        "power": "0.66 ± 0.01", "gas": "13.09 ± 0.02", "hepmass": "-14.01 ± 0.03", "miniboone": "-9.22 ± 0.48",
        "bsds300": "157.31 ± 0.28",
    },
}  # fmt: skip
EVERY = 250


def last_tenths(rows: Array) -> Parts:
    """The last tenth is the test set, the last tenth of the rest is for validation."""
    rest, test = rows[: len(rows) - len(rows) // 10], rows[len(rows) - len(rows) // 10 :]
    return rest[: len(rest) - len(rest) // 10], rest[len(rest) - len(rest) // 10 :], test


def standardised(parts: Parts) -> Parts:
    """By mean and standard deviation of training and validation rows together."""
    known = np.concatenate(parts[:2])
    mean, scale = known.mean(0), known.std(0)
    train, validation, test = ((part - mean) / scale for part in parts)
    return train, validation, test


def power(folder: Path, options: argparse.Namespace) -> Parts:
    """Household power: rows shuffled, reactive power and current dropped, noise as wide as the rounding added."""
    rows = np.load(folder / "power/data.npy")
    random = np.random.RandomState(42)
    random.shuffle(rows)
    rows = np.delete(rows, [1, 3], axis=1)
    # Active power, voltage, three meters, time of day. The order of the draws is that of the paper's code.
    voltage = 0.01 * random.rand(len(rows), 1)
    active = 0.001 * random.rand(len(rows), 1)
    meters = random.rand(len(rows), 3)
    return standardised(last_tenths(rows + np.hstack([active, voltage, meters, np.zeros((len(rows), 1))])))


def gas(folder: Path, options: argparse.Namespace) -> Parts:
    """Sensors in a mixture of gases: concentrations and time dropped, and each sensor that repeats another one."""
    import pandas

    table = pandas.read_pickle(folder / "gas/ethylene_CO.pickle").drop(columns=["Meth", "Eth", "Time"])
    while True:
        repeats = (table.corr() > 0.98).sum(axis=1) > 1
        if not repeats.any():
            break
        table = table.drop(columns=repeats.idxmax())
    # Of all rows, the test rows among them, as the paper's code does.
    return last_tenths(((table - table.mean()) / table.std()).to_numpy())


def hepmass(folder: Path, options: argparse.Namespace) -> Parts:
    """Collisions with a new particle: background and label dropped, and features whose least value is repeated."""
    import pandas

    train, test = (
        pandas.read_csv(folder / f"hepmass/1000_{part}.csv", index_col=False).to_numpy() for part in ("train", "test")
    )
    # The test file has a column more at its end.
    train, test = train[train[:, 0] == 1, 1:], test[test[:, 0] == 1, 1 : train.shape[1]]
    mean, scale = train.mean(0), train.std(0, ddof=1)
    train, test = (train - mean) / scale, (test - mean) / scale
    kept = (train == train.min(0)).sum(0) <= 5
    train, test = train[:, kept], test[:, kept]
    count = len(train) // 10
    return train[:-count], train[-count:], test


def miniboone(folder: Path, options: argparse.Namespace) -> Parts:
    """Neutrinos: the file holds the cleaned signal rows."""
    return standardised(last_tenths(np.load(folder / "miniboone/data.npy")))


def bsds300(folder: Path, options: argparse.Namespace) -> Parts:
    """Patches of 8 x 8 pixels of photographs, less their mean and the last pixel: prepared in the file."""
    import h5py

    with h5py.File(folder / "BSDS300/BSDS300.hdf5", "r") as file:
        return np.asarray(file["train"]), np.asarray(file["validation"]), np.asarray(file["test"])


LOADERS: dict[str, Callable[[Path, argparse.Namespace], Parts]] = {
    "power": power, "gas": gas, "hepmass": hepmass, "miniboone": miniboone, "bsds300": bsds300,
}  # fmt: skip


def made(kind: str, dim: int, options: argparse.Namespace) -> FlowModel:
    layer: dict[str, Any] = {"num_bins": options.bins, "bound": options.bound, "mixing": "lu_linear"}
    residual = kind == "spline_autoregressive"  # couplings have plain networks
    hidden = (options.hidden,) * (5 if residual else 3)
    return FlowModel(
        (dim,), kind, options.layers, hidden, options={**layer, **({"residual": True} if residual else {})}
    )


def mean_and_error(flow: FlowModel, rows: Tensor, size: int = 4096) -> tuple[float, float]:
    """Mean log-likelihood in nats, and its standard error over rows."""
    with torch.no_grad():
        values = torch.cat([flow.distribution().log_prob(part).double() for part in rows.split(size)])
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def measured(name: str, kind: str, parts: Parts, options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, validation, test = (torch.from_numpy(part.astype(np.float32)).to(device) for part in parts)
    torch.manual_seed(options.seed)
    flow = made(kind, train.shape[1], options).to(device)
    log_prob: Callable[[Tensor], Tensor] = lambda x: flow.distribution().log_prob(x)  # noqa: E731
    loss = torch.compile(lambda x: -log_prob(x).mean()) if options.compile else lambda x: -log_prob(x).mean()
    optimizer = torch.optim.Adam(flow.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    began, best, kept, order, place = time.perf_counter(), -math.inf, flow.state_dict(), torch.empty(0), 0
    for step in range(1, options.steps + 1):
        if place + options.batch_size > len(order):  # rows left over at the end of an epoch wait for the next one
            order, place = torch.randperm(len(train), device=device), 0
        batch = train[order[place : place + options.batch_size]]
        place += options.batch_size
        optimizer.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % EVERY == 0 or step == options.steps:
            bound, _ = mean_and_error(flow, validation)
            if bound > best:
                best, kept = bound, copy.deepcopy(flow.state_dict())
            if step % (40 * EVERY) == 0:
                print(f"{name} {kind} step {step}: validation {bound:.3f}, best {best:.3f}", flush=True)
    flow.load_state_dict(kept)
    mean, error = mean_and_error(flow, test)
    return {
        "table": name,
        "flow": kind,
        "sizes": [len(train), len(validation), len(test)],
        "columns": train.shape[1],
        "parameters": sum(p.numel() for p in flow.parameters()),
        "test": mean,
        "error": error,
        "seconds": time.perf_counter() - began,
    }


def unavailable(name: str, folder: Path, options: argparse.Namespace) -> str:
    """Why a table cannot be read; empty if it can."""
    missing = [file for file in FILES[name] if not (folder / file).is_file()]
    if missing:
        return f"{' and '.join(missing)} not in {folder}"
    if name == "gas" and not options.unpickle:
        return "it is a pickle, which can run any code: give --unpickle if you trust the file"
    if name == "bsds300" and importlib.util.find_spec("h5py") is None:
        return "it needs h5py: pip install h5py"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=sorted(FILES), default=list(FILES))
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--folder", type=Path, help="folder with the five folders; by default maf in the data folder")
    parser.add_argument("--unpickle", action="store_true", help="read GAS, a pickle")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--bins", type=int, default=8)
    parser.add_argument("--bound", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/maf_tables"), help="where finished runs are kept")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    options = parser.parse_args()
    folder = options.folder or data_folder() / "maf"
    refused = {name: reason for name in options.tables if (reason := unavailable(name, folder, options))}
    for name, reason in refused.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if any("not in" in reason for reason in refused.values()):
        print(
            f"Fetch data.tar.gz from https://zenodo.org/record/1161203 and unpack it, so that {folder} has the folders "
            "power, gas, hepmass, miniboone and BSDS300.",
            file=sys.stderr,
        )
    if len(refused) == len(options.tables):
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    columns = [name for name in options.tables if name not in refused]
    settings = {
        key: getattr(options, key)
        for key in ("layers", "hidden", "bins", "bound", "learning_rate", "steps", "batch_size", "seed")
    }
    cells: dict[str, dict[str, str]] = {kind: {} for kind in options.flows}
    for name in columns:
        parts = None
        for kind in options.flows:
            path = options.output / f"{name}-{kind}.json"
            found = json.loads(path.read_text()) if path.exists() else {}
            if found.get("settings") != settings:
                parts = LOADERS[name](folder, options) if parts is None else parts
                found = {"settings": settings, **measured(name, kind, parts, options)}
                path.write_text(json.dumps(found))
            print(found, flush=True)
            cells[kind][name] = f"{found['test']:.2f} ± {2 * found['error']:.2f}"
    rows = [f"| flow | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    rows += [f"| ours, {kind} | {' | '.join(found[name] for name in columns)} |" for kind, found in cells.items()]
    rows += [f"| {who} | {' | '.join(found[name] for name in columns)} |" for who, found in PUBLISHED.items()]
    body = (
        "## The tables of the flow papers\n\n"
        "Test log-likelihood in nats, ± two standard errors over test rows; below ours the published figures. "
        f"{options.layers} layers, {options.hidden} hidden units, {options.bins} bins on [-{options.bound:g}, "
        f"{options.bound:g}], {options.steps} steps of {options.batch_size} rows, Adam from {options.learning_rate:g} "
        "by a cosine to 0, no dropout.\n\n" + "\n".join(rows)
    )
    print(body)
    if options.write:
        results_file.write_section("maf_tables", body)
    return 2 if refused else 0


if __name__ == "__main__":
    raise SystemExit(main())
