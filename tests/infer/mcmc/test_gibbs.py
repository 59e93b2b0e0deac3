"""Block Gibbs from given conditionals: an RBM that can be enumerated, a bivariate Gaussian, a deep one."""

from __future__ import annotations

import itertools
import math

import pyro
import pytest
import torch

from pyro_dgm.infer.mcmc import MCMC, Gibbs
from tests.infer.mcmc.targets import far_from, frequencies, walk
from tests.infer.mcmc.test_exact import SIGMAS, in_standard_errors

G = torch.Generator().manual_seed(3)
W = 1.5 * torch.randn(2, 2, generator=G, dtype=torch.float64)
B, C = torch.randn(2, 2, generator=G, dtype=torch.float64)


def energy(s):
    v, h = s["v"].double(), s["h"].double()
    return -(torch.einsum("ci,ij,cj->c", v, W, h) + v @ B + h @ C)


CONDITIONALS = {
    "h": lambda s, u: (u < torch.sigmoid(s["v"].double() @ W + C)).to(s["h"].dtype),
    "v": lambda s, u: (u < torch.sigmoid(s["h"].double() @ W.T + B)).to(s["v"].dtype),
}


def exact_rbm():
    """Probabilities of the 16 states, (v1, v2, h1, h2) in binary."""
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double()
    return torch.softmax(-energy({"v": states[:, :2], "h": states[:, 2:]}), 0)


def code(v, h):
    bits = torch.cat([v, h], -1).to(torch.int64)
    return bits @ torch.tensor([8, 4, 2, 1])


def start(chains, dtype):
    return {k: torch.zeros(chains, 2, dtype=dtype) for k in ("v", "h")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_every_state_of_an_rbm_as_often_as_it_should_be(dtype):
    mcmc = MCMC(Gibbs(CONDITIONALS, potential_fn=energy), 400, 20, 200, seed=0, progress=False)
    mcmc.run(initial_params=start(200, dtype))
    s = mcmc.get_samples(group_by_chain=True)
    assert s["v"].dtype == dtype
    frequency = frequencies(code(s["v"], s["h"]), 16)
    assert far_from(frequency, exact_rbm()) < SIGMAS
    assert 0.5 * float((frequency.mean(0) - exact_rbm()).abs().sum()) < 0.01
    stats = mcmc.posterior.sample_stats
    torch.testing.assert_close(stats["lp"][3, 7], -energy({k: v[3, 7:8] for k, v in s.items()})[0])
    assert bool((stats["acceptance_rate"] == 1).all())
    assert not bool(stats["diverging"].any())


def test_a_wrong_conditional_is_seen():
    wrong = {**CONDITIONALS, "v": lambda s, u: (u < torch.sigmoid(s["h"].double() @ W + B)).to(s["v"].dtype)}
    mcmc = MCMC(Gibbs(wrong), 400, 20, 200, seed=0, progress=False)
    mcmc.run(initial_params=start(200, torch.float64))
    s = mcmc.get_samples(group_by_chain=True)
    assert far_from(frequencies(code(s["v"], s["h"]), 16), exact_rbm()) > 2 * SIGMAS


@pytest.mark.parametrize("kind", ["normal", "uniform", "own"])
@pytest.mark.parametrize("chain_method, chains", [("vectorized", 100), ("sequential", 4)])
def test_bivariate_gaussian(kind, chain_method, chains):
    """By normal numbers, by the inverse distribution function of uniform ones, by a source of one's own."""
    rho = 0.7
    scale = math.sqrt(1 - rho**2)

    def conditional(other):
        if kind == "uniform":
            return lambda s, u: rho * s[other] + scale * torch.special.ndtri(u.clamp(min=1e-12))
        return lambda s, xi: rho * s[other] + scale * xi

    def own(value, generator):
        return torch.randn(value.shape, generator=generator, dtype=value.dtype)

    sources = {"normal": "normal", "uniform": {}, "own": {"a": own, "b": "normal"}}
    kernel = Gibbs({"a": conditional("b"), "b": conditional("a")}, sources[kind])
    mcmc = MCMC(kernel, 600, 50, chains, chain_method, seed=1, progress=False)
    mcmc.run(initial_params={k: torch.zeros(chains, dtype=torch.float64) for k in "ab"})
    s = mcmc.get_samples(group_by_chain=True)
    m = torch.stack([s["a"], s["b"], s["a"] ** 2, s["b"] ** 2, s["a"] * s["b"]], -1)
    errors = in_standard_errors(m, torch.tensor([0.0, 0.0, 1.0, 1.0, rho]))
    assert errors.max() < SIGMAS, errors
    assert bool(torch.isnan(mcmc.posterior.sample_stats["lp"]).all())  # no potential was given


def test_deep_boltzmann_machine():
    """v and h2 independent given h1: three blocks, swept h1, v, h2; eight states by enumeration."""
    a, b = 1.3, -0.9

    def joint(s):
        v, h1, h2 = (s[k].squeeze(-1) for k in ("v", "h1", "h2"))
        return -(a * v * h1 + b * h1 * h2 + 0.2 * v - 0.1 * h1 + 0.5 * h2)

    kernel = Gibbs(
        {
            "h1": lambda s, u: (u < torch.sigmoid(a * s["v"] + b * s["h2"] - 0.1)).to(u.dtype),
            "v": lambda s, u: (u < torch.sigmoid(a * s["h1"] + 0.2)).to(u.dtype),
            "h2": lambda s, u: (u < torch.sigmoid(b * s["h1"] + 0.5)).to(u.dtype),
        },
        potential_fn=joint,
    )
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).double()
    exact = torch.softmax(-joint({k: states[:, i : i + 1] for i, k in enumerate(("v", "h1", "h2"))}), 0)
    blocks = {k: torch.zeros(300, 1, dtype=torch.float64) for k in ("v", "h1", "h2")}
    _, seen = walk(
        kernel, blocks, 300, after=lambda s, _: 4 * s.position["v"] + 2 * s.position["h1"] + s.position["h2"]
    )
    assert far_from(frequencies(torch.cat(seen, 1).to(torch.int64), 8), exact) < SIGMAS


def test_in_pyros_driver():
    pyro.set_rng_seed(0)
    first = {k: v[0] for k, v in start(1, torch.float64).items()}
    kernel = Gibbs(CONDITIONALS, potential_fn=energy)
    mcmc = pyro.infer.MCMC(kernel, 2000, 10, initial_params=first, disable_progbar=True)
    mcmc.run()
    s = {k: v.reshape(10, 200, 2) for k, v in mcmc.get_samples().items()}
    assert far_from(frequencies(code(s["v"], s["h"]), 16)[:, [0, 15]], exact_rbm()[[0, 15]]) < 6.0


def test_a_value_that_is_not_finite_is_marked():
    kernel = Gibbs({"x": lambda s, xi: torch.where(xi > 3.0, torch.nan, xi)}, "normal")
    mcmc = MCMC(kernel, 200, 0, 20, seed=0, progress=False)
    with pytest.warns(RuntimeWarning, match="draws diverged"):
        mcmc.run(initial_params={"x": torch.zeros(20)})
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert torch.equal(mcmc.posterior.sample_stats["diverging"], x.isnan())


def identity(s, u):
    return s["x"]


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: Gibbs({}), ValueError, "conditionals must be a non-empty dict"),
        (lambda: Gibbs({"x": 3}), TypeError, r"conditionals\['x'\] must be a function"),
        (lambda: Gibbs({"x": identity}, "gamma"), ValueError, "noise must be 'uniform', 'normal' or a function"),
        (lambda: Gibbs({"x": identity}, {"y": "normal"}), ValueError, r"noise is given for \['y'\]"),
        (lambda: Gibbs({"x": identity}, model=identity), ValueError, "Gibbs takes no model"),
        (lambda: Gibbs({"x": identity}).with_model(identity), ValueError, "cannot be bound to a model"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "conditionals, message",
    [
        ({"x": lambda s, u: s["x"][:, :1]}, r"conditionals\['x'\] must give torch.float32 \(4, 2\), got torch.float32"),
        ({"x": lambda s, u: s["x"] > 0}, r"conditionals\['x'\] must give torch.float32 .*, got torch.bool"),
        ({"x": lambda s, u: None}, "got NoneType"),
        ({"x": lambda s, u: s["x"] / 0.0}, "gave a value that is not finite"),
        ({"x": identity, "y": identity}, r"there are conditionals of \['y'\], but initial_params are of \['x'\]"),
    ],
)
def test_wrong_conditionals_are_named(conditionals, message):
    with pytest.raises(ValueError, match=message):
        MCMC(Gibbs(conditionals), 5, 5, 4, progress=False).run(initial_params={"x": torch.zeros(4, 2)})


def test_a_block_without_a_conditional_is_named():
    with pytest.raises(ValueError, match=r"blocks \['y'\] have no conditional, and would never move"):
        MCMC(Gibbs({"x": identity}), 5, 5, 4, progress=False).run(
            initial_params={"x": torch.zeros(4, 2), "y": torch.zeros(4, 2)}
        )
