"""What wake-sleep objectives need beside the shared evaluation: samples cut from their parameters, and dreams.

A dream is a draw of latents and data from the model.  The guide is evaluated at it: its latent sites hold the dreamed
latents, and its batch holds the dreamed data in the place of the observed ones.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dgm.infer.objectives.evaluation.particles import Particles
from pyro_dgm.programs.base_of import base_of
from pyro_dgm.programs.structure import sample_sites

__all__ = ["DetachSamples", "dream_log_q"]


class DetachSamples(Messenger):
    """Cut every latent's value from the parameters that it was drawn with.

    :raises ValueError: for a site that stays a function of the guide's parameters when its parents are cut.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or not isinstance(msg["value"], Tensor):
            return
        if msg["value"].requires_grad and isinstance(base_of(msg["fn"]), Delta):
            raise ValueError(
                f"the guide computes {msg['name']!r} (Delta) from its parameters, so it has no density there whose "
                "gradient at a fixed value could be taken: sample the site, or use ELBO"
            )
        msg["value"] = msg["value"].detach()


def dream_log_q(particles: Particles, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    r"""The guide's log-density at one dream of the batch, ``(1, *particles.shape)``, nats, without the outer scale.

    Its gradient reaches the guide's parameters alone.

    :param particles: the wake evaluation, which says what a datum is.
    :raises ValueError: where the guide's density at a dream is unknown, or the data are no argument of the guide.
    """
    # Messages of parameters are sent by the wake run; a dream trains nothing of the model.
    with torch.no_grad(), poutine.block(hide_types=["param"]):
        dream = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    dream_args, dream_kwargs = _with_dreamed_data(dream, args, kwargs)
    replayed = poutine.Trace()
    for name, site in dream.nodes.items():
        if site["type"] == "sample" and not site["infer"].get("was_observed"):
            replayed.add_node(name, **site)
    trace = poutine.trace(poutine.replay(guide, trace=replayed)).get_trace(*dream_args, **dream_kwargs)
    total: Any = None
    for name, site in sample_sites(trace).items():
        if name not in replayed.nodes:
            raise ValueError(
                f"the guide draws {name!r}, which the model does not, so that its density at a dream of the model is "
                'unknown: use ReweightedWakeSleep(phi="wake"), or a guide with the sites of the model'
            )
        if isinstance(base_of(site["fn"]), Delta):
            raise ValueError(
                f"the guide puts {name!r} at a point (Delta), where no dream of the model falls: sample the site, or "
                "use ELBO"
            )
        term = particles.reduce(particles.inner(particles.log_prob(site), site), site)
        total = term if total is None else total + term
    return particles.log_q.new_zeros((1, *particles.shape)) if total is None else total


def _with_dreamed_data(
    dream: poutine.Trace, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The batch with the dreamed value of each observed site in the place of the observed value."""
    new_args, new_kwargs = list(args), dict(kwargs)
    for name, site in sample_sites(dream).items():
        if not site["infer"].get("was_observed"):
            continue
        if isinstance(base_of(site["fn"]), Unit):
            raise ValueError(
                f"the model has the factor {name!r}, which cannot be drawn from, so that the model cannot dream: use "
                'ReweightedWakeSleep(phi="wake")'
            )
        observed, value = site["infer"]["obs"], site["value"]
        found = False
        for i, arg in enumerate(args):
            if _is_data(arg, observed):
                new_args[i], found = _shaped(name, value, arg), True
        for key, arg in kwargs.items():
            if _is_data(arg, observed):
                new_kwargs[key], found = _shaped(name, value, arg), True
            elif isinstance(arg, dict):
                for inner, entry in arg.items():
                    if _is_data(entry, observed):
                        new_kwargs[key] = {**new_kwargs[key], inner: _shaped(name, value, entry)}
                        found = True
        if not found:
            raise ValueError(
                f"no argument of the program is the value observed at {name!r}, so that the guide cannot be shown a "
                "dream instead: write model(x) and guide(x) with obs=x (or pass observations={'x': x}), x being the "
                'argument itself and no slice or copy of it, or use ReweightedWakeSleep(phi="wake")'
            )
    return tuple(new_args), new_kwargs


def _is_data(arg: Any, observed: Any) -> bool:
    """Whether an argument is what a site observes: the same memory, as it is or in another shape."""
    if not isinstance(arg, Tensor) or not isinstance(observed, Tensor):
        return False
    if arg is observed:
        return True
    same = (
        # the storage itself is compared, not its address: traced tensors have none
        arg.untyped_storage()._cdata == observed.untyped_storage()._cdata
        and arg.storage_offset() == observed.storage_offset()
        and arg.dtype == observed.dtype
    )
    if same and arg.shape == observed.shape:
        return arg.stride() == observed.stride()
    return same and arg.numel() == observed.numel() and arg.is_contiguous() and observed.is_contiguous()


def _shaped(name: str, value: Tensor, arg: Tensor) -> Tensor:
    if value.numel() != arg.numel():
        raise ValueError(
            f"the model draws {name!r} in shape {tuple(value.shape)}, but the argument that it observes has shape "
            f"{tuple(arg.shape)}: a dream cannot take its place"
        )
    return value.reshape(arg.shape).to(arg.dtype)
