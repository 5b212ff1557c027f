"""Puts a report together from the page's three files, as the package does."""

import html
import json
import re
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs


def assemble(report: dict[str, Any]) -> str:
    """Return the page as one text; every part is put in once, and none is looked into again."""
    data = json.dumps(report, ensure_ascii=False)
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    folder = files("leanvit.analysis") / "report"
    parts = {
        "/*CSS*/": (folder / "page.css").read_text("utf-8"),
        "/*PLOTLY*/": get_plotlyjs(),
        "/*JS*/": (folder / "page.js").read_text("utf-8"),
        "__TITLE__": html.escape(report["title"]),
        "__DATA__": data,
    }
    page = (folder / "page.html").read_text("utf-8")
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], page)
