"""Executes jaxgpt.ipynb from top to bottom, and keeps in it what its cells show: `python notebooks/execute.py`,
some three minutes on two cores.

Edit the notebook in Jupyter, then run this: it shows what the code of this checkout does, on a CPU, and nothing of the
machine it ran on.
"""

import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).with_name("jaxgpt.ipynb")
KEPT = ("kernelspec", "accelerator", "colab")  # of the notebook's metadata; the last two make Colab offer a T4
LIMIT = 1800  # seconds for a cell


def execute(notebook: NotebookNode, folder: Path, changes: dict | None = None) -> NotebookNode:
    """Executes all cells in `folder`, with this checkout's code on the CPU, and fills in their outputs.

    Args:
        changes: fields of every recipe, in place of the notebook's `CHANGES`.

    Raises:
        CellExecutionError: for a cell that fails.
    """
    if changes:
        first = next(cell for cell in notebook.cells if "CHANGES = {}" in cell.source)
        first.source = first.source.replace("CHANGES = {}", f"CHANGES = {changes!r}")
    client = NotebookClient(
        notebook,
        timeout=LIMIT,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    paths = [str(NOTEBOOK.parent.parent), os.environ.get("PYTHONPATH", "")]
    here = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"}
    return client.execute(env=os.environ | here)


def clean(notebook: NotebookNode) -> None:
    """Leaves out what is of no use to a reader: times, details of this machine, and the page inside, of 3 MB."""
    notebook.metadata = NotebookNode({name: notebook.metadata[name] for name in KEPT if name in notebook.metadata})
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if "<iframe" not in str(output)]


def main() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    clean(notebook)
    notebook.cells[0].source = re.sub(r"\d{4}-\d\d-\d\d", time.strftime("%Y-%m-%d"), notebook.cells[0].source)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
