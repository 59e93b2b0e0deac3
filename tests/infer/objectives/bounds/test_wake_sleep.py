"""WakeSleep and ReweightedWakeSleep: model and guide gradients apart, each against a sum over all states."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal, AutoNormalMessenger

from pyro_dgm import fit, program
from pyro_dgm.infer import ReweightedWakeSleep, WakeSleep
from tests.infer.objectives.bounds.exact import DTYPE, Toy
from tests.infer.objectives.bounds.sbn import DATA, LATENTS, OBSERVED, SigmoidBeliefNetwork

MODEL, GUIDE = ("prior", "weight", "bias"), ("guide_weight", "guide_bias")


def states(width):
    return ((torch.arange(2**width)[:, None] >> torch.arange(width)) & 1).to(DTYPE)


class Net(SigmoidBeliefNetwork):
    """The data are an argument, ``(replicates, DATA, OBSERVED)``, so that dreams can take their place."""

    def model(self, x):
        with pyro.plate("replicates", len(x), dim=-2), pyro.plate("data", DATA, dim=-1):
            z = pyro.sample("z", self.latent(self.prior))
            pyro.sample("x", self.observation(z), obs=x)

    def guide(self, x):
        with pyro.plate("replicates", len(x), dim=-2), pyro.plate("data", DATA, dim=-1):
            pyro.sample("z", self.latent(x @ self.guide_weight + self.guide_bias))

    def log_q(self, z, x):
        return self.latent(x @ self.guide_weight + self.guide_bias).log_prob(z)

    def log_p(self, z, x):
        return self.latent(self.prior).log_prob(z) + self.observation(z).log_prob(x)

    def exact(self, num_particles, phi):
        """What is to be ascended, with everything but the parameters of interest held: its gradient is the mean's."""
        z = states(LATENTS)[:, None]
        log_p, log_q = self.log_p(z, self.x), self.log_q(z, self.x)
        if num_particles == 1:
            chance, weights, sides = log_q.exp()[None], torch.ones(1, 1, 1, dtype=DTYPE), ([log_p], [log_q])
        else:
            pairs = [torch.broadcast_tensors(t[:, None], t[None]) for t in (log_p, log_q)]
            ratio = torch.stack([p - q for p, q in zip(*pairs, strict=True)])
            weights, chance, sides = ratio.softmax(0), (pairs[1][0] + pairs[1][1]).exp(), pairs
        wake = [(chance.detach() * sum((weights.detach() * torch.stack(list(s))).unbind(0))).sum() for s in sides]
        z, x = states(LATENTS)[:, None], states(OBSERVED)[None]
        sleep = DATA * (self.log_p(z, x).exp().detach() * self.log_q(z, x)).sum()
        return wake[0] + phi * wake[1] + (1 - phi) * sleep


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("make", "num_particles", "phi"),
    [
        (WakeSleep, 1, 0.0),
        (lambda **kw: ReweightedWakeSleep(2, phi="wake", **kw), 2, 1.0),
        (lambda **kw: ReweightedWakeSleep(2, phi="sleep", **kw), 2, 0.0),
        (lambda **kw: ReweightedWakeSleep(2, phi=0.3, **kw), 2, 0.3),
    ],
    ids=["wake-sleep", "wake-phi", "sleep-phi", "mixed"],
)
def test_mean_gradients_against_all_states(make, num_particles, phi, vectorize):
    torch.manual_seed(0)
    net, objective, replicates = Net(), make(vectorize_particles=vectorize), 200
    parameters = [getattr(net, n) for n in (*MODEL, *GUIDE)]
    wanted = torch.autograd.grad(net.exact(num_particles, phi), parameters)
    want = torch.cat([net.bound(num_particles).detach()[None], *(g.flatten() for g in wanted)])
    x = net.x.expand(replicates, DATA, OBSERVED).contiguous()
    rows = []
    for _ in range(100):
        loss = objective.differentiable_loss(net.model, net.guide, x)
        grads = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([loss.detach()[None], *(g.flatten() for g in grads)]) / -replicates)
    rows = torch.stack(rows)
    error = rows.std(0) / 10
    z = (rows.mean(0) - want) / error.clamp(min=1e-9)
    assert z.abs().max() < 4, f"{z.abs().max():.1f}"
    assert error[1:].norm() < 0.1 * want[1:].norm()


def test_dreams_leave_the_model_alone_and_the_wake_phase_no_path():
    """Reparameterised latents: asleep, the model gets nothing; awake, the guide gets no pathwise term."""
    torch.manual_seed(0)
    toy = Toy("flat")
    model, guide = on_argument(toy)
    x = toy.x[:, 0]
    sleeping, waking = ReweightedWakeSleep(3, phi="sleep"), ReweightedWakeSleep(3, phi="wake")
    torch.manual_seed(1)
    awake = torch.autograd.grad(waking.differentiable_loss(model, guide, x), [toy.w, toy.b, toy.log_s])
    torch.manual_seed(1)
    asleep = torch.autograd.grad(sleeping.differentiable_loss(model, guide, x), [toy.w, toy.b, toy.log_s])
    torch.testing.assert_close(awake, asleep)
    # With one particle the guide's wake gradient is -d log q at a fixed draw: there is no path through the draw.
    torch.manual_seed(1)
    trace = pyro.poutine.trace(guide).get_trace(x)
    z = trace.nodes["z"]["value"].detach()
    guide_parameters = [toy.a, toy.c, toy.log_t]
    log_q = dist.Normal(toy.a * x + toy.c, toy.log_t.exp()).log_prob(z).sum()
    torch.manual_seed(1)
    got = torch.autograd.grad(ReweightedWakeSleep(1).differentiable_loss(model, guide, x), guide_parameters)
    torch.testing.assert_close(got, torch.autograd.grad(-log_q, guide_parameters))


def on_argument(toy):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
            pyro.sample("x", dist.Normal(toy.w * z + toy.b, toy.log_s.exp()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(toy.a * x + toy.c, toy.log_t.exp()))

    return model, guide


@pytest.mark.parametrize(
    "objective", [WakeSleep(num_particles=8), ReweightedWakeSleep(8), ReweightedWakeSleep(8, phi=0.5)]
)
def test_two_optimisers_in_fit_find_the_exact_posterior(objective):
    """The toy's posterior is in the guide's family: training must end at the marginal likelihood."""
    torch.manual_seed(0)
    toy = Toy("flat")
    x = 1.3 * torch.randn(400, dtype=DTYPE) + 0.5
    model, guide = on_argument(toy)
    run = fit(
        program(Holder(toy, model), Holder(toy, guide)),
        x,
        objective=objective,
        optimizer={
            "model": functools.partial(torch.optim.Adam, lr=0.02),
            "guide": functools.partial(torch.optim.Adam, lr=0.05),
        },
        epochs=60,
        batch_size=100,
        seed=0,
        progress=False,
    )
    assert run.epochs == 60
    with torch.no_grad():
        variance = toy.w**2 + (2 * toy.log_s).exp()
        posterior = toy.w / variance
        assert abs(toy.b - x.mean()) < 0.15
        assert abs(variance.sqrt() - x.std()) < 0.15
        assert abs(toy.a - posterior) < 0.1
        assert abs(toy.log_t.exp() - (1 - toy.w**2 / variance).sqrt()) < 0.1


class Holder(torch.nn.Module):
    """A callable whose parameters ``fit`` sees."""

    def __init__(self, toy, fn):
        super().__init__()
        self.toy, self.fn = toy, fn

    def forward(self, x):
        return self.fn(x)


def test_data_of_any_shape_by_keyword_and_in_a_dictionary():
    net = Net()
    x = net.x.expand(4, DATA, OBSERVED).contiguous()

    def model(observations, note=None):
        return net.model(observations["x"].view(4, DATA, OBSERVED))

    def guide(observations, note=None):
        return net.guide(observations["x"].view(4, DATA, OBSERVED))

    torch.manual_seed(3)
    WakeSleep().differentiable_loss(model, guide, observations={"x": x.view(4, -1)}, note=torch.ones(2)).backward()
    got = net.guide_bias.grad.clone()
    net.zero_grad()
    torch.manual_seed(3)
    WakeSleep().differentiable_loss(net.model, net.guide, x).backward()
    torch.testing.assert_close(got, net.guide_bias.grad)


def refused(model, guide, x, match, objective=None, error=ValueError):
    with pytest.raises(error, match=match):
        (objective or WakeSleep()).differentiable_loss(model, guide, x)


def test_what_cannot_dream_is_refused_with_the_site_and_a_way_out():
    toy = Toy("flat")
    model, guide = on_argument(toy)
    x = toy.x[:, 0]

    def closed_over(_):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DTYPE), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x * 1.0)

    refused(closed_over, guide, x, "no argument of the program is the value observed at 'x'")

    def factored(x):
        model(x)
        pyro.factor("penalty", torch.zeros((), dtype=DTYPE))

    refused(factored, guide, x, "factor 'penalty', which cannot be drawn from")

    def extra(x):
        guide(x)
        pyro.sample("aux", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    refused(model, extra, x, "the guide draws 'aux', which the model does not")
    ReweightedWakeSleep(2, phi="wake").differentiable_loss(model, extra, x)  # awake, it is no trouble
    with pyro.settings.context(module_local_params=True):
        refused(model, AutoDelta(model), x, r"'z' \(Delta\)")
        messenger = AutoNormalMessenger(model)
        messenger(x)
        refused(model, messenger, x, "GuideMessenger", error=TypeError)
        mean_field = AutoNormal(model)
        mean_field(x)
        refused(model, mean_field, x, "z")


@pytest.mark.parametrize("phi", ["dream", -0.1, 1.5, True, None])
def test_bad_phi(phi):
    with pytest.raises(ValueError, match=r'phi must be "wake", "sleep" or a number in \[0, 1\]'):
        ReweightedWakeSleep(2, phi=phi)
