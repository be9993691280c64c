"""An executed notebook as an HTML page."""

from __future__ import annotations

import copy
import html
from typing import Any


def as_html(notebook: Any, title: str) -> str:
    """The executed notebook as one HTML page (pictures inside it, with their alternative texts)."""
    from nbconvert import HTMLExporter

    page = copy.deepcopy(notebook)
    for cell in page.cells:
        for output in cell.get("outputs", []):
            describe_picture(output)
    body, _ = HTMLExporter(template_name="lab").from_notebook_node(page, {"metadata": {"name": title}})
    return body


def describe_picture(output: Any) -> None:
    """Turn a picture with an alternative text into HTML: nbconvert's template would drop the text."""
    facts = output.get("metadata", {}).get("image/png", {})
    if "alt" in facts and "image/png" in output.get("data", {}):
        size = "".join(f' {key}="{int(facts[key])}"' for key in ("width", "height") if key in facts)
        source = "".join(output.data.pop("image/png").split())
        alt = html.escape(facts["alt"], quote=True)
        output.data["text/html"] = f'<img alt="{alt}"{size} src="data:image/png;base64,{source}">'
