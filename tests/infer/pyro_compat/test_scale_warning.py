"""What is said of mini-batches under a global latent, and what is not."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_dgm.infer import (
    ELBO,
    IWAE,
    NVIL,
    STL,
    TVO,
    VIMCO,
    DReG,
    ReweightedWakeSleep,
    ScoreFunction,
    TraceEnumELBO,
    TraceGraphELBO,
    VarGrad,
    WakeSleep,
)

pytestmark = pytest.mark.uses_param_store


@pytest.mark.parametrize(
    ("objective", "warns"),
    [
        *((o, False) for o in (ELBO(3), TraceGraphELBO(3), TraceEnumELBO(3, strict_enumeration_warning=False))),
        *((o, False) for o in (STL(3), VarGrad(3), ScoreFunction(3), NVIL(num_particles=3), WakeSleep(3))),
        *((o, True) for o in (IWAE(3), DReG(3), VIMCO(3), TVO(num_particles=3), ReweightedWakeSleep(3))),
        (NVIL(num_particles=3, target="iwae"), True),
    ],
    ids=repr,
)
def test_a_scale_inside_is_spoken_of_where_there_is_a_logarithm(objective, warns):
    """An average of logarithms has the same mean on mini-batches."""

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4, subsample_size=2):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=torch.zeros(2))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        objective.loss(model, lambda: pyro.sample("mu", dist.Normal(0.0, 0.7)))
    assert any("not a bound" in str(w.message) for w in said) == warns
