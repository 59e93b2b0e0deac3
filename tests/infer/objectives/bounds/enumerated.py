"""Exact expectations over K particles of two dependent Bernoulli latents, and draws to hold against them."""

import itertools

import pyro
import torch

from tests.infer.objectives.bounds.test_discrete import Discrete

#: of :class:`Discrete`: the model's parameters come first
MODEL_PARAMETERS = 4


def expectation(toy, num_particles, value):
    """E of ``value(log_w)`` for each datum over all states of K particles; ``log_w`` is ``(states, K, data)``.

    Differentiable: what sampling contributes to a gradient is in it.
    """
    log_p, log_q = toy.terms()
    index = torch.tensor(list(itertools.product(range(4), repeat=num_particles)))
    return (log_q[index].sum(1).exp() * value((log_p - log_q)[index])).sum(0)


def value_and_gradient(expected, parameters):
    """The sum over data and its gradient, one vector."""
    total = expected.sum()
    grads = torch.autograd.grad(total, parameters, retain_graph=True, materialize_grads=True)
    return torch.stack([total.detach(), *grads])


def draws(toy, objective, count, replicates=200, sign=-1):
    """Bound and gradient of it, one row a batch of independent replicates."""

    def repeated(fn):
        def run():
            with pyro.plate("replicates", replicates, dim=-2):
                fn()

        return run

    model, guide = repeated(toy.model), repeated(toy.guide)
    rows = []
    for _ in range(count):
        loss = objective.differentiable_loss(model, guide)
        grads = torch.autograd.grad(loss, list(toy.parameters()))
        rows.append(torch.stack([loss.detach(), *grads]) / (sign * replicates))
    return torch.stack(rows)


def assert_mean(rows, want, informative=0.15):
    """The mean is ``want`` within 4 standard errors, and these are small beside the gradient."""
    error = rows.std(0) / len(rows) ** 0.5
    z = (rows.mean(0) - want) / error.clamp(min=1e-9)
    assert z.abs().max() < 4, z.tolist()
    assert error[1:].norm() < informative * want[1:].norm()


__all__ = ["MODEL_PARAMETERS", "Discrete", "assert_mean", "draws", "expectation", "value_and_gradient"]
