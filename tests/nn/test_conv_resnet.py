"""The residual convolutional network: shapes, batches, receptive field, and what starts at zero."""

import pytest
import torch

from pyro_dgm.nn import ConvResNet
from pyro_dgm.nn.build import zero_last_layer


def test_batches_and_blocks():
    torch.manual_seed(0)
    net = ConvResNet((2, 5, 4), 3, hidden_channels=6, num_blocks=2)
    x = torch.randn(7, 3, 2, 5, 4)
    y = net(x)
    assert y.shape == (7, 3, 3, 5, 4)
    torch.testing.assert_close(net(x[4, 1]), y[4, 1])
    hidden = net.first(x[0])
    for block in net.blocks:
        hidden = hidden + block(hidden)
    torch.testing.assert_close(net.last(hidden), y[0])


def test_without_blocks_it_sees_two_pixels_far():
    net = ConvResNet((1, 9, 9), 1, hidden_channels=4, num_blocks=0)
    x = torch.randn(1, 9, 9, requires_grad=True)
    net(x)[0, 4, 4].backward()
    rows = x.grad[0].abs().sum(1).nonzero().flatten()
    assert rows.min() >= 2 and rows.max() <= 6


def test_the_last_layer_at_zero():
    net = zero_last_layer(ConvResNet((1, 4, 4), 2, hidden_channels=4))
    assert torch.equal(net(torch.randn(3, 1, 4, 4)), torch.zeros(3, 2, 4, 4))


def test_bad_shapes():
    with pytest.raises(
        ValueError, match=r"in_shape must be that of an image, \(channels, height, width\), got \(4, 4\)"
    ):
        ConvResNet((4, 4), 1)
    with pytest.raises(ValueError, match="ConvResNet: x must end in"):
        ConvResNet((1, 4, 4), 1)(torch.zeros(2, 1, 4, 5))
    with pytest.raises(ValueError, match="num_blocks"):
        ConvResNet((1, 4, 4), 1, num_blocks=-1)
