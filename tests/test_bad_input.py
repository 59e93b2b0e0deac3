"""Bad input of every kind to every public entry: refused with the argument, what came, and what is wanted."""

from __future__ import annotations

import functools
import inspect
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

import pyro_dgm
from pyro_dgm import datasets, models, ops
from pyro_dgm import infer as infer_room
from pyro_dgm.analysis import (
    active_units,
    compare_elbos,
    compare_energies,
    elbo_surgery,
    log_likelihood,
    mutual_information,
)
from pyro_dgm.infer import ELBO, mcmc
from pyro_dgm.infer.mcmc import HMC, MCMC
from pyro_dgm.infer.mcmc.kernels.base import Kernel
from pyro_dgm.infer.objectives import energies as energy
from pyro_dgm.infer.smc import AIS, SMCSampler
from pyro_dgm.ops.arguments import check_count, check_device, check_number, check_seed, check_sizes

SEEDS = {"-1": -1, "1.5": 1.5, "True": True, "str": "x", "2**70": 2**70}
COUNTS = {"0": 0, "-1": -1, "1.5": 1.5, "True": True, "nan": math.nan, "str": "3", "10**12": 10**12, "list": [3]}
X = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
LAW = dist.Normal(torch.zeros(2), 1.0).to_event(1)


@functools.cache
def family():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.LinearGaussian(3, 2)


def log_density(z):
    return -0.5 * z.square().sum(-1)


def model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[:, None], torch.ones(3)).to_event(1), obs=x)


def guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def inference_tensor():
    with torch.inference_mode():
        return X.clone()


#: entries that take a program and a batch
ENTRIES = {
    "fit": lambda p, x: pyro_dgm.fit(p, x, epochs=1, progress=False, compile=False),
    "guide": lambda p, x: pyro_dgm.sample_posterior(p, x, num_samples=2),
    "hmc": lambda p, x: pyro_dgm.sample_posterior(p, x, num_samples=1, warmup_steps=0, method="hmc", progress=False),
    "iwae": lambda p, x: log_likelihood(p, x, num_particles=2),
    "ais": lambda p, x: log_likelihood(p, x, "ais", num_temperatures=2, num_chains=2),
    "compare_elbos": lambda p, x: compare_elbos(p, x, [ELBO()], num_replicates=2, reference_particles=2),
    "elbo_surgery": lambda p, x: elbo_surgery(p, x, num_samples=2),
    "active_units": lambda p, x: active_units(p, x, num_samples=2),
    "mutual_information": lambda p, x: mutual_information(p, x, num_samples=2),
    "to_arviz": lambda p, x: pyro_dgm.to_arviz(p, data=x, num_samples=2),
}
#: data that no family takes, and part of the message
DATA = {
    "int": (X.int(), "floating point"),
    "bool": (X > 0, "floating point"),
    "complex": (X.to(torch.complex64), "real numbers"),
    "sparse": (X.to_sparse(), "dense"),
    "quantised": (torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "quantised"),
    "meta": (X.to("meta"), "meta"),
    "empty": (X[:0], "no data|at least one datum|empty"),
    "numpy": (X.numpy(), "tensor"),
    "list": (X.tolist(), r"takes \(x\)|tensor"),
    "nan": (torch.full((4, 3), math.nan), "12 values that are not finite"),
    "one datum": (X[0], r"must have shape \(N, 3\), got \(3,\); one datum is x\[None\]"),
    "double": (X.double(), "float64"),
    "half": (X.half(), "float16"),
    "None": (None, "tensor|data is needed"),
    "str": ("x", "tensor|str"),
    "number": (3.0, "tensor|float"),
    "two": ((X, X), r"takes \(x\)"),
    "keyword": ({"y": X}, r"takes \(x\)"),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("entry", ENTRIES)
def test_data(entry, data):
    value, message = DATA[data]
    with pytest.raises((TypeError, ValueError), match=message):
        ENTRIES[entry](family(), value)


@pytest.mark.parametrize("entry", ENTRIES)
def test_grey_pixels_under_a_bernoulli(entry):
    vae = models.VAE((3,), latent_dim=2, hidden=(4,))
    with pytest.raises(ValueError, match=r"outside \{0, 1\}.*Bernoulli"):
        ENTRIES[entry](vae, X.abs())


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e != "ais"])
def test_data_that_a_gradient_or_inference_mode_made_are_constants(entry):
    leaf = X.clone().requires_grad_()
    ENTRIES[entry](family(), leaf * 1.0)
    assert leaf.grad is None
    ENTRIES[entry](family(), inference_tensor())


@pytest.mark.parametrize("entry", ["fit", "hmc", "compare_elbos"])
def test_gradients_under_inference_mode(entry):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="outside torch.inference_mode"):
        ENTRIES[entry](family(), X)


#: values that a model of one's own may be given, and that no density takes
OBSERVED = {
    "complex": (X.to(torch.complex64), "site 'x' is observed at complex"),
    "bool": (X > 0, "site 'x' is observed at torch.bool.*Independent"),
    "quantised": (torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "quantised"),
    "numpy": (X.numpy(), "site 'x' is observed at a ndarray|must be a tensor"),
    "sparse": (X.to_sparse(), "layout torch.sparse_coo"),
    "meta": (X.to("meta"), "'meta'"),
    "nan": (torch.full((4, 3), math.nan), "support"),
}


@pytest.mark.parametrize("data", OBSERVED)
@pytest.mark.parametrize("entry", ["guide", "hmc", "iwae", "elbo_surgery", "active_units", "compare_elbos"])
def test_observed_values_of_a_program_of_ones_own(entry, data):
    if (entry, data) == ("hmc", "nan"):
        pytest.skip("MCMC says at which site its start is not finite")
    value, message = OBSERVED[data]
    with pytest.raises((TypeError, ValueError), match=message):
        ENTRIES[entry]((model, guide), value)


def test_integers_and_bools_are_data_where_the_law_takes_them():
    def counts(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    for x in (torch.tensor([0, 1, 1]), torch.tensor([0.0, 1.0, 1.0])):
        assert log_likelihood((counts, guide), x, num_particles=2).values.shape == (3,)

    def coins(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    with pytest.raises(TypeError, match="site 'x' is observed at torch.int64, which Bernoulli does not take"):
        log_likelihood((coins, guide), torch.tensor([0, 1, 1]), num_particles=2)


#: bad programs, and part of the message; ``(model, guide)`` pairs are good ones
PROGRAMS = {
    "class": (models.VAE, "instance, VAE"),
    "number": (3, "got int"),
    "str": ("vae", "got str"),
    "None": (None, "got NoneType"),
    "tensor": (X, "got Tensor"),
    "trio": ((model, guide, 3), "got tuple"),
    "half a pair": ((model, 3), "got tuple"),
    "objective": (ELBO(), "got ELBO|takes"),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_programs(entry, program):
    value, message = PROGRAMS[program]
    message = r"instance|program|result" if entry == "to_arviz" else message
    with pytest.raises(TypeError, match=message):
        ENTRIES[entry](value, X)


def test_a_program_of_classes():
    with pytest.raises(TypeError, match="model must be a callable with Pyro sites, got the class VAE"):
        pyro_dgm.program(models.VAE, models.VAE)
    with pytest.raises(TypeError, match="takes"):
        ENTRIES["iwae"]((model, lambda x, y: None), X)


def seeded(seed):
    """Every call that takes a seed, by name."""
    rbm, latent = models.RBM(3, 2), models.LatentEBM((3,), 2)
    f = family()
    return {
        "fit": lambda: pyro_dgm.fit(f, X, epochs=1, progress=False, seed=seed),
        "guide": lambda: pyro_dgm.sample_posterior(f, X, num_samples=2, seed=seed),
        "hmc": lambda: pyro_dgm.sample_posterior(f, X, method="hmc", num_samples=2, seed=seed),
        "MCMC": lambda: MCMC(HMC(f.model), 2, seed=seed),
        "iwae": lambda: log_likelihood(f, X, num_particles=2, seed=seed),
        "exact": lambda: log_likelihood(f, X, "exact", seed=seed),
        "ais": lambda: log_likelihood(f, X, "ais", num_chains=2, num_temperatures=2, seed=seed),
        "compare_elbos": lambda: compare_elbos(f, X, [ELBO()], seed=seed),
        "elbo_surgery": lambda: elbo_surgery(f, X, seed=seed),
        "mutual_information": lambda: mutual_information(f, X, seed=seed),
        "active_units": lambda: active_units(f, X, seed=seed),
        "to_arviz": lambda: pyro_dgm.to_arviz(f, data=X, seed=seed),
        "AIS": lambda: AIS(LAW, log_density, num_temperatures=2).forward(2, seed=seed),
        "SMC": lambda: SMCSampler(LAW, log_density).run(4, seed=seed),
        "RBM.sample": lambda: rbm.sample(2, num_steps=1, seed=seed),
        "RBM.log_normalizer": lambda: rbm.log_normalizer(num_temperatures=2, num_chains=2, seed=seed),
        "LatentEBM.sample": lambda: latent.sample(2, seed=seed),
        "digits": lambda: datasets.digits(seed=seed),
        "DynamicBinarization": lambda: datasets.DynamicBinarization(X.abs(), seed=seed),
        "compare_energies": lambda: compare_energies(
            lambda: models.EBM((2,), hidden=(4,)),
            X[:, :2],
            [energy.ScoreMatching()],
            log_density=log_density,
            seed=seed,
        ),
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("entry", list(seeded(0)))
def test_seeds(entry, seed):
    with pytest.raises((TypeError, ValueError), match=r"seed must be an integer from 0 to 2\*\*62"):
        seeded(SEEDS[seed])[entry]()


def counted():
    """Every count of an entry: name of the argument to a call that takes it."""
    f = family()
    calls = {
        "fit": (
            lambda **k: pyro_dgm.fit(f, X, **{"epochs": 1, "progress": False, **k}),
            "epochs batch_size num_data accumulate checkpoint_every devices check_every",
        ),
        "sample_posterior": (
            lambda **k: pyro_dgm.sample_posterior(f, X, **{"num_samples": 2, **k}),
            "num_samples num_chains",
        ),
        "MCMC": (
            lambda **k: MCMC(HMC(f.model), **{"num_samples": 2, **k}),
            "num_samples num_chains thinning chunk_size",
        ),
        "log_likelihood": (lambda **k: log_likelihood(f, X, **k), "num_particles chunk_size"),
        "log_likelihood of ais": (
            lambda **k: log_likelihood(f, X, "ais", **{"num_chains": 2, "num_temperatures": 2, **k}),
            "num_chains num_temperatures num_steps",
        ),
        "compare_elbos": (
            lambda **k: compare_elbos(f, X, [ELBO()], **k),
            "num_replicates num_reference_replicates reference_particles",
        ),
        "elbo_surgery": (lambda **k: elbo_surgery(f, X, **k), "num_samples chunk_size"),
        "mutual_information": (lambda **k: mutual_information(f, X, **k), "num_samples chunk_size"),
        "active_units": (lambda **k: active_units(f, X, **k), "num_samples"),
        "to_arviz": (lambda **k: pyro_dgm.to_arviz(f, data=X, **k), "num_samples chunk_size prior"),
        "AIS": (lambda **k: AIS(LAW, log_density, **k), "num_temperatures num_steps"),
        "AIS.forward": (lambda **k: AIS(LAW, log_density, num_temperatures=2).forward(**k), "num_chains"),
        "SMCSampler": (lambda **k: SMCSampler(LAW, log_density, **k), "num_steps max_temperatures"),
        "SMCSampler.run": (lambda **k: SMCSampler(LAW, log_density).run(**k), "num_particles"),
        "compare_energies": (
            lambda **k: compare_energies(lambda: models.EBM((2,)), X[:, :2], [energy.ScoreMatching()],
                                         log_density=log_density, **k),
            "epochs grid_size",
        ),
        "RBM": (lambda **k: models.RBM(**{"num_visible": 3, "num_hidden": 2, **k}), "num_visible num_hidden"),
        "RBM.sample": (lambda **k: models.RBM(3, 2).sample(**{"num_samples": 2, **k}), "num_samples num_steps"),
        "VAE": (lambda **k: models.VAE((3,), hidden=(2,), **k), "latent_dim"),
        "LinearGaussian": (lambda **k: models.LinearGaussian(**{"event_dim": 3, "latent_dim": 2, **k}), "latent_dim"),
        "LatentEBM": (lambda **k: models.LatentEBM((3,), **k), "latent_dim"),
    }  # fmt: skip
    return {f"{entry}: {name}": (call, name) for entry, (call, names) in calls.items() for name in names.split()}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("entry", list(counted()))
def test_counts(entry, count):
    call, name = counted()[entry]
    if (name, count) == ("prior", "True"):
        pytest.skip("prior=True takes 500 draws")
    if (name, count) == ("prior", "0"):
        pytest.skip("prior=0 is refused as a count of draws, and False asks for none")
    with pytest.raises((TypeError, ValueError), match=rf"{name} must be an integer"):
        call(**{name: COUNTS[count]})


SIZES = {**COUNTS, "None": None}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("event_shape", lambda n: models.VAE((3, n), hidden=(2,))),
        ("hidden", lambda n: models.VAE((3,), hidden=(2, n))),
        ("event_shape", lambda n: models.EBM((n,))),
        ("hidden", lambda n: models.EBM((2,), hidden=(n,))),
        ("event_shape", lambda n: models.LinearGaussian(n, 2)),
        ("num_visible", lambda n: models.BoltzmannMachine(n)),
        ("num_visible", lambda n: models.DBM(n, (2, 2))),
        ("hidden", lambda n: models.DBM(3, (n, 2))),
    ],
)
def test_sizes_of_families(name, make, size):
    with pytest.raises((TypeError, ValueError), match=rf"{name}(\[\d\])? must be an integer"):
        make(SIZES[size])


def test_shapes_that_are_no_sequences():
    for shape in (3, None, "33", 1.5):
        with pytest.raises(TypeError, match="event_shape must be a tuple or list of integers"):
            models.VAE(shape, hidden=(2,))


def constructors():
    """Constructors of objectives, kernels and schedules with their numbers: all that have defaults for the rest."""
    found = {}
    for room in (infer_room, mcmc, energy, ops):
        for made in (getattr(room, name) for name in getattr(room, "__all__", ())):
            if not isinstance(made, type) or inspect.isabstract(made) or issubclass(made, Exception):
                continue
            parameters = list(inspect.signature(made).parameters.values())
            if issubclass(made, Kernel) and parameters[-1].kind is parameters[-1].VAR_KEYWORD:
                parameters += inspect.signature(Kernel).parameters.values()  # where the keywords go
            named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            needed = {p.name: 8 for p in named if p.default is p.empty}
            if set(needed) - {"steps"}:
                continue
            for p in named:
                number = isinstance(p.default, (int, float)) and not isinstance(p.default, bool)
                if number or (p.default is None and any(t in str(p.annotation) for t in ("int", "float"))):
                    found[f"{made.__name__}.{p.name}"] = (made, {**needed}, p.name)
    return found


CONSTRUCTORS = constructors()


@pytest.mark.parametrize("argument", CONSTRUCTORS)
def test_numbers_of_constructors(argument):
    made, needed, name = CONSTRUCTORS[argument]
    for bad in ("three", math.nan, True, object()):
        with pytest.raises((TypeError, ValueError), match=name):
            made(**{**needed, name: bad})


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("gpu", ValueError, "'cuda:1' or the like, got 'gpu'"),
        ("cuda:99", ValueError, "device that is there, got 'cuda:99'"),
        ("meta", ValueError, "got 'meta': tensors there hold no values"),
        ("", ValueError, "got ''"),
        (3, TypeError, "got int"),
        (None, TypeError, "got NoneType"),
        (True, TypeError, "got bool"),
        pytest.param(
            "cuda",
            ValueError,
            "torch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_devices(device, error, message):
    with pytest.raises(error, match=message):
        pyro_dgm.fit(family(), X, epochs=1, progress=False, device=device)


OBJECTIVES = {
    "class": (ELBO, "instance, ELBO"),
    "str": ("elbo", "str"),
    "number": (3, "int"),
    "Pyro's class": (pyro.infer.Trace_ELBO, "instance, Trace_ELBO"),
    "Jit": (pyro.infer.JitTrace_ELBO(), r"JitTrace_ELBO: torch.jit is deprecated.*Take Trace_ELBO\(\)"),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives(objective):
    value, message = OBJECTIVES[objective]
    for call in (
        lambda: pyro_dgm.fit(family(), X, epochs=1, progress=False, objective=value),
        lambda: pyro_dgm.fit(family(), X, epochs=1, progress=False, validation=X, validation_objective=value),
        lambda: compare_elbos(family(), X, [value]),
        lambda: compare_energies(lambda: models.EBM((2,)), X[:, :2], [value], log_density=log_density),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_objectives_that_are_no_list():
    for value in (ELBO(), "ELBO", 3, None):
        with pytest.raises(TypeError, match="estimators must be a list of objectives"):
            compare_elbos(family(), X, value)


KERNELS = {
    "class": (HMC, "HMC"),
    "number": (3, "got int|got 3"),
    "objective": (ELBO(), "ELBO"),
    "Pyro's": (pyro.infer.NUTS(model), "NUTS"),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels(kernel):
    value, message = KERNELS[kernel]
    for call in (
        lambda: pyro_dgm.sample_posterior(family(), X, method=value),
        lambda: MCMC(value, 2),
        lambda: AIS(LAW, log_density, value),
        lambda: SMCSampler(LAW, log_density, value),
        lambda: log_likelihood(family(), X, "ais", kernel=value),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_data_sets_of_torch():
    with pytest.raises(TypeError, match=r"data: the model takes \(x\), but the batch gives it \(\(4, 3\), \(4,\)\)"):
        pyro_dgm.fit(family(), TensorDataset(X, torch.arange(4)), epochs=1, progress=False)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(X)

    run = pyro_dgm.fit(family(), Stream(), epochs=2, batch_size=3, progress=False, compile=False)
    assert run.steps == 4


def test_the_checks_themselves():
    assert check_count("n", np.int64(3)) == 3 and type(check_count("n", np.int64(3))) is int
    assert check_count("n", None, optional=True) is None
    assert check_count("n", 0, 0) == 0
    assert check_seed(None) is None and check_seed(2**62 - 1) == 2**62 - 1
    with pytest.raises(TypeError, match=r"n must be an integer of at least 2 \(why\), or None, got 2.0"):
        check_count("n", 2.0, 2, optional=True, why="why")
    with pytest.raises(TypeError, match="or None"):
        check_number("x", "3", optional=True)
    assert check_number("x", torch.tensor(2.0)) == 2.0 and check_number("x", np.float32(2.0)) == 2.0
    assert check_sizes("s", [3, 4]) == (3, 4)
    assert check_device("cpu") == torch.device("cpu")
