"""What a program is: a model and a guide, their batches, structure and parameters."""

from pyro_dgm.programs.base import (
    Batch,
    Program,
    ProgramLike,
    as_program,
    emit_param_message,
    emit_param_messages,
    is_plain,
    owner_modules,
    param_messages,
    program,
    split_batch,
)

__all__ = [
    "Batch",
    "Program",
    "ProgramLike",
    "as_program",
    "emit_param_message",
    "emit_param_messages",
    "is_plain",
    "owner_modules",
    "param_messages",
    "program",
    "split_batch",
]
