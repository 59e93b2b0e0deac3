"""An automatic guide of normalizing flows, for a user's own model with several latents and plates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_dgm.distributions.flow import FlowDistribution, standard_normal
from pyro_dgm.distributions.transforms import Bijection, Compose, LocationScale, Reshape, Wrapped, make_flow
from pyro_dgm.guides.grouped import Encoders, GroupedGuide
from pyro_dgm.guides.groups import Group, Part
from pyro_dgm.ops.arguments import check_count

__all__ = ["FlowGuide"]


class FlowGuide(GroupedGuide):
    r"""Automatic guide: a flow over all continuous latents of a model, in unconstrained space.

    .. math:: q(u) = q(u_0) \prod_n q(u_n \mid u_0, h_n), \qquad
              \log q(z) = \log q(u) - \log |\det \partial z / \partial u|

    The latents outside of plates have one joint flow, :math:`u_0`. The latents inside of the same plates have one flow
    with shared weights, applied to each element of the plates: it is conditioned on the latents outside
    (:math:`u_0`, and those of enclosing plates), and on what is known of the element, :math:`h_n`. Without an encoder
    this is a location, a scale and a vector of ``row_features`` numbers of the element's own, which are indexed if the
    plate is subsampled; with one it is the encoder's output, and the guide is amortised. Constrained sites are mapped
    by Pyro's ``biject_to``.

    A flow over one site alone is the distribution of that site. Several sites share an auxiliary site
    ``_flow_PLATES``, which objectives that need the density of each latent (BetaTC, DIP, WakeSleep) refuse.

    Parameters exist after the first call. Sites that are marked for enumeration are left to the model; other discrete
    latents raise an error.

    :param model: a Pyro model with static structure.
    :param transform: name, transform or callable, as of :func:`~pyro_dgm.distributions.transforms.make_flow`. Its
        forward direction should be the fast one.
    :param num_layers: layers, where ``transform`` is a name.
    :param options: other arguments of each layer, ``{"hidden": (64,)}`` say.
    :param encoder: callable (a module, which is trained) from the model's arguments to features ``plates + (F,)`` of
        each element, for the groups in plates. Where a model has several kinds of plates, a mapping from the name of
        the innermost plate to the callable.
    :param row_features: numbers for each element, beside location and scale, where there is no encoder.
    :param init_loc_fn: a site's first location, as in Pyro's automatic guides.
    :param init_scale: first standard deviation of the unconstrained latents.
    :param create_plates: a function of the model's arguments that gives the plates, as in Pyro's automatic guides.
    :raises TypeError: if an argument is of a wrong type.
    :raises ValueError: on the first call, for discrete latents, sequential plates, latents with batch dimensions
        that are no plates, or a latent whose support depends on other latents. For the last, such as
        ``Uniform(0, scale)`` of a latent scale, draw ``Uniform(0, 1)`` and multiply.

    Source: D. J. Rezende and S. Mohamed (2015), arXiv:1505.05770; D. P. Kingma, T. Salimans et al. (2016),
    arXiv:1606.04934.

    Example::

        >>> import pyro, torch, pyro_dgm, pyro.distributions as dist
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, scale))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> program = pyro_dgm.program(model, pyro_dgm.guides.FlowGuide(model, num_layers=1))
        >>> run = pyro_dgm.fit(program, torch.randn(7), objective=pyro_dgm.infer.ELBO(), batch_size=7, epochs=2,
        ...     seed=0, progress=False)
        >>> sorted(program.guide(torch.randn(7)))
        ['scale', 'z']
    """

    def __init__(
        self,
        model: Callable[..., Any],
        transform: str | Bijection | Callable[..., Bijection] = "affine_autoregressive",
        *,
        num_layers: int = 2,
        options: Mapping[str, Any] | None = None,
        encoder: Encoders | None = None,
        row_features: int = 4,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, encoder, init_loc_fn, init_scale, create_plates)
        self.transform = (transform,)
        self.num_layers = check_count("num_layers", num_layers)
        self.row_features = check_count("row_features", row_features, 0)
        self.options = dict(options or {})
        self.flows, self.rows = nn.ModuleDict(), nn.ParameterDict()

    def build_group(self, group: Group, outer: int, features: Tensor | None) -> None:
        key, like = group.key, group.values
        own = self.row_features if group.plates and features is None else 0
        flow = make_flow(
            self.transform[0],
            group.size,
            num_layers=self.num_layers,
            context_dim=outer + (own if features is None else features.shape[-1]),
            fast="forward",
            options=self.options,
        )
        self.flows[key] = flow.to(device=like.device, dtype=like.dtype)
        # Rows of the same start would stay the same wherever the data are: a little noise tells them apart.
        loc = like if features is None else like.reshape(-1, group.size).mean(0)
        self.rows[f"{key}_loc"] = nn.Parameter(loc.clone())
        self.rows[f"{key}_log_scale"] = nn.Parameter(torch.full_like(loc, self.init_scale).log())
        if own:
            noise = torch.randn((*like.shape[:-1], own), dtype=like.dtype, device=like.device)
            self.rows[f"{key}_features"] = nn.Parameter(0.1 * noise)

    def distribution(
        self, group: Group, plates: Mapping[str, Any], features: Tensor | None, outer: list[Tensor]
    ) -> FlowDistribution:
        key = group.key
        loc, log_scale = self.rows[f"{key}_loc"], self.rows[f"{key}_log_scale"]
        own = self.rows[f"{key}_features"] if f"{key}_features" in self.rows else None
        if features is not None:
            own = features
        elif group.plates:
            loc, log_scale = pyro.subsample(loc, event_dim=1), pyro.subsample(log_scale, event_dim=1)
            own = None if own is None else pyro.subsample(own, event_dim=1)
        flow: Any = self.flows[key]
        context = [*outer, *(() if own is None else (own,))]
        batch = torch.broadcast_shapes(loc.shape[:-1], *(c.shape[:-1] for c in context))
        joined = torch.cat([c.expand(*batch, c.shape[-1]) for c in context], -1) if context else None
        transform = Compose([flow, LocationScale(loc, log_scale)])
        base = standard_normal(flow).expand(batch)
        return FlowDistribution(transform, base, joined, remember=True, validate_args=False)

    def at_site(self, vector: FlowDistribution, part: Part) -> FlowDistribution:
        parts = [vector.transform, Reshape(vector.event_shape, part.shape)]
        transform = Compose([*parts, Wrapped(biject_to(part.support), part.shape)])
        return FlowDistribution(transform, vector.base, vector.context, remember=True, validate_args=False)
