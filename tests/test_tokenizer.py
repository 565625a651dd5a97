"""Characters become tokens and come back, and what cannot be encoded is named."""

import json

import numpy as np
import pytest

from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.errors import UserError

HELLO = CharTokenizer.train("hello")

# beyond the basic plane, a combining mark, line ends, and both halves of a pair that are not a pair
ODD = "a\u0301\r\n\x00\u2028𝄞🎭\U0010ffff\udfff\ud800\udbff"


def message(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def test_no_tokens_are_no_text():
    assert HELLO.decode([]) == ""


@pytest.mark.parametrize("vocab_size, dtype", [(65, np.uint16), (2**16, np.uint16), (2**16 + 1, np.int32)])
def test_tokens_take_two_bytes_where_they_fit(vocab_size, dtype):
    text = "".join(map(chr, range(vocab_size)))
    tokens = CharTokenizer.train(text).encode(text)
    assert tokens.dtype == dtype
    assert tokens.tolist() == list(range(vocab_size))


@pytest.mark.parametrize("character", ["a", "i", "z", "\n", "é", "🎭", "\ud800"])
def test_a_character_never_seen_is_named(character):
    assert f"did not contain {character!r}:" in message(HELLO.encode, "hell" + character)


def test_of_many_characters_never_seen_a_few_are_named():
    assert "'a', 'b', 'c', 'd', 'f' and 3 more:" in message(HELLO.encode, "abcdfgij" * 3)


@pytest.mark.parametrize("token", [-1, 4])
def test_a_token_outside_the_vocabulary_is_refused(token):
    assert f"token {token} is outside the vocabulary of 4" in message(HELLO.decode, [0, token])


def test_an_empty_text_trains_nothing():
    assert "not empty" in message(CharTokenizer.train, "")


@pytest.mark.parametrize("characters", ["ba", "aa"])
def test_characters_are_sorted_and_distinct(characters):
    message(CharTokenizer, characters)


def test_same_characters_same_tokenizer():
    assert CharTokenizer.train("olleh") == HELLO
    assert len({CharTokenizer.train("olleh"), HELLO, CharTokenizer.train("other")}) == 2


@pytest.mark.parametrize("text", ["hello", ODD], ids=["plain", "odd"])
def test_a_saved_tokenizer_is_the_same(tmp_path, text):
    tokenizer = CharTokenizer.train(text)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert CharTokenizer.load(tmp_path / "tokenizer.json") == tokenizer


def test_the_saved_file_can_be_read_by_a_person(tmp_path):
    CharTokenizer.train("né\n").save(tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    assert "né" in text
    assert json.loads(text) == {"kind": "char", "characters": "\nné"}


def test_loading_a_file_that_is_not_there(tmp_path):
    assert str(tmp_path / "tokenizer.json") in message(CharTokenizer.load, tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"kind": "char", "chara',
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"kind": "char"}',
        b'{"kind": "char", "characters": ""}',
        b'{"kind": "char", "characters": "ba"}',
        b'{"kind": "char", "characters": 7}',
        b'{"kind": "char", "characters": ["a", "b"]}',
    ],
)
def test_loading_a_damaged_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    text = message(CharTokenizer.load, tmp_path / "tokenizer.json")
    assert f"{tmp_path / 'tokenizer.json'} is not a tokenizer, or damaged" in text


def test_loading_another_kind(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"kind": "gpt2"}')
    assert "of kind 'gpt2'" in message(CharTokenizer.load, tmp_path / "tokenizer.json")
