"""Autoregressive flows over blocks of a vector or patches of an image, with a causal transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.nn.transformer import CausalTransformer
from pyro_dgm.ops.arguments import check_count, check_positive

__all__ = ["TransformerAutoregressive"]


class TransformerAutoregressive(Bijection):
    """A transformer autoregressive flow, TarFlow: each patch is shifted and scaled given the patches before it.

    .. math:: y_i = x_i \\odot e^{s_i(y_{<i}, c)} + b_i(y_{<i}, c), \\qquad \\log |\\det J| = \\sum_{i, j} s_{ij}

    A vector is cut into blocks of ``patch_size`` elements, an image into square patches of that side, row by row. The
    shift and log-scale :math:`b_i, s_i` are outputs of one causal transformer. The log-scale is bounded softly,
    :math:`|s| < s_{\\max}`. Alternate the order by ``reverse`` when stacking several, since elements of the first
    patch are only shifted and scaled by constants. It starts as the identity.

    **Which direction is fast.** The inverse, from data to noise, is one pass of the transformer. Forward, sampling,
    takes one step for each patch, with keys and values of those before kept.

    :param event_shape: an integer or ``(dim,)`` for vectors, ``(height, width)`` or ``(channels, height, width)`` for
        images.
    :param patch_size: elements in a block, or side of a patch; it must divide the length, or height and width.
    :param width: width of the transformer, a multiple of ``num_heads``.
    :param num_heads: heads of the attention.
    :param num_layers: blocks of the transformer.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class.
    :param reverse: whether the last patch comes first.
    :param max_log_scale: the bound :math:`s_{\\max}`.
    :raises TypeError: if a size is no integer.
    :raises ValueError: if a size is not positive, or does not divide the other one.

    Source: Zhai, Zhang, Nakkiran et al. (2024), arXiv:2412.06329.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import TransformerAutoregressive
        >>> flow = TransformerAutoregressive((1, 4, 4), patch_size=2, width=16, num_heads=2)
        >>> x, log_det = flow.inverse_and_log_det(torch.zeros(5, 1, 4, 4))
        >>> x.shape, log_det.shape
        (torch.Size([5, 1, 4, 4]), torch.Size([5]))
    """

    fast = "inverse"

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        *,
        patch_size: int = 1,
        width: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.GELU,
        reverse: bool = False,
        max_log_scale: float = 5.0,
    ) -> None:
        super().__init__(event_shape, context_dim)
        shape = self.event_shape
        if not 1 <= len(shape) <= 3:
            raise ValueError(f"event_shape must be that of a vector or an image, 1 to 3 sizes, got {tuple(shape)}")
        check_count("patch_size", patch_size)
        sides = shape[-2:] if len(shape) > 1 else shape
        if any(n % patch_size for n in sides):
            raise ValueError(f"patch_size must divide {' and '.join(map(str, sides))}, got {patch_size}")
        self.patch_size, self.reverse = patch_size, bool(reverse)
        self.max_log_scale = float(check_positive("max_log_scale", max_log_scale))
        self.num_patches = torch.Size(n // patch_size for n in sides).numel()
        self.channels = shape[0] if len(shape) == 3 else 1
        size = self._size = shape.numel() // self.num_patches
        self.network = CausalTransformer(
            self.num_patches,
            size,
            2 * size,
            width=width,
            num_heads=num_heads,
            num_layers=num_layers,
            context_dim=self.context_dim,
            activation=activation,
        )

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        noise, total, previous, found = self._patches(x), None, None, []
        outputs_of_next = self.network.sequential(noise.shape[:-2], context)
        for patch in noise.unbind(-2):
            shift, log_scale = self._shift_and_log_scale(outputs_of_next(previous))
            previous = torch.addcmul(shift, patch, log_scale.exp())
            total = log_scale.sum(-1) if total is None else total + log_scale.sum(-1)
            found.append(previous)
        return self._joined(torch.stack(found, -2)), total  # type: ignore[return-value]

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        patches = self._patches(y)
        shift, log_scale = self._shift_and_log_scale(self.network(patches, context))
        return self._joined((patches - shift) * (-log_scale).exp()), -log_scale.sum((-1, -2))

    def _shift_and_log_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = outputs.chunk(2, -1)
        return shift, self.max_log_scale * torch.tanh(raw / self.max_log_scale)

    def _patches(self, value: Tensor) -> Tensor:
        """Cut into patches, ``batch + (num_patches, size)``, first one first."""
        p, shape = self.patch_size, self.event_shape
        batch = value.shape[: value.dim() - len(shape)]
        if len(shape) > 1:
            rows, columns = shape[-2] // p, shape[-1] // p
            value = value.reshape((*batch, self.channels, rows, p, columns, p)).movedim((-4, -2), (-5, -4))
        value = value.reshape((*batch, self.num_patches, self._size))
        return value.flip(-2) if self.reverse else value

    def _joined(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`_patches`."""
        p, shape = self.patch_size, self.event_shape
        batch = patches.shape[:-2]
        patches = patches.flip(-2) if self.reverse else patches
        if len(shape) > 1:
            rows, columns = shape[-2] // p, shape[-1] // p
            patches = patches.reshape((*batch, rows, columns, self.channels, p, p)).movedim((-5, -4), (-4, -2))
        return patches.reshape(batch + shape)
