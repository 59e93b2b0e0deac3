"""What compiling costs: the first step of the digits VAE, with nothing in inductor's cache and in a second process.

    python benchmarks/bench_compile.py --write

Each row is a process of its own that fits the demo's VAE for two epochs of few steps at a depth of
``fit(compile=...)``; the steps themselves are milliseconds.  The cache folder is empty for the first process and is the
second's as the first left it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import results_file

DEPTHS = ("graph", "objective", "step", "block")


def one(depth: str) -> float:
    """Seconds that ``fit`` takes."""
    import torch

    import pyro_dgm

    images = pyro_dgm.datasets.digits(binarize="threshold").train
    images = images[:1216] if depth == "block" else images[:128]  # 19 steps an epoch hold a block of ten
    vae = pyro_dgm.models.VAE((8, 8), latent_dim=8, hidden=(128,))
    options: dict[str, Any] = {"batch_size": 64, "seed": 0, "progress": False}
    pyro_dgm.fit(pyro_dgm.models.VAE((8, 8), 8, hidden=(128,)), images, epochs=1, compile=False, **options)
    torch.manual_seed(0)
    start = time.perf_counter()
    pyro_dgm.fit(vae, images, epochs=2, compile=depth, **options)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="into benchmarks/results.md")
    args = parser.parse_args()
    if args.depth:
        print(json.dumps(one(args.depth)))
        return
    lines = [
        "### Seconds to compile the digits VAE\n",
        "64-128-8 VAE (19 792 parameters), batch 64: `fit` for two epochs of few steps, by depth. Cold: inductor's "
        "cache is empty; warm: another process has compiled the same.\n",
        "| `compile=` | cold s | warm s |",
        "| --- | --- | --- |",
    ]
    for depth in DEPTHS:
        with tempfile.TemporaryDirectory() as cache:
            seconds = []
            for _ in range(2):
                command = [sys.executable, __file__, "--depth", depth]
                env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                seconds.append(json.loads(done.stdout.splitlines()[-1]))
        lines.append(f'| `"{depth}"` | {seconds[0]:.1f} | {seconds[1]:.1f} |')
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(f"\n{table}\n")
    if args.write:
        results_file.write_section("bench_compile", table)


if __name__ == "__main__":
    main()
