"""Levels of an image flow, each of which adds noise of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.base import Bijection, ValueAndLogDet
from pyro_dgm.distributions.transforms.compose import common_context_dim, common_fast

__all__ = ["Multiscale"]


class Multiscale(Bijection):
    """The multiscale architecture of RealNVP and Glow: part of the channels leave the flow after each level.

    From noise to data, each level takes the image of the coarser one before it, with the channels that it lacks filled
    by fresh noise:

    .. math:: h_1 = f_1(\\epsilon_1), \\qquad h_l = f_l([h_{l-1}, \\epsilon_l]), \\qquad y = h_L, \\qquad
        \\log |\\det J| = \\sum_l \\log |\\det J_{f_l}|

    where :math:`[\\cdot, \\cdot]` joins channels. From data to noise, half of the channels (or as many as the shapes
    say) are split off at each level and are noise from there on: most of the work is done on small images. All noise
    is one vector :math:`(\\epsilon_1, \\ldots, \\epsilon_L)`, so that this is one bijection with one base
    distribution.

    :param levels: the transforms, coarsest first, from noise to data. Each takes and gives images ``(C, H, W)``: its
        input has the height and width of the output of the one before it, and at least as many channels. The context
        goes to those that take one.
    :raises TypeError: if a level is no :class:`~pyro_dgm.distributions.transforms.Bijection`.
    :raises ValueError: if there is none, if shapes do not follow one another, or contexts are of different lengths.

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio (2017), arXiv:1605.08803.

    Example::

        >>> import torch
        >>> from pyro_dgm.distributions.transforms import ActNorm, Compose, Multiscale, Squeeze
        >>> def level(channels, side):  # noise to data: a scale and a shift, then an image of twice the side
        ...     return Compose([ActNorm((4 * channels, side, side)), Squeeze((channels, 2 * side, 2 * side)).inv])
        >>> flow = Multiscale([level(2, 2), level(1, 4)])
        >>> flow.event_shape, flow.out_shape
        (torch.Size([64]), torch.Size([1, 8, 8]))
    """

    def __init__(self, levels: Iterable[Bijection]) -> None:
        given = list(levels)
        if not given:
            raise ValueError("Multiscale: levels must hold at least one transform, got none")
        sizes: list[torch.Size] = []
        last: tuple[int, ...] = (0,)
        for i, level in enumerate(given):
            if not isinstance(level, Bijection):
                raise TypeError(f"Multiscale: levels[{i}] must be a Bijection, got {type(level).__name__}")
            takes, gives = tuple(level.event_shape), tuple(level.out_shape)
            fits = len(takes) == len(gives) == 3 and (not i or (takes[1:] == last[1:] and takes[0] >= last[0]))
            if not fits:
                wanted = f" of height and width {last[1:]} and {last[0]} channels or more" if i else ""
                raise ValueError(
                    f"Multiscale: levels[{i}] must take images (C, H, W){wanted}, and give such; "
                    f"it takes {takes} and gives {gives}"
                )
            # Channels that are noise; there may be none.
            sizes.append(torch.Size((takes[0] - last[0], *takes[1:])))
            last = gives
        super().__init__(sum(size.numel() for size in sizes), common_context_dim("Multiscale: levels", given))
        self.levels = nn.ModuleList(given)
        self._noise = sizes
        self.fast = common_fast(given)

    @property
    def out_shape(self) -> torch.Size:
        return self.levels[-1].out_shape  # type: ignore[return-value]

    def _forward(self, x: Tensor, context: Tensor | None) -> ValueAndLogDet:
        log_dets: list[Tensor] = []

        def apply(level: Bijection, image: Tensor) -> Tensor:
            image, log_det = level._forward(image, context if level.context_dim else None)
            log_dets.append(log_det)
            return image

        return self._to_image(x, apply), torch.stack(log_dets).sum(0)

    def _backward(self, y: Tensor, context: Tensor | None) -> ValueAndLogDet:
        log_dets: list[Tensor] = []

        def apply(level: Bijection, image: Tensor) -> Tensor:
            image, log_det = level._backward(image, context if level.context_dim else None)
            log_dets.append(log_det)
            return image

        return self._to_noise(y, apply), torch.stack(log_dets).sum(0)

    @property
    def starts_from_data(self) -> bool:
        return any(level.starts_from_data for level in self.levels)

    def _start(self, value: Tensor, context: Tensor | None, inverse: bool, needed: bool) -> Tensor:
        end = self.levels[0 if inverse else -1]

        def apply(level: Bijection, image: Tensor) -> Tensor:
            further = needed or level is not end
            return level._start(image, context if level.context_dim else None, inverse, further)

        if not needed and not self.starts_from_data:
            return value
        return (self._to_noise if inverse else self._to_image)(value, apply)

    def _to_image(self, noise: Tensor, apply: Callable[[Bijection, Tensor], Tensor]) -> Tensor:
        """Noise through the levels, coarsest first."""
        vectors = noise.split([shape.numel() for shape in self._noise], -1)
        fresh = [v.reshape(noise.shape[:-1] + shape) for v, shape in zip(vectors, self._noise, strict=True)]
        image = fresh[0]
        for i, level in enumerate(self.levels):
            image = apply(level, torch.cat([image, fresh[i]], -3) if i else image)  # type: ignore[arg-type]
        return image

    def _to_noise(self, image: Tensor, apply: Callable[[Bijection, Tensor], Tensor]) -> Tensor:
        """An image through the levels, finest first."""
        vectors: list[Tensor] = []
        for level, shape in zip(reversed(self.levels), reversed(self._noise), strict=True):
            image = apply(level, image)  # type: ignore[arg-type]
            image, noise = image.split((image.shape[-3] - shape[0], shape[0]), -3)
            vectors.append(noise.flatten(-3))
        return torch.cat(vectors[::-1], -1)
