"""Sources of unequal length in one fit."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_dgm
from pyro_dgm.infer import Paired


class Recorder(torch.nn.Module):
    """Notes the rows of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[float], list[float]]] = []

    def model(self, labelled, unlabelled):
        x, y = labelled
        if self.training:
            self.seen.append((x.tolist(), unlabelled.tolist()))
        with pyro.plate("labelled", len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        with pyro.plate("unlabelled", len(unlabelled)):
            pyro.sample("u", dist.Normal(self.loc, 1.0), obs=unlabelled)

    def guide(self, labelled, unlabelled):
        pass


def data(n=6, m=20):
    return Paired((torch.arange(n) / 10, torch.ones(n)), torch.arange(m) + 100.0)


def fit(program, source, **more):
    options = {"epochs": 2, "batch_size": (2, 4), "seed": 0, "progress": False, "compile": False}
    return pyro_dgm.fit(program, source, **{**options, **more})


def test_an_epoch_is_a_pass_over_the_longest_and_the_others_begin_again():
    program = Recorder()
    run = fit(program, data())
    epochs = [program.seen[-10:-5], program.seen[-5:]]
    assert run.steps == 10
    for epoch in epochs:
        assert sorted(u for _, rows in epoch for u in rows) == [100.0 + i for i in range(20)]
        first_pass = [x for rows, _ in epoch[:3] for x in rows]
        assert sorted(first_pass) == pytest.approx([i / 10 for i in range(6)])
    assert epochs[0] != epochs[1]


def test_the_loss_is_per_datum_of_all_sources():
    program = Recorder()
    run = fit(program, data(), epochs=1, batch_size=(6, 20), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    x, u = torch.arange(6) / 10, torch.arange(20) + 100.0
    normal = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    total = normal.log_prob(x).sum() + normal.log_prob(1 - x).sum() + normal.log_prob(u).sum()
    assert run.history["train"][0] == pytest.approx(float(total) / 26, rel=1e-6)


def test_a_resumed_run_sees_the_same_batches(tmp_path):
    whole, first, second = Recorder(), Recorder(), Recorder()
    full = fit(whole, data(), epochs=4)
    fit(first, data(), epochs=2, checkpoint_dir=tmp_path)
    resumed = fit(second, data(), epochs=4, checkpoint_dir=tmp_path, resume=True)
    assert resumed.history["train"] == full.history["train"]
    assert second.seen[-10:] == whole.seen[-10:]


def test_compiled_is_as_eager():
    eager, compiled = Recorder(), Recorder()
    a, b = fit(eager, data()), fit(compiled, data(), compile="graph")
    assert a.history["train"] == pytest.approx(b.history["train"], rel=1e-6)
    assert eager.loc.item() == pytest.approx(compiled.loc.item(), rel=1e-6)


def test_transform_and_validation():
    program = Recorder()
    source = data()
    run = fit(program, source, validation=data(4, 4), transform=lambda parts: (parts[0], parts[1] - 100.0))
    assert len(run.history["validation"]) == 2
    assert max(u for _, rows in program.seen for u in rows) <= 20.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Paired(torch.ones(3)), TypeError, "two sources"),
        (lambda: fit(Recorder(), data(), batch_size=(2, 4, 8)), ValueError, "batch_size has 3 numbers"),
        (lambda: fit(Recorder(), torch.ones(4), batch_size=(2, 4)), TypeError, "several are for Paired"),
        (lambda: fit(Recorder(), data(), transform=lambda parts: parts[0][0]), TypeError, "a part for each of the 2"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
