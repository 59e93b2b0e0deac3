"""Parts of image flows against torch's own operations: squeeze, 1 x 1 convolutions, couplings."""

import pytest
import torch
from torch.nn import functional

from pyro_dgm.distributions.transforms import (
    AdditiveFamily,
    CircularSplineFamily,
    ImageCoupling,
    InvertibleConv1x1,
    LULinear,
    SplineFamily,
    Squeeze,
)

D = torch.float64


def moved(transform, spread=0.3):
    torch.manual_seed(0)
    transform = transform.double()
    with torch.no_grad():
        for p in transform.parameters():
            p.add_(torch.randn_like(p) * spread)
    return transform


class TestSqueeze:
    @pytest.mark.parametrize("shape, factor", [((3, 4, 6), 2), ((1, 6, 3), 3), ((2, 3, 3), 1)])
    def test_it_is_pixel_unshuffle_with_blocks_first(self, shape, factor):
        x = torch.randn(2, 5, *shape)
        t = Squeeze(shape, factor)
        y, log_det = t.forward_and_log_det(x)
        expected = functional.pixel_unshuffle(x, factor).unflatten(-3, (shape[0], factor**2)).transpose(-3, -4)
        assert torch.equal(y, expected.flatten(-4, -3))
        assert torch.equal(t.inv(y), x) and y.shape[2:] == t.out_shape
        assert torch.equal(log_det, torch.zeros(2, 5))

    def test_bad_shapes(self):
        with pytest.raises(ValueError, match=r"multiples of factor=2, got \(3, 4\)"):
            Squeeze((1, 3, 4))
        with pytest.raises(ValueError, match=r"\(channels, height, width\), got \(4, 4\)"):
            Squeeze((4, 4))


class TestConvolution:
    def kernel(self, t):
        """The matrix, by its action on unit vectors."""
        return t(torch.eye(3, dtype=D)[..., None, None].expand(3, 3, 2, 2))[..., 0, 0].mT

    @pytest.mark.parametrize("parametrization", ["lu", "plain"])
    def test_it_is_a_convolution(self, parametrization):
        t = moved(InvertibleConv1x1((3, 2, 2), parametrization=parametrization))
        kernel, x = self.kernel(t), torch.randn(5, 3, 2, 2, dtype=D)
        y, log_det = t.forward_and_log_det(x)
        torch.testing.assert_close(y, functional.conv2d(x, kernel[..., None, None]))
        torch.testing.assert_close(log_det, 4 * torch.linalg.slogdet(kernel).logabsdet.expand(5))

    @pytest.mark.parametrize("parametrization", ["lu", "plain"])
    def test_it_starts_as_a_rotation(self, parametrization):
        torch.manual_seed(0)
        t = InvertibleConv1x1((3, 2, 2), parametrization=parametrization).double()
        kernel = self.kernel(t)
        torch.testing.assert_close(kernel @ kernel.mT, torch.eye(3, dtype=D), rtol=0, atol=1e-5)
        assert (kernel - torch.eye(3)).abs().max() > 0.1
        same = InvertibleConv1x1((3, 2, 2), parametrization=parametrization, initial="identity").double()
        torch.testing.assert_close(self.kernel(same), torch.eye(3, dtype=D))

    def test_it_is_the_linear_layer_at_each_position(self):
        t, linear = moved(InvertibleConv1x1((3, 2, 2), context_dim=2)), LULinear(3, initial="rotation").double()
        linear.matrix = t.matrix
        context, x = torch.randn(5, 2, dtype=D), torch.randn(5, 3, 2, 2, dtype=D)
        with torch.no_grad():
            y, log_det = t.forward_and_log_det(x, context)
            log_scale = t.scale(context)
            expected = t.matrix.multiply(x.movedim(1, -1), log_scale[:, None, None]).movedim(-1, 1)
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(log_det, 4 * log_scale.sum(-1))
            linear.parameters_of.bias[3:] = log_scale[0]
            torch.testing.assert_close(linear(x[0].movedim(0, -1)).movedim(-1, 0), y[0])

    def test_bad_names(self):
        with pytest.raises(ValueError, match="parametrization must be 'lu' or 'plain', got 'qr'"):
            InvertibleConv1x1((3, 2, 2), parametrization="qr")
        with pytest.raises(ValueError, match="initial must be"):
            LULinear(3, initial="zero")


class TestCoupling:
    @pytest.mark.parametrize("family", [None, AdditiveFamily(), SplineFamily(4)])
    @pytest.mark.parametrize("flip", [False, True])
    def test_it_starts_as_the_identity(self, family, flip):
        t = ImageCoupling((3, 4, 4), family, hidden_channels=4, flip=flip)
        x = torch.randn(5, 3, 4, 4)
        y, log_det = t.forward_and_log_det(x)
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(log_det, torch.zeros(5), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("mask", ["channel", "checkerboard"])
    @pytest.mark.parametrize("flip", [False, True])
    def test_what_stays_and_what_depends_on_what(self, mask, flip):
        t = moved(ImageCoupling((3, 3, 4), hidden_channels=4, num_blocks=1, mask=mask, flip=flip))
        if mask == "channel":
            kept = (torch.arange(3) < 1)[:, None, None].expand(3, 3, 4)
        else:
            kept = ((torch.arange(3)[:, None] + torch.arange(4)) % 2 == 0).expand(3, 3, 4)
        kept = (kept != flip).flatten()
        x = torch.randn(3, 3, 4, dtype=D)
        jacobian = torch.autograd.functional.jacobian(lambda v: t(v), x).reshape(36, 36)
        assert torch.equal(t(x).flatten()[kept], x.flatten()[kept])
        changed = jacobian[~kept]
        diagonal = torch.diag(jacobian.diagonal())[~kept]
        # On itself by the scale alone, and else only on elements that stay; with this receptive field on all of them.
        assert torch.equal(changed[:, ~kept], diagonal[:, ~kept])
        assert (changed[:, kept] != 0).all()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="at least two channels for mask='channel'"):
            ImageCoupling((1, 4, 4))
        with pytest.raises(ValueError, match="mask must be 'channel' or 'checkerboard', got 'half'"):
            ImageCoupling((2, 4, 4), mask="half")
        with pytest.raises(ValueError, match="family must be one on real numbers"):
            ImageCoupling((2, 4, 4), CircularSplineFamily())
        with pytest.raises(TypeError, match="ElementwiseFamily"):
            ImageCoupling((2, 4, 4), "affine")
