"""The notebook says what the library does, runs from top to bottom, and trains as a notebook's reader expects."""

import inspect
import json
import os
import re
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import jaxgpt
from jaxgpt.ladder import PUBLISHED
from jaxgpt.model import gpt, ladder
from jaxgpt.runs.run import Run

ROOT = Path(__file__).parent.parent
NOTEBOOK = json.loads((ROOT / "notebooks/jaxgpt.ipynb").read_text("utf-8"))
CELLS = NOTEBOOK["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
PROSE = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
TEXT = "First Citizen:\nBefore we proceed, hear me speak.\n\nROMEO:\nIt is, it is I, my lord of the king.\n\n" * 30
FEW = {"max_steps": 2, "eval_windows": 4, "batch_size": 4, "n_layer": 1, "n_head": 2, "n_embd": 8}


def shown(cell: dict) -> str:
    """What a cell shows, as text."""
    texts = [
        output.get("text") or output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", [])
    ]
    return "\n".join("".join(text) for text in texts)


SHOWN = "\n".join(map(shown, CELLS))


# What stands in the file


def test_the_code_that_it_shows_is_the_librarys():
    calls = re.findall(r"^show\((.*)\)$", "\n".join(CODE), re.MULTILINE)
    names = re.findall(r"\b(ladder|gpt)\.(\w+)", " ".join(calls))
    assert {name for module, name in names if module == "ladder"} >= {rung.__name__ for rung in ladder.RUNGS.values()}
    for module, name in names:
        source = inspect.getsource(getattr({"ladder": ladder, "gpt": gpt}[module], name))
        assert source in SHOWN, f"{name} has changed: python notebooks/execute.py"


def test_its_losses_are_those_of_the_ladders_page():
    told = dict(re.findall(r"^(\w+): validation loss ([\d.]+), published", SHOWN, re.MULTILINE))
    rows = (ROOT / "docs/ladder.md").read_text("utf-8")
    page = dict(re.findall(r"^\| (\w+) \|.* / ([\d.]+) ± [\d.]+ \| [\d,]+ \|", rows, re.MULTILINE))
    assert told.keys() == page.keys() == PUBLISHED.keys()
    for name, loss in told.items():
        assert float(loss) == pytest.approx(float(page[name]), abs=0.03), name


def test_what_its_text_names_is_there():
    for name in re.findall(r"jaxgpt\.(\w+)\(", PROSE):
        assert hasattr(jaxgpt, name), name
    for name in re.findall(r"\brun\.(\w+)\(", PROSE):
        assert hasattr(Run, name), name
    for name in re.findall(r'preset\("(\w+)"|preset `([\w-]+)`|^## \d\. `(\w+)`', PROSE, re.MULTILINE):
        jaxgpt.preset("".join(name))
    for name in re.findall(r"`(\w+/[\w/]*\.\w+)`", PROSE):
        assert (ROOT / name).is_file(), name


def test_its_two_addresses_are_one():
    (badge,) = re.findall(r"https://colab\.research\.google\.com/github/([\w-]+/[\w-]+)/", PROSE)
    assert f'REPOSITORY = "https://github.com/{badge}"' in CODE[0]


def test_it_is_small_and_tells_nothing_of_the_machine_that_executed_it():
    text = json.dumps(NOTEBOOK)
    assert len(text) < 1_000_000
    assert not re.search(r"/(home|root|tmp|work|Users)/|\\u001b|Traceback|Warning", text)
    assert all(cell["metadata"] == {} for cell in CELLS)
    assert all(cell["outputs"] for cell in CELLS if cell["cell_type"] == "code" and "plots." in "".join(cell["source"]))


# Its first cell on machines of all kinds


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """What the first cell installs, far from a checkout, where the modules `there` are found."""

    def install(driver: str = "", numpy: str | None = None, there: tuple[str, ...] = ()) -> list[str]:
        asked = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", sys.path.copy())
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name in there or None)
        monkeypatch.setattr("importlib.metadata.version", lambda name: "2.5.0")
        monkeypatch.setattr("subprocess.getoutput", lambda command: driver)
        monkeypatch.setattr("subprocess.run", lambda command, check: asked.append(command[5:]))
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setattr("sys.modules", {**sys.modules, "numpy": numpy and SimpleNamespace(__version__=numpy)})
        exec(CODE[0].partition("import jaxgpt")[0], {})
        return asked[0][1:] if asked else []

    return install


COLAB = ("jax", "flax", "optax", "orbax")


@pytest.mark.parametrize(
    ("machine", "packages"),
    [
        ({"driver": "580.82.07", "there": (*COLAB, "jax_cuda13_plugin")}, ["jax[cuda13]"]),
        ({"driver": "580.82.07", "there": (*COLAB, "jax_cuda12_plugin")}, ["jax[cuda12]"]),
        ({"driver": "580.82.07"}, ["jax[cuda13]"]),
        ({"driver": "560.35.03"}, ["jax[cuda12]"]),
        ({"driver": "sh: 1: nvidia-smi: not found"}, []),
        ({"driver": "NVIDIA-SMI has failed. Make sure that the driver runs.", "there": COLAB}, []),
        ({"numpy": "2.5.0"}, ["numpy==2.5.0"]),
    ],
)
def test_a_gpu_keeps_the_cuda_that_is_there(installed, machine, packages):
    assert installed(**machine) == packages


def test_a_checkout_gets_what_it_lacks(tmp_path, installed):
    (tmp_path / "jaxgpt/model").mkdir(parents=True)
    (tmp_path / "jaxgpt/model/ladder.py").touch()
    assert installed(there=("jaxgpt",)) == [str(tmp_path / "requirements-cpu.txt")]


def test_nothing_is_installed_where_all_is_there(installed):
    assert installed(driver="580.82.07", there=("jaxgpt", *COLAB)) == []


def test_a_kernel_with_an_old_numpy_is_to_be_restarted(installed):
    with pytest.raises(RuntimeError, match="restart the kernel"):
        installed(numpy="2.0.2")


# In a kernel

LACKING = [name for name in ("nbclient", "ipykernel") if find_spec(name) is None]
needs_kernel = pytest.mark.skipif(bool(LACKING), reason=f"for want of {' and '.join(LACKING)}")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel with this checkout's code; `kernel.run(cell)` gives the messages that a cell sends to its reader."""
    from jupyter_client.manager import start_new_kernel

    folder = tmp_path_factory.mktemp("kernel")
    manager, client = start_new_kernel(cwd=str(folder), env=os.environ | {"PYTHONPATH": str(ROOT)})

    def run(cell: str) -> list[dict]:
        messages = []
        client.execute_interactive(cell, timeout=120, output_hook=messages.append)
        return [message for message in messages if message["msg_type"] not in ("status", "execute_input")]

    yield SimpleNamespace(folder=folder, run=run, interrupt=manager.interrupt_kernel)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def setting(text_file: Path) -> str:
    """A cell that makes a small recipe."""
    return f"import jaxgpt\njaxgpt.setup()\nsmall = jaxgpt.preset('cpu', data={str(text_file)!r}, **{FEW})"


@needs_kernel
@pytest.mark.slow
def test_a_training_is_one_growing_text_and_runs_in_the_event_loop(kernel, text_file):
    assert kernel.run(setting(text_file)) == []
    cell = "async def f():\n    return jaxgpt.train(small, out='run')\nrun = await f()\nrun"
    *told, result = kernel.run(cell)
    assert {(message["msg_type"], message["content"].get("name")) for message in told} == {("stream", "stdout")}
    text = re.sub(".*\r", "", "".join(message["content"]["text"] for message in told))  # the progress line
    assert "\x1b" not in text
    assert re.search(r"^step +2  train loss [\d.]+  val loss", text, re.MULTILINE)
    assert text.endswith('    print(jaxgpt.load("run").generate(tokens=500))\n\n')
    assert re.fullmatch(r"<Run run: gpt, [\d,]+ parameters, step 2>", result["content"]["data"]["text/plain"])


@needs_kernel
@pytest.mark.slow
def test_an_interrupt_saves_and_says_how_to_go_on(kernel, text_file):
    metrics = kernel.folder / "long" / "metrics.jsonl"

    def interrupt():
        deadline = time.monotonic() + 60
        while not (metrics.exists() and '"step": 1' in metrics.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        kernel.interrupt()

    kernel.run(setting(text_file))
    thread = threading.Thread(target=interrupt)
    thread.start()
    changes = "max_steps=10**6, eval_interval=10**6, log_interval=1"
    *told, error = kernel.run(f"run = jaxgpt.train(jaxgpt.override(small, {changes}), out='long')")
    thread.join()
    assert "stopping and saving after this step (interrupt again" in str(told)
    (words,) = error["content"]["traceback"]  # no lines of code
    step, line = re.fullmatch(r"stopped and saved after step (\d+), in long. To go on:\n\n    (.*)", words).groups()
    assert line == 'run = jaxgpt.resume("long")'
    kernel.run(line.replace(")", f", max_steps={int(step) + 1}, quiet=True)"))
    assert kernel.run("run.step")[0]["content"]["data"]["text/plain"] == str(int(step) + 1)


@needs_kernel
@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path):
    import nbformat

    from notebooks.execute import NOTEBOOK, clean, execute

    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    notebook = execute(nbformat.read(NOTEBOOK, as_version=4), tmp_path, FEW | {"data": str(text)})
    *_, page = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert "<iframe" in page.outputs[0].data["text/html"]
    streams = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert {output.name for output in streams} == {"stdout"}  # no warning
    clean(notebook)
    nbformat.validate(notebook)
    assert page.outputs == []
