"""Lightning Fabric, which starts the processes of a distributed run and connects them."""

from __future__ import annotations

import logging

__all__ = ["launch"]


def launch(kind: str, devices: int, nodes: int = 1) -> None:
    """Connect this process with those it trains with; where ``torchrun`` has not started them, start them.

    Processes started here run the present script (or ``python -m`` module) from its beginning, as Fabric does it, and
    come to this call too.  Afterwards :mod:`torch.distributed` has a process group.

    :param kind: ``"cpu"`` (gloo) or ``"cuda"`` (NCCL).
    :param devices: processes on this machine, one a device.
    :param nodes: machines.
    :raises ImportError: if Fabric is not installed.
    """
    try:
        import lightning_fabric
    except ImportError as error:
        raise ImportError(
            "training on several devices needs Lightning Fabric: pip install 'pyro-dgm[distributed]'"
        ) from error
    # It logs each process at INFO, to standard error.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    lightning_fabric.Fabric(accelerator=kind, devices=devices, num_nodes=nodes, strategy="ddp").launch()
