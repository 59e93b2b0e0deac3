"""What a recipe is, the registry of all of them, and the decorator that puts one in."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor

from pyro_dgm.infer import Phase, load_weights
from pyro_dgm.infer.train.checkpoints.saved_files import read_config
from pyro_dgm.infer.train.phases import phases_of
from pyro_dgm.infer.train.run import Run
from pyro_dgm.ops.arguments import check_sizes
from pyro_dgm.recipes.parts import describe, optimizer_text

__all__ = ["RECIPES", "Citation", "Composition", "Entry", "Recipe", "check_names", "get", "load", "names", "recipe"]

P = ParamSpec("P")
#: ``optimizer=`` of :func:`pyro_dgm.fit`: one callable, or one for each role
MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Citation:
    """The paper that a method comes from.

    :param authors: as in the paper, separated by commas.
    :param title: of the paper.
    :param year: of publication.
    :param arxiv: its arXiv identifier, where it has one.
    :param venue: where it was published, for papers that are not on arXiv.

    Example::

        >>> from pyro_dgm.recipes import Citation
        >>> print(Citation("D. P. Kingma, M. Welling", "Auto-Encoding Variational Bayes", 2014, "1312.6114"))
        D. P. Kingma, M. Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114
    """

    authors: str
    title: str
    year: int
    arxiv: str | None = None
    venue: str | None = None

    def __str__(self) -> str:
        where = [f"arXiv:{self.arxiv}"] if self.arxiv else [self.venue] if self.venue else []
        return ", ".join([f"{self.authors} ({self.year})", self.title, *where])


@dataclass(frozen=True)
class Composition:
    """What the function of a recipe puts together.

    :param program: the program.
    :param objective: what it is trained on.
    :param optimizer: ``optimizer=`` of :func:`pyro_dgm.fit`.
    :param training: further arguments of :func:`pyro_dgm.fit` that the method asks for, such as ``batch_size``.
    """

    program: Any
    objective: Any
    optimizer: MakeOptimizer | Mapping[str, MakeOptimizer]
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A method in the registry, before it is built for data of a shape.

    :ivar name: its name.
    :ivar title: the method's name in words.
    :ivar equation: what it computes, in one or two lines of text.
    :ivar citation: its paper.
    :ivar make: the function that builds it: ``make(event_shape, **hyperparameters)``.
    """

    name: str
    title: str
    equation: str
    citation: Citation
    make: Callable[..., Recipe]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The names of its hyper-parameters, and their defaults."""
        _, *rest = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in rest}


#: every recipe by name, in the order of its file
RECIPES: dict[str, Entry] = {}


@dataclass(frozen=True, eq=False, repr=False)
class Recipe:
    """A published method for data of one shape: program, objective, optimiser, hyper-parameters and reference.

    It holds parts that are used as any others::

        pyro_dgm.fit(recipe.program, x, **recipe.training, epochs=50)

    ``print(recipe)`` shows the parts.

    :ivar name: its name in the registry.
    :ivar title: the method's name in words.
    :ivar event_shape: shape of one datum.
    :ivar program: the program, with random initial weights.
    :ivar objective: what it is trained on.
    :ivar optimizer: what makes its optimiser, with the learning rate: ``optimizer=`` of :func:`pyro_dgm.fit`.
    :ivar training: arguments of :func:`pyro_dgm.fit`: objective, optimiser, batch size and what else the method asks
        for.
    :ivar hyperparameters: all of them, by name.
    :ivar equation: what it computes, as text.
    :ivar citation: its paper.
    """

    name: str
    title: str
    event_shape: tuple[int, ...]
    program: Any
    objective: Any
    optimizer: MakeOptimizer | Mapping[str, MakeOptimizer]
    training: dict[str, Any]
    hyperparameters: dict[str, Any]
    equation: str
    citation: Citation

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of a training step: more than one where, for example, a discriminator is trained too."""
        return phases_of(self.objective, self.program)

    @property
    def parts(self) -> dict[str, str]:
        """What the method is made of, in words, read from the program and the objective."""
        parts = describe(self.program)
        parts["objective"] = repr(self.objective)
        if len(self.phases) > 1:
            parts["phases"] = "; ".join(f"{phase.role}, {phase.steps} a step" for phase in self.phases)
        parts["optimizer"] = optimizer_text(self.optimizer)
        extra = {k: v for k, v in self.training.items() if k not in ("objective", "optimizer")}
        if extra:
            parts["training"] = ", ".join(f"{key} {value}" for key, value in extra.items())
        return parts

    def config(self) -> dict[str, Any]:
        """The name, shape and hyper-parameters that :func:`get` rebuilds it from, as JSON can hold them."""
        hyper = {k: list(v) if isinstance(v, tuple) else v for k, v in self.hyperparameters.items()}
        return {"name": self.name, "event_shape": list(self.event_shape), "hyperparameters": hyper}

    def save(self, run: Run, directory: str | Path) -> Path:
        """Write what :func:`load` reads: the weights of a run, its history, and the recipe.

        :param run: what :func:`pyro_dgm.fit` returned for this recipe's program.
        :param directory: the folder; made if need be.
        :returns: the folder.
        :raises ValueError: if the run is of another program.
        """
        if run.program is not self.program:
            raise ValueError(f"run must be of this recipe's program, got one of {type(run.program).__name__}")
        return run.save(directory, recipe=self.config())

    def __rich__(self) -> Any:
        from pyro_dgm.recipes.show import as_rich

        return as_rich(self)

    def __str__(self) -> str:
        from pyro_dgm.ops.tables import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, event_shape={self.event_shape})"


def recipe(
    name: str, *, title: str, equation: str, citation: Citation
) -> Callable[[Callable[P, Composition]], Callable[P, Recipe]]:
    """Register a function as a recipe.

    The function takes the event shape, then its hyper-parameters as keywords that all have defaults, and returns a
    :class:`Composition`. The decorated one returns a :class:`Recipe`.

    :param name: name in the registry.
    :param title: the method's name in words.
    :param equation: what it computes, in one or two lines of text.
    :param citation: its paper.
    :raises ValueError: if the name is taken.
    :raises TypeError: if a hyper-parameter is no keyword with a default.
    """

    def decorate(function: Callable[P, Composition]) -> Callable[P, Recipe]:
        signature = inspect.signature(function)
        first, *rest = signature.parameters.values()
        wrong = [p.name for p in rest if p.kind is not p.KEYWORD_ONLY or p.default is p.empty]
        if first.name != "event_shape" or wrong:
            raise TypeError(f"recipe {name!r} must take event_shape, then keywords with defaults; got {wrong or first}")
        if name in RECIPES:
            raise ValueError(f"there is a recipe {name!r} already")

        @functools.wraps(function)
        def make(*args: P.args, **kwargs: P.kwargs) -> Recipe:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            shape, *_ = bound.arguments.values()
            bound.arguments["event_shape"] = shape = check_sizes("event_shape", shape)
            hyper = {k: tuple(v) if isinstance(v, list) else v for k, v in bound.arguments.items()}
            del hyper["event_shape"]
            made = function(shape, **hyper)  # type: ignore[arg-type]
            training = {"objective": made.objective, "optimizer": made.optimizer, **made.training}
            return Recipe(
                name, title, shape, made.program, made.objective, made.optimizer, training, hyper, equation, citation
            )

        # What the function returns is another thing than what the decorated one does.
        make.__annotations__ = {**function.__annotations__, "return": Recipe}
        make.__signature__ = signature.replace(return_annotation=Recipe)  # type: ignore[attr-defined]
        RECIPES[name] = Entry(name, title, equation, citation, make)
        return make

    return decorate


def names() -> list[str]:
    """The names of all recipes, as :func:`get` takes them.

    Example::

        >>> from pyro_dgm import recipes
        >>> "nsf" in recipes.list()
        True
    """
    return sorted(RECIPES)


def entry(name: str) -> Entry:
    """A recipe's entry in the registry.

    :raises ValueError: for an unknown name, with the nearest one.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no recipe {name!r}; {hint}there are {', '.join(names())}")
    return RECIPES[name]


def check_names(name: str, hyperparameters: Mapping[str, Any]) -> None:
    """Refuse names that there are not, before anything is built.

    :raises ValueError: for an unknown recipe, or an unknown hyper-parameter.
    """
    known = entry(name).hyperparameters
    unknown = sorted(set(hyperparameters) - set(known))
    if unknown:
        raise ValueError(f"the recipe {name!r} has no hyper-parameter {unknown[0]!r}; it has {', '.join(known)}")


def get(name: str, event_shape: Sequence[int], *, hyperparameters: Mapping[str, Any] | None = None) -> Recipe:
    """Build a published method, by name, for data of a shape.

    :param name: one of :func:`~pyro_dgm.recipes.list`.
    :param event_shape: shape of one datum.
    :param hyperparameters: values that replace the recipe's own, by name; ``print(recipe)`` shows all of them.
    :returns: the recipe, whose program has random initial weights, drawn from torch's global generator.
    :raises ValueError: for an unknown recipe or hyper-parameter, or a value out of range.
    :raises TypeError: for a value of a wrong type.

    Example::

        >>> import torch, pyro_dgm
        >>> from pyro_dgm import recipes
        >>> nsf = recipes.get("nsf", event_shape=(2,), hyperparameters={"num_layers": 2, "hidden": (16,)})
        >>> run = pyro_dgm.fit(nsf.program, torch.randn(64, 2), **nsf.training, epochs=2, seed=0, progress=False)
        >>> nsf.program.sample(3).shape, nsf.citation.arxiv
        (torch.Size([3, 2]), '1906.04032')
    """
    given = dict(hyperparameters or {})
    check_names(name, given)
    return RECIPES[name].make(event_shape, **given)


def load(directory: str | Path) -> Recipe:
    """Rebuild a recipe from a folder that :meth:`Recipe.save` or ``pyro-dgm fit`` wrote, with the trained weights.

    :param directory: the folder.
    :raises ValueError: if it was not written for a recipe, or a file is damaged.

    Example::

        >>> import tempfile, torch, pyro_dgm
        >>> from pyro_dgm import recipes
        >>> maf = recipes.get("maf", (3,), hyperparameters={"num_layers": 1, "hidden": (8,)})
        >>> run = pyro_dgm.fit(maf.program, torch.randn(20, 3), **maf.training, epochs=1, seed=0, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = recipes.load(maf.save(run, folder))
        >>> x = torch.randn(5, 3)
        >>> torch.equal(again.program.log_prob(x), maf.program.log_prob(x))
        True
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} holds no config.json: give a folder that Recipe.save or pyro-dgm fit wrote")
    config = read_config(path)
    saved = config.get("recipe") if isinstance(config, dict) else None
    if not isinstance(saved, dict):
        raise ValueError(f"{path} has no entry 'recipe': it was not written for a recipe")
    made = get(saved["name"], saved["event_shape"], hyperparameters=saved["hyperparameters"])
    load_weights(made.program, directory)
    made.program.eval()
    return made
