"""Networks over any number of batch dimensions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_dgm.nn import MLP, ConvDecoder, ConvEncoder, make_network


@given(
    batch=st.lists(st.integers(1, 3), max_size=3),
    image=st.tuples(st.integers(1, 2), st.integers(4, 13), st.integers(4, 13)),
)
def test_batches_and_shapes(batch, image):
    torch.manual_seed(0)
    for net, shape, out in (
        (MLP(image, (2, 3), (5,)), image, (2, 3)),
        (ConvEncoder(image, (2, 3), (2, 3)), image, (2, 3)),
        (ConvDecoder((5,), image, (3, 2)), (5,), image),
        (ConvDecoder((5,), (2, *image), (3, 2)), (5,), (2, *image)),
    ):
        x = torch.randn(*batch, *shape)
        y = net(x)
        assert y.shape == (*batch, *out)
        flat = net(x.reshape(-1, *shape)).reshape(y.shape)
        torch.testing.assert_close(y, flat)


@pytest.mark.parametrize(
    ("name", "in_shape", "out_shape", "decodes"),
    [("mlp", (2, 3), (5,), False), ("conv", (2, 6, 5), (2, 3), False), ("conv", (4,), (6, 5), True)],
)
def test_a_network_with_context(name, in_shape, out_shape, decodes):
    torch.manual_seed(0)
    net = make_network(name, in_shape, out_shape, (4, 6), context=3, decodes=decodes)
    x, context = torch.randn(7, 5, *in_shape), torch.randn(5, 3)
    y = net(x, context)
    assert y.shape == (7, 5, *out_shape)
    torch.testing.assert_close(y[2, 1], net(x[2, 1:2], context[1:2])[0])
    assert not torch.allclose(y, net(x, context + 1.0))
    with pytest.raises(ValueError, match="network must be 'mlp', 'conv' or a module, got"):
        make_network(["mlp"], (2,), (3,), (4,))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="MLP: x must end in the event shape"):
        MLP((3, 4), (2,))(torch.zeros(5, 3, 3))
    with pytest.raises(ValueError, match="ConvEncoder: x must end in"):
        ConvEncoder((8, 8), (2,))(torch.zeros(5, 8, 7))
    with pytest.raises(ValueError, match="ConvDecoder: z must end in"):
        ConvDecoder((3,), (8, 8))(torch.zeros(5, 2))
