"""A small causal transformer: outputs for each token depend only on the tokens before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_dgm.ops.arguments import check_count

__all__ = ["CausalTransformer"]

#: keys and values of the tokens so far, for each layer
Past = list[tuple[Tensor, Tensor]]


class _Block(nn.Module):
    """Attention to oneself and those before, then a network for each token alone; both behind a normalisation."""

    def __init__(self, width: int, num_heads: int, expansion: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_network = nn.LayerNorm(width), nn.LayerNorm(width)
        # Without biases: that of the keys has no effect.
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.join = nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.Linear(width, expansion * width), activation(), nn.Linear(expansion * width, width)
        )

    def forward(self, h: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """All tokens at once, or with ``past`` the next one; also gives keys and values so far."""
        heads = self.project(self.norm_attention(h)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = (part.transpose(-2, -3) for part in heads.unbind(-3))
        if past is not None:
            key, value = torch.cat([past[0], key], -2), torch.cat([past[1], value], -2)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        h = h + self.join(seen.transpose(-2, -3).flatten(-2))
        return h + self.network(self.norm_network(h)), (key, value)


class CausalTransformer(nn.Module):
    """Outputs for each token of a sequence, which depend on the tokens before it and on a context.

    .. math:: o_i = g_i(x_{<i}, c), \\qquad i = 1, \\ldots, T

    A transformer with normalisation before each part, learned positions and a learned start. The context is added to
    every token. There is no dropout: an invertible map must be the same on each call. The last layer starts at zero.

    Attention is torch's ``scaled_dot_product_attention``. Under ``vmap`` it runs one element after another, and on CUDA
    its fast kernels have no second derivatives: there ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` helps.

    :param num_tokens: length of the sequence :math:`T`.
    :param in_features: numbers in a token.
    :param out_features: outputs for each token.
    :param width: width of the layers, a multiple of ``num_heads``.
    :param num_heads: heads of the attention.
    :param num_layers: number of blocks.
    :param context_dim: length of the context vectors; 0 for none.
    :param activation: a module class.
    :param expansion: width of a block's network, as a multiple of ``width``.
    :raises TypeError: if a size is no integer.
    :raises ValueError: if a size is not positive, or ``width`` is no multiple of ``num_heads``.

    Source: Vaswani, Shazeer, Parmar et al. (2017), arXiv:1706.03762; normalisation first: Xiong, Yang, He et al.
    (2020), arXiv:2002.04745.

    Example::

        >>> import torch
        >>> from pyro_dgm.nn import CausalTransformer
        >>> CausalTransformer(6, 3, 2, width=16, num_heads=2, num_layers=1)(torch.zeros(5, 6, 3)).shape
        torch.Size([5, 6, 2])
    """

    def __init__(
        self,
        num_tokens: int,
        in_features: int,
        out_features: int,
        *,
        width: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        context_dim: int = 0,
        activation: Callable[[], nn.Module] = nn.GELU,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.num_tokens = check_count("num_tokens", num_tokens)
        self.context_dim = check_count("context_dim", context_dim, 0)
        check_count("width", width)
        if width % check_count("num_heads", num_heads):
            raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
        self.embed = nn.Linear(check_count("in_features", in_features), width)
        # The first position is that of the start, whose embedding is in it.
        self.positions = nn.Parameter(0.02 * torch.randn_like(self.embed.bias.expand(self.num_tokens, width)))
        self.context = nn.Linear(self.context_dim, width) if self.context_dim else None
        self.blocks = nn.ModuleList(
            _Block(width, num_heads, check_count("expansion", expansion), activation)
            for _ in range(check_count("num_layers", num_layers))
        )
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, check_count("out_features", out_features))
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.bias.zero_()

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """The outputs of all tokens in one pass.

        :param tokens: ``batch + (num_tokens, in_features)``.
        :param context: ``batch + (context_dim,)``.
        :returns: ``batch + (num_tokens, out_features)``.
        """
        batch = tokens.shape[:-2]
        tokens = tokens.reshape((batch.numel(), *tokens.shape[-2:]))
        h = nn.functional.pad(self.embed(tokens[:, :-1]), (0, 0, 1, 0)) + self.positions
        if self.context is not None and context is not None:
            h = h + self.context(context.reshape((batch.numel(), 1, self.context_dim)))
        for block in self.blocks:
            h, _ = block(h)
        return self.last(self.norm(h)).reshape((*batch, self.num_tokens, self.last.out_features))

    def sequential(self, batch: torch.Size, context: Tensor | None = None) -> Callable[[Tensor | None], Tensor]:
        """The outputs of one token after another, where a token is known only from the outputs before it.

        Keys and values of the tokens so far are kept, so that all tokens together cost about as much as one pass.

        :param batch: batch shape of the tokens.
        :param context: ``batch + (context_dim,)``.
        :returns: a function to call once for each token, with the token before it, ``batch + (in_features,)`` (``None``
            for the first one), that gives ``batch + (out_features,)``.
        """
        added = (
            None
            if self.context is None or context is None
            else self.context(context.reshape((batch.numel(), self.context_dim)))
        )
        past: Past = []
        place = 0

        def outputs_of_next(token: Tensor | None) -> Tensor:
            nonlocal past, place
            h = self.positions[place].expand((batch.numel(), -1))
            if token is not None:
                h = h + self.embed(token.reshape((batch.numel(), token.shape[-1])))
            h = (h if added is None else h + added).unsqueeze(-2)
            now: Past = []
            for i, block in enumerate(self.blocks):
                h, kept = block(h, past[i] if past else None)
                now.append(kept)
            past, place = now, place + 1
            return self.last(self.norm(h)).reshape((*batch, self.last.out_features))

        return outputs_of_next
