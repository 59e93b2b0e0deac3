"""Roots in a known bracket: precision, gradients, and the worst brackets."""

import pytest
import torch

from pyro_dgm.ops.root_finding import invert_in_bracket


def cubic(x):
    return x**3 + 0.1 * x


def cubic_with_slope(x):
    return cubic(x), 3 * x**2 + 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("width", [3.0, 1e4])
def test_roots_are_found_to_the_precision_of_the_dtype(dtype, tolerance, width):
    x = torch.linspace(-3, 3, 101, dtype=dtype)
    end = torch.full_like(x, width)
    found = invert_in_bracket(cubic, cubic_with_slope, cubic(x), -end, end, bisections=30)
    torch.testing.assert_close(found, x, rtol=tolerance, atol=tolerance)


def test_a_root_at_an_end_of_the_bracket():
    x = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    end = torch.full_like(x, 2.0)
    found = invert_in_bracket(cubic, cubic_with_slope, cubic(x), -end, end)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)
    found = invert_in_bracket(cubic, cubic_with_slope, cubic(x), x, x)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_inverse():
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([-4.0, 0.3, 5.0], dtype=torch.float64, requires_grad=True)

    def inverse(y, scale):
        end = torch.full_like(y, 5.0)
        return invert_in_bracket(
            lambda x: scale * cubic(x), lambda x: (scale * cubic(x), scale * cubic_with_slope(x)[1]), y, -end, end
        )

    assert torch.autograd.gradcheck(inverse, (y, scale))
