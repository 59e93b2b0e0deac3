"""Every objective on every feature of a program: the loss is that of a plain trace, or the program is refused by name.

The plain computation is Pyro's own: trace the guide, replay the model against it, and take the sums of their
log-densities.  Recorded evaluations and recorded steps are then held against the eager ones.
"""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

from pyro_dgm.capture.static_graph import CannotCapture
from pyro_dgm.infer import CIWAE, ELBO, IWAE, OBJECTIVES, CapturedELBO, RenyiELBO
from pyro_dgm.infer.train.captured_step import CapturedSteps
from tests.contracts.features import FEATURES

#: settings without a penalty, so that the value is an ELBO's
PLAIN = {
    "ELBO": {"analytic_kl": False},
    "MMDELBO": {"lam": 1.0},
    "BetaTC": {"beta": 1.0},
    "DIP": {"off_diagonal": 0.0},
    "FactorVAE": {"gamma": 0.0},
}


def _mean_of_two():
    return CIWAE(2, beta=1.0, vectorize_particles=False)


def _importance_weighted():
    return IWAE(2, vectorize_particles=False)


#: objectives whose value is another's on the same draws, by theory, or between two others'
SAME_AS = {
    "ScoreFunction": (_mean_of_two, _mean_of_two),
    "VarGrad": (_mean_of_two, _mean_of_two),
    "VIMCO": (_importance_weighted, _importance_weighted),
    "TVO": (_importance_weighted, _mean_of_two),
    "CUBO": (lambda: RenyiELBO(2, alpha=-1.0, vectorize_particles=False),) * 2,  # with the other sign
    "MMDELBO": (ELBO, ELBO),
    "DIP": (ELBO, ELBO),
    "FactorVAE": (ELBO, ELBO),
}
#: objectives with a penalty under any settings: of their value, only that graphs agree is asked
PENALISED = ("SlicedWasserstein", "AdversarialELBO")

GLOBAL = {
    "auto_normal_constrained", "auto_multivariate_normal_constrained", "auto_delta", "messenger_guide",
    "masked_observations", "one_scaled_site", "sequential_plate", "reparameterised", "random_network", "branch_on_data",
}  # fmt: skip
DISCRETE = {"enumerated_in_the_guide", "score_function"}
MODEL_ENUMERATES = "enumerated_in_the_model"
#: which features an objective refuses on purpose, and what it says
GIVEN_VALUES = {"messenger_guide": "evaluates the guide at given values|cannot enumerate a GuideMessenger"}
DISTANCES = {
    **dict.fromkeys(GLOBAL, "compares the latents of many data|needs the guide's density of each latent"),
    **dict.fromkeys(DISCRETE, "needs every guide site reparameterised"),
    MODEL_ENUMERATES: "needs the model's density of the latents apart|needs the guide's density of each latent",
}
REFUSED = {
    **dict.fromkeys(
        ("STL", "DReG", "PIWAE", "CUBO", "REBAR", "WakeSleep", "ReweightedWakeSleep", "TraceEnumELBO"), GIVEN_VALUES
    ),
    "TraceGraphELBO": {MODEL_ENUMERATES: "does not enumerate"},
    **dict.fromkeys(("MMDELBO", "SlicedWasserstein", "FactorVAE"), DISTANCES),
    **{name: {**DISTANCES, **GIVEN_VALUES} for name in ("BetaTC", "DIP")},
    "AdversarialELBO": {k: DISTANCES[k] for k in (*DISCRETE, MODEL_ENUMERATES)},
}

#: features whose guide is automatic, and draws sites that the model has not
AUTOMATIC = {*GLOBAL, MODEL_ENUMERATES} - {"auto_delta", "messenger_guide"}

#: what an objective evaluates and cannot train
NO_DENSITY = {"auto_delta": "so it has no density there"}
REFUSED_IN_TRAINING = {
    "DReG": dict.fromkeys(DISCRETE, "needs every guide site reparameterised"),
    "CUBO": NO_DENSITY,
    "ReweightedWakeSleep": NO_DENSITY,
    "WakeSleep": {
        **dict.fromkeys(
            AUTOMATIC, "its density at a dream of the model is unknown|no argument of the program is the value"
        ),
        **dict.fromkeys(
            ("subsampled_plate", "sequential_plate", "markov_chain", "factor_and_deterministic"),
            "no argument of the program is the value observed",
        ),
        **NO_DENSITY,
    },
}

PAIRS = [(name, kind) for name in OBJECTIVES for kind in FEATURES]
#: one feature for each objective, and one objective for each feature; the others are in the slow set
FEW = [pair for i, pair in enumerate(PAIRS) if (i // len(FEATURES) + i % len(FEATURES)) % len(OBJECTIVES) == 0]
pytestmark = [pytest.mark.uses_param_store, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(kind):
    """The program, with the parameters that its guide makes when it is first run."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    case = FEATURES[kind]()
    poutine.trace(case.guide).get_trace(*case.args, **case.kwargs)
    return case


def objective_of(name):
    cls = OBJECTIVES[name]
    return cls(num_particles=max(1, cls.min_particles), vectorize_particles=False, **PLAIN.get(name, {}))


def loss_of(case, objective):
    objective.structure(case.model, case.guide, case.args, case.kwargs)
    pyro.set_rng_seed(1)
    return objective.loss(case.model, case.guide, *case.args, **case.kwargs)


def plain_loss(case):
    """What Pyro's own handlers give."""
    pyro.set_rng_seed(1)
    if isinstance(case.guide, poutine.messenger.Messenger):
        case.guide(*case.args, **case.kwargs)
        model, guide = case.guide.get_traces()
    else:
        guide = poutine.trace(case.guide).get_trace(*case.args, **case.kwargs)
        model = poutine.trace(poutine.replay(case.model, trace=guide)).get_trace(*case.args, **case.kwargs)
    return float((guide.log_prob_sum() - model.log_prob_sum()).detach())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_loss_is_the_plain_one(name, kind):
    case, objective = made(kind), objective_of(name)
    if kind in REFUSED.get(name, {}):
        with pytest.raises((ValueError, TypeError), match=REFUSED[name][kind]):
            loss_of(case, objective)
        return
    found = loss_of(case, objective)
    rel = 1e-5 if kind == "single_precision" else 1e-9
    if name in PENALISED:
        assert found == loss_of(case, objective)
    elif name in SAME_AS:
        low, high = (loss_of(case, make()) for make in SAME_AS[name])
        sign = -1 if name == "CUBO" else 1
        assert low - rel * abs(low) <= sign * found <= high + rel * abs(high)
    elif kind == MODEL_ENUMERATES or (kind == "enumerated_in_the_guide" and objective.sums_guide):
        pyro.set_rng_seed(1)
        right = TraceEnum_ELBO(max_plate_nesting=2).loss(case.model, case.guide, *case.args, **case.kwargs)
        assert found == pytest.approx(right, rel=rel)
    else:
        assert found == pytest.approx(plain_loss(case), rel=rel)


def parameters_of(case, objective):
    """The leaves that the loss depends on."""
    loss = objective.differentiable_loss(case.model, case.guide, *case.args, **case.kwargs)
    leaves = {}
    for fn in (case.model, case.guide):
        module = getattr(fn, "__self__", fn)
        if isinstance(module, torch.nn.Module):
            leaves.update({id(p): p for p in module.parameters()})
    leaves.update({id(p): p for _, p in pyro.get_param_store().named_parameters()})
    learned = [] if objective.learned is None else list(objective.learned.parameters())
    leaves = [p for p in (*leaves.values(), *learned) if p.requires_grad]
    used = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [p for p, g in zip(leaves, used, strict=True) if g is not None]


def check_graphs(name, kind):
    """Loss and gradients of a recorded evaluation, and parameters after recorded steps, are the eager ones."""
    if kind in REFUSED.get(name, {}):
        return
    if kind in REFUSED_IN_TRAINING.get(name, {}):
        case, objective = made(kind), objective_of(name)
        with pytest.raises(ValueError, match=REFUSED_IN_TRAINING[name][kind]):
            objective.differentiable_loss(case.model, case.guide, *case.args, **case.kwargs)
        return
    ends = []
    for depth in ("eager", "graph", "step"):
        case, objective = made(kind), objective_of(name)
        objective.structure(case.model, case.guide, case.args, case.kwargs)
        pyro.set_rng_seed(2)
        leaves = parameters_of(case, objective)
        optimizer = torch.optim.SGD(leaves, lr=1e-3)
        run = CapturedELBO(objective, backend="aten") if depth == "graph" else objective
        steps = None
        if depth == "step" and case.recordable:
            batch = case.args[0] if len(case.args) == 1 and not case.kwargs else (case.kwargs or case.args)
            steps = CapturedSteps(objective, case.model, case.guide, leaves, optimizer, lambda n: 1.0, backend="aten")
            try:
                steps.prepare(batch)
                steps.capture(batch)
            except CannotCapture as reason:
                raise AssertionError(f"{name} on {kind} cannot be recorded: {reason}") from reason
        losses = []
        for i in range(3):
            pyro.set_rng_seed(10 + i)
            if steps is not None:
                objective.advance()
                losses.append(float(steps.step(batch)[0]))
                continue
            optimizer.zero_grad()
            loss = run.differentiable_loss(case.model, case.guide, *case.args, **case.kwargs)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        if depth == "graph":
            status = run.status(case.model, case.guide)
            assert status.startswith("captured" if case.recordable else "eager"), status
        ends.append((losses, [p.detach().clone() for p in leaves]))
    tolerance = {"rtol": 2e-4, "atol": 2e-5} if kind == "single_precision" else {"rtol": 1e-7, "atol": 1e-9}
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], **tolerance)


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_graphs_are_the_eager_evaluation(name, kind):
    check_graphs(name, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair not in FEW])
def test_graphs_are_the_eager_evaluation_everywhere(name, kind):
    check_graphs(name, kind)
