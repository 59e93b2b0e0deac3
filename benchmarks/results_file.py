"""The table file: each benchmark owns the section of ``benchmarks/results.md`` that bears its name."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import sys
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("results.md")


def provenance() -> str:
    """Date, hardware and command, as every table needs them."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu}, {os.cpu_count()} cores"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{datetime.date.today().isoformat()}; {device}, {torch.get_num_threads()} threads; {versions}; `{command}`"


def write_section(name: str, body: str) -> None:
    """Replace (or append) the section of a benchmark, between its markers."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Measurements\n\nEach section is written by its script.\n"
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    block = f"{start}\n{body.strip()}\n\n{provenance()}\n{end}"
    if start in text:
        text = re.sub(re.escape(start) + ".*?" + re.escape(end), lambda _: block, text, flags=re.S)
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    RESULTS.write_text(text)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
