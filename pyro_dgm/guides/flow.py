"""An automatic guide of normalizing flows, for a user's own model with several latents and plates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_dgm.distributions.flow import FlowDistribution, standard_normal
from pyro_dgm.distributions.transforms import Bijection, Compose, LocationScale, Reshape, Wrapped, make_flow
from pyro_dgm.guides.groups import Group, Part, find_groups
from pyro_dgm.ops.arguments import check_count, check_positive
from pyro_dgm.programs import announce_parameters

__all__ = ["FlowGuide"]


class FlowGuide(nn.Module):
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
    :raises ValueError: on the first call, for discrete latents, sequential plates, or latents with batch dimensions
        that are no plates.

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
        encoder: Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]] | None = None,
        row_features: int = 4,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        check_positive("init_scale", init_scale)
        if encoder is not None and not callable(encoder) and not isinstance(encoder, Mapping):
            raise TypeError(f"encoder must be a callable or a mapping of plates to them, got {type(encoder).__name__}")
        super().__init__()
        # In a tuple, so that the model's parameters are not the guide's.
        self._model = (InitMessenger(init_loc_fn)(model),)
        self.create_plates = create_plates
        self.transform = (transform,)
        self.num_layers = check_count("num_layers", num_layers)
        self.row_features = check_count("row_features", row_features, 0)
        self.options, self.init_scale = dict(options or {}), float(init_scale)
        self._encoders = dict(encoder) if isinstance(encoder, Mapping) else {"": encoder} if encoder else {}
        modules = {key or "every": fn for key, fn in self._encoders.items() if isinstance(fn, nn.Module)}
        self.encoder_modules = nn.ModuleDict(modules)
        self.flows, self.rows = nn.ModuleDict(), nn.ParameterDict()
        self.groups: tuple[Group, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent; takes the arguments of the model.

        :returns: the latents by the names of their sites.
        """
        with pyro.settings.context(module_local_params=True):
            if not self.groups:
                self._build(args, kwargs)
            announce_parameters(self)
            return self._draw(args, kwargs)

    def median(self, *args: Any, num_samples: int = 1000, **kwargs: Any) -> dict[str, Tensor]:
        """Medians of each latent's elements over draws of the guide.

        :param num_samples: how many draws.
        :returns: the medians by the names of the sites.
        """
        check_count("num_samples", num_samples)
        with torch.no_grad(), poutine.block():
            draws = [self(*args, **kwargs) for _ in range(num_samples)]
        return {name: torch.stack([draw[name] for draw in draws]).median(0).values for name in draws[0]}

    # Parameters

    def _build(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        groups = find_groups(self._model[0], args, kwargs)
        features = self._features(groups, args, kwargs)
        for group in groups:
            key, like = group.key, group.values
            own = self.row_features if group.plates and key not in features else 0
            context = sum(outer.size for outer in _around(group, groups))
            context += features[key].shape[-1] if key in features else own
            flow = make_flow(
                self.transform[0],
                group.size,
                num_layers=self.num_layers,
                context_dim=context,
                fast="forward",
                options=self.options,
            )
            self.flows[key] = flow.to(device=like.device, dtype=like.dtype)
            # Rows of the same start would stay the same wherever the data are: a little noise tells them apart.
            loc = like if key not in features else like.reshape(-1, group.size).mean(0)
            self.rows[f"{key}_loc"] = nn.Parameter(loc.clone())
            self.rows[f"{key}_log_scale"] = nn.Parameter(torch.full_like(loc, self.init_scale).log())
            if own:
                noise = torch.randn((*like.shape[:-1], own), dtype=like.dtype, device=like.device)
                self.rows[f"{key}_features"] = nn.Parameter(0.1 * noise)
        self.groups = groups

    def _features(self, groups: tuple[Group, ...], args: Any, kwargs: Any) -> dict[str, Tensor]:
        """What the encoders say of the elements of each group that has one."""
        found = {}
        for group in groups:
            encoder = self._encoders.get(group.plates[-1].name, self._encoders.get("")) if group.plates else None
            if encoder is not None:
                features = encoder(*args, **kwargs)
                if not isinstance(features, Tensor) or features.dim() < 2:
                    got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                    raise ValueError(f"encoder must give a tensor of shape plates + (F,), got {got}")
                found[group.key] = features
        return found

    # Draws

    def _draw(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        features = self._features(self.groups, args, kwargs)
        plates = self._plates(features, args, kwargs)
        drawn: dict[str, Tensor] = {}
        result: dict[str, Tensor] = {}
        for group in self.groups:
            with ExitStack() as stack:
                for frame in group.plates:
                    stack.enter_context(plates[frame.name])
                outer = [drawn[other.key] for other in _around(group, self.groups)]
                flow = self._distribution(group, plates, features.get(group.key), outer)
                if len(group.parts) == 1:  # the flow is the distribution of the site itself
                    part = group.parts[0]
                    value = result[part.name] = pyro.sample(part.name, _at_site(flow, part))
                    vector = biject_to(part.support).inv(value)
                    drawn[group.key] = vector.reshape(*vector.shape[: vector.dim() - len(part.shape)], group.size)
                    continue
                vector = pyro.sample(f"_flow_{group.key}", flow, infer={"is_auxiliary": True})
                drawn[group.key] = vector
                for part, unconstrained in group.split(vector):
                    result[part.name] = _constrained(part, unconstrained)
        return result

    def _plates(self, features: dict[str, Tensor], args: Any, kwargs: Any) -> dict[str, Any]:
        given = () if self.create_plates is None else self.create_plates(*args, **kwargs)
        plates = {plate.name: plate for plate in ((given,) if isinstance(given, pyro.plate) else given)}
        for group in self.groups:
            for frame in group.plates:
                if frame.name in plates:
                    continue
                full = frame.full_size or frame.size
                size = frame.size
                if group.key in features and full == size:  # as many as there are data in this batch
                    full = size = features[group.key].shape[frame.dim - 1]
                plates[frame.name] = pyro.plate(frame.name, full, subsample_size=size, dim=frame.dim)
        return plates

    def _distribution(
        self, group: Group, plates: dict[str, Any], features: Tensor | None, outer: list[Tensor]
    ) -> FlowDistribution:
        key = group.key
        loc, log_scale = self.rows[f"{key}_loc"], self.rows[f"{key}_log_scale"]
        own = self.rows[f"{key}_features"] if f"{key}_features" in self.rows else None
        if features is not None:
            own = _subsampled(features, group, plates)
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


def _around(group: Group, groups: tuple[Group, ...]) -> list[Group]:
    """The groups that come before, and whose plates hold all elements of this one."""
    names = {frame.name for frame in group.plates}
    return [g for g in groups if len(g.plates) < len(names) and {f.name for f in g.plates} < names]


def _subsampled(features: Tensor, group: Group, plates: dict[str, Any]) -> Tensor:
    """The features of the elements that are in the subsample: all of them, where the encoder saw no others."""
    there = [plates[frame.name].subsample_size for frame in group.plates]
    sizes = [features.shape[frame.dim - 1] for frame in group.plates]
    return features if sizes == there else pyro.subsample(features, event_dim=1)


def _at_site(flow: FlowDistribution, part: Part) -> FlowDistribution:
    """The flow over a site's vector as the distribution of its value."""
    parts = [flow.transform, Reshape(flow.event_shape, part.shape)]
    transform = Compose([*parts, Wrapped(biject_to(part.support), part.shape)])
    return FlowDistribution(transform, flow.base, flow.context, remember=True, validate_args=False)


def _constrained(part: Part, unconstrained: Tensor) -> Tensor:
    """The site of a latent: a point, with the log-determinant of its support's transform as its density."""
    transform = biject_to(part.support)
    value = transform(unconstrained)
    log_density: Any = 0.0
    if poutine.get_mask() is not False:
        log_det = transform.log_abs_det_jacobian(unconstrained, value)
        log_density = -sum_rightmost(log_det, log_det.dim() - value.dim() + part.event_dim)
    point = dist.Delta(value, log_density, event_dim=part.event_dim, validate_args=False)
    return pyro.sample(part.name, point)
