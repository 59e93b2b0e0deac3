"""Figures of the command line's outputs: each function gives a :class:`matplotlib.figure.Figure` of its own."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "agreement_figure",
    "bounds_figure",
    "data_uri",
    "draw_prior",
    "image_grid",
    "latent_figure",
    "new_figure",
    "prior_figure",
    "reconstruction_figure",
    "save_png",
    "tidy_chain_figure",
    "training_figure",
]

DPI = 130
TRAIN, VALIDATION = "#8da0b8", "#c1440e"


def new_figure(width: float, height: float) -> Any:
    """An empty figure that no interactive window shows."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def data_uri(figure: Any) -> str:
    """The figure as a PNG in a ``data:`` address, for a page that needs no other file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def save_png(figure: Any, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, format="png", dpi=DPI)


def draw_prior(program: Any, num: int, seed: int) -> tuple[Any, Any]:
    """``num`` data from the model: mean of p(x|z) for each draw of z, and a draw of x; each ``(num, *event_shape)``.

    Where the mean has no closed form, as that of a flow, the draw stands for it.
    """
    import torch
    from pyro import poutine

    from pyro_dgm.ops.random_state import forked_rng

    with forked_rng(seed=seed), torch.no_grad():
        parameter = next(program.parameters())
        x = torch.zeros((num, *program.event_shape), dtype=parameter.dtype, device=parameter.device)
        site = poutine.trace(poutine.uncondition(program.model)).get_trace(x).nodes[program.obs_name]
        try:
            mean = site["fn"].mean
        except NotImplementedError:
            mean = site["value"]
        return mean.cpu(), site["value"].cpu()


def training_figure(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> Any:
    """Train and validation bound of each objective over epochs, on one scale."""
    columns = min(3, len(histories))
    rows = -(-len(histories) // columns)
    figure = new_figure(10, 0.4 + 2.5 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    # The first epochs fall far below; what matters is where the curves end.
    late = [v for h in histories.values() for part in ("train", "validation") for v in h[part][len(h[part]) // 10 :]]
    margin = 0.05 * (max(late) - min(late)) + 1e-3
    for axis, (name, history) in zip(axes.flat, histories.items(), strict=False):
        epochs = range(1, len(history["train"]) + 1)
        axis.plot(epochs, history["train"], color=TRAIN, label="train")
        axis.plot(epochs, history["validation"], color=VALIDATION, label="validation")
        axis.set_title(name, fontsize=10, loc="left")
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(histories) :]:
        axis.set_visible(False)
    axes[0, 0].set_ylim(min(late) - margin, max(late) + margin)
    axes[0, 0].legend(fontsize=8, loc="lower right")
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("each objective's own bound (nats per datum)", fontsize=10)
    return figure


def bounds_figure(rows: Sequence[Mapping[str, Any]], baseline: str) -> Any:
    """Held-out bounds, and their paired differences from a baseline, both with standard errors."""
    figure = new_figure(10, 1.0 + 0.34 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    left.errorbar(
        [r["test"]["bound"] for r in rows], places, xerr=[r["test"]["data_standard_error"] for r in rows],
        fmt="o", color="#29465b", capsize=3,
    )  # fmt: skip
    left.set_xlabel("held-out bound (nats per datum)\n± standard error over the test data")
    right.errorbar(
        [r["difference"] for r in rows], places, xerr=[r["difference_standard_error"] for r in rows],
        fmt="o", color=VALIDATION, capsize=3,
    )  # fmt: skip
    right.axvline(0.0, color="0.6", linewidth=1)
    right.set_xlabel(f"difference from {baseline} (nats per datum)\n± standard error of the paired difference")
    left.set_yticks(list(places), [r["objective"] for r in rows])
    left.invert_yaxis()
    for axis in (left, right):
        axis.locator_params(axis="x", nbins=6)
        axis.grid(axis="x", alpha=0.25)
    return figure


def image_grid(images: Any, title: str = "", columns: int = 0) -> Any:
    """Grey images ``(N, height, width)`` in [0, 1] in one grid, dark ink on white."""
    import math

    count = len(images)
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = new_figure(0.55 * columns + 0.1, 0.55 * rows + 0.35)
    axis = figure.subplots()
    axis.imshow(_tiled(images, rows, columns), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axis.set_axis_off()
    axis.set_title(title, fontsize=9, loc="left")
    return figure


def _tiled(images: Any, rows: int, columns: int) -> Any:
    """One array with a light line between images."""
    import numpy as np

    height, width = images.shape[1:]
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), 0.15)
    for i, image in enumerate(np.asarray(images)):
        top, left = 1 + (i // columns) * (height + 1), 1 + (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return canvas


def prior_figure(means: Any, values: Any) -> Any:
    """Means of p(x|z) beside draws of x for the same draws of z."""
    import math

    columns = math.ceil(math.sqrt(len(means)))
    rows = math.ceil(len(means) / columns)
    figure = new_figure(10, 5.0)
    for axis, images, title in zip(
        figure.subplots(1, 2),
        (means, values),
        ("mean of p(x|z), z from the prior", "pixels drawn from p(x|z), the same z"),
        strict=True,
    ):
        axis.imshow(_tiled(images, rows, columns), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(title, fontsize=10, loc="left")
    return figure


def reconstruction_figure(images: Any, reconstructions: Any) -> Any:
    """Held-out images above the mean of p(x|z) at the guide's mean of z."""
    count = len(images)
    figure = new_figure(10, 1.9)
    axes = figure.subplots(2, 1)
    for axis, row, label in zip(axes, (images, reconstructions), ("held-out\nimage", "mean of\np(x|z)"), strict=True):
        axis.imshow(_tiled(row, 1, count), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def latent_figure(means: Any, labels: Any) -> Any:
    """Guide means of held-out data in the two latent dimensions in which they vary most, coloured by digit."""
    import numpy as np
    from matplotlib import colormaps

    means, labels = np.asarray(means), np.asarray(labels)
    spread = means.std(0)
    order = np.argsort(-spread)
    first, second = int(order[0]), int(order[1]) if len(order) > 1 else int(order[0])
    figure = new_figure(6.6, 5.2)
    axis = figure.subplots()
    for digit in np.unique(labels):
        chosen = labels == digit
        colour = colormaps["tab10"](int(digit) % 10)
        axis.scatter(
            means[chosen, first], means[chosen, second], s=16, color=colour, label=str(digit), alpha=0.85, linewidths=0
        )
    axis.set_xlabel(f"guide mean of z[{first}]  (prior standard deviations; sd over test data {spread[first]:.2f})")
    axis.set_ylabel(f"guide mean of z[{second}]  (sd over test data {spread[second]:.2f})")
    axis.legend(title="digit", fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axis.grid(alpha=0.25)
    return figure


def agreement_figure(table: Sequence[Mapping[str, Any]]) -> Any:
    """Posterior means and standard deviations: the guide's against HMC's, and MALA's against HMC's."""
    figure = new_figure(10, 4.6)
    for axis, key, label in zip(
        figure.subplots(1, 2), ("mean", "sd"), ("posterior mean", "posterior standard deviation"), strict=True
    ):
        ends = [t[m][key] for t in table for m in ("guide", "hmc", "mala")]
        low, high = min(ends), max(ends)
        pad = 0.05 * (high - low) + 1e-6
        axis.plot([low - pad, high + pad], [low - pad, high + pad], color="0.7", linewidth=1, zorder=0)
        for method, name, colour, marker in (("guide", "guide", VALIDATION, "o"), ("mala", "MALA", "#29465b", "x")):
            axis.errorbar(
                [t["hmc"][key] for t in table], [t[method][key] for t in table],
                xerr=[t["hmc"][f"{key}_error"] for t in table], yerr=[t[method][f"{key}_error"] for t in table],
                fmt=marker, markersize=5, linewidth=0.8, color=colour, label=name,
            )  # fmt: skip
        axis.set_xlim(low - pad, high + pad)
        axis.set_ylim(low - pad, high + pad)
        axis.set_xlabel(f"{label} by HMC (prior standard deviations)")
        axis.set_ylabel(f"{label} by the other method")
        axis.legend(fontsize=9)
        axis.grid(alpha=0.25)
    return figure


def tidy_chain_figure(figure: Any, num_variables: int) -> None:
    """Bring ArviZ's trace or rank plot to the report's size, with smaller type.

    ArviZ 0.23 draws a row for each variable, density and trace, and tells chains apart by the dashes of one colour:
    these get colours and named axes.  Its rank plots, and all plots of 1.x, are one row and have both.
    """
    paired = len(figure.axes) == 2 * num_variables
    figure.set_layout_engine("constrained")
    figure.set_size_inches(10, 1.5 * num_variables + 0.3 if paired else 2.6)
    for i, axis in enumerate(figure.axes):
        for chain, line in enumerate(axis.lines if paired else ()):
            line.set_color(f"C{chain}")
            line.set_linestyle("-")
            line.set_linewidth(1.2 if i % 2 == 0 else 0.4)
        if paired and i >= len(figure.axes) - 2:
            axis.set_xlabel("value (prior standard deviations)" if i % 2 == 0 else "draw")
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_fontsize(8)
        axis.yaxis.label.set_fontsize(8)
