"""Products from bfloat16 with all else in float32; torch's switches set for a run and put back."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_dgm
from pyro_dgm.infer import ELBO, IWAE, CapturedELBO, mixed_precision
from pyro_dgm.models import VAE

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (7, 6)),
    "conv": (lambda: nn.Conv2d(2, 3, 3), (4, 2, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (4, 2, 5, 5)),
    "bilinear": (lambda: _Both(nn.Bilinear(6, 6, 3)), (7, 6)),
    "attention": (lambda: _Attention(), (2, 3, 4)),
    "einsum": (lambda: _Einsum(), (7, 6)),
}


class _Both(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x, x)


class _Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


class _Einsum(nn.Module):
    def forward(self, x):
        return torch.einsum("ni,mi->nm", x, x) + x @ x.mT + torch.mm(x, x.mT) + x.matmul(x.mT)


@pytest.mark.parametrize("name", list(LAYERS))
def test_products_are_rounded_and_float32_again(name):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    exact = layer(x)
    with mixed_precision():
        rounded = layer(x)
    assert rounded.dtype is torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-5 < error < 2e-2  # the 8 bits of a bfloat16, and nothing worse
    with mixed_precision(False):
        assert torch.equal(layer(x), exact)


def test_other_dtypes_are_left_alone():
    x = torch.randn(4, 4, dtype=torch.float64)
    with mixed_precision():
        assert torch.equal(x @ x, torch.linalg.multi_dot([x, x]))
        out = torch.empty(4, 4)
        assert torch.mm(x.float(), x.float(), out=out) is out


def vae_and_images():
    torch.manual_seed(0)
    return VAE((6, 6), 3, hidden=(32,)), torch.bernoulli(torch.full((20, 6, 6), 0.3))


def test_log_densities_stay_float32():
    seen = {}

    class Look(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            seen[msg["name"]] = msg["fn"].log_prob(msg["value"]).dtype, msg["value"].dtype

    vae, x = vae_and_images()
    with mixed_precision(), Look(), torch.no_grad():
        pyro.poutine.replay(vae.model, trace=pyro.poutine.trace(vae.guide).get_trace(x))(x)
    assert seen["x"] == seen["z"] == (torch.float32, torch.float32)


def evaluate(objective, vae, x):
    vae.zero_grad()
    torch.manual_seed(1)
    loss = objective(vae.model, vae.guide)(x)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in vae.parameters()])


@pytest.mark.parametrize("backend", ["aten", "inductor"])
def test_captured_it_is_the_same(backend):
    """The graph holds the casts: the eager numbers again, and not the float32 ones."""
    vae, x = vae_and_images()
    exact = evaluate(IWAE(3), vae, x)
    captured = CapturedELBO(IWAE(3), backend=backend)
    with mixed_precision():
        want = evaluate(IWAE(3), vae, x)
        got = evaluate(captured, vae, x)
    assert captured.status(vae.model, vae.guide) == f"captured: 1 graph ({backend})"
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    error = (want[1] - exact[1]).norm() / exact[1].norm()
    assert 1e-4 < error < 5e-2
    if backend == "aten":
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("depth", ["eager", "graph", "step"])
def test_fit(depth):
    images = pyro_dgm.datasets.digits(binarize="threshold").train[:256]
    bounds = {}
    for precision in (None, "bf16"):
        torch.manual_seed(0)
        vae = VAE((8, 8), 4, hidden=(64,))
        run = pyro_dgm.fit(
            vae, images, epochs=6, batch_size=64, validation=images[:64], seed=0, compile=depth, precision=precision,
            progress=False,
        )  # fmt: skip
        assert all(p.dtype is torch.float32 for p in vae.parameters())
        assert run.config["precision"] == precision
        bounds[precision] = run.history["train"][-1], run.history["validation"][-1]
    assert bounds["bf16"] != bounds[None]  # validation is rounded too
    assert bounds["bf16"] == pytest.approx(bounds[None], abs=0.3)


def test_switches_are_set_for_the_run_and_put_back():
    seen = []

    def model(x):
        with pyro.plate("data", len(x)):
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for precision, want in (("32", ("highest", False)), ("tf32", ("high", True)), (None, before)):
        seen.clear()
        guide = pyro.infer.autoguide.AutoNormal(model)
        pyro_dgm.fit(
            (model, guide), torch.randn(8), epochs=1, seed=0, precision=precision, compile=False, progress=False
        )
        assert set(seen) == {want}
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_bad_precision():
    vae, x = vae_and_images()
    with pytest.raises(ValueError, match="precision must be None, '32', 'tf32', 'bf16', got 'fp8'"):
        pyro_dgm.fit(vae, x, epochs=1, precision="fp8", progress=False)
    with pytest.raises(ValueError, match=r"'bf16' is for float32 parameters, got torch.float64"):
        pyro_dgm.fit(vae.double(), x.double(), epochs=1, precision="bf16", progress=False, objective=ELBO())


def test_a_resumed_run_keeps_its_precision(tmp_path):
    vae, x = vae_and_images()
    pyro_dgm.fit(vae, x, epochs=1, seed=0, checkpoint_dir=tmp_path, precision="bf16", progress=False)
    with pytest.raises(ValueError, match="precision: saved 'bf16', given None"):
        pyro_dgm.fit(vae, x, epochs=2, resume=tmp_path, progress=False)
