"""The package: what it needs, and that it works where it is installed."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import jaxgpt

ROOT = Path(__file__).parent.parent
# modeling_jaxgpt.py is not imported here: it is put beside exported weights, for a program that has PyTorch.
FILES = sorted(file for file in (ROOT / "jaxgpt").rglob("*.py") if file.name != "modeling_jaxgpt.py")
BUILT_FROM = ["LICENSE", "README.md", "jaxgpt", "pyproject.toml", "requirements-cpu.txt", "setup.py"]
SMALL = ["--n-layer=1", "--n-embd=16", "--block-size=16", "--batch-size=4", "--max-steps=2", "--eval-windows=8"]


def run(folder: Path, *command: object) -> str:
    """What a command prints that is run in `folder`, without a network, and without a path to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    process = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def build_wheel(folder: Path) -> Path:
    """The wheel, built from a copy of the tree, which is left as it was."""
    tree = folder / "tree"
    shutil.copytree(ROOT / "jaxgpt", tree / "jaxgpt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILT_FROM:
        if name != "jaxgpt":
            shutil.copy(ROOT / name, tree)
    run(tree, sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "wheels", ".")
    assert sorted(os.listdir(tree)) == BUILT_FROM
    (wheel,) = (folder / "wheels").iterdir()
    return wheel


def install(wheel: Path, environment: Path) -> Path:
    """The folder of commands of a fresh environment with the wheel; it borrows all other packages from this one."""
    run(wheel.parent, sys.executable, "-m", "venv", environment)
    base = {"base": str(environment), "platbase": str(environment)}
    packages, commands = (Path(sysconfig.get_path(kind, vars=base)) for kind in ("purelib", "scripts"))
    here = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "borrowed.pth").write_text("\n".join(here))
    run(wheel.parent, commands / "python", "-m", "pip", "install", "--no-deps", wheel)
    return commands


@pytest.mark.slow
def test_an_installed_jaxgpt_trains_and_samples_far_from_the_checkout(text_file, tmp_path):
    commands, elsewhere = install(build_wheel(tmp_path), tmp_path / "environment"), tmp_path / "elsewhere"
    elsewhere.mkdir()

    program = "import jaxgpt, importlib.metadata as m; print(jaxgpt.__path__[0]); print(m.version('jaxgpt'))"
    package, version = run(elsewhere, commands / "python", "-c", program).splitlines()
    assert Path(package).is_relative_to(tmp_path / "environment")
    assert version == jaxgpt.__version__
    assert files_of(Path(package)) == files_of(ROOT / "jaxgpt") >= {"py.typed", "pages/static/inside.html"}

    assert "jaxgpt-train" in run(elsewhere, commands / "jaxgpt-train", "--help")
    told = run(elsewhere, commands / "jaxgpt-train", "--preset=cpu", "--data", text_file, "--out=run", *SMALL)
    assert "jaxgpt-sample --run run" in told
    text = run(elsewhere, commands / "jaxgpt-sample", "--run=run", "--prompt=ROMEO:", "--tokens=20")
    assert text.startswith("ROMEO:") and len(text) == len("ROMEO:") + 20 + len("\n")


def files_of(package: Path) -> set[str]:
    kinds = (".py", ".typed", ".html", ".css", ".js")
    return {file.relative_to(package).as_posix() for file in package.rglob("*") if file.suffix in kinds}


def test_what_the_code_imports_is_what_the_requirements_name():
    required = set(re.findall(r"^[\w-]+", (ROOT / "requirements-cpu.txt").read_text("utf-8"), re.M))
    imported = {name.split(".")[0] for file in FILES for name in imports(file)} - sys.stdlib_module_names - {"jaxgpt"}
    packages = importlib.metadata.packages_distributions()
    assert {name for name in imported if not required.intersection(packages.get(name, ()))} == set()
    assert required.difference(*(packages.get(name, ()) for name in imported)) == set()


def test_nothing_imports_from_a_floor_above_its_own():
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    floors = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)(?:\.py|/)`", names)}
    for file in FILES:
        floor = floors[file.relative_to(ROOT / "jaxgpt").parts[0].removesuffix(".py")]
        for name in imports(file):
            if name.startswith("jaxgpt."):
                assert floors[name.split(".")[1]] <= floor, f"{file} imports {name}"


def imports(file: Path) -> set[str]:
    """What a file imports, at its top or within: the dotted names."""
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
