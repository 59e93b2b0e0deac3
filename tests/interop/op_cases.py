"""Functions of torch for the rules that distributions do not come to: each of a tensor ``(4, 6)`` of real numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Case = Callable[[Tensor], Tensor]
K = torch.arange(6).double() / 6
INDEX = torch.tensor([[0, 2, 1, 3, 0, 2], [1, 1, 0, 2, 3, 3]])


def image(u: Tensor, channels: int = 4) -> Tensor:
    """The numbers as two images of 6 x 6 with channels."""
    return (u.flatten()[:, None] * torch.linspace(0.3, 1.2, 12, dtype=u.dtype)).sin().reshape(2, channels, -1, 6)


def layer(make: Callable[[], nn.Module], channels: int = 4) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = make().double().eval()
    return lambda u: module(image(u, channels))


def square(u: Tensor) -> Tensor:
    return u[:, :4] + 3.0 * torch.eye(4, dtype=u.dtype)


def spd(u: Tensor) -> Tensor:
    return u @ u.T + torch.eye(4, dtype=u.dtype)


CASES: dict[str, dict[str, Case]] = {
    "pointwise": {
        "arithmetic": lambda u: torch.add(u, u.flip(1), alpha=2) - torch.sub(1.0, u, alpha=3) + torch.rsub(u, 2.0),
        "division": lambda u: torch.div(u, 0.3, rounding_mode="floor") * u + u / (u.exp() + 1) + 1 / (2 + u.cos()),
        "powers": lambda u: u**2 + u**3 + (u.exp()) ** 0.5 + u.exp() ** u + 2.0**u + u.exp() ** -1.5 + (u + 9) ** -2,
        "remainders": lambda u: torch.remainder(u, 0.7) + torch.fmod(u, 0.7),
        "clamps": lambda u: u.clamp(-0.3, 0.4) + u.clamp(min=0.1) + torch.clamp(u, max=K) + u.clamp_max(0.2),
        "extremes": lambda u: torch.maximum(u, u.flip(1)) + torch.minimum(u, K) + torch.fmax(u, K),
        "rounding": lambda u: u.floor() * u + u.ceil() * u + u.trunc() * u + u.round() * u + u.frac(),
        "trigonometry": lambda u: (
            u.sin() + u.cos() + u.tan() + u.tanh().asin() + u.tanh().acos() + u.atan() + torch.atan2(u, K + 1)
        ),
        "hyperbolic": lambda u: u.sinh() + u.cosh() + u.tanh() + u.asinh() + (u.exp() + 1).acosh() + u.tanh().atanh(),
        "exponentials": lambda u: (
            u.exp()
            + u.expm1()
            + torch.exp2(u)
            + u.exp().log()
            + u.exp().log1p()
            + u.exp().log2()
            + u.exp().log10()
            + torch.logaddexp(u, K)
            + torch.hypot(u, K + 1)
        ),
        "logic": lambda u: torch.where((u > 0) & ~(u > 1) | (u < K) ^ (u == 0), u, u * 2) + (u != 0) * u,
        "roots": lambda u: u.exp().sqrt() + u.exp().rsqrt() + u.square() + (3 + u.cos()).reciprocal() + u.abs(),
        "sign": lambda u: u.sign() * u + torch.sgn(u) + torch.lerp(u, u.flip(0), 0.3) + torch.addcmul(u, u, K, value=2),
        "nan": lambda u: torch.nan_to_num(u) + u.isnan() * u + u.isinf() * u + u.isfinite() * u,
        "casts": lambda u: u.float().double() + (u * 3).long() * u + (u > 0).double() * u,
        "detach": lambda u: u * u.detach() + u.detach().exp(),
    },
    "special": {
        "gammas": lambda u: u.exp().lgamma() + u.exp().digamma() + torch.polygamma(1, u.exp()) + u.exp().mvlgamma(1),
        "errors": lambda u: (
            u.erf()
            + u.erfc()
            + u.tanh().erfinv()
            + torch.special.ndtri(u.sigmoid())
            + torch.special.ndtr(u)
            + torch.special.log_ndtr(u)
        ),
        "bessel": lambda u: torch.special.i0(u) + torch.special.i0e(u) + torch.special.i1(u) + torch.special.i1e(u),
        "logs": lambda u: (
            torch.xlogy(K, u.exp())
            + torch.special.xlog1py(K, u.exp())
            + torch.logit(u.sigmoid())
            + torch.special.entr(u.exp())
            + F.logsigmoid(u)
            + u.sigmoid()
        ),
        "zeta": lambda u: torch.special.zeta(torch.tensor(2.5, dtype=u.dtype), u.exp() + 1),
        "gammainc": lambda u: torch.special.gammainc(K + 0.5, u.exp()) + torch.special.gammaincc(K + 0.5, u.exp()),
        "sinc": lambda u: torch.sinc(u + 3),
    },
    "reductions": {
        "sums": lambda u: u.sum() + u.sum(0).sum() + u.sum((0, 1), keepdim=True).sum() + u.mean() + u.mean(1).sum(),
        "products": lambda u: u.prod() + u.prod(1) + u.cumprod(0).sum(1),
        "extremes": lambda u: u.amax(1) + u.amin((1,)) + u.max() + u.min() + u.max(1).values + u.min(1).values,
        "moments": lambda u: (
            u.var() + u.var(1) + u.std(1, correction=0) + sum(torch.var_mean(u, 1)) + sum(torch.std_mean(u, 1))
        ),
        "logic": lambda u: u[0] * (u > 0).any() + u[1] * (u > -9).all() + u[2] * (u > 0).any(0) + u[3] * (u > 0).all(0),
        "arg": lambda u: u.sum(1) * u.argmax(1) + u.sum(1) * u.argmin(1) + u.argmax() * u.sum(),
        "norms": lambda u: (
            u.norm(dim=1)
            + u.norm(p=1, dim=1)
            + torch.linalg.vector_norm(u, 3.0, dim=1)
            + torch.linalg.vector_norm(u, float("inf"), dim=1)
            + torch.linalg.vector_norm(u)
        ),
        "cumulative": lambda u: u.cumsum(1) + u.logcumsumexp(0) + u.logsumexp(1, keepdim=True) + u.logsumexp((0, 1)),
        "sorting": lambda u: (
            u.sort(1).values + u.sort(1, descending=True).values * K + torch.sort(u, dim=0, stable=True).values
        ),
        "topk": lambda u: u.topk(3, 1).values + u.topk(3, 1, largest=False).values * 2,
        "order": lambda u: u.median(1).values + u.kthvalue(2, 1, keepdim=True).values + u.median(),
    },
    "fourier": {
        "real": lambda u: torch.fft.rfft(u, dim=0).abs().square() + torch.fft.rfft(u, norm="ortho").real.sum(),
        "back": lambda u: (
            torch.fft.irfft(torch.fft.rfft(u) * (1 + 2j), n=7) + torch.fft.irfft2(torch.fft.rfft2(u))[0, 0]
        ),
        "complex": lambda u: torch.fft.ifft2(torch.fft.fft2(u, norm="forward") * 3j).imag + torch.fft.fft(u).imag,
        "parts": lambda u: (
            torch.view_as_real(torch.complex(u, u.flip(1)) * torch.polar(u.exp(), u).conj()).sum(-1)
            + torch.view_as_complex(u.reshape(4, 3, 2)).angle().sum()
        ),
    },
    "views": {
        "shapes": lambda u: u.reshape(2, 12).T.reshape(4, 6) + u.permute(1, 0).reshape(4, 6) + u.view(-1).view(4, 6),
        "expand": lambda u: u[None].expand(3, -1, -1) + u.unsqueeze(0).squeeze(0) + u[:, :1].expand(4, 6) + u.squeeze(),
        "slices": lambda u: (
            u[1:3, ::2].sum() + u[-1] + u[..., 2:5].sum() + u.select(1, -2).sum() + u.narrow(1, 1, 3).sum()
        ),
        "pieces": lambda u: (
            sum((i + 1) * p.sum() for i, p in enumerate(u.split(4, 1) + u.chunk(2, 0) + u.unbind(0)))
            + u.split([1, 5], 1)[1].sum()
        ),
        "joins": lambda u: torch.cat([u, u * 2], 1).cumsum(1) + torch.stack([u, u.flip(1)], 1).reshape(4, 12),
        "diagonals": lambda u: u.diagonal(1).sum() * torch.diag_embed(u, 1) + torch.diag(u[0]).sum() + u.trace(),
        "triangles": lambda u: u.tril() + u.triu(1) * 2 + u.tril(-1).flip(0).roll(1, 1) + u.roll((1, 2), (0, 1)),
        "tiles": lambda u: (
            u.repeat(2, 1) * torch.arange(8)[:, None] + torch.tile(u, (2, 1)) + u.repeat_interleave(2, 0)
        ),
        "pad": lambda u: F.pad(u, (1, 2, 0, 1), value=0.5).cumsum(1) + F.pad(u, (1, 2)).sum(),
        "unfold": lambda u: u.unfold(1, 3, 2) * K[:3],
        "meshgrid": lambda u: torch.outer(u[0], u[1]) + torch.meshgrid(u[0], u[1], indexing="ij")[0],
        "movedim": lambda u: image(u).movedim(1, -1).swapaxes(0, 1) * 2,
    },
    "indexing": {
        "numbers": lambda u: u[INDEX[0][:4], INDEX[1][:4]].sum() + u[:, INDEX[0]] + u[[2, 0, 1, 1]],
        "gather": lambda u: u.gather(0, INDEX) + u.index_select(0, INDEX[0]).sum() + u.take_along_dim(INDEX, 0),
        "scatter": lambda u: (
            torch.zeros(4, 6).double().scatter(0, INDEX, u[:2])
            + u.scatter(1, INDEX[:, :1], 2.0)
            + torch.zeros(4, 6).double().scatter_add(0, INDEX, u[2:])
            + u.scatter_reduce(0, INDEX, u[:2], "amax")
        ),
        "masks": lambda u: u.masked_fill(u > 0.5, -1.0) + u[torch.ones(4, 6).tril().bool()].sum(),
        "writes": lambda u: _written(u),
        "index_add": lambda u: u.index_add(0, torch.tensor([0, 0, 3]), u[:3]) + u.index_put((INDEX[0][:4],), u[:4] * 2),
        "embedding": lambda u: F.embedding(INDEX, u[:, :3]).sum(1),
        "buckets": lambda u: u * torch.bucketize(u.detach(), K) + u * torch.searchsorted(K, u.detach(), right=True),
        "one_hot": lambda u: u * F.one_hot(INDEX[0] % 4, 4).double().T,
    },
    "linear algebra": {
        "products": lambda u: (
            (u @ u.T) @ square(u) + torch.einsum("ij,kj->ik", u, u) + torch.bmm(u[None], u.T[None])[0]
        ),
        "vectors": lambda u: u.mv(u[0]) + u[0].dot(u[1]) + torch.addmm(u @ u.T, u, u.T, beta=2, alpha=3)[0],
        "cholesky": lambda u: (
            torch.linalg.cholesky(spd(u))
            + torch.cholesky_inverse(torch.linalg.cholesky(spd(u)))
            + torch.cholesky_solve(square(u), torch.linalg.cholesky(spd(u)))
            + torch.linalg.cholesky(spd(u), upper=True)
        ),
        "solves": lambda u: (
            torch.linalg.solve(square(u), u)
            + torch.linalg.solve_triangular(square(u).tril(), u, upper=False)
            + torch.linalg.solve_triangular(square(u).triu(), u.T, upper=True, left=False).T
        ),
        "vector solve": lambda u: torch.linalg.solve(square(u), u[:, 0]),
        "inverse": lambda u: torch.linalg.inv(square(u)),
        "determinants": lambda u: (
            torch.linalg.slogdet(square(u)).logabsdet + torch.logdet(spd(u)) + torch.det(square(u))
        ),
        "eigenvalues": lambda u: torch.linalg.eigvalsh(spd(u)),
        "eigenvectors": lambda u: torch.linalg.eigh(spd(u)).eigenvectors ** 2 * torch.arange(4),
        "singular values": lambda u: torch.linalg.svdvals(u),
        "qr": lambda u: torch.linalg.qr(square(u)).R.diagonal().abs().log(),
        "matrix_exp": lambda u: torch.linalg.matrix_exp(0.3 * square(u)),
        "cross": lambda u: torch.linalg.cross(u[:, :3], u[:, 3:]),
        "cdist": lambda u: torch.cdist(u, u + 5.0),
    },
    "layers": {
        "conv1d": lambda u: F.conv1d(u[None], u[:2, :3, None].expand(2, 3, 4).permute(0, 2, 1), padding=1),
        "conv2d": layer(lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), dilation=(1, 2), groups=2)),
        "conv2d same": layer(lambda: nn.Conv2d(4, 3, 3, padding="same", bias=False)),
        "conv_transpose2d": layer(
            lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=1)
        ),
        "conv_transpose2d dilated": layer(
            lambda: nn.ConvTranspose2d(4, 2, (2, 3), stride=(3, 2), padding=(0, 2), dilation=2)
        ),
        "unbatched": lambda u: F.conv2d(image(u)[0], image(u)[:, :, :2, :2]),
        "batch norm": layer(lambda: nn.BatchNorm2d(4)),
        "group norm": layer(lambda: nn.GroupNorm(2, 4)),
        "layer norm": layer(lambda: nn.LayerNorm(6)),
        "instance norm": layer(lambda: nn.InstanceNorm2d(4)),
        "max pool": layer(lambda: nn.MaxPool2d(3, 2, padding=1)),
        "max pool ceil": layer(lambda: nn.MaxPool2d(2, 4, ceil_mode=True)),
        "avg pool": layer(lambda: nn.AvgPool2d(3, 2, padding=1)),
        "avg pool ceil": layer(lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False)),
        "adaptive pool": layer(lambda: nn.AdaptiveAvgPool2d((4, 1))),
        "nearest": layer(lambda: nn.Upsample(scale_factor=2)),
        "bilinear": layer(lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
        "shuffle": layer(lambda: nn.PixelShuffle(2)),
        "padding": layer(lambda: nn.Sequential(nn.ReflectionPad2d(2), nn.ReplicationPad2d(1), nn.ZeroPad2d(1))),
        "attention": lambda u: F.scaled_dot_product_attention(image(u), image(u).flip(1), image(u).sin()),
        "transformer": layer(
            lambda: nn.Sequential(nn.Flatten(0, 1), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True))
        ),
        "gru": lambda u: GRU(u[None])[0],
        "dropout": layer(lambda: nn.Dropout(0.5)),
    },
    "activations": {
        name: layer(make)
        for name, make in {
            "relu": nn.ReLU,
            "relu6": nn.ReLU6,
            "leaky": lambda: nn.LeakyReLU(0.1),
            "prelu": nn.PReLU,
            "elu": lambda: nn.ELU(0.7),
            "celu": lambda: nn.CELU(0.7),
            "selu": nn.SELU,
            "gelu": nn.GELU,
            "gelu tanh": lambda: nn.GELU("tanh"),
            "silu": nn.SiLU,
            "mish": nn.Mish,
            "softplus": lambda: nn.Softplus(2.0, 1.0),
            "softsign": nn.Softsign,
            "tanhshrink": nn.Tanhshrink,
            "hardswish": nn.Hardswish,
            "hardsigmoid": nn.Hardsigmoid,
            "hardtanh": nn.Hardtanh,
            "logsigmoid": nn.LogSigmoid,
            "softmax": lambda: nn.Softmax(1),
            "log softmax": lambda: nn.LogSoftmax(1),
            "glu": lambda: nn.GLU(1),
        }.items()
    },
}


def _written(u: Tensor) -> Tensor:
    """In-place writes: to a copy, to a view of it, to a row; nothing of it may be lost."""
    x = u.clone()
    x[1] = u[0] * 2
    x[:, 2:4] += u[:, :2]
    x.diagonal().mul_(3.0)
    x.add_(1.0).clamp_(min=-0.5)
    row = x[2]
    row.exp_()
    return x


def _gru() -> nn.GRU:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.GRU(6, 3, batch_first=True).double().eval()


GRU = _gru()
