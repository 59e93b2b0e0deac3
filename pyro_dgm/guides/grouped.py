"""What guides of a user's own model share: latents grouped by their plates, and a distribution for each group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_dgm.guides.groups import Group, Part, find_groups
from pyro_dgm.ops.arguments import check_count, check_positive
from pyro_dgm.programs import emit_param_messages

__all__ = ["Encoders", "GroupedGuide"]

#: a callable from the model's arguments to features of each element, or one for each innermost plate
Encoders = Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]]


class GroupedGuide(nn.Module):
    """A guide of all continuous latents of a model, in unconstrained space.

    The latents in the same plates are a group, whose unconstrained values are one vector for each element of the
    plates. A subclass gives the parameters of a group (:meth:`build_group`) and the distribution of its vector
    (:meth:`distribution`), which may depend on the groups that are drawn before and on features of the element.

    :param model: a Pyro model with static structure.
    :param encoder: callable (a module, which is trained) from the model's arguments to features ``plates + (F,)`` of
        each element, for the groups in plates; or a mapping from the name of the innermost plate to the callable.
    :param init_loc_fn: a site's first location, as in Pyro's automatic guides.
    :param init_scale: first standard deviation of the unconstrained latents.
    :param create_plates: a function of the model's arguments that gives the plates, as in Pyro's automatic guides.
    :raises TypeError: if an argument is of a wrong type.
    :raises ValueError: if ``init_scale`` is not positive.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: Encoders | None,
        init_loc_fn: Callable[..., Any],
        init_scale: float,
        create_plates: Callable[..., Any] | None,
    ) -> None:
        check_positive("init_scale", init_scale)
        if encoder is not None and not callable(encoder) and not isinstance(encoder, Mapping):
            raise TypeError(f"encoder must be a callable or a mapping of plates to them, got {type(encoder).__name__}")
        super().__init__()
        # In a tuple, so that the model's parameters are not the guide's.
        self._model = (InitMessenger(init_loc_fn)(model),)
        self.create_plates, self.init_scale = create_plates, float(init_scale)
        self._encoders = dict(encoder) if isinstance(encoder, Mapping) else {"": encoder} if encoder else {}
        modules = {key or "every": fn for key, fn in self._encoders.items() if isinstance(fn, nn.Module)}
        self.encoder_modules = nn.ModuleDict(modules)
        self.groups: tuple[Group, ...] = ()

    # What a subclass gives

    @abstractmethod
    def build_group(self, group: Group, outer: int, features: Tensor | None) -> None:
        """Make the parameters of a group.

        :param group: the group.
        :param outer: length of the vectors of the groups that it may depend on, together.
        :param features: of its elements, where there is an encoder.
        """

    @abstractmethod
    def distribution(
        self, group: Group, plates: Mapping[str, Any], features: Tensor | None, outer: list[Tensor]
    ) -> Any:
        """The distribution of a group's vector, of event shape ``(size,)``, inside of its plates."""

    def at_site(self, vector: Any, part: Part) -> Any:
        """The distribution of a site's value, where its unconstrained value is all of the vector."""
        shapes = [dist.transforms.ReshapeTransform(vector.event_shape, part.shape), biject_to(part.support)]
        return dist.TransformedDistribution(vector, shapes, validate_args=False)

    # Draws

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent; takes the arguments of the model.

        :returns: the latents by the names of their sites.
        """
        with pyro.settings.context(module_local_params=True):
            if not self.groups:
                groups = find_groups(self._model[0], args, kwargs)
                features = self.features(groups, args, kwargs)
                for group in groups:
                    self.build_group(group, sum(g.size for g in _around(group, groups)), features.get(group.key))
                self.groups = groups
            emit_param_messages(self)
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

    def encoder_of(self, group: Group) -> Callable[..., Tensor] | None:
        """The encoder of a group's elements, if there is one."""
        if group.innermost is None:
            return None
        return self._encoders.get(group.innermost, self._encoders.get(""))

    def features(self, groups: Sequence[Group], args: Any, kwargs: Any) -> dict[str, Tensor]:
        """What the encoders say of the elements of each group that has one, from the model's arguments."""
        found = {}
        for group in groups:
            encoder = self.encoder_of(group)
            if encoder is not None:
                found[group.key] = checked_features(encoder(*args, **kwargs))
        return found

    def by_rows(self, group: Group) -> bool:
        """Whether a group's encoder is given the rows of a subsample, not the model's arguments."""
        return False

    def _draw(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        features = self.features([g for g in self.groups if not self.by_rows(g)], args, kwargs)
        plates = self._plates(features, args, kwargs)
        for group in filter(self.by_rows, self.groups):
            encoder: Any = self.encoder_of(group)
            features[group.key] = checked_features(encoder(*_rows(args, plates[group.plates[0].name]), **kwargs))
        drawn: dict[str, Tensor] = {}
        result: dict[str, Tensor] = {}
        for group in self.groups:
            with ExitStack() as stack:
                for frame in group.plates:
                    stack.enter_context(plates[frame.name])
                outer = [drawn[other.key] for other in _around(group, self.groups)]
                own = features.get(group.key)
                if own is not None:
                    own = _subsampled(own, group, plates)
                drawn[group.key] = self.draw_group(group, self.distribution(group, plates, own, outer), result)
        return result

    def draw_group(self, group: Group, vector: Any, result: dict[str, Tensor]) -> Tensor:
        """Sample the sites of a group into ``result``.

        :param vector: the distribution of the group's vector.
        :returns: the vector.
        """
        if len(group.parts) == 1:  # the vector is the site itself
            return self.draw_site(group.parts[0], vector, result)
        value: Tensor = pyro.sample(f"_flow_{group.key}", vector, infer={"is_auxiliary": True})
        for part, unconstrained in group.split(value):
            result[part.name] = _constrained(part, unconstrained)
        return value

    def draw_site(self, part: Part, vector: Any, result: dict[str, Tensor]) -> Tensor:
        """Sample one site whose unconstrained value has this distribution, and give that value back."""
        value = result[part.name] = pyro.sample(part.name, self.at_site(vector, part))
        unconstrained: Tensor = biject_to(part.support).inv(value)
        return unconstrained.reshape(*unconstrained.shape[: unconstrained.dim() - len(part.shape)], -1)

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


def _rows(args: tuple[Any, ...], plate: Any) -> list[Any]:
    """The model's arguments, those that have a row for each element of a plate cut to the plate's subsample.

    :raises ValueError: if none has.
    """
    found = [a for a in args if isinstance(a, Tensor) and a.dim() and len(a) == plate.size]
    if not found:
        raise ValueError(
            f"the plate {plate.name!r} is subsampled, and no argument of the model has {plate.size} rows for the "
            "encoder: give the whole data set as an argument"
        )
    return [a.index_select(0, plate.indices) if any(a is f for f in found) else a for a in args]


def _around(group: Group, groups: tuple[Group, ...]) -> list[Group]:
    """The groups that come before, and whose plates hold all elements of this one."""
    names = {frame.name for frame in group.plates}
    return [g for g in groups if len(g.plates) < len(names) and {f.name for f in g.plates} < names]


def _subsampled(features: Tensor, group: Group, plates: dict[str, Any]) -> Tensor:
    """The features of the elements that are in the subsample: all of them, where the encoder saw no others."""
    there = [plates[frame.name].subsample_size for frame in group.plates]
    sizes = [features.shape[frame.dim - 1] for frame in group.plates]
    return features if sizes == there else pyro.subsample(features, event_dim=1)


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


def checked_features(features: Any) -> Tensor:
    """What an encoder gave, if it is a tensor of features.

    :raises ValueError: if not.
    """
    if not isinstance(features, Tensor) or features.dim() < 2:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"encoder must give a tensor of shape plates + (F,), got {got}")
    return features
