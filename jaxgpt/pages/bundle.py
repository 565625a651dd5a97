"""One HTML file that needs nothing else: page.html of static/, with one page's content, style, scripts and data in it.

A browser loads no module for a file that was opened from disk. So the modules that a page imports are joined to one
script, each after those that it imports, without the words `import` and `export`; the page's source stays readable.
"""

import html
import json
import re
from importlib.resources import files
from typing import Any

STATIC = files("jaxgpt.pages") / "static"
IMPORT = re.compile(r'^import .* from "\./(.+)";\n', re.M)
EXPORT = re.compile(r"^export ", re.M)


def bundle(name: str, title: str, data: dict[str, Any]) -> str:
    """The page `name` of static/, as HTML.

    Args:
        name: "inside" or "ladder".
        title: of the browser's tab.
        data: what the page's script reads, of values that JSON has.
    """
    parts = {
        "title": html.escape(title),
        "style": _read("style.css") + _read(f"{name}.css"),
        "body": _read(f"{name}.html"),
        "script": "\n".join(modules(f"{name}.js").values()),
        # Within a script a "<" might end it: "</script>" in somebody's text.
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def modules(name: str) -> dict[str, str]:
    """The scripts that the module `name` is made of, itself the last: their text by their names."""
    found: dict[str, str] = {}

    def add(name: str) -> None:
        if name not in found:
            source = _read(name)
            for imported in IMPORT.findall(source):
                add(imported)
            found[name] = EXPORT.sub("", IMPORT.sub("", source))

    add(name)
    return found


def _read(name: str) -> str:
    return (STATIC / name).read_text("utf-8")
