"""A page that shows a trained model, as a value: to save, or to see in a notebook."""

import html
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Self

from jaxgpt.files import shown, write_atomically
from jaxgpt.pages import record
from jaxgpt.pages.bundle import bundle
from jaxgpt.runs.run import Run

HEIGHT = 900  # pixels in a notebook


@dataclass(frozen=True, repr=False)
class Page:
    """One HTML file, which needs no network and no server. From `Run.inside`; a notebook shows it."""

    html: str
    title: str
    """What it calls the run."""
    note: str | None = None
    """What people should know of it, in a sentence."""

    @classmethod
    def of(cls, run: Run, prompt: str | None = None) -> Self:
        """The page of a run; arguments and errors as of `Run.inside`."""
        data = record.record(run, prompt)
        return cls(bundle("inside", f"{data['title']}: inside the model", data), data["title"], data["note"])

    def __repr__(self) -> str:
        return f"<Page of {shown(self.title)}, {megabytes(len(self.content))}: page.save('inside.html') writes it>"

    @property
    def content(self) -> bytes:
        """The file."""
        return self.html.encode("utf-8", "replace")  # half a character, which UTF-8 has not, becomes "?"

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes the page to `path`, whole or not at all, and returns it as a `Path`. Raises `OSError`."""
        path = Path(path).expanduser()
        write_atomically(path, self.content)
        return path

    def _repr_html_(self) -> str:
        """In a frame of its own, which can do nothing to the notebook around it."""
        frame = f'<iframe title="Inside the model" sandbox="allow-scripts" width="100%" height="{HEIGHT}"'
        return f'{frame} style="border: 0" srcdoc="{html.escape(self.html)}"></iframe>'


def megabytes(n_bytes: float) -> str:
    """`2.6 MB`."""
    return f"{n_bytes / 1e6:.1f} MB"
