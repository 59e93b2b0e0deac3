"""Correct anchors of the links from source pages back to the reference.

Sphinx's viewcode names one module per source file in these links, although objects of a file may be documented under
several (``pyro_dgm.infer.Objective`` and ``pyro_dgm.infer.objectives.ObjectiveModule``).  The page's own name has the
right one.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

BACK_LINK = re.compile(
    r'(href="[^"]*/generated/([\w.]+)\.(\w+)\.html#)[\w.]+\.(\3(?:\.\w+)*)"'
)


def _correct(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    if pagename.startswith("_modules/"):
        context["body"] = BACK_LINK.sub(r'\1\2.\4"', context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", _correct)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
