"""The order in which the examples are read."""

from __future__ import annotations

ORDER = [
    "plot_quickstart.py",
    "plot_estimators.py",
    "plot_discrete.py",
    "plot_flow_density.py",
    "plot_flow_images.py",
    "plot_energies.py",
    "plot_posterior.py",
    "plot_own_model.py",
    "plot_gan.py",
]


class Reading:
    """Sort key of sphinx-gallery: the order above, then by name."""

    def __init__(self, source_folder: str) -> None:
        self.source_folder = source_folder

    def __call__(self, filename: str) -> tuple[int, str]:
        return (ORDER.index(filename) if filename in ORDER else len(ORDER), filename)

    def __repr__(self) -> str:
        return "Reading"
