"""Characters become tokens and come back, whole or piece by piece, and what cannot be encoded or loaded is told."""

import json
import unicodedata

import numpy as np
import pytest

from jaxgpt.data.tokenizer import TOKENIZERS, CharTokenizer, load_tokenizer, train_tokenizer
from jaxgpt.errors import UserError

HELLO = CharTokenizer.train("hello")

# beyond the basic plane, a combining mark, line ends, and both halves of a pair that are not a pair
ODD = "a\u0301\r\n\x00\u2028𝄞🎭\U0010ffff\udfff\ud800\udbff"


def message(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


# every kind


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_kind_keeps_the_promises_of_a_tokenizer(kind, tmp_path):
    text = "naïve 文 🎭\nIt is, it is I, my lord.\n" * 20
    tokenizer = train_tokenizer(kind, text)
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
    assert load_tokenizer(tmp_path / "tokenizer.json") == tokenizer
    assert json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["kind"] == kind


def test_a_kind_that_does_not_exist():
    assert message(train_tokenizer, "chars", "text") == "there is no tokenizer of kind 'chars': did you mean 'char'?"
    assert message(train_tokenizer, "gpt2", "text").startswith("there is no tokenizer of kind 'gpt2': there is 'char'")


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
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    assert text == '{"kind": "char", "characters": "\\nné"}'


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
        (b"[]", 'it is no JSON object with a "kind"'),
        (b"{}", 'it is no JSON object with a "kind"'),
        (b'{"kind": ["char"]}', 'it is no JSON object with a "kind"'),
        (b'{"kind": "gpt2"}', "there is no tokenizer of kind 'gpt2'"),
        (b'{"kind": "' + b"a" * 10**6 + b'"}', "there is no tokenizer of kind 'aaa"),
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
