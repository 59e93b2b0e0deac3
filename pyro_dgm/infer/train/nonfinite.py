"""A loss or gradient that is not finite: find the site that it came from and say so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_dgm.programs.tensors import named_tensors

__all__ = ["Culprit", "NonFiniteLossError", "find_culprit"]


class NonFiniteLossError(FloatingPointError):
    """Training met a loss or a gradient that is not finite, and stopped before the optimiser's step.

    :ivar site: name of the first sample site that is not finite, or ``None`` if no site could be found.
    :ivar role: ``"guide"`` or ``"model"``, whose site it is.
    :ivar epoch: the epoch, from 1.
    :ivar step: the step in the epoch, from 1.
    :ivar checkpoint: the last good checkpoint, or ``None`` without ``checkpoint_dir``.
    """

    def __init__(
        self,
        message: str,
        site: str | None = None,
        role: str | None = None,
        epoch: int = 0,
        step: int = 0,
        checkpoint: Path | None = None,
    ) -> None:
        super().__init__(message)
        self.site, self.role, self.epoch, self.step, self.checkpoint = site, role, epoch, step, checkpoint

    @classmethod
    def about(cls, what: str, culprit: Culprit, epoch: int, step: int, checkpoint: Path | None) -> NonFiniteLossError:
        """The error with all that was found out."""
        lines = [f"{what}, in epoch {epoch} at step {step}", *culprit.findings]
        if checkpoint is not None:
            lines.append(f"the last good checkpoint is {checkpoint}")
        text = ". ".join(line[0].upper() + line[1:] for line in lines) + "."
        return cls(text, culprit.site, culprit.role, epoch, step, checkpoint)


@dataclass
class Culprit:
    """Where non-finite numbers came from, and a sentence on each source that was found."""

    site: str | None
    role: str | None
    findings: list[str]
    #: whether any number that is not finite was found
    nonfinite: bool


class _SiteRecorder(Messenger):
    """Notes each sample site as it passes, inside whatever handlers the objective puts around the program."""

    def __init__(self, role: str, sites: list[tuple[str, dict[str, Any]]]) -> None:
        super().__init__()
        self.role, self.sites = role, sites

    def _pyro_post_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.sites.append((self.role, dict(msg)))


def find_culprit(
    objective: Any,
    program: Any,
    batch: Any,
    call: Callable[[Any, Any, Any], Any],
    parameters: Mapping[str, Tensor],
    late: bool = False,
) -> Culprit:
    """Evaluate the objective again on a batch and look at each site in the order in which it ran.

    The caller puts the random state back first, so that the same numbers are drawn.

    :param call: evaluates ``(objective, model, guide)`` on the batch.
    :param parameters: trained leaves by name, whose gradients are looked at too.
    :param late: the optimiser took steps since: where they spoilt the parameters, no site is to blame.
    """
    findings = []
    for name, tensor in named_tensors(batch, "the batch"):
        if bad := _count_bad(tensor):
            findings.append(f"{name} holds {bad} of {tensor.numel()} values that are not finite (NaN or infinite data)")
    bad_names = [name for name, p in parameters.items() if _count_bad(p)]
    if bad_names:
        findings.append(f"parameters that are not finite already: {', '.join(bad_names[:5])}")
        if late:
            return Culprit(None, None, findings, nonfinite=True)

    sites: list[tuple[str, dict[str, Any]]] = []
    error: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro warns of a NaN loss: that is what is being looked for
        try:
            call(objective, _noted(program.model, "model", sites), _noted(program.guide, "guide", sites))
        except Exception as raised:  # whatever it is, it is reported below beside the sites that came before it
            error = raised
        for check in (_bad_value, lambda msg: _bad_gradient(msg, parameters)):
            for role, msg in sites:
                if text := check(msg):
                    findings.insert(0, f"the {role}'s site {msg['name']!r} is the first: {text}")
                    return Culprit(msg["name"], role, findings, nonfinite=True)
    nonfinite = bool(findings)
    if error is not None:
        after = f"after the {sites[-1][0]}'s site {sites[-1][1]['name']!r}" if sites else "before any site"
        findings.insert(
            0, f"evaluating the program raises {type(error).__name__} {after}: {str(error).splitlines()[0]}"
        )
    bad_gradients = [name for name, p in parameters.items() if p.grad is not None and _count_bad(p.grad)]
    if bad_gradients:
        findings.append(f"gradients that are not finite: {', '.join(bad_gradients[:5])}")
    return Culprit(None, None, findings, nonfinite or bool(bad_gradients))


def _noted(fn: Callable[..., Any], role: str, sites: list[tuple[str, dict[str, Any]]]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        with _SiteRecorder(role, sites):
            return fn(*args, **kwargs)

    return noted


def _bad_value(msg: dict[str, Any]) -> str:
    value = msg["value"]
    try:
        log_prob = _log_prob(msg)
    except ValueError as error:  # argument validation on, and the value is outside the support
        return f"its log-probability cannot be evaluated: {str(error).splitlines()[0]}"
    if not (bad := _count_bad(log_prob)):
        return ""
    kind = "observed value" if msg["is_observed"] else "value"
    if isinstance(value, Tensor) and (bad_value := _count_bad(value)):
        return f"its {kind} holds {bad_value} of {value.numel()} elements that are not finite"
    return f"its log-probability is not finite in {bad} of {log_prob.numel()} elements, its {kind} is finite"


def _bad_gradient(msg: dict[str, Any], parameters: Mapping[str, Tensor]) -> str:
    log_prob = _log_prob(msg)
    if not (isinstance(log_prob, Tensor) and log_prob.requires_grad):
        return ""
    leaves = list(parameters.values())
    grads = torch.autograd.grad(log_prob.sum(), leaves, retain_graph=True, allow_unused=True)
    bad = [name for name, g in zip(parameters, grads, strict=True) if g is not None and _count_bad(g)]
    return f"the gradient of its log-probability is not finite in {', '.join(bad[:5])}" if bad else ""


def _log_prob(msg: dict[str, Any]) -> Tensor:
    # Masked elements do not count; a scale does, for an infinite one makes an infinite loss.
    return scale_and_mask(msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"]), msg["scale"], msg["mask"])


def _count_bad(tensor: Any) -> int:
    if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    return int((~torch.isfinite(tensor.detach())).sum())
