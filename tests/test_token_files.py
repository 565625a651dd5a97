"""Token files are read where they are asked for, and what is wrong with them is told before it is trained on."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.data import batches, token_files
from jaxgpt.data.token_files import TokenFile
from jaxgpt.errors import UserError

SHA = "0" * 64
MANIFEST = {
    "format": 1,
    "dtype": "uint16",
    "sha256": SHA,
    "files": {"train.bin": {"tokens": 90, "sha256": SHA}, "val.bin": {"tokens": 10, "sha256": SHA}},
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with token files and a manifest."""
    monkeypatch.chdir(tmp_path)
    np.arange(90, dtype="<u2").tofile("train.bin")
    np.arange(10, dtype="<u2").tofile("val.bin")
    Path("manifest.json").write_text(json.dumps(MANIFEST))
    return tmp_path


# Files


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_windows_of_a_file_are_those_of_the_array(dtype, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 2**16, 1000).astype(dtype)
    tokens.tofile(tmp_path / "a.bin")
    file = TokenFile(tmp_path / "a.bin", dtype)
    assert (len(file), file.nbytes, file.dtype) == (1000, tokens.nbytes, tokens.dtype)
    starts = np.array([0, 991, 5, 5])
    windows = batches.windows(file, starts, 8)
    assert windows.dtype == tokens.dtype
    np.testing.assert_array_equal(windows, batches.windows(tokens, starts, 8))
    np.testing.assert_array_equal(np.asarray(file), tokens)


def test_a_file_that_is_cut_off_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(200))
    file = TokenFile(path, "uint16")
    path.write_bytes(bytes(100))
    assert file.windows(np.array([40]), 10).shape == (1, 10)
    with pytest.raises(OSError, match="it ends before token 51"):
        file.windows(np.array([0, 41]), 10)


def test_what_is_no_file_of_tokens_is_refused(tmp_path):
    (tmp_path / "odd.bin").write_bytes(bytes(7))
    with pytest.raises(UserError, match=r"odd\.bin has 7 bytes, which are no uint16 tokens"):
        TokenFile(tmp_path / "odd.bin", "uint16")
    with pytest.raises(UserError, match=r"cannot read .*none\.bin \(No such file"):
        TokenFile(tmp_path / "none.bin", "uint16")


# Folders


def test_a_folder_of_token_files_is_one_that_has_both(folder):
    assert token_files.folder_of(str(folder)) == folder
    assert token_files.folder_of((str(folder),)) == folder
    assert token_files.folder_of((str(folder), "a.txt")) is None
    Path("val.bin").unlink()
    for data in (str(folder), "tinyshakespeare", "-", str(folder / "train.bin")):
        assert token_files.folder_of(data) is None


def test_files_are_opened_as_their_manifest_says(folder):
    manifest = token_files.read_manifest(folder)
    assert len(token_files.open_split(folder, "train.bin", manifest)) == 90
    np.arange(11, dtype="<u2").tofile("val.bin")
    with pytest.raises(UserError, match=r"^val\.bin has 11 tokens, and manifest\.json says 10: copy it again, or"):
        token_files.open_split(folder, "val.bin", manifest)
    Path("manifest.json").unlink()
    assert token_files.read_manifest(folder) is None
    assert token_files.open_split(folder, "val.bin", None).dtype == np.uint16


@pytest.mark.parametrize(
    "change, said",
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ([], "is damaged (it is no JSON object)"),
        ({"format": 2}, "was written by a newer version of jaxgpt"),
        ({"dtype": "float32"}, "is damaged (its dtype is none of uint16, uint32)"),
        ({"dtype": ["uint16"]}, "is damaged (its dtype"),
        ({"sha256": None}, "is damaged (it has no sha256)"),
        ({"files": []}, "is damaged (it does not tell the tokens of train.bin)"),
        ({"files": {**MANIFEST["files"], "val.bin": {"tokens": "10"}}}, "does not tell the tokens of val.bin"),
        ({"files": {**MANIFEST["files"], "val.bin": {"tokens": 10, "sha256": "x"}}}, "has no sha256 of val.bin"),
    ],
    ids=str,
)
def test_a_damaged_manifest_is_told_in_a_line(change, said, folder):
    content = MANIFEST | change if isinstance(change, dict) else change
    Path("manifest.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        token_files.read_manifest(folder)
    assert said in str(caught.value)
    assert str(caught.value).startswith("manifest.json ")
    assert str(caught.value).isprintable()


def test_files_without_a_manifest_are_known_by_their_length_and_what_is_in_them(tmp_path):
    def fingerprint(*arrays: np.ndarray) -> tuple[str, int]:
        files = []
        for i, tokens in enumerate(arrays):
            tokens.astype("<u2").tofile(tmp_path / f"{i}.bin")
            files.append(TokenFile(tmp_path / f"{i}.bin", "uint16"))
        return token_files.fingerprint(*files)

    tokens = np.arange(100)
    first, greatest = fingerprint(tokens, tokens[:10])
    assert (len(first), greatest) == (64, 99)
    changed = tokens.copy()
    changed[50] = 7
    others = [(tokens, tokens[:11]), (tokens[:10], tokens), (changed, tokens[:10]), (tokens[:99], tokens[:10])]
    assert len({first, *(fingerprint(*arrays)[0] for arrays in others)}) == 5
    assert fingerprint(tokens, tokens[:0])[1] == 99
    long = np.zeros(5_000_000, np.uint16)
    was = fingerprint(long, tokens)[0]
    long[-1] = 1
    assert fingerprint(long, tokens)[0] != was


def test_checksums_are_of_each_file_and_of_all_in_a_row(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    abc, empty, both = token_files.checksums(tmp_path / "a", tmp_path / "b")
    assert abc == both == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert empty == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
