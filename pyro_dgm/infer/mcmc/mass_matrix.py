"""Mass matrices, diagonal and dense: momenta, velocities, whitening, and their estimates from draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DenseMass", "DiagonalMass", "Estimate", "MassMatrix", "flatten", "unflatten"]

Position = dict[str, Tensor]


class MassMatrix(ABC):
    """The mass matrix of a kernel, shared by all chains.  Its inverse estimates the posterior's covariance."""

    @abstractmethod
    def momentum(self, normals: Position) -> Position:
        """Momenta from standard normal numbers, ``(chains, ...)`` each."""

    @abstractmethod
    def velocity(self, momentum: Position) -> Position:
        """The inverse mass matrix times a momentum."""

    @abstractmethod
    def drift(self, sizes: Position) -> Callable[[Position, Position], Position]:
        """The position update of an integrator, from position and momentum, for step sizes laid out by latent."""

    @abstractmethod
    def whiten(self, position: Position) -> Tensor:
        """Positions in coordinates in which the estimated covariance is the identity, ``(chains, D)``."""

    @abstractmethod
    def estimate(self) -> Estimate:
        """An estimate from draws that has seen none yet, of a matrix of this kind and size."""

    def kinetic_energy(self, momentum: Position) -> Tensor:
        """Half of momentum times velocity, ``(chains,)``."""
        velocity, total = self.velocity(momentum), None
        for k, v in momentum.items():
            product = (v * velocity[k]).reshape(len(v), -1).sum(-1)
            total = product if total is None else total + product
        assert total is not None
        return 0.5 * total


@dataclass(frozen=True)
class DiagonalMass(MassMatrix):
    """A diagonal mass matrix.

    :ivar variances: diagonal of its inverse, each of the shape of one chain.
    """

    variances: Position

    @classmethod
    def identity(cls, position: Position) -> DiagonalMass:
        """The identity, for ``(chains, ...)`` positions."""
        return cls({k: torch.ones_like(v[0]) for k, v in position.items()})

    @property
    def scales(self) -> Position:
        """Standard deviations."""
        return {k: v.sqrt() for k, v in self.variances.items()}

    def momentum(self, normals: Position) -> Position:
        return {k: v / self.variances[k].sqrt() for k, v in normals.items()}

    def velocity(self, momentum: Position) -> Position:
        return {k: v * self.variances[k] for k, v in momentum.items()}

    def drift(self, sizes: Position) -> Callable[[Position, Position], Position]:
        scaled = {k: v * self.variances[k] for k, v in sizes.items()}
        return lambda position, momentum: {
            k: torch.addcmul(v, scaled[k], momentum[k]) for k, v in position.items()
        }  # fmt: skip

    def whiten(self, position: Position) -> Tensor:
        return flatten({k: v / self.variances[k].sqrt() for k, v in position.items()})

    def estimate(self) -> Estimate:
        zeros = {k: torch.zeros_like(v) for k, v in self.variances.items()}
        return _Variances(0, zeros, zeros)


@dataclass(frozen=True)
class DenseMass(MassMatrix):
    """A full mass matrix over the elements of all latents, one after another.

    :ivar covariance: its inverse, ``(D, D)``.
    :ivar whitening: inverse of that one's Cholesky factor.
    """

    covariance: Tensor
    whitening: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> DenseMass:
        """The inverse of a covariance matrix."""
        factor = torch.linalg.cholesky(covariance)
        eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        return cls(covariance, torch.linalg.solve_triangular(factor, eye, upper=False))

    @classmethod
    def identity(cls, position: Position) -> DenseMass:
        """The identity, for ``(chains, ...)`` positions."""
        flat = flatten(position)
        return cls.of(torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device))

    def momentum(self, normals: Position) -> Position:
        # With Sigma = L L' the inverse mass matrix, momenta L'^-1 xi have covariance Sigma^-1.
        return unflatten(flatten(normals) @ self.whitening, normals)

    def velocity(self, momentum: Position) -> Position:
        return unflatten(flatten(momentum) @ self.covariance, momentum)

    def drift(self, sizes: Position) -> Callable[[Position, Position], Position]:
        def moved(position: Position, momentum: Position) -> Position:
            velocity = self.velocity(momentum)
            return {k: torch.addcmul(v, sizes[k], velocity[k]) for k, v in position.items()}

        return moved

    def whiten(self, position: Position) -> Tensor:
        return flatten(position) @ self.whitening.T

    def estimate(self) -> Estimate:
        return _Covariance(0, {"": torch.zeros_like(self.covariance[0])}, {"": torch.zeros_like(self.covariance)})


@dataclass(frozen=True)
class Estimate(ABC):
    """Running mean and squared deviations, pooled over chains and transitions (Welford's, in Chan's parallel form)."""

    count: int
    mean: Position
    squares: Position

    def update(self, position: Position) -> Estimate:
        """Take in one ``(chains, ...)`` position."""
        mean, squares, total = {}, {}, self.count
        for k, v in self._rows(position).items():
            total = self.count + len(v)
            centre = v.mean(0)
            delta = centre - self.mean[k]
            mean[k] = self.mean[k] + delta * (len(v) / total)
            squares[k] = self._add(self.squares[k], v - centre, delta, self.count * len(v) / total)
        return type(self)(total, mean, squares)

    @abstractmethod
    def mass(self) -> MassMatrix:
        """The mass matrix whose inverse is the sample covariance, shrunk a little towards 1e-3, as Stan does."""

    def _rows(self, position: Position) -> Position:
        return position

    @staticmethod
    @abstractmethod
    def _add(squares: Tensor, centred: Tensor, delta: Tensor, weight: float) -> Tensor:
        """The sum of squared deviations with those of further draws."""

    def _shrunk(self, squares: Tensor, unit: Tensor | float) -> Tensor:
        n = self.count
        shrink = n / (n + 5.0)
        return shrink * squares / max(n - 1, 1) + 1e-3 * (1.0 - shrink) * unit


class _Variances(Estimate):
    def mass(self) -> DiagonalMass:
        return DiagonalMass({k: self._shrunk(v, 1.0) for k, v in self.squares.items()})

    @staticmethod
    def _add(squares: Tensor, centred: Tensor, delta: Tensor, weight: float) -> Tensor:
        return squares + centred.square().sum(0) + delta.square() * weight


class _Covariance(Estimate):
    def _rows(self, position: Position) -> Position:
        return {"": flatten(position)}

    def mass(self) -> DenseMass:
        squares = self.squares[""]
        return DenseMass.of(self._shrunk(squares, torch.eye(len(squares), dtype=squares.dtype, device=squares.device)))

    @staticmethod
    def _add(squares: Tensor, centred: Tensor, delta: Tensor, weight: float) -> Tensor:
        return squares + (centred.T @ centred + delta.outer(delta) * weight)


def flatten(position: Position) -> Tensor:
    """All elements of all latents, one after another, ``(chains, D)``."""
    parts = [v.reshape(len(v), -1) for v in position.values()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def unflatten(flat: Tensor, like: Position) -> Position:
    """The inverse of :func:`flatten`, in the shapes of ``like``."""
    sizes = [v[0].numel() for v in like.values()]
    return {k: part.reshape(v.shape) for (k, v), part in zip(like.items(), flat.split(sizes, 1), strict=True)}
