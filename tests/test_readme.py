"""README's first example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_sections_that_scripts_and_readers_look_for() -> None:
    assert README.count("<!-- results:start -->") == README.count("<!-- results:end -->") == 1
    for command in ("make demo", "make test"):
        assert command in README


@pytest.mark.slow
def test_first_example() -> None:
    source = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    assert "log_likelihood" in names["idata"].groups()
    assert len(names["table"].to_frame()) == 4
