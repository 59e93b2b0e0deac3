"""One contract over every recipe: it trains, samples, is saved and rebuilt, captured, and says what it is made of."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re

import pytest
import torch
from torch import nn

import pyro_dgm
from pyro_dgm import recipes
from pyro_dgm.datasets import digits
from pyro_dgm.recipes import RECIPES, Citation, Composition, recipe

every = pytest.mark.parametrize("name", list(RECIPES))

#: small sizes, for those hyper-parameters that a recipe has
TINY = {
    "num_layers": 2,
    "hidden": (8,),
    "flow_hidden": (8,),
    "discriminator_hidden": (8,),
    "latent_dim": 2,
    "num_units": 2,
    "num_reflections": 2,
    "num_features": 4,
    "num_bins": 3,
    "num_steps": 4,
    "width": 8,
    "num_heads": 2,
    "transformer_layers": 1,
    "num_particles": 3,
    "num_outer": 2,
    "num_inner": 2,
    "noise_dim": 2,
    "capacity_steps": 1,
    "num_scales": 1,
    "hidden_channels": 4,
    "num_levels": 4,
    "batch_size": 32,
}
#: learning rates with which a few steps show: those of the papers are for hundreds of epochs
LEARNING_RATES = {"learning_rate": 5e-3, "discriminator_learning_rate": 5e-3}
#: recipes whose graphs are recorded in each run of the tests, one of each kind; the others in the slow ones
QUICK = ("nsf", "maf", "vae", "dreg_iwae", "factor_vae")


def make(name, event_shape=(2, 4), **more):
    torch.manual_seed(0)
    known = RECIPES[name].hyperparameters
    given = {key: value for key, value in {**TINY, **LEARNING_RATES}.items() if key in known}
    return recipes.get(name, event_shape, hyperparameters={**given, **more})


@functools.cache
def images():
    """The middle of digits, binary."""
    return digits(binarize="threshold").train[:96, 3:5, 2:6]


def data(made, num=96):
    """Digits, with noise as a density needs where the likelihood is not that of binary data."""
    x = images()[:num]
    if getattr(made.program, "dequantize", None):
        return 3 * x
    if getattr(getattr(made.program, "likelihood", None), "discrete", False):
        return x
    return x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def fit(made, x, epochs=8, **more):
    return pyro_dgm.fit(made.program, x, **made.training, epochs=epochs, seed=0, progress=False, **more)


def test_there_are_recipes_for_the_published_flows_and_autoencoders():
    flows = {"nice", "real_nvp", "maf", "iaf_density", "nsf", "naf", "sylvester", "planar", "radial", "residual"}
    vaes = {"vae", "beta_vae", "iwae", "miwae", "ciwae", "piwae", "dreg_iwae", "factor_vae", "info_vae", "wae_mmd"}
    assert flows | vaes | {"ffjord", "tarflow", "glow", "avb", "vae_iaf", "vae_planar", "vae_sylvester"} <= set(
        recipes.list()
    )


@pytest.fixture(scope="module", params=list(RECIPES))
def trained(request):
    """A recipe after a few epochs: itself, its run, and its data."""
    made = make(request.param)
    x = data(made)
    return made, fit(made, x, epochs=6), x


def test_it_trains_and_its_objective_improves(trained):
    made, run, x = trained
    values = run.history["train"]
    assert all(math.isfinite(value) for value in values)
    gain = run.measured["train"].gain
    if made.name in ("beta_vae", "capacity_beta_vae"):  # what they report is the ELBO: look at what they train
        fresh = make(made.name)
        values = [float(r.objective.regularised(r.program.model, r.program.guide, x).mean()) for r in (fresh, made)]
    assert gain(values[-1]) > gain(values[0])
    assert run.config["compile"] == "eager"  # "auto": too short to be worth compiling


def test_it_samples_data_of_the_shape(trained):
    program = trained[0].program
    draws = [program.sample(3, seed=seed) for seed in (1, 1, 2)]
    assert draws[0].shape == (3, 2, 4) and torch.isfinite(draws[0]).all()
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_save_and_load_give_the_same_program(trained, tmp_path):
    made, run, _ = trained
    again = recipes.load(made.save(run, tmp_path / "run"))
    assert again.config() == made.config() == json.loads(json.dumps(made.config()))
    assert again.hyperparameters == made.hyperparameters
    state = again.program.state_dict()
    assert all(torch.equal(state[key], value) for key, value in made.program.state_dict().items())
    assert torch.equal(again.program.sample(3, seed=0), made.program.sample(3, seed=0))


def test_show_names_the_parts_that_there_are(trained):
    made = trained[0]
    rows = [line.split() for line in str(made).splitlines() if line.strip()]
    text = " ".join(str(made).split())
    for words in (made.name, made.title, made.citation.authors, made.equation, *made.parts.values()):
        assert words.split()[0] in text
    assert repr(made.objective) == made.parts["objective"]
    # Parts that are named by their classes are in the program, as many as there are.
    key = "transform" if "transform" in made.parts else "guide"
    named = re.findall(r"(?:(\d+) )?([A-Z]\w+)", made.parts[key].partition(";")[0].partition(", encoder")[0])
    for count, kind in named:
        assert sum(type(m).__name__ == kind for m in made.program.modules()) == int(count or 1), kind
    assert named or made.parts[key].startswith("diagonal normal")
    for hyper, value in made.hyperparameters.items():
        assert any(row[0] == hyper and row[1] == str(value).split()[0] for row in rows if len(row) > 1), hyper
    assert f"lr={made.hyperparameters['learning_rate']}" in made.parts["optimizer"]
    assert f"batch_size {made.hyperparameters['batch_size']}" in made.parts["training"]
    assert ("phases" in made.parts) == (len(made.phases) > 1) == (made.name in ("factor_vae", "avb"))


@every
def test_equation_and_docstring_say_what_it_is(name):
    entry = RECIPES[name]
    doc = inspect.getdoc(entry.make)
    assert len(entry.equation) > 10 and entry.citation.year > 2010
    assert entry.citation.arxiv is None or entry.citation.arxiv in doc
    missing = [key for key in ("event_shape", *entry.hyperparameters) if f":param {key}:" not in doc]
    assert not missing and "Source:" in doc and getattr(recipes, name) is entry.make
    assert name in recipes.__all__


def captured(name, **more):
    made = make(name, **more)
    return fit(made, data(made, 64), epochs=1, compile="graph").config["compile"]


@pytest.mark.filterwarnings("error:the program runs eagerly")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_its_training_step_is_recorded_as_a_graph(name):
    assert captured(name) == "graph"


def test_what_no_graph_can_hold_says_why():
    with pytest.warns(RuntimeWarning, match="runs eagerly, not captured: its structure depends on values of tensors"):
        captured("residual", log_det="roulette")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: recipes.get("nfs", (2,)), ValueError, "there is no recipe 'nfs'; did you mean 'nsf'"),
        (lambda: recipes.get("nsf", (2,), hyperparameters={"num_layer": 2}), ValueError, "'num_layer'; it has num_lay"),
        (lambda: recipes.get("nsf", (1,)), ValueError, "at least two elements.*autoregressive=True"),
        (lambda: recipes.get("real_nvp", (1,)), ValueError, "real_nvp needs data of at least two elements"),
        (lambda: recipes.get("nsf", 2), TypeError, "event_shape must be a tuple or list of integers"),
        (lambda: recipes.get("nsf", (0,)), ValueError, r"event_shape\[0\] must be an integer of at least 1"),
        (lambda: recipes.nsf((2,), num_layers=0), ValueError, "num_layers must be an integer of at least 1"),
        (lambda: recipes.nsf((2,), learning_rate=-1.0), ValueError, "learning_rate must be positive"),
        (lambda: recipes.nsf((2,), batch_size=2.5), TypeError, "batch_size must be an integer"),
        (lambda: recipes.vae((2,), likelihood="poisson"), ValueError, "likelihood must be one of"),
        (lambda: recipes.vae_iaf((2,), warmup_steps=-1), ValueError, "warmup_steps must be an integer of at least 0"),
        (lambda: recipes.ciwae((2,), beta=2.0), ValueError, "beta must be a number in"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_folder_without_a_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        recipes.load(tmp_path)
    program = pyro_dgm.models.LinearGaussian(3, 1)
    pyro_dgm.fit(program, torch.randn(20, 3), epochs=1, seed=0, progress=False).save(tmp_path)
    with pytest.raises(ValueError, match="no entry 'recipe'"):
        recipes.load(tmp_path)


def test_a_run_of_another_program_is_not_saved(tmp_path):
    one, other = make("maf"), make("maf")
    run = fit(one, data(one, 32), epochs=1)
    with pytest.raises(ValueError, match="run must be of this recipe's program"):
        other.save(run, tmp_path)


def test_a_recipe_of_ones_own():
    citation = Citation("A. Nobody", "A test", 2026)

    def small(event_shape, *, num_layers: int = 1):
        program = pyro_dgm.models.FlowModel(event_shape, num_layers=num_layers, hidden=(4,))
        return Composition(program, pyro_dgm.infer.ELBO(), torch.optim.Adam, {"batch_size": 8})

    made = recipe("a_test", title="A test", equation="log p(x)", citation=citation)(small)
    try:
        assert recipes.get("a_test", (2,), hyperparameters={"num_layers": 2}).hyperparameters == {"num_layers": 2}
        assert made((2,)).parts["optimizer"] == "Adam" and made((2,)).training["batch_size"] == 8
        with pytest.raises(ValueError, match="there is a recipe 'a_test' already"):
            recipe("a_test", title="A test", equation="log p(x)", citation=citation)(small)
    finally:
        del RECIPES["a_test"]
    with pytest.raises(TypeError, match="event_shape, then keywords with defaults"):
        recipe("b_test", title="B", equation="log p(x)", citation=citation)(lambda event_shape, num_layers: None)
    assert "b_test" not in RECIPES


def test_hyperparameters_reach_the_program():
    made = recipes.get("nsf", (4,), hyperparameters={"num_layers": 3, "hidden": [7], "num_bins": 5, "bound": 4.0})
    couplings = [m for m in made.program.modules() if type(m).__name__ == "SplineCoupling"]
    assert len(couplings) == 3 and made.hyperparameters["hidden"] == (7,)
    assert couplings[0].family.num_parameters == 3 * 5 - 1
    widths = {m.out_features for m in couplings[0].modules() if isinstance(m, nn.Linear)}
    assert 7 in widths
    vae = recipes.get("factor_vae", (4,), hyperparameters={"gamma": 2.0, "discriminator_hidden": [5]})
    assert vae.objective.gamma == 2.0 and vae.objective.hidden == (5,)


def test_density_estimation_takes_the_direction_in_closed_form():
    slow = [n for n in recipes.list() if "transform" in make(n).parts and make(n).program.flow.fast == "forward"]
    assert slow == ["iaf_density"]
