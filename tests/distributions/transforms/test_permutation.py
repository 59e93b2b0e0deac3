"""Fixed permutations."""

import pytest
import torch

from pyro_dgm.distributions.transforms import Permutation


def test_the_order():
    x = torch.arange(8.0).reshape(2, 4)
    assert torch.equal(Permutation(4)(x), x.flip(-1))
    y = Permutation(4, (2, 0, 3, 1))(x)
    assert y[0].tolist() == [2.0, 0.0, 3.0, 1.0]
    assert torch.equal(Permutation(4, (2, 0, 3, 1)).inv(y), x)


def test_a_random_one_is_that_of_its_seed(rng_unchanged):
    with rng_unchanged():
        first, again, other = (Permutation(20, "random", seed=s).order.tolist() for s in (1, 1, 2))
    assert first == again != other and sorted(first) == sorted(other) == list(range(20))


def test_it_is_saved_with_the_weights():
    one, other = Permutation(20, "random", seed=1), Permutation(20, "random", seed=2)
    other.load_state_dict(one.state_dict())
    x = torch.randn(20)
    assert torch.equal(other(x), one(x)) and torch.equal(other.inv(one(x)), x)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="order must be 'reverse', 'random' or a permutation, got 'mixed'"):
        Permutation(3, "mixed")
    with pytest.raises(ValueError, match=r"order must hold each of 0, ..., 2 once, got \(0, 0, 1\)"):
        Permutation(3, (0, 0, 1))
    with pytest.raises(TypeError, match="seed must be an integer"):
        Permutation(3, "random", seed=None)
    with pytest.raises(ValueError, match="dim must be"):
        Permutation(0)
