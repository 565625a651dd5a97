"""The models, tokenizers and samplers of the pages' scripts, in a real browser, beside jaxgpt's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import launched
from models import MODERN, by_path, changed, noise

from jaxgpt import evaluation, sampling
from jaxgpt.config import ModelConfig
from jaxgpt.data.bpe import BPETokenizer
from jaxgpt.data.tokenizer import train_tokenizer
from jaxgpt.data.tokenizer_json import written
from jaxgpt.model import build, views
from jaxgpt.model.ladder import RUNGS
from jaxgpt.pages import bundle
from jaxgpt.pages.record import array
from jaxgpt.sampler import Sampler

pytestmark = pytest.mark.slow
CONFIGS = {
    "gpt": changed(),
    "gpt2": changed(bias=False),
    "t4": changed(activation="relu", qkv_bias=False, tie_head=False),
    "norms": changed(embd_norm=True, qk_norm=True),
    "rotary": changed(positions="rotary", value_shift=True),
    "speedrun": changed(bias=False, **MODERN),
    **{rung: changed(architecture=rung) for rung in RUNGS},
}
# What writers of all the world, and of none, put into a text.
TEXTS = (
    "Hello, World! It's 1999; they'll've  gone.\n\n\tWhat?   ",
    "emoji \U0001f469\u200d\U0001f469\u200d\U0001f467 and \U0001f1e9\U0001f1ea, mathematics \U0001d54f",
    "\u05e9\u05dc\u05d5\u05dd \u202e\u0645\u0631\u062d\u0628\u0627\u202c",
    "a NUL \0, a lone CR\r, CRLF\r\n, a mark \ufeff in the middle",
    "\ufeffat the beginning",
    "e\u0301 \u00e9 Z\u0351\u036b\u0343 \u1112\u1161\u11ab",
    "white: \x1c\x85 \xa0\u2003\u3000\u2028\u180e\u200b.  \x85 x",
    "<|endoftext|><script>alert(1)</script> & \\u0041 {{title}}",
    "\u00bd \u0664\u0662 \u2167 x\u00b2 'S 'LL don\u2019t",
    "",
)


@pytest.fixture(scope="module")
def page():
    """A page that has the functions of the scripts as global variables."""
    names = ("model", "tokenizer", "sampling", "trace", "check")
    modules = {file: text for name in names for file, text in bundle.modules(f"{name}.js").items()}
    functions = (
        "decodeArray, createModel, createTokenizer, probabilities, draw, seeded, "
        "liveTrace, recordedTrace, passageLosses, check"
    )
    script = "\n".join([*modules.values(), f"Object.assign(globalThis, {{ {functions} }});"])
    with launched() as browser:
        page = browser.new_page()
        problems = []
        page.on("pageerror", lambda problem: problems.append(problem))
        page.set_content(f'<script type="module">{script}</script>')
        assert not problems
        page.evaluate("globalThis.plain = (x) => ArrayBuffer.isView(x) ? [...x] : Array.isArray(x) ? x.map(plain) : x")
        yield page


def half(config: ModelConfig, std: float = 0.4):
    """Weights that float16 has without rounding, biases and scales among them."""
    return jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), noise(config, std))


def load(page, config: ModelConfig, params=None):
    """The same model in Python and, as `model`, in the page."""
    params = half(config) if params is None else params
    weights = {name.replace("/", "."): array(leaf, "float16") for name, leaf in by_path(params).items()}
    page.evaluate("([config, weights]) => { globalThis.model = createModel(config, weights) }", [vars(config), weights])
    return build.merge(config, params)


def tokens_of(config: ModelConfig, n: int | None = None) -> list[int]:
    return np.random.default_rng(3).integers(0, config.vocab_size, n or config.block_size).tolist()


def read(page, tokens: list[int], **switches: bool) -> dict:
    """The page's reading, of NumPy arrays: logits (T, V), attention and scores (L, H, T, T), streams (L + 1, T, C)."""
    found = page.evaluate(
        "([tokens, switches]) => Object.fromEntries(Object.entries(model.read(tokens, switches))"
        ".map(([name, value]) => [name, plain(value)]))",
        [tokens, switches],
    )
    T = len(tokens)
    shapes = {"logits": (T, -1), "attention": (T, T), "scores": (T, T), "streams": (T, -1)}
    return {
        name: value.reshape(*value.shape[:-1], *shapes[name]) if value.size else value
        for name, value in ((name, np.array(value)) for name, value in found.items())
    }


def weighted(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    exp = np.where(mask, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return exp / exp.sum(-1, keepdims=True)


def test_numbers_arrive_as_they_were(page):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = {"float16": halves[np.isfinite(halves)], "float32": np.float32([1e-30, -0.1, 3e38]), "uint8": range(256)}
    for dtype, values in numbers.items():
        found = page.evaluate("array => plain(decodeArray(array).data)", array(values, dtype))
        np.testing.assert_array_equal(np.float32(found), np.float32(values))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_page_computes_what_jaxgpt_does(page, name):
    config = CONFIGS[name]
    model = load(page, config)
    tokens = tokens_of(config)
    found, expected = read(page, tokens), views.look(model, [tokens])
    close(found["logits"], expected.logits[0])
    close(found["streams"], expected.streams[:, 0])
    if name == "bigram":
        assert found["attention"].size == 0
    else:
        close(found["attention"], expected.attention[:, 0], 1e-5)
        assert found["attention"].shape == found["scores"].shape


@pytest.mark.parametrize("name", ["t4", "feedforward"])
def test_the_head_reads_each_stream_as_in_jaxgpt(page, name):
    config = CONFIGS[name]
    model = load(page, config)
    tokens = tokens_of(config)
    found = page.evaluate("tokens => plain(model.read(tokens).streams.map((x) => model.lens(x, 2)))", tokens)
    close(found, views.logit_lens(model, [tokens])[:, 0, 2])


@pytest.mark.parametrize("name", CONFIGS)
def test_token_by_token_the_logits_are_those_of_the_whole(page, name):
    config = dataclasses.replace(CONFIGS[name], block_size=12)
    load(page, config)
    tokens = tokens_of(config, 6)  # with more, half the window would be read afresh
    steps = "tokens => { const cache = model.start(); return plain(tokens.map((token) => model.next(cache, token))) }"
    close(page.evaluate(steps, tokens), read(page, tokens)["logits"])


def close(found, expected, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# Switches


def test_without_the_mask_a_token_sees_those_after_it(page):
    load(page, CONFIGS["gpt"])
    tokens = tokens_of(CONFIGS["gpt"])
    found, masked = read(page, tokens, mask=False), read(page, tokens)
    close(found["attention"], weighted(found["scores"], np.array(True)), 1e-5)
    close(masked["attention"], weighted(masked["scores"], np.tril(np.ones((6, 6), bool))), 1e-5)
    later = read(page, [*tokens[:-1], (tokens[-1] + 1) % 11], mask=False)
    assert np.abs(later["logits"][0] - found["logits"][0]).max() > 1e-3


def test_without_content_a_token_averages_what_it_sees(page):
    load(page, CONFIGS["gpt"])
    found = read(page, tokens_of(CONFIGS["gpt"]), content=False)
    average = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]
    close(found["attention"], np.broadcast_to(average, (2, 2, 6, 6)), 1e-6)


def test_without_the_scale_scores_are_plain_dot_products(page):
    load(page, CONFIGS["head"])
    tokens = tokens_of(CONFIGS["head"])
    found, scaled = read(page, tokens, scale=False), read(page, tokens)
    close(found["scores"], scaled["scores"] * 4)  # the root of 16 channels
    assert found["attention"].max(-1).mean() > scaled["attention"].max(-1).mean()


@pytest.mark.parametrize("name", ["gpt", "multihead"])
def test_without_positions_it_is_the_model_without_their_embeddings(page, name):
    config = CONFIGS[name]
    load(page, config)
    tokens, params = tokens_of(config), half(config)
    params["wpe"]["embedding"] *= 0
    close(read(page, tokens, positions=False)["logits"], build.merge(config, params)([tokens])[0])


def test_without_rotation_the_order_of_what_was_before_does_not_matter(page):
    config = changed(positions="rotary", n_layer=1)
    load(page, config)
    tokens = [1, 2, 3, 4, 5]
    ordered, other = (read(page, [*some, 6], positions=False)["logits"][-1] for some in (tokens, tokens[::-1]))
    close(ordered, other)
    assert np.abs(read(page, [*tokens, 6])["logits"] - read(page, [*tokens[::-1], 6])["logits"])[-1].max() > 1e-3


def test_without_norms_the_last_rung_is_the_one_before(page):
    load(page, CONFIGS["layernorm"])
    tokens, params = tokens_of(CONFIGS["layernorm"]), half(CONFIGS["layernorm"])
    del params["ln_f"]
    for block in params["h"].values():
        del block["ln_1"], block["ln_2"]
    found = read(page, tokens, norm=False)["logits"]
    close(found, build.merge(CONFIGS["blocks"], params)([tokens])[0])


def test_without_the_residual_stream_a_part_gives_its_result_alone(page):
    config = changed(architecture="blocks", n_layer=1)
    model = load(page, config)
    tokens = np.array([tokens_of(config)])
    x = model.wte(tokens) + model.wpe(jnp.arange(6))
    y = model.h[0].c_proj(jax.nn.relu(model.h[0].c_fc(model.h[0].attn(x))))
    close(read(page, tokens[0].tolist(), residual=False)["logits"], model.lm_head(y)[0])


# Writing


@pytest.mark.parametrize(("name", "prompt"), [("speedrun", 1), ("gpt2", 9), ("layernorm", 3)])
def test_the_likeliest_text_is_jaxgpts_however_long(page, name, prompt):
    config = CONFIGS[name]
    model = load(page, config, half(config, std=1.0))
    tokens = tokens_of(config, prompt)
    found = page.evaluate(
        "tokens => { const cache = model.start(tokens); return Array.from({ length: 60 }, () => {"
        " const token = cache.logits.indexOf(Math.max(...cache.logits)); model.next(cache, token); return token }) }",
        tokens,
    )
    expected = sampling.generate(model, np.array(tokens), 60, sampler=Sampler(temperature=0))[0]
    assert found == expected.tolist()
    assert len(set(found)) > 1


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(1, 0), (0.5, 3), (2, 10), (1e-3, 0), (0, 4), (0.8, 11), (0.8, 50), (1, 1)]
)
def test_probabilities_are_those_that_jaxgpt_draws_from(page, temperature, top_k):
    logits = jnp.asarray([1.5, -2, 0.25, 1.5, 3, 2.75, -7, 0, 0.5, 1, 2.5])
    found = page.evaluate(
        "([logits, how]) => plain(probabilities(Float32Array.from(logits), how))",
        [logits.tolist(), {"temperature": temperature, "topK": top_k}],
    )
    if temperature == 0:
        expected = jax.nn.one_hot(logits.argmax(), 11)
    else:
        expected = jax.nn.softmax(Sampler(temperature, top_k).filter(logits / temperature))
    close(found, expected, 1e-6)


def test_draws_follow_the_probabilities_and_the_seed(page):
    drawn = "seed => { const random = seeded(seed); const p = Float32Array.of(0.5, 0, 0.125, 0.375);"
    drawn += " return Array.from({ length: 20000 }, () => draw(p, random)) }"
    first, again, other = (page.evaluate(drawn, seed) for seed in (7, 7, 8))
    assert first == again != other
    close(np.bincount(first, minlength=4) / 20000, [0.5, 0, 0.125, 0.375], 0.02)
    edges = "x => draw(Float32Array.of(0.5, 0, 0.5), () => x)"
    assert [page.evaluate(edges, x) for x in (0, 0.49, 0.5, 1 - 2**-32)] == [0, 0, 2, 2]


# Tokenizers


def encoded(page, description: dict, vocabulary: list[str], text: str) -> dict:
    return page.evaluate(
        "([description, vocabulary, text]) => { const t = createTokenizer(description, vocabulary);"
        " const { tokens, unknown } = t.encode(text); return { tokens, unknown, text: t.decode(tokens) } }",
        [description, vocabulary, text],
    )


@pytest.fixture(scope="module")
def bpe(text) -> BPETokenizer:
    return BPETokenizer.train([text, *TEXTS * 2])


def described(tokenizer: BPETokenizer) -> dict:
    names = [token.decode() if i in tokenizer.special else written(token) for i, token in enumerate(tokenizer.vocab)]
    return {
        "kind": "bpe",
        "merges": [[written(left), written(right)] for left, right in tokenizer.merges],
        "vocab": {name: i for i, name in enumerate(names)},
        "end_of_text": tokenizer.end_of_text,
    }


@pytest.mark.parametrize("given", TEXTS)
@pytest.mark.parametrize("kind", ["char", "bytes", "bpe"])
def test_a_text_has_the_tokens_that_jaxgpt_gives_it(page, bpe, kind, given):
    tokenizer = bpe if kind == "bpe" else train_tokenizer(kind, "".join(TEXTS) if kind == "char" else "")
    description = {"kind": kind}
    if kind == "char":
        description["characters"] = tokenizer.characters
    if kind == "bpe":
        description = described(bpe)
    found = encoded(page, description, [], given)
    assert found == {"tokens": tokenizer.encode(given).tolist(), "unknown": [], "text": given}


def test_noise_is_tokenized_as_in_jaxgpt(page, bpe):
    rng = np.random.default_rng(0)
    points = [*range(0x250), *range(0x2000, 0x2070), *range(0x3000, 0x3010), *range(0x600, 0x680), 0xFEFF, 0x1F600]
    text = "".join(map(chr, rng.choice(points, 3000)))
    assert encoded(page, described(bpe), [], text)["tokens"] == bpe.encode(text).tolist()
    tokens = rng.integers(0, bpe.vocab_size, 3000).tolist()
    decode = "([description, tokens]) => createTokenizer(description, []).decode(tokens)"
    assert page.evaluate(decode, [described(bpe), tokens]) == bpe.decode(tokens)
    some = rng.integers(0, 256, 3000).tolist()
    assert page.evaluate(decode, [{"kind": "bytes"}, some]) == bytes(some).decode(errors="replace")


def test_characters_that_the_model_does_not_know_are_left_out_and_told(page):
    found = encoded(page, {"kind": "char", "characters": "\nab\U0001f600"}, [], "a\U0001f601b\rc\U0001f601\U0001f600")
    assert found == {"tokens": [1, 2, 3], "unknown": ["\U0001f601", "\r", "c"], "text": "ab\U0001f600"}


# Traces


@pytest.mark.parametrize("length", [2, 7, 8, 20])
def test_losses_of_a_passage_are_those_of_an_evaluation(page, length):
    config = CONFIGS["speedrun"]
    model = load(page, config)
    tokens = tokens_of(config, length)
    found = page.evaluate("tokens => Object.values(passageLosses(model, tokens)).map(plain)", tokens)
    losses = evaluation.token_losses(config, build.params_of(model), np.array(tokens), jnp.float32)
    close(found[0], np.concatenate([*losses]))
    assert len(found[1]) == length - 1
    assert found[1][:6] == np.asarray(model([tokens[:6]])[0].argmax(-1))[: length - 1].tolist()


def test_a_recorded_trace_shows_what_a_live_one_does(page):
    config, tokenizer = CONFIGS["gpt"], {"kind": "char", "characters": "abcdefghijk"}
    model = load(page, config)
    tokens = tokens_of(config)
    seen, lens = views.look(model, [tokens]), jax.nn.softmax(views.logit_lens(model, [tokens])[:, 0])
    ids = np.argsort(-np.asarray(seen.logits[0]), axis=-1)[:, :4]
    lens_ids = np.argsort(-np.asarray(lens), axis=-1)[..., :3]
    losses = next(evaluation.token_losses(config, build.params_of(model), np.array(tokens), jnp.float32))
    recorded = {
        "tokens": tokens,
        "attention": array(np.rint(seen.attention[:, 0] * 255), "uint8"),
        "top": {
            "ids": ids.tolist(),
            "logits": array(np.take_along_axis(np.asarray(seen.logits[0]), ids, -1), "float16"),
            "lse": jax.nn.logsumexp(seen.logits[0], -1).tolist(),
        },
        "lens": {
            "ids": lens_ids.tolist(),
            "probs": array(np.take_along_axis(np.asarray(lens), lens_ids, -1), "float32"),
        },
        "losses": losses.tolist(),
    }
    page.evaluate(
        "([recorded, tokenizer, tokens]) => { const shown = [...tokenizer.characters];"
        " globalThis.traces = [liveTrace(model, createTokenizer(tokenizer, shown), tokens),"
        " recordedTrace(recorded, { ...shown })] }",
        [recorded, tokenizer, tokens],
    )
    first, second = page.evaluate(
        "traces.map((t) => ({ sizes: [t.length, t.layers, t.heads, t.text(3)], attention: plain(t.attention(1, 1)),"
        " losses: plain(t.losses), lens: [0, 1, 2].map((l) => t.lens(l, 4, 3).map(({ token, p }) => [token, p])),"
        " top: ((c) => c.tokens.map((token, i) => [token, Math.exp(c.logits[i] - c.lse)])"
        ".sort((a, b) => b[1] - a[1]).slice(0, 4))(t.candidates(3)), all: t.candidates(3).all }))"
    )
    assert first["sizes"] == second["sizes"] == [6, 2, 2, "d"]
    assert (first["all"], second["all"]) == (True, False)
    close(first["attention"], np.ravel(seen.attention[1, 0, 1]), 1e-5)
    close(first["attention"], second["attention"], 0.003)
    close(first["losses"], second["losses"])
    close(first["lens"], second["lens"])
    close(first["top"], second["top"], 0.01)


def test_a_page_checks_itself(page):
    config = CONFIGS["speedrun"]
    model = load(page, config)
    tokens = tokens_of(config)
    greedy = sampling.generate(model, np.array([2]), 50, sampler=Sampler(temperature=0))[0]
    logits = np.array(model([tokens])[0])
    reference = {"tokens": tokens, "prompt": "c", "greedy": "".join("abcdefghijk"[token] for token in greedy)}
    call = "reference => check(model, createTokenizer({ kind: 'char', characters: 'abcdefghijk' }, []), reference)"
    fine = page.evaluate(call, {**reference, "logits": array(logits, "float32")})
    assert fine["error"] < 1e-4 and fine["places"] == 6 and fine["greedy"]
    logits[5, 3] += 0.5
    wrong = page.evaluate(call, {**reference, "greedy": "abc", "logits": array(logits, "float32")})
    close(wrong["error"], 0.5, 1e-3)
    assert not wrong["greedy"]
