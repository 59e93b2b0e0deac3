"""Flows with levels, against levels by hand; whole image flows by their configuration, in models too."""

import functools

import pytest
import torch

import pyro_dgm
from pyro_dgm.distributions.transforms import (
    ActNorm,
    Bijection,
    Compose,
    ImageCoupling,
    Multiscale,
    Squeeze,
    make_flow,
    make_image_flow,
)
from pyro_dgm.infer import ELBO
from pyro_dgm.models import FlowModel

D = torch.float64
SMALL = {"hidden_channels": 4, "num_blocks": 1}


def moved(transform, spread=0.1):
    with torch.no_grad():
        for p in transform.parameters():
            p.add_(torch.randn_like(p) * spread)
    return transform


def kinds(transform):
    return [type(m).__name__ for m in transform.modules() if isinstance(m, Bijection)]


def test_two_levels_by_hand():
    torch.manual_seed(0)
    coarse = moved(ImageCoupling((8, 1, 1), **SMALL).double())
    fine = moved(Compose([ActNorm((8, 1, 1)), Squeeze((2, 2, 2)).inv]).double(), 1.0)
    # The fine level takes the eight channels that the coarse one gives: it has no noise of its own.
    flow = Multiscale([coarse, fine])
    assert flow.event_shape == (8,) and flow.out_shape == (2, 2, 2)
    x = torch.randn(5, 8, dtype=D)
    image, first = coarse.forward_and_log_det(x[..., None, None])
    expected, second = fine.forward_and_log_det(image)
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(log_det, first + second)


def test_noise_joins_at_each_level():
    torch.manual_seed(0)
    coarse = moved(Compose([ActNorm((8, 2, 2)), Squeeze((2, 4, 4)).inv]).double(), 1.0)
    fine = moved(ImageCoupling((5, 4, 4), **SMALL).double())
    flow = Multiscale([coarse, fine])
    assert flow.event_shape == (32 + 48,) and flow.out_shape == (5, 4, 4)
    x = torch.randn(6, 80, dtype=D)
    image, first = coarse.forward_and_log_det(x[:, :32].reshape(6, 8, 2, 2))
    expected, second = fine.forward_and_log_det(torch.cat([image, x[:, 32:].reshape(6, 3, 4, 4)], 1))
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(log_det, first + second)
    torch.testing.assert_close(flow.inv(y), x)


def test_bad_levels():
    with pytest.raises(ValueError, match="at least one transform"):
        Multiscale([])
    with pytest.raises(TypeError, match=r"levels\[1\] must be a Bijection, got ReLU"):
        Multiscale([ActNorm((4, 2, 2)), torch.nn.ReLU()])
    with pytest.raises(
        ValueError, match=r"levels\[1\] must take images .* of height and width \(2, 2\) and 4 channels"
    ):
        Multiscale([ActNorm((4, 2, 2)), ActNorm((3, 2, 2))])
    with pytest.raises(ValueError, match=r"levels\[0\] must take images"):
        Multiscale([ActNorm(4)])
    with pytest.raises(ValueError, match="contexts of one length"):
        Multiscale([ActNorm((4, 2, 2), 1), ActNorm((4, 2, 2), 2)])


def test_configurations():
    glow = make_image_flow((8, 8), num_levels=2, num_layers=3, **SMALL)
    assert kinds(glow).count("InvertibleConv1x1") == kinds(glow).count("ImageCoupling") == 6
    assert glow.event_shape == (64,) and glow.out_shape == (8, 8) and glow.fast == "both"
    real_nvp = make_image_flow(
        (3, 8, 4), num_levels=2, num_layers=3, mixing="flip", checkerboard_layers=3, transform="affine", **SMALL
    )
    assert kinds(real_nvp).count("ImageCoupling") == 12 and "InvertibleConv1x1" not in kinds(real_nvp)
    additive = make_image_flow((8, 8), transform="additive", **SMALL)
    options = {"transform": "spline", **SMALL}
    spline = make_flow("image_flow", (8, 8), num_layers=1, num_bins=4, context_dim=2, options=options)
    assert isinstance(spline.parts[0], Multiscale) and spline.context_dim == 2 and additive.context_dim == 0
    with pytest.raises(ValueError, match=r"multiples of 2\*\*num_levels = 8, got \(28, 28\)"):
        make_image_flow((28, 28), num_levels=3)
    with pytest.raises(ValueError, match=r"\(C, H, W\) or \(H, W\), got \(4,\)"):
        make_image_flow((4,))
    with pytest.raises(TypeError, match="transform='image_flow' has no option 'hidden'; it has num_levels"):
        FlowModel((8, 8), "image_flow", hidden=(8,))
    with pytest.raises(ValueError, match="never change half of an image: take 'image_flow'"):
        make_flow("image_coupling", (4, 8, 8))
    with pytest.raises(ValueError, match="mixing must be 'conv1x1' or 'flip', got 'random'"):
        make_flow("image_flow", (8, 8), mixing="random")


@pytest.mark.parametrize("options", [{}, {"mixing": "flip", "checkerboard_layers": 2}])
def test_initialize_standardises_behind_every_actnorm(options):
    torch.manual_seed(0)
    flow = make_image_flow((2, 4, 4), num_levels=2, num_layers=2, **SMALL, **options).double()
    seen = {}
    for name, part in flow.named_modules():
        if isinstance(part, ActNorm):
            inner = part._backward

            def record(y, context, inner=inner, name=name):
                x, log_det = inner(y, context)
                seen[name] = x.transpose(0, 1).flatten(1)
                return x, log_det

            part._backward = record
    y = 3 + torch.randn(300, 2, 4, 4, dtype=D).cumsum(-1)
    flow.initialize(y)
    seen.clear()
    flow.inverse_and_log_det(y)
    assert len(seen) == 4 + 2 * options.get("checkerboard_layers", 0)
    for name, values in seen.items():
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values), dtype=D), rtol=0, atol=1e-8, msg=name)
        torch.testing.assert_close(values.std(1), torch.ones(len(values), dtype=D), msg=name)


def test_a_conditional_model_of_images_is_rebuilt_from_its_configuration():
    torch.manual_seed(0)
    model = FlowModel(
        (4, 4), "image_flow", 1, options={"num_levels": 1, "checkerboard_layers": 1, **SMALL}, num_classes=3
    ).double()
    moved(model)
    twin = FlowModel(**model.config()).double()
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(5, 4, 4, dtype=D), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(twin.log_prob(x, y), model.log_prob(x, y))
    assert not torch.allclose(model.log_prob(x, y), model.log_prob(x, (y + 1) % 3))
    torch.testing.assert_close(ELBO().bound(model.model, model.guide, x, y), model.log_prob(x, y))
    with pytest.raises(ValueError, match="initialize needs the context"):
        model.initialize(x)
    model.initialize(x, y)
    assert model.sample(3, torch.tensor([0, 1, 2]), seed=0).shape == (3, 4, 4)


def test_training_on_digits():
    data = pyro_dgm.datasets.digits()
    x = (data.train[:200] * 16).round()
    torch.manual_seed(0)
    options = {"num_levels": 2, "hidden_channels": 8, "num_blocks": 0}
    model = FlowModel((8, 8), "image_flow", 1, options=options, dequantize="uniform", num_levels=17)
    bits = [float(model.bits_per_dim(x, seed=0).mean().detach())]
    model.initialize(x)
    bits.append(float(model.bits_per_dim(x, seed=0).mean().detach()))
    adam = functools.partial(torch.optim.Adam, lr=5e-3)
    settings = {"optimizer": adam, "seed": 0, "progress": False, "compile": False}
    pyro_dgm.fit(model, x, objective=ELBO(), epochs=8, batch_size=50, **settings)
    bits.append(float(model.bits_per_dim(x, seed=0).mean().detach()))
    assert bits[2] < bits[1] - 0.1 < bits[0] - 0.3
