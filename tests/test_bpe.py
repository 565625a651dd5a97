"""Byte pairs are learnt and encoded as the library `tokenizers` does it, whole or cut; files of others are read."""

import json
import random

import numpy as np
import pytest
import tokenizers

from jaxgpt.data import bpe
from jaxgpt.data.bpe import BPETokenizer, BytesTokenizer
from jaxgpt.data.tokenizer import load_tokenizer
from jaxgpt.errors import UserError

PIECES = [
    *("hello", "the night", "ROMEO:", "don't", "we'll", "'S", "'s", "naïve", "e\u0301", "ſ", "123", " 42", "½", "١٢"),
    *(
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "\x0b",
        "\x1c",
        "\x85",
        "\u00a0",
        "\u2028",
        "\u3000",
        "\u200b",
        "\ufeff",
    ),
    *("你好", "こんにちは", "안녕", " שלום", "مرحبا", "नमस्ते", "ไทย", "🎭", "👨‍👩‍👧", "🏳️‍🌈", "\U0010ffff", "\x00"),
    *("def f(x):\n    return x**2  # hi", "!?...", "--", "_", "<|end", "|>"),
]


def some_text(seed: int, pieces: int = 60) -> str:
    return "".join(random.Random(seed).choices(PIECES, k=pieces))


TEXTS = [some_text(seed) for seed in range(50)]
BPE = BPETokenizer.train(TEXTS, 500)


def message(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


# bytes


def test_a_byte_is_its_value():
    assert BytesTokenizer().encode("né\n").tolist() == [110, 0xC3, 0xA9, 10]
    assert BytesTokenizer().decode([110, 0xC3, 0xA9, 10]) == "né\n"


@pytest.mark.parametrize("tokens", [[0xC3], [0xE2, 0x82, 65], [0xFF, 0xFE], [0xF0, 0x9F, 0x8E, 0xC3, 0xA9], [0x80] * 5])
def test_what_is_not_utf_8_becomes_replacement_characters_whole_or_piece_by_piece(tokens):
    decoder = BytesTokenizer().decoder()
    pieces = [decoder.decode([token]) for token in tokens]
    assert (
        "".join([*pieces, decoder.flush()]) == BytesTokenizer().decode(tokens) == bytes(tokens).decode(errors="replace")
    )


@pytest.mark.parametrize("tokenizer", [BytesTokenizer(), BPETokenizer.from_merges([])], ids=["bytes", "bpe"])
def test_half_a_character_waits_for_the_other_half(tokenizer):
    decoder = tokenizer.decoder()
    assert [decoder.decode([token]) for token in tokenizer.encode("a🎭b")] == ["a", "", "", "", "🎭", "b"]
    assert decoder.flush() == ""


# byte pairs


def test_tokens_are_the_bytes_in_gpt_2s_order_then_the_merges_then_the_end_of_text():
    tokenizer = BPETokenizer.train("abababab cdcdcd", 259)
    assert tokenizer.merges == ((b"a", b"b"), (b"c", b"d"))
    assert tokenizer.vocab[0] == b"!" and tokenizer.vocab[188] == b"\x00" and tokenizer.vocab[220] == b" "
    assert tokenizer.vocab[256:] == (b"ab", b"cd", b"<|endoftext|>")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (259, 258)
    assert tokenizer.encode("ab cd").tolist() == [256, 220, 257]


def test_the_end_of_text_is_shown_and_no_text_encodes_to_it():
    assert BPE.decode([BPE.end_of_text]) == "<|endoftext|>"
    tokens = BPE.encode("a<|endoftext|>b")
    assert BPE.end_of_text not in tokens and len(tokens) > 5
    assert BPE.decode(tokens) == "a<|endoftext|>b"


def test_every_text_has_the_tokens_that_tokenizers_gives_it(tmp_path):
    BPE.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*TEXTS, *map(some_text, range(100, 400)), ""]:
        tokens = BPE.encode(text).tolist()
        assert tokens == theirs.encode(text).ids
        assert BPE.decode(tokens) == text


def test_every_character_belongs_to_the_pre_tokens_that_tokenizers_gives_it(tmp_path):
    """Letters, digits, white space and the rest, as two libraries know them: some of each block of Unicode."""
    merges = [(b" ", b"a"), (b"1", b"1"), (b"a", b"a")]
    tokenizer = BPETokenizer.from_merges(merges)
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    characters = [chr(point) for point in range(0, 0x20000, 31) if not 0xD800 <= point < 0xE000]
    for text in (f"{c} a{c}aa{c}11{c}.{c}{c} {c}  {c}" for c in characters):
        assert tokenizer.encode(text).tolist() == theirs.encode(text).ids


def test_a_long_text_is_cut_where_no_token_is_torn(monkeypatch):
    for seed, text in enumerate(TEXTS):
        whole = BPE.encode(text).tolist()
        with monkeypatch.context() as patch:
            patch.setattr(bpe, "PART", 1 + seed % 12)
            assert BPE.encode(text).tolist() == whole
            assert BPE.decode(whole) == text


@pytest.mark.parametrize("run", ["a", "ab", "你", ".", "1"])
def test_a_run_without_spaces_of_any_length_is_encoded(run):
    tokens = BPETokenizer.from_merges([(b"a", b"b"), (b"a", b"a")]).encode(run * 300_000)
    assert len(tokens) == {"a": 150_000, "ab": 300_000, "你": 900_000, ".": 300_000, "1": 300_000}[run]


@pytest.mark.parametrize("white", [" ", "\u3000"])
def test_white_space_of_any_length_is_encoded(white):
    tokenizer = BPETokenizer.from_merges([(b" ", b"x"), (b" ", b" ")])
    run = white * 1_100_001  # more than tiktoken's regular expression can take in
    parts = [tokenizer.encode(part) for part in ("x", run, f"{white}x", run, f"{white}y")]
    assert np.array_equal(tokenizer.encode(f"x{run}{white}x{run}{white}y"), np.concatenate(parts))


def test_a_run_of_any_length_is_learnt_from():
    tokenizer = BPETokenizer.train("a" * 300_000 + " " * 300_000 + "b")
    assert tokenizer.vocab_size < 300
    assert len(tokenizer.encode("a" * 1000)) < 20


def test_only_the_beginning_of_a_long_text_is_learnt_from(monkeypatch):
    monkeypatch.setattr(bpe, "LEARNT_FROM", 100)
    asked = []
    texts = (asked.append(text) or text * 40 for text in ("ab ", "cd ", "ef "))
    assert set(BPETokenizer.train(texts).vocab[256:-1]) >= {b"ab"}
    assert asked == ["ab "]


def test_more_tokens_than_a_text_has_cannot_be_learnt():
    assert "but this text gives 259 tokens" in message(BPETokenizer.train, "abab abab", 1000)
    assert BPETokenizer.train("abab abab").vocab_size == 259
    assert message(BPETokenizer.train, "abab", 256) == (
        "`vocab_size` is 256: set it to 257 at least, for 256 bytes and <|endoftext|>"
    )


def test_a_large_vocabulary_takes_four_bytes_a_token():
    merges = [(bytes([a]), bytes([b])) for a in range(256) for b in range(256)]
    assert BPETokenizer.from_merges(merges[: 2**16 - 257]).encode("né").dtype == np.uint16
    tokenizer = BPETokenizer.from_merges(merges)
    assert tokenizer.encode("né").dtype == np.int32
    assert tokenizer.decode(tokenizer.encode("né")) == "né"


# the files of others


def foreign(**changes) -> dict:
    """A tokenizer.json as `tokenizers` writes it: another regular expression, special tokens in front."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r" ?[a-z]+|\s+|[^a-z]"), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    theirs.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|endoftext|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator(["the night is young and so are we the night the night"], trainer)
    return json.loads(theirs.to_str()) | changes


def load(content: dict, tmp_path) -> BPETokenizer:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return load_tokenizer(tmp_path / "tokenizer.json")


def test_a_file_of_others_gives_their_tokens_and_is_saved_as_it_was(tmp_path):
    content = foreign()
    theirs, ours = tokenizers.Tokenizer.from_str(json.dumps(content)), load(content, tmp_path)
    assert ours.end_of_text == 1 and ours.decode([0]) == "<|im_start|>"
    ours.save(tmp_path / "again.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "again.json"))
    assert load_tokenizer(tmp_path / "again.json") == ours
    for text in (*TEXTS, "the night\n\n is 12"):
        tokens = ours.encode(text).tolist()
        assert tokens == theirs.encode(text).ids == again.encode(text).ids
        assert ours.decode(tokens) == text
        assert ours.boundary(text) == 0  # who knows where that regular expression looks


@pytest.mark.parametrize("name, expected", [("</s>", 0), ("<|endoftext|>", 0), ("<mask>", None)])
def test_the_end_of_text_of_others(name, expected, tmp_path):
    content = json.loads(json.dumps(foreign(), ensure_ascii=False).replace("<|im_start|>", "<other>"))
    content = json.loads(json.dumps(content).replace("<|endoftext|>", "<last>").replace("<other>", name))
    assert load(content, tmp_path).end_of_text == expected


def test_a_text_that_a_regular_expression_leaves_out_in_part(tmp_path):
    content = foreign()
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[a-z]+"
    tokenizer = load(content, tmp_path)
    assert tokenizer.decode(tokenizer.encode("night")) == "night"
    assert "leaves out a part of the text" in message(tokenizer.encode, "the night")


@pytest.mark.parametrize(
    "path, value, cause",
    [
        ("normalizer", {"type": "NFC"}, "its normalizer is {'type': 'NFC'}, which is not supported"),
        ("model dropout", 0.1, "its dropout is 0.1"),
        ("model end_of_word_suffix", "</w>", "its end_of_word_suffix is '</w>'"),
        ("pre_tokenizer", None, "its pre_tokenizer is not supported: None"),
        ("pre_tokenizer", {"type": "Whitespace"}, "its pre_tokenizer is not supported: {'type': 'Whitespace'}"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "its pre_tokenizer is not supported"),
        ("pre_tokenizer pretokenizers 0 behavior", "Removed", "its pre_tokenizer is not supported"),
        ("pre_tokenizer pretokenizers 1 use_regex", True, "its pre_tokenizer is not supported"),
        ("added_tokens 0 special", False, "it must be a special token"),
        ("added_tokens", 7, "its added token 7 is not supported"),
        ("added_tokens 0", 7, "its added token 7 is not supported"),
        ("added_tokens 0 id", "0", "is not supported: it must be a special token"),
        ("added_tokens 0 id", 7, "are not numbered from 0 on"),
        ("added_tokens 0 content", "\ud800", "it must be a special token"),
        ("model vocab", None, "its vocabulary lacks a byte"),
        ("model vocab", {"a": 2, "b": 3}, "its vocabulary lacks a byte"),
        ("model vocab a", "1", "its vocabulary is no object of tokens and their numbers"),
        ("model vocab a", 10**12, "are not numbered from 0 on"),
        ("model vocab a", 5, "are not numbered from 0 on"),
        ("model vocab a", -1, "are not numbered from 0 on"),
        ("model merges 0", ["x", "你"], "its merge ['x', '你'] is no pair of tokens"),
        ("model merges 0", 7, "its merge 7 is no pair of tokens"),
        ("model merges 0", {"a": 1, "b": 2}, "is no pair of tokens"),
        ("model merges 0", ["z", "z"], "its merge of b'z' and b'z' contradicts the others"),
        ("model merges 1", ["t", "h"], "contradicts the others"),
        ("model merges", {}, "neither of characters nor a byte-level BPE"),
        ("pre_tokenizer pretokenizers 0 pattern Regex", "(", "its regular expression is not understood"),
    ],
)
def test_what_a_file_asks_for_in_vain_is_told(path, value, cause, tmp_path):
    content = foreign()
    *folders, last = [int(part) if part.isdecimal() else part for part in path.split()]
    where = content
    for part in folders:
        where = where[part]
    where[last] = value
    said = message(load, content, tmp_path)
    assert said.startswith(f"{tmp_path / 'tokenizer.json'} is not a tokenizer: ") and cause in said


def test_merges_are_taken_if_and_only_if_their_order_is_that_of_what_they_give(tmp_path):
    """tiktoken merges by the rank of the result, `tokenizers` by that of the pair: on random merges, where they differ,
    the file is refused."""
    rng, taken = random.Random(0), 0
    for _ in range(60):
        tokens, merges = [b"a", b"b"], []
        for _ in range(6):
            pair = rng.choice(tokens), rng.choice(tokens)
            if b"".join(pair) not in tokens:
                merges.append(pair)
                tokens.append(b"".join(pair))
        tokenizer = BPETokenizer.from_merges(merges)
        tokenizer.save(tmp_path / "tokenizer.json")
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        texts = ["".join(rng.choices("ab", k=rng.randint(2, 14))) for _ in range(60)]
        same = all(tokenizer.encode(text).tolist() == theirs.encode(text).ids for text in texts)
        try:
            load_tokenizer(tmp_path / "tokenizer.json")
            taken += 1
            assert same
        except UserError as refusal:
            assert "contradicts the others" in str(refusal)
    assert 10 < taken < 50
