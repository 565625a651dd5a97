"""Bad inputs of every kind, made at random from a seed: one clear line, exit code 2, and nothing on the disk changes.

`pytest -m slow -s tests/test_bad_inputs.py` tries 69, with --thorough 322. A case is spoilt by its kind and its number
alone, so that one that fails can be tried again.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from time_limit import time_limit

import jaxgpt
from jaxgpt import config as configs
from jaxgpt import evaluate, export, prepare
from jaxgpt.cli import sample, train
from jaxgpt.runs.export import export as export_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="what hangs is ended by a signal"),
]

SEED = 14
LONGEST_LINE = 450  # characters, with two paths in it
SMALL = """
    --preset cpu --n-layer 1 --n-head 2 --n-embd 8 --block-size 16 --batch-size 2 --max-steps 2 --warmup-steps 1
    --eval-interval 2 --eval-windows 4 --sample-tokens 0
""".split()  # noqa: SIM905
RUN, WEIGHTS, TOKENS = "runs/cpu", "weights", "tokens"
DEEP = "[" * 100_000
Random = np.random.Generator


# What is spoilt: each kind takes random numbers, spoils something in the current folder, and gives a command to try.
# In the folder are text.txt, a run of that text, its export for transformers, and the text as token files.


def one_of(rng: Random, choices):
    return choices[int(rng.integers(len(choices)))]


def read_the_run(rng: Random):
    """A command that reads the run."""
    commands = [(sample, []), (evaluate, []), (export, ["--to", "exported"]), (train, ["--max-steps", "4"])]
    command, rest = one_of(rng, commands)
    return command, ["--resume" if command is train else "--run", RUN, *rest]


def read_the_weights(rng: Random):
    """A command that reads the weights in Hugging Face's format."""
    commands = [(sample, []), (evaluate, ["--data", "text.txt"]), (export, ["--to", "exported"])]
    command, rest = one_of(rng, [*commands, (train, ["--data", "text.txt"])])
    return command, ["--from" if command is train else "--run", WEIGHTS, *rest]


def read_a_text(rng: Random, path: str):
    """A command that reads a text."""
    commands = [(train, SMALL), (evaluate, ["--run", RUN]), (prepare, ["--to", "prepared", "--tokenizer", "char"])]
    command, rest = one_of(rng, commands)
    return command, [*rest, "--data", path]


JUNK = {
    int: ["many", "1.5", "", "1e3", "nan", "0x10", "9" * 5000, "1 000", "None"],
    float: ["x", "", "nan", "inf", "-inf", "1e400", "1,5", "[0]", "true"],
    bool: ["yes", "1", "", "None", "\x1b[31m"],
}


def flag_of_another_type(rng: Random):
    field = one_of(rng, [field for field in configs.fields().values() if field.type in JUNK or is_choice(field)])
    value = one_of(rng, ["x", "", str(field.default).upper(), "a" * 500] if is_choice(field) else JUNK[field.type])
    return train, [*SMALL, "--data", "text.txt", f"--{field.name}={value}"]


def is_choice(field) -> bool:
    return isinstance(field.type, tuple)


def flag_out_of_bounds(rng: Random):
    counts = [name for name, field in configs.fields().items() if field.type is int]
    shares = ["dropout", "embd_dropout", "beta1", "beta2", "muon_momentum", "ema_decay", "decay_start"]
    rates = ["learning_rate", "muon_learning_rate"]
    name = one_of(rng, [*counts, *shares, *rates])
    value = "-1" if name in counts else one_of(rng, ["-0.1", "1", "1e308"] if name in shares else ["0", "-1e-9"])
    return train, [*SMALL, "--data", "text.txt", f"--{name}={value}"]


def flags_that_contradict(rng: Random):
    pairs = [
        "--n-head 3", "--n-embd 9", "--n-head 8 --value-shift", "--n-head 8 --positions rotary", "--micro-batches 3",
        "--learning-rate 1e-5 --min-learning-rate 1e-4", "--block-size 100000", "--vocab-size 3", "--architecture gtp",
        "--tokenizer chra", "--preset cpuu", "--tokenizer bpe --vocab-size 10", "--tokenizer bytes --vocab-size 255",
        "--out runs/cpu", "--out text.txt", "--out text.txt/run", "--resume runs/cpu --out runs/other",
        "--resume text.txt", "--resume nowhere", "--resume runs/cpu", "--from nowhere", "--from text.txt",
    ]  # fmt: skip
    return train, [*SMALL, "--data", "text.txt", *one_of(rng, pairs).split()]


def flag_that_is_none(rng: Random):
    command, rest = read_the_run(rng)
    slips = ["--lerning-rate", "--tokesn=1", "-x", "word", "", "--", "--no-run", "--ru\x1b[2Jn", "é" * 1000, "--run="]
    return command, [*rest, one_of(rng, slips)]


def path_that_cannot_be(rng: Random):
    path = one_of(rng, ["a" * 300, "a/" * 3000, "nul\0", "text.txt/x", "~nobody-is-called-so/x", "\udcff/x", "loop/x"])
    Path("loop").symlink_to("loop")
    tries = [
        (sample, ["--run", path]), (sample, ["--run", RUN, "--prompt-file", path]), (evaluate, ["--run", path]),
        (export, ["--run", path, "--to", "exported"]), (train, ["--resume", path]),
        (train, [*SMALL, "--data", path]), (train, [*SMALL, "--from", path, "--data", "text.txt"]),
        (prepare, ["--data", path, "--to", "prepared"]), (prepare, ["--verify", path]),
    ]  # fmt: skip
    return one_of(rng, tries)


def place_that_cannot_be_written(rng: Random):
    Path("loop").symlink_to("loop")
    place = one_of(rng, ["a" * 300, "nul\0", "text.txt", "text.txt/x", "loop", "loop/x", RUN])
    tries = [
        (export, ["--run", RUN, "--to", place]), (export, ["--run", RUN, "--format", "gguf", "--to", place]),
        (evaluate, ["--run", RUN, "--losses", place if place != "text.txt" else "loop"]),
        (prepare, ["--data", "text.txt", "--tokenizer", "char", "--to", place]),
        (train, [*SMALL, "--data", "text.txt", "--out", place]),
    ]  # fmt: skip
    return one_of(rng, tries)


def sampling_that_cannot_be(rng: Random):
    slips = [
        "--tokens 0", "--tokens -5", "--tokens 1e3", "--samples 0", "--seed -1", "--seed 4294967296", "--top-k -1",
        "--temperature nan", "--temperature -1", "--temperature inf", "--top-p 0", "--top-p 1.01", "--top-p nan",
        "--min-p 2", "--min-p nan", "--weights int8", "--checkpoint worst", "--stop=", "--prompt-file", "--json maybe",
        "--tokens 99999999999999999999", "--samples 99999999999999999999", "--top-k 99999999999999999999999",
    ]  # fmt: skip
    return sample, ["--run", RUN, *one_of(rng, slips).split(" ")]


def prompt_that_cannot_be(rng: Random):
    prompt = one_of(rng, ["", "§", "ROMEO€", "\udce9", "\ud800", "\x1b[31m", "日本語" * 1000, "R\0"])
    if rng.integers(2):
        return sample, ["--run", RUN, "--prompt", prompt]
    Path("prompt.txt").write_bytes(prompt.encode("utf-8", "surrogatepass") or b"\xff\xfe\xfd")
    return sample, ["--run", RUN, "--prompt-file", "text.txt", "prompt.txt"]


HEADS = [
    b"%PDF-1.7\n", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x93NUMPY\x01\0", b"\x80\x04\x95",
    b"\xfd7zXZ\0", b"BZh91AY&SY", b"7z\xbc\xaf\x27\x1c", b"SQLite format 3\0", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd",
    b"\xff\xfe\xff", b"\xfe\xff\xd8", b"\xff\xfe\0\0\xff",
]  # fmt: skip


def text_that_is_none(rng: Random):
    noise = rng.bytes(int(rng.integers(10, 4000)))
    content = one_of(
        rng,
        [
            b"", b" \n\t\n", "\ufeff".encode(), noise + b"\xff", b"fine so far \xe2\x82", "Pâté".encode("latin-1") * 9,
            ("ROMEO: the night\n" * 50).encode("utf-16-le"), ("ROMEO: the night\n" * 50).encode("utf-32-be"),
            *(head + noise for head in HEADS),
        ],
    )  # fmt: skip
    Path("bad.txt").write_bytes(content)
    return read_a_text(rng, "bad.txt")


def text_that_is_no_file(rng: Random):
    Path("empty").mkdir()
    Path("hidden").mkdir()
    Path("hidden/.a.txt").write_text("ROMEO")
    Path("dangling").symlink_to("nowhere")
    places = ["empty", "hidden", "dangling", "nowhere.txt", "*.nothing", "/dev/zero", "https://example.org/a.txt", ""]
    return read_a_text(rng, one_of(rng, places))


def packed_text_that_is_damaged(rng: Random):
    import gzip

    import zstandard

    plain = Path("text.txt").read_bytes()
    pack, suffix = one_of(rng, [(gzip.compress, "gz"), (zstandard.ZstdCompressor().compress, "zst")])
    packed = bytearray(pack(plain))
    if rng.integers(2):
        packed = packed[: int(rng.integers(5, len(packed) - 1))]
    else:
        at = int(rng.integers(len(packed) // 4, len(packed) // 2))
        packed[at : at + 8] = bytes(byte ^ 0xFF for byte in packed[at : at + 8])
    Path(f"bad.txt.{suffix}").write_bytes(packed)
    return read_a_text(rng, f"bad.txt.{suffix}")


def json_lines_that_are_none(rng: Random):
    good = '{"text": "ROMEO: the night"}\n' * 3
    bad = [
        '{"text": "cut off', "[1, 2]", '{"text": 3}', '{"text": null}', '{"txt": "ROMEO"}', "ROMEO", "null", DEEP,
        '{"text": ' + "9" * 5000 + "}", '{"text": ["a"]}', "{" + '"a":{' * 100_000, '{"text": "\x01"}',
    ]  # fmt: skip
    Path("bad.jsonl").write_text(good + one_of(rng, bad) + "\n" + good)
    return read_a_text(rng, "bad.jsonl")


# JSON that is spoilt

VALUES = ['null', '[]', '{}', '"x"', '-1', '1.5', '1e400', 'NaN', '-Infinity', '1' + '0' * 300, '"' + 'x' * 10**6 + '"',
          DEEP + ']' * len(DEEP), '[[]]', '{"a": [1]}', '"\\ud800"', '"\\u001b[2J"']  # fmt: skip
GARBAGE = ['', '{', '[]', 'null', '3', '"text"', DEEP, '{"a":' * 100_000, '\0' * 100, '{} {}', '{"model": []}',
           '{"model": 3}', '{"preset": "cpu", "colour": 1}', '\ufeff{]']  # fmt: skip
KINDS_OF_JSON = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}


def config_with_a_wrong_value(rng: Random):
    path = Path(RUN, "config.json")
    content = json.loads(path.read_bytes())
    content |= content.pop("model")
    name = one_of(rng, sorted(content))
    wrong = [value for value in VALUES if not may_be(configs.fields()[name].type, value)]
    path.write_text(replaced(content, name, one_of(rng, wrong)))
    return read_the_run(rng)


def may_be(kind, value: str) -> bool:
    """Whether a field may have this value, and the run go on: some are told of only where the field is used."""
    if kind is int or kind is float:
        return kind is float and value == "1.5"
    return value.startswith('"') if kind is str else value == "[]" or value.startswith('"')


def replaced(content: dict, name: str, value: str) -> str:
    """JSON with a value that Python's own writer would not write."""
    return json.dumps(content | {name: "\0"}).replace('"\\u0000"', value)


def config_that_was_changed(rng: Random):
    """To values that are possible: the weights were trained with others."""
    path = Path(RUN, "config.json")
    content = json.loads(path.read_bytes())
    bias = not content["model"]["bias"]
    fields = {"n_embd": 16, "n_layer": 2, "block_size": 32, "n_head": 1, "bias": bias, "positions": "rotary",
              "vocab_size": 7, "architecture": "bigram", "activation": "relu", "embd_norm": True}  # fmt: skip
    name = one_of(rng, sorted(fields))
    content["model"][name] = fields[name]
    path.write_text(json.dumps(content))
    return read_the_run(rng)


def json_that_is_none(rng: Random):
    name = one_of(rng, ["config.json", "tokenizer.json"])
    folder, read = one_of(rng, [(RUN, read_the_run), (WEIGHTS, read_the_weights)])
    Path(folder, name).write_text(one_of(rng, GARBAGE), "utf-8")
    return read(rng)


def tokenizer_that_is_wrong(rng: Random):
    folder, read = one_of(rng, [(RUN, read_the_run), (WEIGHTS, read_the_weights)])
    path = Path(folder, "tokenizer.json")
    content = json.loads(path.read_bytes())
    vocab = content["model"]["vocab"]
    first = next(iter(vocab))

    def without(character):
        del vocab[character]

    spoils = [
        lambda: without(first),
        lambda: vocab.update({"€": len(vocab), "§": len(vocab) + 1}),
        lambda: vocab.update({first: -1}),
        lambda: vocab.update({first: 10**12}),
        lambda: vocab.update({first: "0"}),
        lambda: vocab.update({"two": vocab.pop(first)}),
        lambda: content["model"].update(vocab=[]),
        lambda: content["model"].update(type="Unigram"),
        lambda: content["model"].update(type=[], merges=3),
        lambda: content.update(model={"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]}),
        lambda: content.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
        lambda: content.update(added_tokens=[{"id": 0}]),
        lambda: content.update(model=None),
    ]
    one_of(rng, spoils)()
    path.write_text(json.dumps(content), "utf-8")
    return read(rng)


def run_that_lacks_a_part(rng: Random):
    run = Path(RUN)
    step = next((run / "checkpoints").iterdir())
    parts = [run / "config.json", run / "tokenizer.json", run / "checkpoints", step, step / "params",
             step / "params/manifest.ocdbt", step / "params/_METADATA", step / "progress"]  # fmt: skip
    part = one_of(rng, parts)
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    other = one_of(rng, ["nothing", "folder", "file", "link"])
    if other == "folder":
        part.mkdir()
    elif other == "file":
        part.write_bytes(rng.bytes(100))
    elif other == "link":
        part.symlink_to("/nowhere")
    return read_the_run(rng)


def checkpoint_that_is_damaged(rng: Random):
    (step,) = Path(RUN, "checkpoints").iterdir()
    read = [step / "manifest.json", *step.glob("params/**/*"), *step.glob("progress/*")]  # by all commands
    path = one_of(rng, sorted(file for file in read if file.is_file() and file.stat().st_size))
    content = bytearray(path.read_bytes())
    way = int(rng.integers(3))
    if way == 0:
        content = content[: int(rng.integers(len(content)))]
    elif way == 1:
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    else:
        content = bytearray(rng.bytes(len(content)))
    path.write_bytes(content)
    return read_the_run(rng)


def weights_that_are_damaged(rng: Random):
    path = Path(WEIGHTS, "model.safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name, other = one_of(rng, names), one_of(rng, names)
    neighbour = names[names.index(name) - 1]
    spoils = {
        "shape": lambda: header[name].update(shape=[1, *header[name]["shape"]]),
        "huge shape": lambda: header[name].update(shape=[2**40]),
        "negative": lambda: header[name].update(shape=[-1]),
        "dtype": lambda: header[name].update(dtype=one_of(rng, ["I32", "BOOL", "F8_E4M3", "X", 3, "F64"])),
        "beyond": lambda: header[name].update(data_offsets=[2**50, 2**50 + 4]),
        "overlap": lambda: header[name].update(data_offsets=header[neighbour]["data_offsets"]),
        "backwards": lambda: header[name].update(data_offsets=header[name]["data_offsets"][::-1]),
        "lack": lambda: header.pop(name),
        "foreign": lambda: header.update({f"h.99.{other}": header.pop(name)}),
        "no object": lambda: header.update({name: 3}),
    }
    way = one_of(rng, [*spoils, "truncated", "long header", "no header", "empty", "noise"])
    if way in spoils:
        spoils[way]()
    packed = json.dumps(header).encode()
    packed = struct.pack("<Q", len(packed)) + packed + data
    others = {
        "truncated": packed[: int(rng.integers(9, len(packed) - 1))],
        "long header": struct.pack("<Q", 2**60) + packed[8:],
        "no header": struct.pack("<Q", 2) + b"{}" + data,
        "empty": b"",
        "noise": rng.bytes(1000),
    }
    path.write_bytes(others.get(way, packed))
    return read_the_weights(rng)


def weights_that_are_elsewhere(rng: Random):
    folder = Path(WEIGHTS)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    names = ["../text.txt", "/etc/passwd", "..", "", None, 3, "a/b.safetensors", "missing.safetensors", "..\\x", "\0"]
    index = one_of(rng, [{"weight_map": {"wte.weight": name}} for name in names] + [{"weight_map": []}, [], {}, 3])
    if rng.integers(4):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    return read_the_weights(rng)


def model_that_is_none_of_ours(rng: Random):
    path = Path(WEIGHTS, "config.json")
    content = json.loads(path.read_bytes())
    content.pop("jaxgpt", None)
    names = ["model_type", "n_embd", "n_layer", "n_head", "vocab_size", "n_positions", "activation_function"]
    wrong = ["null", "-1", "0", "1e400", '"x"', "[]", "{}", "1.5", "1" + "0" * 30, '"' + "x" * 10**6 + '"']
    path.write_text(replaced(content, one_of(rng, names), one_of(rng, wrong)))
    return read_the_weights(rng)


def token_files_that_are_wrong(rng: Random):
    folder = Path(TOKENS)
    manifest = json.loads((folder / "manifest.json").read_bytes())

    def write():
        (folder / "manifest.json").write_text(json.dumps(manifest))

    spoils = [
        lambda: (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-2]),
        lambda: (folder / "val.bin").write_bytes(b"\0"),
        lambda: (folder / "manifest.json").write_text(one_of(rng, GARBAGE)),
        lambda: (folder / "manifest.json").unlink(),
        lambda: (folder / "tokenizer.json").unlink(),
        lambda: (folder / "tokenizer.json").write_text(one_of(rng, GARBAGE)),
        lambda: (manifest.update(dtype="float64"), write()),
        lambda: (manifest.update(dtype=[]), write()),
        lambda: (manifest.update(format=99), write()),
        lambda: (manifest["files"].update({"train.bin": 3}), write()),
        lambda: (manifest["files"]["val.bin"].update(tokens=10**30), write()),
    ]
    one_of(rng, spoils)()
    if rng.integers(2):
        return prepare, ["--verify", TOKENS]
    return train, [*SMALL, "--data", TOKENS]


def preparing_that_cannot_be(rng: Random):
    slips = [
        "--val-share 2", "--val-share nan", "--val-share -0.1", "--val-share x", "--vocab-size -1", "--vocab-size 3",
        "--tokenizer bpe --vocab-size 9999999", "--tokenizer nothing", "--to text.txt/x", "--to runs", "--data nothing",
        "--verify runs", "--verify nowhere", "--text-field", "--vocab-size 1e3",
    ]  # fmt: skip
    return prepare, ["--data", "text.txt", "--to", "prepared", "--tokenizer", "char", *one_of(rng, slips).split()]


KINDS = [
    flag_of_another_type, flag_out_of_bounds, flags_that_contradict, flag_that_is_none, path_that_cannot_be,
    place_that_cannot_be_written, sampling_that_cannot_be, prompt_that_cannot_be, text_that_is_none,
    text_that_is_no_file, packed_text_that_is_damaged, json_lines_that_are_none, config_with_a_wrong_value,
    config_that_was_changed, json_that_is_none, tokenizer_that_is_wrong, run_that_lacks_a_part,
    checkpoint_that_is_damaged, weights_that_are_damaged, weights_that_are_elsewhere, model_that_is_none_of_ours,
    token_files_that_are_wrong, preparing_that_cannot_be,
]  # fmt: skip


# How they are tried


@pytest.fixture(scope="module")
def template(text, tmp_path_factory) -> Path:
    """A folder with all that is spoilt."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "text.txt").write_text(text, "utf-8")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        assert train.main([*SMALL, "--data", "text.txt", "--out", RUN]) == 0
        export_run(jaxgpt.load(RUN), WEIGHTS)
        assert prepare.main(["--data", "text.txt", "--to", TOKENS, "--tokenizer", "char"]) == 0
    return folder


def contents(folder: Path) -> dict[str, str]:
    """What is on the disk: every name below `folder`, and what it stands for."""
    found = {}
    for path in sorted(folder.rglob("*")):
        what = f"link to {os.readlink(path)}" if path.is_symlink() else "folder" if path.is_dir() else ""
        found[str(path.relative_to(folder))] = what or hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def complaint(command, arguments: list[str], capfd) -> str:
    """What is not as it should be when a command gets these arguments; nothing where all is."""
    before = contents(Path())
    capfd.readouterr()
    try:
        with time_limit():
            code = command.main(arguments)
    except BaseException as error:
        return f"{type(error).__name__} came out of it: {str(error)[:300]}"
    err = capfd.readouterr().err
    if code != 2:
        return f"exit code {code}, {err[:300]!r}"
    if not (err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1 and err[:-1].isprintable()):
        return f"not one line: {err[:500]!r}"
    if len(err) > LONGEST_LINE:
        return f"{len(err)} characters: {err[:300]!r}"
    if changed := sorted(name for name, _ in before.items() ^ contents(Path()).items()):
        return f"changed: {changed[:5]}, {err[:200]!r}"
    print(err, end="")
    return ""


def test_a_bad_input_is_one_line_and_leaves_everything_as_it_was(template, tmp_path, monkeypatch, capfd, thorough):
    times = len(KINDS) * (14 if thorough else 3)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    failures, tried, said = [], Counter(), set()
    for i in range(times):
        kind = KINDS[i % len(KINDS)]
        here = shutil.copytree(template, tmp_path / f"case-{i}", symlinks=True)
        with contextlib.chdir(here):
            command, arguments = kind(np.random.default_rng((SEED, i)))
            if problem := complaint(command, arguments, capfd):
                shown = [argument[:60] for argument in arguments if argument not in SMALL]
                failures.append(f"case {i}, {kind.__name__}, {command.__name__} {shown}: {problem}")
            else:
                said.add(capfd.readouterr().out)
        tried[kind.__name__] += 1
        shutil.rmtree(here)
    with capfd.disabled():
        print(f"\nseed {SEED}: {times} bad inputs of {len(tried)} kinds, {len(said)} different lines, "
              f"{len(failures)} that were not one line and exit code 2")  # fmt: skip
    assert not failures, "\n".join(failures)
