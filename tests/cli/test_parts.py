"""The parts of the command line that need no command: specs, families from configurations, data, doctor's rules."""

from __future__ import annotations

import json

import pytest
import torch

import pyro_dgm
from pyro_dgm.cli.build import build_family, family_arguments
from pyro_dgm.cli.data import load_data
from pyro_dgm.cli.doctor import find_bad_pairs
from pyro_dgm.cli.errors import UsageError
from pyro_dgm.cli.specs import parse_objective, parse_rows, parse_settings
from pyro_dgm.distributions.likelihoods import GaussianLikelihood
from pyro_dgm.infer import OBJECTIVES, DReG, RenyiELBO


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_is_known_by_its_name(name: str) -> None:
    assert type(parse_objective(name)) is OBJECTIVES[name]
    assert parse_objective(f"{name}(7)").num_particles == 7
    assert parse_objective(name, num_particles=3).num_particles == 3


def test_objective_arguments() -> None:
    renyi = parse_objective("RenyiELBO(5, alpha=0.5)")
    assert isinstance(renyi, RenyiELBO)
    assert (renyi.alpha, renyi.num_particles) == (0.5, 5)
    assert isinstance(parse_objective(" DReG( num_particles = 4 ) "), DReG)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Elbo", "no objective 'Elbo'; there are AdversarialELBO, BetaTC, CIWAE"),
        ("IWAE(0)", "at least 1"),
        ("IWAE(particles=3)", "particles"),
        ("RenyiELBO(alpha=1)", "alpha must not be 1"),
        ("IWAE(__import__('os'))", "not of the form"),
        ("IWAE(5", "not of the form"),
        ("a.b(3)", "not of the form"),
    ],
)
def test_bad_objectives(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        parse_objective(spec)


def test_rows() -> None:
    assert parse_rows(":3,7,9:", 12) == [0, 1, 2, 7, 9, 10, 11]
    for spec, message in (
        ("x", "neither"),
        ("3:2", "names no row"),
        ("12", "not among the rows 0 to 11"),
        ("-1", "not"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_rows(spec, 12)


def test_settings() -> None:
    assert parse_settings(["a=1.5", "b=word", 'c={"d": null}']) == {"a": 1.5, "b": "word", "c": {"d": None}}
    for pair in ("a", "1a=2", "=3"):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            parse_settings([pair])


@pytest.mark.parametrize(
    "family",
    [
        pyro_dgm.models.VAE((4, 4), latent_dim=3, hidden=(5,)),
        pyro_dgm.models.VAE((8, 8), latent_dim=3, hidden=(4,), network="conv"),
        pyro_dgm.models.VAE((6,), latent_dim=2, hidden=(), likelihood="gaussian"),
        pyro_dgm.models.VAE((6,), latent_dim=2, hidden=(7,), likelihood=GaussianLikelihood((6,), scale="network")),
        pyro_dgm.models.VAE((6,), latent_dim=2, hidden=(7,), likelihood=GaussianLikelihood((6,), scale=0.25)),
        pyro_dgm.models.LinearGaussian(7, 2, isotropic=True, guide_covariance="full"),
    ],
    ids=["mlp", "conv", "learned", "network", "fixed", "linear"],
)
def test_a_family_is_rebuilt_from_its_configuration(family: pyro_dgm.models.Family) -> None:
    config = json.loads(json.dumps(family.config()))
    other = build_family(type(family).__name__, config)
    other.load_state_dict(family.state_dict())
    x = torch.bernoulli(torch.full((3, *family.event_shape), 0.5))
    torch.manual_seed(0)
    first = pyro_dgm.infer.ELBO().bound(family.model, family.guide, x)
    torch.manual_seed(0)
    assert torch.allclose(pyro_dgm.infer.ELBO().bound(other.model, other.guide, x), first, rtol=1e-5)
    assert other.config() == family.config()


def test_families_that_cannot_be_built() -> None:
    net = torch.nn.Linear(4, 4)
    custom = pyro_dgm.models.VAE((4,), 2, network=(net, net)).config()
    own = pyro_dgm.models.VAE(
        (4,), 2, likelihood=lambda p: pyro_dgm.distributions.likelihood("gaussian", (4,))(p)
    ).config()
    for name, config, message in (
        ("VEA", {}, "no family 'VEA'; there are .*LinearGaussian.*VAE"),
        ("VAE", {"event_shape": [4], "depth": 3}, "'depth', which VAE does not take"),
        ("VAE", {"event_shape": [4], "latent_dim": 0}, "latent_dim must be an integer of at least 1"),
        ("VAE", custom, "networks or activations of its own"),
        ("VAE", own, "given as an object"),
    ):
        with pytest.raises(UsageError, match=message):
            build_family(name, config)
    with pytest.raises(UsageError, match="no option 'hidden'; it has latent_dim"):
        family_arguments("LinearGaussian", (4, 4), {"hidden": [3]})


def test_dynamic_binarization_draws_training_data_anew_and_test_data_once() -> None:
    data = load_data("digits", "dynamic")
    again = load_data("digits", "dynamic")
    assert torch.equal(data.test, again.test)
    assert set(data.test.unique().tolist()) == {0.0, 1.0}
    assert data.transform is not None
    assert not torch.equal(data.transform(data.train), data.transform(data.train))
    assert "dynamic" in data.note
    assert load_data("digits", "threshold").transform is None
    assert load_data("digits", None, flat=True).train.shape[1:] == (64,)


def test_bad_data_sets() -> None:
    with pytest.raises(UsageError, match="no data set 'mnits'; there are binarized_mnist, digits, mnist"):
        load_data("mnits", None)
    with pytest.raises(UsageError, match="'fuzzy' is not one of threshold"):
        load_data("digits", "fuzzy")
    with pytest.raises(UsageError, match="comes binarised"):
        load_data("binarized_mnist", "dynamic")
    with pytest.raises(UsageError, match="num_test"):
        load_data("digits", None, num_validation=5000)


GOOD = {"torch": "2.13.0", "pyro-ppl": "1.9.2", "arviz": "0.23.4", "numpy": "2.4.6", "lightning-fabric": "2.6.1"}


@pytest.mark.parametrize(
    ("change", "python", "words"),
    [
        ({}, (3, 11), None),
        ({"arviz": "1.2.0"}, (3, 12), None),
        ({"lightning": "2.6.4"}, (3, 12), None),
        ({"pyro-ppl": "1.9.1"}, (3, 11), "pyro-ppl 1.9.1 with torch 2.13.0"),
        ({"arviz": "0.22.0"}, (3, 11), "arviz 0.22.0 is older"),
        ({"arviz": "1.0.0"}, (3, 11), "needs Python >= 3.12"),
        ({"lightning-fabric": "2.6.2"}, (3, 11), "lightning-fabric 2.6.2 was withdrawn"),
        ({"lightning": "2.6.3"}, (3, 11), "lightning 2.6.3 was withdrawn"),
    ],
)
def test_doctor_knows_bad_versions(change: dict[str, str], python: tuple[int, int], words: str | None) -> None:
    found = find_bad_pairs({**GOOD, **change}, python)
    assert [f.bad for f in found] == ([] if words is None else [True])
    assert all(words is not None and words in f.text for f in found)


def test_zuko_is_a_note_and_no_fault() -> None:
    (found,) = find_bad_pairs(GOOD, (3, 11), zuko_switches_validation_off=True)
    assert not found.bad
    assert "set_default_validate_args(True)" in found.text
