"""Amortised guides of a user's own model: normal distributions whose parameters are functions of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor, nn

from pyro_dgm.distributions.transforms.context_parameters import ContextParameters
from pyro_dgm.guides.grouped import Encoders, GroupedGuide
from pyro_dgm.guides.groups import Group, Part
from pyro_dgm.ops.arguments import check_choice, check_count, check_sizes

__all__ = ["Amortized"]


class Amortized(GroupedGuide):
    r"""Amortised guide of a user's own model: which latents are local is read from its plates.

    .. math:: q(u) = q(u_0) \prod_n N\bigl(u_n \mid \mu(h_n, u_0), \Sigma(h_n, u_0)\bigr), \qquad h_n = e_\phi(x_n)

    Latents outside of plates have parameters of their own, as in Pyro's automatic guides. Latents in a plate have
    distributions whose location and scale are functions of the encoder's output for that element, and of the latents
    outside: the number of parameters does not grow with the data, and new data need no new fit. Constrained sites are
    mapped by Pyro's ``biject_to``.

    The encoder is called with the arguments of the model. Where the plate is subsampled, arguments with a row for each
    element of the plate are cut to the rows of the subsample first, so that a step costs what a mini-batch costs.

    Parameters exist after the first call. Sites that are marked for enumeration are left to the model; other discrete
    latents raise an error.

    :param model: a Pyro model with static structure.
    :param encoder: callable (a module, which is trained) from the model's arguments to features ``plates + (F,)`` of
        each element; or, where a model has several kinds of plates, a mapping from the name of the innermost plate to
        the callable.
    :param family: covariance of the latents of one element: ``"normal"`` (diagonal), ``"low_rank"`` (diagonal plus
        ``rank`` factors) or ``"full_rank"``. :class:`~pyro_dgm.guides.FlowGuide` has flows.
    :param rank: number of factors of ``"low_rank"``.
    :param hidden: widths of hidden layers between the features and the parameters; none for an affine function.
    :param init_loc_fn: a site's first location, as in Pyro's automatic guides.
    :param init_scale: first standard deviation of the unconstrained latents.
    :param create_plates: a function of the model's arguments that gives the plates, as in Pyro's automatic guides.
    :raises TypeError: if an argument is of a wrong type.
    :raises ValueError: for an unknown family or a size out of range; on the first call, for latents in a plate without
        an encoder, discrete latents, sequential plates, latents with batch dimensions that are no plates, or a latent
        whose support depends on other latents.

    Source: D. P. Kingma and M. Welling (2014), arXiv:1312.6114; structured by plates as in D. Tran, A. Kucukelbir et
    al. (2016), arXiv:1610.09787.

    Example::

        >>> import pyro, torch, pyro_dgm, pyro.distributions as dist
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), subsample_size=5) as rows:
        ...         z = pyro.sample("z", dist.Normal(0.0, scale))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])
        >>> guide = pyro_dgm.guides.Amortized(model, encoder=lambda x: x[:, None])
        >>> program = pyro_dgm.program(model, guide)
        >>> run = pyro_dgm.fit(program, torch.randn(20), objective=pyro_dgm.infer.ELBO(), batch_size=20, epochs=2,
        ...     seed=0, progress=False)
        >>> guide(torch.randn(20))["z"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: Encoders,
        *,
        family: str = "normal",
        rank: int = 2,
        hidden: Sequence[int] = (),
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, encoder, init_loc_fn, init_scale, create_plates)
        self.family = check_choice("family", family, "normal", "low_rank", "full_rank")
        self.rank = check_count("rank", rank)
        self.hidden = check_sizes("hidden", hidden)
        self.heads = nn.ModuleDict()

    def by_rows(self, group: Group) -> bool:
        return len(group.plates) == 1 and group.plates[0].dim == -1 and _is_subsampled(group)

    def build_group(self, group: Group, outer: int, features: Tensor | None) -> None:
        if group.plates and features is None:
            raise ValueError(
                f"encoder has nothing for the plate {group.innermost!r}, which the latents "
                f"{[part.name for part in group.parts]} are in: give encoder={{{group.innermost!r}: ...}}"
            )
        loc = group.values.reshape(-1, group.size).mean(0)
        size, extra = group.size, self._extra(group)
        log_scale = torch.full_like(loc, self.init_scale).log()
        initial = torch.cat([loc, log_scale, loc.new_zeros(extra)])
        if self.family == "low_rank":  # at zero the factors' gradient would be zero too
            initial[2 * size :] = 0.1 * torch.randn_like(initial[2 * size :])
        context = outer + (0 if features is None else features.shape[-1])
        head = ContextParameters(initial, context, self.hidden)
        self.heads[group.key] = head.to(device=loc.device, dtype=loc.dtype)

    def distribution(
        self, group: Group, plates: Mapping[str, Any], features: Tensor | None, outer: list[Tensor]
    ) -> Any:
        context = [*outer, *(() if features is None else (features,))]
        batch = torch.broadcast_shapes(*(c.shape[:-1] for c in context))
        joined = torch.cat([c.expand(*batch, c.shape[-1]) for c in context], -1) if context else None
        sizes = [group.size, group.size, self._extra(group)]
        loc, log_scale, rest = self.heads[group.key](joined).split(sizes, -1)
        scale = log_scale.exp()
        if self.family == "normal":
            return dist.Normal(loc, scale, validate_args=False).to_event(1)
        if self.family == "low_rank":
            factors = scale[..., None] * rest.unflatten(-1, (group.size, self.rank))
            return dist.LowRankMultivariateNormal(loc, factors, scale.square(), validate_args=False)
        rows, columns = torch.tril_indices(group.size, group.size, -1, device=loc.device)
        lower = torch.zeros_like(scale)[..., None].expand(*scale.shape, group.size)
        lower = lower.flatten(-2).index_copy(-1, rows * group.size + columns, rest).unflatten(-1, (group.size, -1))
        tril = scale[..., None] * lower + torch.diag_embed(scale)
        return dist.MultivariateNormal(loc, scale_tril=tril, validate_args=False)

    def _extra(self, group: Group) -> int:
        size = group.size
        return {"normal": 0, "low_rank": size * self.rank, "full_rank": size * (size - 1) // 2}[self.family]

    def draw_group(self, group: Group, vector: Any, result: dict[str, Tensor]) -> Tensor:
        if self.family != "normal":
            return super().draw_group(group, vector, result)
        # Elements are independent, and so are the sites: no auxiliary site, and divergences in closed form.
        normal = vector.base_dist
        values = [
            self.draw_site(part, dist.Normal(loc, scale, validate_args=False).to_event(1), result)
            for (part, loc), (_, scale) in zip(_flat(group, normal.loc), _flat(group, normal.scale), strict=True)
        ]
        return torch.cat(values, -1)

    def at_site(self, vector: Any, part: Part) -> Any:
        if self.family != "normal" or not _is_real(part.support):
            return super().at_site(vector, part)
        loc, scale = (v.unflatten(-1, part.shape) if part.shape else v[..., 0] for v in _moments(vector))
        return dist.Normal(loc, scale, validate_args=False).to_event(part.event_dim)


def _moments(vector: Any) -> tuple[Tensor, Tensor]:
    return vector.base_dist.loc, vector.base_dist.scale


def _flat(group: Group, vector: Tensor) -> list[tuple[Part, Tensor]]:
    return [(part, value.reshape(*vector.shape[:-1], -1)) for part, value in group.split(vector)]


def _is_subsampled(group: Group) -> bool:
    return any(frame.full_size is not None and frame.full_size != frame.size for frame in group.plates)


def _is_real(support: Any) -> bool:
    while isinstance(support, torch.distributions.constraints.independent):
        support = support.base_constraint
    return support is torch.distributions.constraints.real
