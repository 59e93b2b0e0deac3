"""Sphinx configuration.  The build needs no network: examples use data that come with scikit-learn."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

# The examples run in this process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"

with warnings.catch_warnings():
    # ArviZ 0.23 warns about its successor on the first import; this is not output of an example.
    warnings.simplefilter("ignore")
    import arviz  # noqa: F401

import pyro_dgm  # noqa: E402

# Remove pages of an earlier build whose names or examples no longer exist: no table of contents would list them.
shutil.rmtree(HERE / "api" / "generated", ignore_errors=True)
for stale in (HERE / "gallery").glob("plot_*"):
    if not (HERE.parent / "examples" / f"{stale.name.partition('.')[0]}.py").is_file():
        stale.unlink()

project = "pyro_dgm"
author = "The pyro_dgm contributors"
copyright = "the pyro_dgm contributors"
release = version = pyro_dgm.__version__

extensions = [
    "mathml_renderer",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "viewcode_anchors",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "_ext",
    "_templates",
    "gallery/*.ipynb",
    "gallery/*.md5",
    "gallery/*.json",
]
templates_path = ["_templates"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
suppress_warnings = [
    "config.cache"
]  # sphinx-gallery's settings hold functions, which Sphinx cannot pickle
show_warning_types = True

# Links between our own pages and docstrings must resolve; names of other projects are shown as they are.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!pyro_dgm)(?s:.*)")]
# Internal types that appear in type hints only.
nitpick_ignore = [
    ("py:class", "pyro_dgm.programs.structure.Structure"),
    ("py:class", "pyro_dgm.infer.mcmc.potentials.base.Potential"),
    ("py:class", "pyro_dgm.infer.mcmc.diagnostics.Summary"),
    ("py:class", "pyro_dgm.infer.objectives.evaluation.strategy.Pair"),
    ("py:class", "pyro_dgm.infer.mcmc.potentials.wrapped.WrappedPotential"),
    ("py:class", "pyro_dgm.nn.dense.DenseFunction"),
    ("py:class", "pyro_dgm.models.base.F"),
    ("py:class", "pyro_dgm.guides.grouped.GroupedGuide"),
    ("py:class", "pyro_dgm.guides.groups.Group"),
    ("py:class", "pyro_dgm.distributions.likelihoods.counts.CountsLikelihood"),
    ("py:class", "pyro_dgm.distributions.likelihoods.levels.LevelsLikelihood"),
    ("py:class", "pyro_dgm.distributions.priors.base.PosteriorPrior"),
    ("py:class", "pyro_dgm.distributions.transforms.family_bijection.FamilyBijection"),
]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_imported_members = False
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries_show_parents = "hide"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "gallery_order.Reading",
    "abort_on_example_error": True,
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("pyro_dgm",),
    "download_all_examples": False,
    "image_scrapers": ("matplotlib",),
    "capture_repr": ("_repr_html_", "__repr__"),
    "matplotlib_animations": False,
    "remove_config_comments": True,
    "plot_gallery": "True",
    "write_computation_times": False,  # times of the machine that built the pages are of no use to a reader
    "min_reported_time": 1e9,
    "show_memory": False,
    "show_signature": False,
    "copyfile_regex": r"(?!)",
}
html_theme = "furo"
html_title = f"pyro_dgm {release}"
html_static_path = ["_static"]
html_css_files = ["pyro_dgm.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
