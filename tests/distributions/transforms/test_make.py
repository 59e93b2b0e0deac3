"""Whole flows from a name."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_dgm.distributions import FlowDistribution
from pyro_dgm.distributions.transforms import (
    TRANSFORMS,
    AffineCoupling,
    Compose,
    Elementwise,
    ElementwiseAffine,
    Inverse,
    make_flow,
)


@pytest.mark.parametrize("name", ["affine_autoregressive", "affine_coupling", "elementwise_affine", "spline_coupling"])
@pytest.mark.parametrize("fast", ["inverse", "forward"])
def test_layers_by_name(name, fast):
    flow = make_flow(name, 4, num_layers=3, context_dim=2, fast=fast).double()
    x, context = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x, context)
    back, back_log_det = flow.inverse_and_log_det(y, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(back_log_det, -log_det)
    assert isinstance(flow.parts[0], Inverse) == ("autoregressive" in name and fast == "inverse")
    assert isinstance(flow.parts[-1], ElementwiseAffine)


def test_every_element_depends_on_every_other():
    flow = make_flow("affine_coupling", 6, num_layers=4, hidden=(8,)).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    jacobian = torch.autograd.functional.jacobian(flow, torch.randn(6, dtype=torch.float64))
    assert (jacobian != 0).all()


def test_mixing_by_a_linear_transform():
    known = {"affine_coupling": AffineCoupling, "linear": ElementwiseAffine}
    flow = make_flow("affine_coupling", 4, num_layers=3, mixing="linear", registry=known)
    assert [type(part).__name__ for part in flow.parts[:4]] == [
        "AffineCoupling",
        "Permutation",
        "ElementwiseAffine",
        "AffineCoupling",
    ]
    with pytest.raises(ValueError, match="mixing must be 'permutation' or one of"):
        make_flow("affine_coupling", 4, mixing="nothing")


@pytest.mark.parametrize("fast", ["inverse", "forward"])
def test_layers_that_are_turned(fast):
    class Forward(ElementwiseAffine):
        fast = "forward"

    class Backward(ElementwiseAffine):
        fast = "inverse"

    known = {"both": ElementwiseAffine, "forward": Forward, "inverse": Backward}
    for direction in known:
        layer = make_flow(direction, 3, num_layers=1, fast=fast, registry=known).parts[0]
        assert isinstance(layer, Inverse) == (direction not in ("both", fast))
        assert layer.fast in ("both", fast) and layer.inv.inv is layer


def test_images_are_seen_as_vectors_by_layers_of_vectors():
    flow = make_flow("spline_coupling", (1, 2, 3), num_layers=2, hidden=(8,))
    assert flow.event_shape == (6,) and flow.out_shape == (1, 2, 3)
    d = FlowDistribution(flow)
    assert d.sample((4,)).shape == (4, 1, 2, 3) and d.log_prob(d.sample((4,))).shape == (4,)
    assert make_flow("elementwise_affine", (1, 2, 3)).event_shape == (1, 2, 3)


def test_transforms_and_callables_of_the_users():
    own = ElementwiseAffine(3)
    assert make_flow(own, 3) is own
    made = make_flow(lambda dim, context_dim: ElementwiseAffine(dim, context_dim), 3, context_dim=2)
    assert made.context_dim == 2
    assert isinstance(make_flow(ElementwiseAffine(6), (2, 3)), Compose)


@pytest.mark.parametrize("name", ["additive_coupling", "affine_coupling", "spline_coupling"])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_couplings_of_one_element_are_the_same_functions_of_the_context_alone(name, context_dim):
    flow = make_flow(name, 1, num_layers=2, context_dim=context_dim, hidden=(8,), options={"flip": True}).double()
    layers = flow.parts[:-1]
    assert [type(layer) for layer in layers] == [Elementwise, Elementwise]
    assert all(isinstance(layer.family, TRANSFORMS[name].family_type) for layer in layers)
    x = torch.randn(5, 1, dtype=torch.float64)
    context = (torch.randn(5, 2, dtype=torch.float64),) * bool(context_dim)
    y, log_det = flow.forward_and_log_det(x, *context)
    torch.testing.assert_close(flow.inverse_and_log_det(y, *context)[0], x)
    assert log_det.shape == (5,)


def test_options_reach_the_layers():
    flow = make_flow(
        "spline_coupling", 2, num_layers=1, num_bins=5, bound=3.0, activation=nn.Tanh, options={"mask": "alternate"}
    )
    assert flow.parts[0].family.num_bins == 5 and flow.parts[0].family.bound == 3.0
    assert any(isinstance(m, nn.Tanh) for m in flow.modules())
    alone = make_flow("spline_coupling", 1, num_layers=1, num_bins=5, bound=3.0)
    assert alone.parts[0].family.num_bins == 5 and alone.parts[0].family.bound == 3.0
    with pytest.raises(TypeError, match="transform='affine_coupling' has no option 'num_bins'; it has max_log_scale"):
        make_flow("affine_coupling", 3, num_bins=5)
    with pytest.raises(TypeError, match="transform='spline_coupling' has no option 'bins'"):
        make_flow("spline_coupling", 1, options={"bins": 5})
    with pytest.raises(ValueError, match="network must be 'mlp' for events of one element"):
        make_flow("spline_coupling", 1, options={"network": nn.Linear(1, 1)})


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="transform must be one of .*spline_coupling.*, got 'splines'"):
        make_flow("splines", 3)
    with pytest.raises(ValueError, match="fast must be 'inverse' or 'forward'"):
        make_flow("spline", 3, fast="both")
    with pytest.raises(TypeError, match="transform must be a name, a Bijection or a callable .* got Normal"):
        make_flow(lambda dim, context_dim: dist.Normal(0.0, 1.0), 3)
    with pytest.raises(TypeError, match="'hidden' is an option of layers by name"):
        make_flow(ElementwiseAffine(3), 3, hidden=(4,))
    with pytest.raises(ValueError, match="contexts of length 2, but its context_dim is 0"):
        make_flow(ElementwiseAffine(3), 3, context_dim=2)
    with pytest.raises(ValueError, match=r"events of shape \(4,\), but it gives \(3,\)"):
        make_flow(ElementwiseAffine(3), 4)
    with pytest.raises(ValueError, match="not on real numbers"):
        make_flow("circular_spline_coupling", 2)
    with pytest.raises(ValueError, match="num_layers"):
        make_flow("spline", 2, num_layers=0)
