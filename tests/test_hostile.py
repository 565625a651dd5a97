"""Folders and files made to do harm: nothing in them is executed, nothing outside told or written, memory is bounded.

They are tried by the commands, as somebody would try what they have downloaded; where memory is at stake, in a process
of its own.
"""

import gzip
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from time_limit import SECONDS, time_limit

from jaxgpt import config as configs
from jaxgpt import evaluate
from jaxgpt.cli import sample, train
from jaxgpt.runs.export import export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc, and links are made"),
]

ROOT = Path(__file__).parent.parent
CANARY = "the canary is alive"
MEMORY = 1500  # MiB that a command may take: it has some 350 to begin with
# Its peak: `ru_maxrss` would be that of the process which started it, if that is larger.
MEASURED = """
import runpy, sys
program, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
except SystemExit as end:
    (kib,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(kib) // 1024, file=sys.stderr)
    raise
"""
SMALL = [
    "--preset",
    "cpu",
    "--n-layer",
    "1",
    "--n-head",
    "2",
    "--n-embd",
    "8",
    "--block-size",
    "16",
    "--max-steps",
    "2",
]


class Executes:
    """A pickle of it creates a file when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.fixture
def here(whole, text_file, tmp_path, monkeypatch):
    """A folder with a run, its export, its text; beside it a file that nobody should read."""
    (tmp_path / "secret").write_text(json.dumps({"secret": CANARY, "text": CANARY}))
    here = tmp_path / "here"
    here.mkdir()
    shutil.copytree(whole.path, here / "run")
    for step in (here / "run" / "checkpoints").iterdir():
        if step.name != "8":
            shutil.rmtree(step)  # there is no other one to fall back to
    export(whole, here / "weights")
    shutil.copy(text_file, here / "text.txt")
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def outcome(capfd):
    """`outcome(command, arguments)`: exit code and all that is printed; nothing was executed, nor told of outside."""

    def outcome(command, *arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        with time_limit():
            code = command.main(list(arguments))
        out, err = capfd.readouterr()
        assert not Path("executed").exists(), "something was executed"
        assert CANARY not in out + err
        return code, out + err

    return outcome


@pytest.fixture
def refused(outcome):
    """`refused(command, arguments)`: the one line in which a command refuses to go on."""

    def refused(command, *arguments: str) -> str:
        code, printed = outcome(command, *arguments)
        assert code == 2, printed
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
        return printed

    return refused


@pytest.fixture
def harmless(outcome):
    """`harmless(command, arguments)`: it does what it is asked to, or refuses in one line."""

    def harmless(command, *arguments: str) -> None:
        code, printed = outcome(command, *arguments)
        assert code == 0 or (code == 2 and printed.startswith("error: ") and printed.count("\n") == 1), printed

    return harmless


def refused_with_little_memory(program: str, *arguments: str) -> str:
    """The same in a process of its own, whose memory is measured."""
    command = [sys.executable, "-c", MEASURED, program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    said, _, memory = process.stderr.strip().rpartition("\n")
    assert process.returncode == 2, process.stderr
    assert said.startswith("error: ") and "\n" not in said, process.stderr
    assert int(memory) < MEMORY
    return said


# What would be executed


def test_no_pickle_is_read_wherever_it_lies(here, outcome, refused):
    harmful = pickle.dumps(Executes())
    for name in ("pytorch_model.bin", "model.ckpt", "optimizer.pt", "meta.pkl"):
        Path("run", name).write_bytes(harmful)
        Path("weights", name).write_bytes(harmful)
    assert outcome(sample, "--run", "run", "--tokens", "3")[0] == 0
    Path("weights/model.safetensors").unlink()
    assert "pytorch_model.bin" in refused(sample, "--run", "weights")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        Path("weights", name).write_bytes(harmful)
        refused(sample, "--run", "weights")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "checkpoints/8/progress/metadata"])
def test_no_pickle_is_read_in_the_place_of_a_runs_json(name, here, refused):
    Path("run", name).write_bytes(pickle.dumps(Executes()))
    refused(sample, "--run", "run")


def test_no_python_beside_weights_is_run(here, outcome):
    Path("weights/modeling_jaxgpt.py").write_text("from pathlib import Path; Path('executed').touch()")
    config = json.loads(Path("weights/config.json").read_bytes())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_jaxgpt.JaxGPTForCausalLM"}
    Path("weights/config.json").write_text(json.dumps(config))
    assert outcome(sample, "--run", "weights", "--tokens", "3")[0] == 0


def test_what_orbax_tells_of_a_checkpoint_names_no_code_to_run(here, harmless):
    """`_METADATA` names types and handlers: those that are not known are no reason to import anything."""
    step = Path("run/checkpoints/8")
    (step / "manifest.json").unlink()  # its checksums are against damage, not against who rewrites them
    Path("executing.py").write_text("from pathlib import Path; Path('executed').touch()")
    for name in ("_METADATA", "_CHECKPOINT_METADATA"):
        for path in step.glob(f"params/{name}"):
            text = path.read_text().replace("np.ndarray", "executing.Class").replace("orbax", "executing")
            path.write_text(text.replace("StandardCheckpointHandler", "executing.Handler"))
    (step / "params/_sharding").write_text(json.dumps({"params": "executing.Class"}))
    harmless(sample, "--run", "run", "--tokens", "3")


# What lies elsewhere


@pytest.mark.parametrize(
    "name", ["../secret", "SECRET", "..", "/etc/passwd", "../secret.safetensors", "a/../../secret"]
)
def test_an_index_names_no_file_of_another_folder(name, here, refused):
    Path("weights/model.safetensors").rename("../secret.safetensors")
    index = {"weight_map": {"wte.weight": name.replace("SECRET", str(Path("../secret").resolve()))}}
    Path("weights/model.safetensors.index.json").write_text(json.dumps(index))
    assert "is no file of this folder" in refused(sample, "--run", "weights")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "metrics.jsonl"])
def test_the_content_of_a_file_that_a_link_leads_to_is_not_told(name, here, harmless):
    Path("run", name).unlink()
    Path("run", name).symlink_to("../../secret")
    harmless(sample, "--run", "run", "--tokens", "3")


def test_weights_behind_a_link_to_what_is_none_are_not_read(here, refused):
    step = Path("run/checkpoints/8")
    (step / "manifest.json").unlink()
    for path in step.glob("params/**/d/*"):
        path.unlink()
        path.symlink_to(Path("../secret").resolve())
    refused(sample, "--run", "run")


def test_a_step_that_is_a_link_to_another_folder_is_not_deleted_there(here, harmless):
    outside = Path("../outside")
    outside.mkdir()
    (outside / "7").mkdir()
    (outside / "7" / "thesis.txt").write_text("years of work")
    Path("run/checkpoints/6").symlink_to(outside.resolve() / "7")
    harmless(train, "--resume", "run", "--data", "text.txt", "--max-steps", "10")
    assert (outside / "7" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "loss.png", ".lock", "tokenizer.json"])
def test_a_run_that_goes_on_writes_through_no_link(name, here, harmless):
    outside = Path("../outside")
    before = Path("run", name).read_bytes() if Path("run", name).exists() else b"precious"
    outside.write_bytes(before)
    Path("run", name).unlink(missing_ok=True)
    Path("run", name).symlink_to(outside.resolve())
    harmless(train, "--resume", "run", "--data", "text.txt", "--max-steps", "10")
    assert outside.read_bytes() == before


# What is too much


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_that_never_ends_is_not_read(name, here, refused):
    Path("run", name).unlink()
    Path("run", name).symlink_to("/dev/zero")
    refused_with_little_memory("sample", "--run", "run")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name, here, refused):
    if name == "vocab.json":
        Path("weights/tokenizer.json").unlink()
        Path("weights/merges.txt").touch()
    Path("weights", name).unlink(missing_ok=True)
    os.mkfifo(Path("weights", name))
    refused(sample, "--run", "weights")


def test_a_header_of_weights_may_not_be_longer_than_its_file(here, refused):
    path = Path("weights/model.safetensors")
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])
    refused(sample, "--run", "weights")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "1e400", "-1e400", "9" * 10_000, "null"])
def test_json_that_is_too_deep_or_too_large_is_refused(content, here, refused):
    for folder, name in (("run", "config.json"), ("run", "tokenizer.json"), ("weights", "config.json")):
        path = Path(folder, name)
        good = path.read_bytes()
        path.write_text(content)
        refused(sample, "--run", folder)
        path.write_bytes(good)


def test_a_model_that_is_said_to_be_larger_than_its_files_is_refused_before_it_takes_memory(here, refused):
    """Arrays of which no part is stored are zeros to TensorStore, however large they are said to be."""
    step = Path("run/checkpoints/8")
    (step / "manifest.json").unlink()
    long = 2**25  # positions: 2 GiB
    config = json.loads(Path("run/config.json").read_bytes())
    config["model"]["block_size"] = long
    Path("run/config.json").write_text(json.dumps(config))
    progress = json.loads((step / "progress/metadata").read_bytes())
    progress["config"]["model"]["block_size"] = long
    (step / "progress/metadata").write_text(json.dumps(progress))
    claim_zeros(step / "params", configs.from_dict(config).model)
    refused_with_little_memory("sample", "--run", "run")


def claim_zeros(folder: Path, model) -> None:
    """Rewrites an item of a checkpoint: arrays of the shapes that `model` has, with nothing in them."""
    import jax
    import tensorstore as ts

    from jaxgpt.model import build

    for path in (*folder.glob("ocdbt.process_0"), folder / "d"):
        shutil.rmtree(path)
    (folder / "manifest.ocdbt").unlink()
    context = ts.Context()
    for path, leaf in jax.tree.leaves_with_path(build.abstract_params(model)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": f"file://{folder.resolve()}/", "path": f"{name}/"},
            "metadata": {"shape": list(leaf.shape), "chunks": list(leaf.shape), "dtype": "<f4", "compressor": None},
        }
        ts.open(spec, create=True, context=context).result()


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("program", ["train", "jaxgpt.prepare"])
def test_a_packed_text_that_fills_all_memory_is_refused(suffix, program, here):
    pack = gzip.compress if suffix == "gz" else zstandard.ZstdCompressor().compress
    Path(f"bomb.txt.{suffix}").write_bytes(pack(b"a" * 2**26) * 64)  # 4 GiB in 4 MiB or less
    how = SMALL if program == "train" else ["--to", "tokens", "--tokenizer", "char"]
    assert "as no text does" in refused_with_little_memory(program, *how, "--data", f"bomb.txt.{suffix}")


@pytest.mark.parametrize(
    "pattern", ["(a+)+$(?!b)", "(?=(a+)+b)", "((a|a)*)*(?<!c)b", "(?:a{1,1000}){1,1000}", r"(.*)\1\1\1b"]
)
def test_a_tokenizers_regular_expression_cannot_take_for_ever(pattern, here, harmless):
    """Of which some would take longer than there is time, in a text made for it."""
    from jaxgpt.data.tokenizer import BPETokenizer

    tokenizer = BPETokenizer.train("a" * 1000 + " b" * 1000, 258)
    tokenizer.save("weights/tokenizer.json")
    content = json.loads(Path("weights/tokenizer.json").read_bytes())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    Path("weights/tokenizer.json").write_text(json.dumps(content))
    widen(Path("weights"), 258)
    Path("prompt.txt").write_text("a" * 5000)
    harmless(sample, "--run", "weights", "--prompt-file", "prompt.txt", "--tokens", "3")


def widen(folder: Path, vocab_size: int) -> None:
    """Gives a model more rows of its table."""
    import safetensors.numpy as safetensors

    tensors = safetensors.load_file(folder / "model.safetensors")
    name = "transformer.wte.weight"
    tensors[name] = np.resize(tensors[name], (vocab_size, tensors[name].shape[1]))
    safetensors.save_file(
        {n: x for n, x in tensors.items() if not n.startswith("lm_head")}, folder / "model.safetensors"
    )
    config = json.loads((folder / "config.json").read_bytes())
    config |= {"vocab_size": vocab_size, "tie_word_embeddings": True}
    config.pop("jaxgpt", None)
    (folder / "config.json").write_text(json.dumps(config))


# What a terminal would obey


def test_control_characters_in_names_and_values_do_not_reach_a_terminal(here, outcome):
    escape = "\x1b]0;owned\x07\x1b[2J\r"
    config = json.loads(Path("run/config.json").read_bytes())
    for name in (escape, "preset", "data"):
        Path("run/config.json").write_text(json.dumps(config | {name: escape}))
        for arguments in ([sample, "--run", "run", "--tokens", "3"], [evaluate, "--run", "run"]):
            assert "\x1b" not in outcome(*arguments)[1]
    os.rename("run", f"run{escape}")
    assert "\x1b" not in outcome(evaluate, "--run", f"run{escape}", "--data", "text.txt")[1]
    assert "\x1b" not in outcome(train, "--resume", f"run{escape}")[1]
