"""Characters become tokens and come back, whole or piece by piece, and what cannot be encoded or loaded is told."""

import json
import unicodedata

import numpy as np
import pytest
import tokenizers

from jaxgpt.data import gpt2_vocabulary
from jaxgpt.data.tokenizer import TOKENIZERS, CharTokenizer, load_folder, load_tokenizer, train_tokenizer
from jaxgpt.errors import UserError

HELLO = CharTokenizer.train("hello")

# beyond the basic plane, a combining mark, line ends, and both halves of a pair that are not a pair
ODD = "a\u0301\r\n\x00\u2028𝄞🎭\U0010ffff\udfff\ud800\udbff"


TEXT = "naïve 文 🎭\r\nIt is,  it is I, my lord.\n<|endoftext|>\t'Tis I'll\x85\u3000١٢.\n" * 20


@pytest.fixture(autouse=True)
def gpt2(monkeypatch):
    """A GPT-2 that needs no network, with three merges."""
    monkeypatch.setattr(gpt2_vocabulary, "load", lambda: [(b"i", b"s"), (b" ", b"is"), (b"t", b" is")])


def message(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


# every kind


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_kind_keeps_the_promises_of_a_tokenizer(kind, tmp_path):
    tokenizer, text = train_tokenizer(kind, TEXT), TEXT
    tokens = tokenizer.encode(text)
    assert tokenizer.kind == kind
    assert tokens.ndim == 1 and np.issubdtype(tokens.dtype, np.integer)
    assert tokens.min() >= 0 and tokens.max() < tokenizer.vocab_size
    assert tokenizer.decode(tokens) == text
    assert len(tokenizer.encode(tokenizer.start)) >= 1
    decoder = tokenizer.decoder()
    pieces = [decoder.decode(piece) for piece in np.split(tokens, range(1, len(tokens), 3))]
    assert "".join([*pieces, decoder.flush()]) == text
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").encode(text).tolist() == tokens.tolist()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_other_programs_read_the_saved_file_and_give_the_same_tokens(kind, tmp_path):
    tokenizer, text = train_tokenizer(kind, TEXT), TEXT.replace("<|endoftext|>", "<|end|>")
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokens = tokenizer.encode(text).tolist()
    assert theirs.encode(text).ids == tokens
    assert theirs.decode(tokens) == text
    assert theirs.get_vocab_size() == tokenizer.vocab_size


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_text_can_be_cut_at_its_boundary_whatever_follows(kind):
    tokenizer = train_tokenizer(kind, TEXT)
    for n in range(1, 60):
        cut = tokenizer.boundary(TEXT[:n])
        for whole in (TEXT, TEXT[:n], TEXT[:n] + " ", TEXT[:n] + "\n\n.", TEXT[:n] + "t"):
            parts = np.concatenate([tokenizer.encode(whole[:cut]), tokenizer.encode(whole[cut:])])
            assert parts.tolist() == tokenizer.encode(whole).tolist()
    assert tokenizer.boundary(TEXT) >= len(TEXT) - 20


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_several_texts_are_trained_on_as_one(kind):
    tokenizer = train_tokenizer(kind, iter(["the night ", "the nurse "]))
    assert tokenizer == train_tokenizer(kind, "the night the nurse ")
    assert tokenizer.decode(tokenizer.encode("the nurse")) == "the nurse"


@pytest.mark.parametrize("kind", ["char", "bytes", "gpt2"])
def test_a_vocabulary_that_has_its_size_can_have_no_other(kind):
    size = train_tokenizer(kind, TEXT).vocab_size
    assert train_tokenizer(kind, TEXT, size).vocab_size == size
    assert message(train_tokenizer, kind, TEXT, 300).startswith("`vocab_size` is 300, but ")


@pytest.mark.parametrize("kind", ["bytes", "gpt2", "bpe"])
def test_half_a_character_cannot_be_encoded_as_bytes(kind):
    encode = train_tokenizer(kind, TEXT).encode
    assert message(encode, "caf\udce9") == "the text is not UTF-8 (it has the byte 0xe9): convert it to UTF-8"
    assert message(encode, "caf\ud800") == "the text is not UTF-8 (it has half a character): convert it to UTF-8"


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("token", [-1, 10**6])
def test_what_is_no_token_is_refused(kind, token):
    tokenizer = train_tokenizer(kind, TEXT)
    for decode in (tokenizer.decode, tokenizer.decoder().decode):
        assert f"token {token} is outside the vocabulary of {tokenizer.vocab_size}" in message(decode, [0, token])


def test_a_kind_that_does_not_exist():
    assert message(train_tokenizer, "chars", "text") == "there is no tokenizer of kind 'chars': did you mean 'char'?"
    assert message(train_tokenizer, "sentencepiece", "text") == (
        "there is no tokenizer of kind 'sentencepiece': there is 'char', 'bytes', 'gpt2', 'bpe'"
    )


# characters


def test_tokens_are_places_in_the_sorted_alphabet():
    assert HELLO.characters == "ehlo"
    assert HELLO.vocab_size == 4
    assert HELLO.encode("hello").tolist() == [1, 0, 2, 2, 3]


def test_encoding_agrees_with_the_lectures_dictionary():
    text = "O Romeo, Romeo! wherefore art thou Romeo?\n" * 50
    place = {character: i for i, character in enumerate(sorted(set(text)))}
    assert CharTokenizer.train(text).encode(text).tolist() == [place[character] for character in text]


@pytest.mark.parametrize("text", ["hello", "", ODD], ids=["plain", "empty", "odd"])
def test_decode_undoes_encode(text):
    tokenizer = CharTokenizer.train(text + "x")
    tokens = tokenizer.encode(text)
    assert tokens.shape == (len(text),)
    assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("sequence", [list, tuple, lambda ids: np.array(ids, np.int32)])
def test_any_integers_can_be_decoded(sequence):
    assert HELLO.decode(sequence([1, 0, 2, 2, 3])) == "hello"
    assert HELLO.decode(sequence([])) == ""


@pytest.mark.parametrize("vocab_size, dtype", [(65, np.uint16), (2**16, np.uint16), (2**16 + 1, np.int32)])
def test_tokens_take_two_bytes_where_they_fit(vocab_size, dtype):
    text = "".join(map(chr, range(vocab_size)))
    tokens = CharTokenizer.train(text).encode(text)
    assert tokens.dtype == dtype
    assert tokens.tolist() == list(range(vocab_size))


def test_a_text_starts_with_a_line_break_where_there_is_one():
    assert HELLO.start == "e"
    assert CharTokenizer("\t\nab").start == "\n"


@pytest.mark.parametrize("character", ["a", "i", "z", "\n", "é", "🎭", "\ud800"])
def test_a_character_never_seen_is_named(character):
    assert f"did not contain {character!r}:" in message(HELLO.encode, "hell" + character)


def test_of_many_characters_never_seen_a_few_are_named():
    assert "'a', 'b', 'c', 'd', 'f' and 3 more:" in message(HELLO.encode, "abcdfgij" * 3)


@pytest.mark.parametrize(
    "form, other, unknown, how", [("NFC", "NFD", r"'\u0301'", "one"), ("NFD", "NFC", "'É'", "two")]
)
def test_a_letter_that_the_text_has_in_another_unicode_form(form, other, unknown, how):
    tokenizer = CharTokenizer.train(unicodedata.normalize(form, "É et E."))
    prompt = unicodedata.normalize(other, "É.")
    said = message(tokenizer.encode, prompt)
    assert said.startswith(f"the training text did not contain {unknown}, but it has it as {how} character")
    assert f"unicodedata.normalize('{form}', text)" in said
    tokenizer.encode(unicodedata.normalize(form, prompt))
    assert "or train on a text" in message(tokenizer.encode, prompt + "🎭")  # which no form helps


def test_a_prompt_that_is_not_utf_8():
    prompt = b"caf\xe9".decode("utf-8", "surrogateescape")  # as Python reads a command line
    assert message(HELLO.encode, prompt) == "the text is not UTF-8 (it has the byte 0xe9): convert it to UTF-8"


@pytest.mark.parametrize("token", [-1, 4])
def test_a_token_outside_the_vocabulary_is_refused(token):
    assert f"token {token} is outside the vocabulary of 4" in message(HELLO.decode, [0, token])


@pytest.mark.parametrize("characters", ["", "ba", "aa"])
def test_characters_are_sorted_distinct_and_some(characters):
    message(CharTokenizer, characters)


def test_same_characters_same_tokenizer():
    assert CharTokenizer.train("olleh") == HELLO
    assert len({CharTokenizer.train("olleh"), HELLO, CharTokenizer.train("other")}) == 2


# the saved file


@pytest.mark.parametrize("text", ["hello", ODD], ids=["plain", "odd"])
def test_a_saved_tokenizer_is_the_same(tmp_path, text):
    tokenizer = CharTokenizer.train(text)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json") == tokenizer


def test_the_saved_file_can_be_read_by_a_person(tmp_path):
    CharTokenizer.train("né\n").save(tmp_path / "tokenizer.json")
    assert '"vocab": {"\\n": 0, "n": 1, "é": 2}' in (tmp_path / "tokenizer.json").read_text("utf-8")


def test_the_file_of_an_older_run_is_read(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"kind": "char", "characters": "ehlo"}')
    assert load_tokenizer(tmp_path / "tokenizer.json") == HELLO


def test_a_mark_at_the_head_of_the_file_is_passed_over(tmp_path):
    HELLO.save(tmp_path / "tokenizer.json")
    content = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert load_tokenizer(tmp_path / "tokenizer.json") == HELLO


def test_loading_what_cannot_be_read(tmp_path):
    file = tmp_path / "tokenizer.json"
    assert message(load_tokenizer, file) == f"cannot read the tokenizer {file} (No such file or directory)"
    assert f"cannot read the tokenizer {tmp_path} (Is a directory)" in message(load_tokenizer, tmp_path)


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "it is not JSON"),
        (b'{"kind": "char", "chara', "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b'{"kind": "char", "characters": "\xff"}', "it is not JSON"),
        (b'{"kind": ' + b"1" * 5000 + b"}", "it is not JSON"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"kind":' * 100_000, "it is nested too deeply"),
        (b"[]", "it is no JSON object"),
        (b"{}", "its model is neither of characters nor a byte-level BPE"),
        (b'{"kind": ["char"]}', "its model is neither of characters nor a byte-level BPE"),
        (b'{"model": {"type": "Unigram", "vocab": []}}', "its model is neither of characters nor a byte-level BPE"),
        (b'{"model": {"type": "WordLevel"}}', "its words are not characters"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": 1}}}', "its words are not characters"),
        (b'{"model": {"type": "WordLevel", "vocab": {"ab": 0}}}', "its words are not characters"),
        (b'{"model": {"type": "WordLevel", "vocab": {"b": 0, "a": 1}}}', "must be distinct, sorted and at least one"),
        (b'{"kind": "char"}', "its characters are None, not a text"),
        (b'{"kind": "char", "characters": 7}', "its characters are 7, not a text"),
        (b'{"kind": "char", "characters": ["a", "b"]}', "its characters are ['a', 'b'], not a text"),
        (b'{"kind": "char", "characters": ' + json.dumps([9] * 10**6).encode() + b"}", "its characters are [9, 9"),
        (b'{"kind": "char", "characters": ""}', "must be distinct, sorted and at least one"),
        (b'{"kind": "char", "characters": "ba"}', "must be distinct, sorted and at least one"),
        (b'{"kind": "char", "characters": "' + b"ba" * 10**6 + b'"}', "must be distinct, sorted and at least one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_loading_what_is_no_tokenizer(tmp_path, content, cause):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    said = message(load_tokenizer, file)
    assert said.startswith(f"{file} is not a tokenizer: ")
    assert cause in said


# a folder in Hugging Face's layout


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_folder_with_a_tokenizer(kind, tmp_path):
    tokenizer = train_tokenizer(kind, TEXT)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_folder(tmp_path).encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def older_layout(folder):
    tokenizer = train_tokenizer("bpe", TEXT, 270)
    tokenizer.save(folder / "tokenizer.json")
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *model["merges"], ""]), "utf-8")
    return tokenizer


def test_a_folder_with_a_vocabulary_and_its_merges(tmp_path):
    tokenizer = older_layout(tmp_path)
    assert load_folder(tmp_path) == tokenizer
    assert load_folder(tmp_path).end_of_text == 269


def test_a_folder_without_a_tokenizer(tmp_path):
    assert load_folder(tmp_path) is None
    (tmp_path / "vocab.json").write_text("{}")
    assert load_folder(tmp_path) is None


@pytest.mark.parametrize(
    "name, content, cause",
    [
        ("tokenizer.json", b"{", "tokenizer.json is not a tokenizer: it is not JSON"),
        ("vocab.json", b"{", "vocab.json is not a tokenizer: it is not JSON"),
        ("vocab.json", b"[]", "its vocabulary lacks a byte"),
        ("merges.txt", b"\xff", "its merge '\ufffd' is no pair of tokens"),
        ("merges.txt", b"a\n", "its merge 'a' is no pair of tokens"),
    ],
)
def test_a_damaged_folder(name, content, cause, tmp_path):
    older_layout(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert cause in message(load_folder, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("added_tokens", [{"id": 0}]), ("normalizer", {"type": "Lowercase"}), ("pre_tokenizer", {"type": "Whitespace"})],
)
def test_a_tokenizer_of_characters_that_asks_for_more_is_refused(name, value, tmp_path):
    HELLO.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {name: value}))
    assert f"its {name} is" in message(load_tokenizer, tmp_path / "tokenizer.json")
