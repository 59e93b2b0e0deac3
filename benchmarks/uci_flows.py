"""Densities of UCI tables: our flows beside zuko's, at equal size, steps, learning rate, batches and splits.

    python benchmarks/uci_flows.py --write

The tables are ``uci/NAME/data.txt`` in the data folder (``PYRO_DGM_DATA``): numbers between blanks, the target in the
last column.  The density is that of all columns.

Tables hold rounded numbers, zeros and copies, and a density of atoms is unbounded: the better the flow, the more the
figure says how near it came to infinity.  So (1) rows that are there twice are taken once; (2) a column whose
correlation with an earlier one is above 0.98 in size is dropped, as in the tables of Papamakarios et al. (2017,
arXiv:1705.07057); (3) every other value gets uniform noise, as wide as the smallest gap between two values of its
column, and at least 0.05 standard deviations wide.  The log-density of a standardised column is then at most 3 nats.
Both libraries see the same noise.  The figures are of these data, and comparable with nobody else's.

Five folds: each is the test set once, a tenth of the rest is for validation, and columns are standardised by the
training part.  Both are trained by the same loop, and both give the weights of the step (of every 50th) with the best
validation likelihood.  Widths of our networks are chosen so that the numbers of weights that are not masked agree.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results_file
import torch
from torch import Tensor, nn

from pyro_dgm.datasets.cache import data_folder
from pyro_dgm.models import FlowModel

TABLES = ("concrete", "energy", "power-plant", "protein-tertiary-structure")
KINDS = ("spline_autoregressive", "spline_coupling", "affine_autoregressive")
LAYERS, WIDTH, BINS, BOUND = 3, 64, 8, 5.0
FOLDS, EVERY = 5, 50
LEAST_NOISE, MOST_CORRELATION = 0.05, 0.98
LogProb = Callable[[Tensor], Tensor]


def table_of(name: str) -> Tensor:
    """The rows, in float64: without copies, with noise."""
    path = data_folder() / "uci" / name / "data.txt"
    lines = path.read_text().splitlines()
    rows = torch.tensor([[float(cell) for cell in line.split()] for line in lines if line.strip()], dtype=torch.float64)
    rows = rows.unique(dim=0)
    generator = torch.Generator().manual_seed(0)
    rows = rows[torch.randperm(len(rows), generator=generator)]  # unique sorts
    correlation = torch.corrcoef(rows.T).abs()
    kept: list[int] = []
    for column in range(rows.shape[1]):
        if all(correlation[column, other] <= MOST_CORRELATION for other in kept):
            kept.append(column)
    rows = rows[:, kept]
    gaps = torch.stack([column.unique().diff().min() for column in rows.T])
    width = torch.maximum(gaps, LEAST_NOISE * rows.std(0))
    return rows + width * (torch.rand(rows.shape, generator=generator, dtype=rows.dtype) - 0.5)


def split(rows: Tensor, fold: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows of a fold, standardised by the training rows."""
    place = torch.arange(len(rows)) % FOLDS
    rest, test = rows[place != fold], rows[place == fold]
    train, validation = rest[len(rest) // 10 :], rest[: len(rest) // 10]
    mean, scale = train.mean(0), train.std(0)
    return tuple(((part - mean) / scale).float() for part in (train, validation, test))  # type: ignore[return-value]


def ours(kind: str, dim: int, width: int = WIDTH) -> tuple[nn.Module, LogProb]:
    options = {} if kind.startswith("affine") else {"num_bins": BINS, "bound": BOUND}
    flow = FlowModel((dim,), kind, LAYERS, (width, width), options=options)
    return flow, lambda x: flow.distribution().log_prob(x)


def zuko(kind: str, dim: int) -> tuple[nn.Module, LogProb]:
    import zuko as z

    torch.distributions.Distribution.set_default_validate_args(True)  # zuko switches it off for everybody
    shared: dict[str, Any] = {"transforms": LAYERS, "hidden_features": (WIDTH, WIDTH)}
    if kind == "affine_autoregressive":
        flow = z.flows.MAF(dim, **shared)
    else:
        flow = z.flows.NSF(dim, bins=BINS, **shared, **({"passes": 2} if kind == "spline_coupling" else {}))
    return flow, lambda x: flow().log_prob(x)


def size(flow: nn.Module) -> int:
    """Parameters that are not masked away."""
    masks = {id(m.weight): int(m.mask.count_nonzero()) for m in flow.modules() if hasattr(m, "mask")}
    return sum(masks.get(id(p), p.numel()) for p in flow.parameters())


def matching_width(kind: str, dim: int) -> int:
    """Width at which our flow has as many parameters as zuko's."""
    wanted = size(zuko(kind, dim)[0])
    return min(range(WIDTH // 2, 2 * WIDTH), key=lambda width: abs(size(ours(kind, dim, width)[0]) - wanted))


def trained(flow: nn.Module, log_prob: LogProb, parts: tuple[Tensor, Tensor, Tensor], seed: int, args: Any) -> Tensor:
    """Log-likelihood of each test row, nats, at the step with the best validation likelihood."""
    train, validation, test = parts
    order = torch.Generator().manual_seed(seed)  # the same batches for both
    optimizer = torch.optim.Adam(flow.parameters(), lr=args.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    best, kept = -float("inf"), copy.deepcopy(flow.state_dict())
    for step in range(1, args.steps + 1):
        batch = train[torch.randint(len(train), (args.batch_size,), generator=order)]
        optimizer.zero_grad()
        (-log_prob(batch).mean()).backward()
        optimizer.step()
        schedule.step()
        if step % EVERY == 0:
            with torch.no_grad():
                bound = float(log_prob(validation).mean())
            if bound > best:
                best, kept = bound, copy.deepcopy(flow.state_dict())
    flow.load_state_dict(kept)
    with torch.no_grad():
        return log_prob(test)


def measured(name: str, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    rows = table_of(name)
    dim = rows.shape[1]
    width = matching_width(kind, dim)
    result: dict[str, Any] = {"table": name, "kind": kind, "rows": len(rows), "columns": dim, "width": width}
    figures: dict[str, list[float]] = {"ours": [], "zuko": []}
    differences = []
    for fold in range(FOLDS):
        parts = split(rows, fold)
        found = {}
        for library, make in (("ours", lambda: ours(kind, dim, width)), ("zuko", lambda: zuko(kind, dim))):
            torch.manual_seed(fold)
            flow, log_prob = make()
            result[f"size of {library}"] = size(flow)
            found[library] = trained(flow, log_prob, parts, fold, args)
            figures[library].append(float(found[library].mean()))
        differences.append(found["ours"] - found["zuko"])
    everything = torch.cat(differences)
    by_fold = [float(d.mean()) for d in differences]
    return {
        **result,
        **figures,
        "by fold": by_fold,
        "difference": statistics.mean(by_fold),
        "error of folds": statistics.stdev(by_fold) / FOLDS**0.5,
        "error of rows": float(everything.std()) / len(everything) ** 0.5,
    }


def row_of(found: dict[str, Any]) -> str:
    worse = found["difference"] < -2 * found["error of folds"]
    return (
        f"| {found['table']} | {found['rows']} x {found['columns']} | {found['kind']} | {found['size of ours']:,} / "
        f"{found['size of zuko']:,} | {statistics.mean(found['ours']):.3f} | {statistics.mean(found['zuko']):.3f} | "
        f"{found['difference']:+.3f} | {found['error of folds']:.3f} | {found['error of rows']:.3f} | "
        f"{found['difference'] / found['error of folds']:+.1f} | {'worse' if worse else 'not worse'} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--output", type=Path, default=Path("runs/uci_flows"), help="where finished runs are kept")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/results.md")
    args = parser.parse_args()
    missing = [name for name in args.tables if not (data_folder() / "uci" / name / "data.txt").is_file()]
    if missing:
        print(f"put {', '.join(f'{name}/data.txt' for name in missing)} into {data_folder() / 'uci'}", file=sys.stderr)
        return 2
    if importlib.util.find_spec("zuko") is None:
        print("zuko is not installed: pip install zuko", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {"steps": args.steps, "batch_size": args.batch_size, "learning_rate": args.learning_rate}
    rows = [
        "| table | rows x columns | flow | parameters, ours / zuko | ours, nats | zuko, nats | difference | its error "
        "over folds | over rows | in errors | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in args.tables:
        for kind in args.kinds:
            path = args.output / f"{name}-{kind}.json"
            kept = json.loads(path.read_text()) if path.exists() else {}
            if kept.get("settings") != settings:
                kept = {"settings": settings, **measured(name, kind, args)}
                path.write_text(json.dumps(kept))
            rows.append(row_of(kept))
            print(rows[-1], flush=True)
    body = (
        "## Densities of UCI tables, beside zuko\n\n"
        f"Test log-likelihood in nats a row, mean of {FOLDS} folds with disjoint test sets, of standardised columns "
        f"with uniform noise (at least {LEAST_NOISE} standard deviations wide; columns correlated above "
        f"{MOST_CORRELATION} dropped, equal rows taken once): comparable within this table alone. {LAYERS} layers, "
        f"zuko's hidden {WIDTH}, {WIDTH}, ours as wide as gives the same number of unmasked parameters; {BINS} bins, "
        f"tails from {BOUND:g}; {args.steps} steps of {args.batch_size} rows, Adam from {args.learning_rate:g} by a "
        "cosine to 0; weights of the best validation step. Differences are paired, ours less zuko; *not worse* is: by "
        "less than 2 errors over folds.\n\n" + "\n".join(rows)
    )
    print(body)
    if args.write:
        results_file.write_section("uci_flows", body)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
