"""What recording and compiling cost, and what they save, by type of device.

``fit(compile="auto")`` and the samplers read this table.  They never read a clock, so that the same run is compiled the
same way each time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["COSTS", "Cost", "cost_on"]


@dataclass(frozen=True)
class Cost:
    """Costs on one type of device, in seconds unless said otherwise."""

    #: to record a training step, to compile it, and to compile a block of steps
    recording: float
    compiling: float
    compiling_block: float
    #: saved in a training step that is recorded, compiled, or in a block, whatever the program's size
    saved_recorded: float
    saved_compiled: float
    saved_block: float
    #: arithmetic for one parameter, datum and particle, forward and backward
    arithmetic: float
    #: to compile a sampler's graph: any graph, and each operation of it
    compiling_graph: float
    compiling_operation: float
    #: saved by a sampler's compiled graph: for each operation, and for each element that an operation returns
    saved_operation: float
    saved_element: float
    #: number of transitions, for each operation of a step, that win back the time to record them uncompiled
    recording_transitions: int


#: measured on two CPU cores
_CPU = Cost(
    recording=0.8,
    compiling=15.0,
    compiling_block=60.0,
    saved_recorded=0.4e-3,
    saved_compiled=1.0e-3,
    saved_block=0.08e-3,
    arithmetic=3e-11,
    compiling_graph=6.0,
    compiling_operation=0.01,
    saved_operation=2.5e-6,
    saved_element=0.4e-9,
    recording_transitions=80,
)
# CUDA is not measured yet: the CPU's figures stand in for it.
COSTS = {"cpu": _CPU, "cuda": _CPU}


def cost_on(device: torch.device) -> Cost:
    """The costs on ``device``; those of the CPU for a type of device that the table does not have."""
    return COSTS.get(device.type, COSTS["cpu"])
