"""Seven posteriors of posteriordb as Pyro models, with their reference draws.

Source: M. Magnusson et al. (2024), "posteriordb: Testing, benchmarking and developing Bayesian inference algorithms",
arXiv:2407.04967.  A prior that is flat on a support is a distribution on that support, masked.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

DTYPE = torch.float64


def t(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=DTYPE)


def normal(loc: float, scale: float, *shape: int) -> Any:
    return dist.Normal(torch.full(shape, loc, dtype=DTYPE), scale).to_event(len(shape))


def real(name: str, *shape: int) -> Tensor:
    return pyro.sample(name, normal(0.0, 5.0, *shape).mask(False))


def positive(name: str, *shape: int) -> Tensor:
    return pyro.sample(name, dist.HalfNormal(torch.ones(shape, dtype=DTYPE)).to_event(len(shape)).mask(False))


def ar_k(data: dict[str, Any]) -> None:
    y, k = t(data["y"]), data["K"]
    lags = torch.stack([y[k - i - 1 : len(y) - i - 1] for i in range(k)], 1)
    alpha = pyro.sample("alpha", normal(0.0, 10.0))
    beta = pyro.sample("beta", normal(0.0, 10.0, k))
    sigma = pyro.sample("sigma", dist.HalfCauchy(t(2.5)))
    with pyro.plate("t", len(y) - k):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[k:])


def eight_schools(data: dict[str, Any]) -> None:
    trans = pyro.sample("theta_trans", normal(0.0, 1.0, data["J"]))
    mu = pyro.sample("mu", normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(t(5.0)))
    theta = pyro.deterministic("theta", mu + tau * trans)
    with pyro.plate("schools", data["J"]):
        pyro.sample("y", dist.Normal(theta, t(data["sigma"])), obs=t(data["y"]))


def garch(data: dict[str, Any]) -> None:
    y = t(data["y"])
    mu = real("mu")
    alpha0 = positive("alpha0")
    alpha1 = pyro.sample("alpha1", dist.Uniform(t(0.0), 1.0))
    beta1 = pyro.sample("beta1", dist.Uniform(t(0.0), 1.0 - alpha1).mask(False))
    shocks = alpha0 + alpha1 * (y[:-1] - mu).square()
    variances = [t(data["sigma1"]).square() + 0.0 * mu]
    for shock in shocks.unbind():
        variances.append(shock + beta1 * variances[-1])
    with pyro.plate("t", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)


def gp_poisson(data: dict[str, Any]) -> None:
    x, n = t(data["x"]), data["N"]
    rho = pyro.sample("rho", dist.Gamma(t(25.0), 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(t(2.0)))
    trans = pyro.sample("f_tilde", normal(0.0, 1.0, n))
    kernel = alpha.square() * torch.exp(-0.5 * ((x[:, None] - x) / rho).square()) + 1e-10 * torch.eye(n, dtype=DTYPE)
    f = pyro.deterministic("f", torch.linalg.cholesky(kernel) @ trans)
    with pyro.plate("n", n):
        pyro.sample("k", dist.Poisson(f.exp()), obs=t(data["k"]))


def truncated(name: str, loc: float, scale: float) -> Tensor:
    value = positive(name)
    pyro.factor(f"{name} prior", dist.Normal(t(loc), scale).log_prob(value))
    return value


#: Runge-Kutta steps a year: halving them moves no posterior mean by a hundredth of its standard deviation
STEPS = 5


def lotka_volterra(data: dict[str, Any]) -> None:
    y = t(data["y"])
    a, c = truncated("theta1", 1.0, 0.5), truncated("theta3", 1.0, 0.5)
    b, d = truncated("theta2", 0.05, 0.05), truncated("theta4", 0.05, 0.05)
    sigma = pyro.sample("sigma", dist.LogNormal(t([-1.0, -1.0]), 1.0).to_event(1))
    z = pyro.sample("z_init", dist.LogNormal(t([math.log(10.0)] * 2), 1.0).to_event(1))
    own, other = torch.stack([a, -c]), torch.stack([-b, d])

    def slope(z: Tensor) -> Tensor:
        return z * (own + other * z.flip(-1))

    states, h = [z], 1.0 / STEPS
    for _ in range(len(y)):
        for _ in range(STEPS):
            k1 = slope(z)
            k2 = slope(z + 0.5 * h * k1)
            k3 = slope(z + 0.5 * h * k2)
            k4 = slope(z + h * k3)
            z = z + (h / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)
        states.append(z)
    path = torch.stack(states)
    seen = torch.cat([t(data["y_init"])[None], y])
    with pyro.plate("t", len(path)):
        pyro.sample("y", dist.LogNormal(path.clamp(min=1e-12).log(), sigma).to_event(1), obs=seen)


def gauss_mix(data: dict[str, Any]) -> None:
    y = t(data["y"])
    first = pyro.sample("first", normal(0.0, 2.0))
    second = first + positive("gap")
    pyro.factor("second prior", dist.Normal(t(0.0), 2.0).log_prob(second))
    mu = pyro.deterministic("mu", torch.stack([first, second]))
    sigma = pyro.sample("sigma", dist.HalfNormal(t([2.0, 2.0])).to_event(1))
    theta = pyro.sample("theta", dist.Beta(t(5.0), 5.0))
    parts = dist.Normal(mu, sigma).log_prob(y[:, None]) + torch.stack([theta, 1.0 - theta]).log()
    pyro.factor("y", parts.logsumexp(-1).sum())


def mesquite(data: dict[str, Any]) -> None:
    volume = t(data["diam1"]) * t(data["diam2"]) * t(data["canopy_height"])
    beta, sigma = real("beta", 2), positive("sigma")
    with pyro.plate("n", data["N"]):
        pyro.sample("w", dist.Normal(beta[0] + beta[1] * volume.log(), sigma), obs=t(data["weight"]).log())


#: where chains begin when values uniform on (-2, 2) would take the differential equation to infinity
LYNX = {"theta1": 0.5, "theta2": 0.03, "theta3": 0.8, "theta4": 0.02}
INITIAL = {
    lotka_volterra: init_to_value(
        values={**{k: t(v) for k, v in LYNX.items()}, "sigma": t([0.3, 0.3]), "z_init": t([30.0, 4.0])}
    )
}

POSTERIORS: dict[str, Callable[[dict[str, Any]], None]] = {
    "arK-arK": ar_k,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "garch-garch11": garch,
    "gp_pois_regr-gp_pois_regr": gp_poisson,
    "hudson_lynx_hare-lotka_volterra": lotka_volterra,
    "low_dim_gauss_mix-low_dim_gauss_mix": gauss_mix,
    "mesquite-logmesquite_logvolume": mesquite,
}


def _read(name: str, what: str) -> Any:
    folder = Path(os.environ["PYRO_DGM_DATA"], "posteriordb", name)
    with zipfile.ZipFile(folder / f"{what}.json.zip") as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def data_of(name: str) -> dict[str, Any]:
    return _read(name, "data")


def reference(name: str) -> dict[str, np.ndarray]:
    """Reference draws by parameter, ``(chains, draws)``."""
    chains = _read(name, "draws")
    return {key: np.array([chain[key] for chain in chains]) for key in chains[0]}


def by_parameter(model: Callable[..., None], data: dict[str, Any], samples: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Draws of a sampler, ``(chains, draws, ...)``, by posteriordb's names of the parameters."""

    def one(values: dict[str, Tensor]) -> dict[str, Tensor]:
        with pyro.poutine.block(), pyro.validation_enabled(False):
            trace = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(data)
        return {
            k: s["value"] for k, s in trace.nodes.items() if s["type"] == "sample" and s["infer"].get("_deterministic")
        }

    shape = next(iter(samples.values())).shape[:2]
    found = torch.func.vmap(one)({k: v.flatten(0, 1) for k, v in samples.items()})
    values = {**samples, **{k: v.unflatten(0, shape) for k, v in found.items()}}
    out = {}
    for name, value in values.items():
        if name[:-1] == "theta" and name[-1].isdigit():
            out[f"theta[{name[-1]}]"] = value.numpy()
        elif value.dim() == 2:
            out[name] = value.numpy()
        else:
            out.update({f"{name}[{j + 1}]": value[..., j].numpy() for j in range(value.shape[-1])})
    return out
