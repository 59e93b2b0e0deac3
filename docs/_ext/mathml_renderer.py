"""Equations as MathML, made by docutils when the pages are built.

Sphinx's own renderers want LaTeX on the machine (imgmath) or a script from the network when a page is read (MathJax,
KaTeX).  Every current browser draws MathML itself, so pages read from disk or without a network show their equations.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

#: what docutils reads otherwise than TeX does: an accent takes the next letter alone, without its index, and the name
#: of a function stands off from what follows
REWRITES = [
    (
        re.compile(r"\\(tilde|hat|bar|widehat)\s*(?:([A-Za-z])|\{([^{}]*)\})"),
        r"{{}\\\1{\2\3}}",
    ),
    (
        re.compile(r"\\(log|exp|min|max)(?![A-Za-z])\s*(?=[A-Za-z]|\\(?!left|,|[Bb]ig))"),
        r"\\\1\\,",
    ),
]


def _mathml(node: nodes.Element, as_block: bool) -> str:
    text = node.astext().strip()
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    try:
        return tex2mathml(text, as_block=as_block)
    except MathError as error:  # a warning fails the build (-W), and names the page
        logger.warning("equation %r cannot be made MathML: %s", text, error, location=node)
        return f"<code>{nodes.unescape(text)}</code>"


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(f'<span class="math-inline">{_mathml(node, as_block=False)}</span>')
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    label = f' id="{node["ids"][0]}"' if node["ids"] else ""
    self.body.append(f'<div class="math-block"{label}>{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_inline, None), block_renderers=(_block, None)
    )
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
