"""What a program is: a model and a guide, their batches, structure and parameters."""

from pyro_dgm.programs.base import (
    Batch,
    Program,
    ProgramLike,
    announce_parameter,
    announce_parameters,
    announcing,
    as_program,
    is_plain,
    owner_modules,
    parameters_announced,
    program,
    split_batch,
)

__all__ = [
    "Batch",
    "Program",
    "ProgramLike",
    "announce_parameter",
    "announce_parameters",
    "announcing",
    "as_program",
    "is_plain",
    "owner_modules",
    "parameters_announced",
    "program",
    "split_batch",
]
