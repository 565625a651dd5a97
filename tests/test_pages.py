"""The pages in a real browser: what is drawn, what a reader does with it, and texts that mean harm."""

from pathlib import Path

import numpy as np
import pytest
from browser import launched

import jaxgpt
from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.model import build
from jaxgpt.model.ladder import RUNGS
from jaxgpt.pages import record
from jaxgpt.pages.bundle import bundle
from jaxgpt.pages.rungs import Card, record_rungs
from jaxgpt.runs.run import Run

pytestmark = pytest.mark.slow
VIEWS = ("next", "attention", "surprise", "lens", "letters", "learning")
HOSTILE = (
    '</script><script>globalThis.harmed = 1</script><img src=x onerror="harmed=1">'
    "\0\u202e\u05d0 \U0001f469\u200d\U0001f467 e\u0301 {{data}} $& \\u003c\n"
)


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Run:
    """A trained run with samples, whose text has all the page needs."""
    return jaxgpt.train(override(config, sample_tokens=20), out=tmp_path_factory.mktemp("pages") / "run", quiet=True)


@pytest.fixture(scope="module")
def file(run, tmp_path_factory) -> Path:
    return written("inside", record.record(run, "ROMEO:\nthe night"), tmp_path_factory)


def written(name: str, data: dict, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / f"{name}.html"
    path.write_text(bundle(name, "A page", data), "utf-8")
    return path


def until(page, condition: str) -> None:
    """Waits for it: the page's own rules forbid playwright's way, which is to evaluate a text there."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"after half a minute not yet: {condition}")


@pytest.fixture
def opened(browser):
    """Opens a file; at the end of the test nothing may have gone wrong, and nothing may have been asked for."""
    problems, pages = [], []

    def open_(path: Path, **how):
        page = browser.new_page(**how)
        pages.append(page)
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        page.on("dialog", lambda dialog: problems.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: problems.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        until(page, "globalThis.jaxgpt !== undefined")
        return page

    yield open_
    for page in pages:
        page.close()
    assert problems == []


@pytest.fixture
def page(opened, file):
    return opened(file)


def test_every_view_is_drawn_from_disk_and_nothing_is_asked_of_a_network(page):
    for name in VIEWS:
        view = page.locator(f"#{name} .view")
        assert view.bounding_box()["height"] > 100, name
    assert page.locator("#next .bars li").count() > 5
    assert page.locator("#attention .heads canvas").count() == 2
    assert page.locator("#lens tbody tr").count() == 2  # the embeddings, one layer
    assert page.locator("#learning .sample").inner_text()
    until(page, "document.getElementById('measured').textContent.includes('are the same')")
    painted = page.evaluate("""[...document.querySelectorAll("canvas")].map((canvas) =>
        canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((x) => x > 0))""")
    assert painted and all(painted)


def test_what_is_typed_is_read_and_continued(page, run):
    box = page.locator("#next textarea")
    box.fill("JULIET:\n")
    until(page, "jaxgpt.store.state.tokens.length === 8")
    logits = np.asarray(run.model(run.tokenizer.encode("JULIET:\n")[None]))[0, -1]
    shown = page.locator("#next .bars .token").first.inner_text()
    assert shown == run.tokenizer.decode([logits.argmax()]).replace(" ", "␣").replace("\n", "⏎")
    page.get_by_role("button", name="Write 200 characters").click()
    until(page, "jaxgpt.store.state.tokens.length === 208 && !jaxgpt.store.state.writing")
    text = box.input_value()
    assert text.startswith("JULIET:\n") and len(text) == 208
    page.get_by_role("button", name="Start again").click()
    assert box.input_value() == "ROMEO:\nthe night"


def test_writing_stops_when_the_reader_types(page):
    page.evaluate("() => { globalThis.requestAnimationFrame = (run) => setTimeout(run, 50); }")  # so that there is time
    page.get_by_role("button", name="Write 200 characters").click()
    # At once: `fill` selects, then types, and what is written in between undoes the selection.
    typed = "(box) => { box.value = 'NURSE:'; box.dispatchEvent(new InputEvent('input', { bubbles: true })); }"
    page.locator("#next textarea").evaluate(typed)
    until(page, "jaxgpt.store.state.tokens.length === 6")
    page.wait_for_timeout(200)
    assert page.locator("#next textarea").input_value() == "NURSE:"


def test_the_sliders_decide_what_may_come_next_and_a_click_chooses_it(page):
    page.get_by_role("slider", name="Temperature").fill("0")
    assert page.locator("#next .bars .share").first.inner_text() == "100 %"
    page.get_by_role("slider", name="Temperature").fill("2")
    page.get_by_role("slider", name="Top-k").fill("2")
    assert page.locator("#next .bars button:not(.cut)").count() == 2
    chosen = page.locator("#next .bars .token").nth(1).inner_text().replace("␣", " ").replace("⏎", "\n")
    page.locator("#next .bars button").nth(1).click()
    assert page.locator("#next textarea").input_value() == "ROMEO:\nthe night" + chosen


def test_the_mouse_shows_who_looks_at_whom(page, run):
    page.locator("#attention .heads button").nth(1).click()
    box = page.locator("#attention .triangle canvas").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] * 9.5 / 16)
    tints = page.evaluate("""[...document.querySelectorAll("#attention .strip span")].map((span) =>
        Number(span.style.getPropertyValue("--share")))""")
    expected = run.attention("ROMEO:\nthe night")[0, 1, 9]
    np.testing.assert_allclose(tints, expected, atol=2e-3)
    assert "Layer 1, head 2." in page.locator("#attention .caption").inner_text()
    page.get_by_role("button", name="Average over the validation text").click()
    assert page.locator("#attention .strip").is_hidden()
    assert "Over the validation text" in page.locator("#attention .caption").inner_text()


def test_the_arrow_keys_move_along_the_text_and_screen_readers_are_told(page):
    strip = page.locator("#next .strip")
    strip.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert strip.get_attribute("aria-valuetext") == "2 of 16: O"
    assert "place 2 of 16" in page.locator("#next .caption").inner_text()
    nameless = page.evaluate("""[...document.querySelectorAll("button, input, textarea, canvas[role], svg, [tabindex]")]
        .filter((node) => !(node.ariaLabel || node.textContent.trim() || node.labels?.length ||
            node.querySelector("[aria-label]"))).map((node) => node.outerHTML.slice(0, 80))""")
    assert nameless == []


def test_the_surprise_at_a_text_of_ones_own_is_its_loss(page, run):
    text = "the young moon breaks yonder night, my lord, but soft, so are we."
    text = "".join(c for c in text if c in run.tokenizer.characters)
    page.locator("#surprise textarea").fill(text)
    until(page, f"document.querySelectorAll('#surprise .passage span').length === {len(text)}")
    shown = float(page.locator("#surprise dd").first.inner_text())
    assert abs(shown - run.losses(text).mean()) < 5e-3


def test_what_the_mouse_shows_the_arrow_keys_show_too(page):
    page.locator("#surprise .passage").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert "had a probability of" in page.locator("#surprise .caption").inner_text()
    page.locator("#letters svg").focus()
    page.keyboard.press("ArrowRight")
    assert "Nearest to the line break here" in page.locator("#letters .caption").last.inner_text()
    page.locator("#attention .triangle").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert "place 2 of 16" in page.locator("#next .caption").inner_text()


def test_the_slider_over_training_shows_what_was_written_then(page, run):
    samples = [row["sample"] for row in run.metrics if row.get("sample")]
    assert len(samples) == 2
    slider = page.get_by_role("slider", name="Written after")
    slider.fill("1")
    assert page.locator("#learning .sample").text_content() == samples[0]
    slider.fill("2")
    assert page.locator("#learning .sample").text_content() == samples[1]


def test_a_text_that_means_harm_is_shown_as_a_text(opened, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "text.txt").write_text(HOSTILE * 40, "utf-8")
    run = jaxgpt.train(override(config, data=str(folder / "text.txt")), out=folder / "<script>alert(1)<", quiet=True)
    page = opened(written("inside", record.record(run, HOSTILE[:16]), tmp_path_factory))
    box = page.locator("#next textarea")
    box.fill(HOSTILE + "\U0001f9c1ℵ")
    until(page, "jaxgpt.store.state.unknown.length === 2")
    assert "has never seen 🧁 ℵ" in page.locator("#next .note").inner_text()
    page.locator("#surprise textarea").fill(HOSTILE * 2)
    page.wait_for_timeout(300)
    page.locator("#next .strip span").first.hover()
    page.get_by_role("button", name="Write 200").click()
    until(page, "!jaxgpt.store.state.writing")
    assert page.evaluate("globalThis.harmed") is None
    assert page.locator("main script, main img").count() == 0


def test_of_a_larger_model_what_was_recorded_is_shown(opened, run, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(record, "MOST_LIVE", 0)
    data = record.record(run, "ROMEO:\nthe night")
    assert data["weights"] is None
    page = opened(written("inside", data, tmp_path_factory))
    for name in VIEWS:
        assert page.locator(f"#{name} .view").bounding_box()["height"] > 100, name
    assert page.locator("textarea").count() == 0
    page.locator("#next .strip span").nth(3).hover()
    expected = np.asarray(run.model(run.tokenizer.encode("ROMEO:\nthe night")[None]))[0, 3].argmax()
    assert page.locator("#next .bars .token").first.inner_text() == run.tokenizer.decode([expected])
    assert "too large" in page.locator("#measured").inner_text()


@pytest.fixture(scope="module")
def ladder(run, tmp_path_factory) -> Path:
    """A page of rungs as they are before training."""
    tokenizer = CharTokenizer.train(Path(run.config.data).read_text("utf-8"))

    def card(name: str) -> Card:
        model = ModelConfig(name, tokenizer.vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=16)
        of = Run(run.path, TrainConfig(data=run.config.data, model=model), tokenizer, build.build(model, 1), 0)
        return Card(of, name, f"The idea of {name}.", {"train": 2.0, "val": 2.1}, "A sample.")

    return written("ladder", record_rungs([card(name) for name in (*RUNGS, "gpt")], "Losses."), tmp_path_factory)


def test_the_rungs_of_the_ladder_write_side_by_side(opened, ladder):
    page = opened(ladder)
    assert page.locator(".card").count() == 7
    page.locator("#rungs .strip span").nth(5).hover()
    page.get_by_role("button", name="Have them write").click()
    page.get_by_role("button", name="Have them write").wait_for()  # they have done
    samples = page.locator(".card .sample").all_text_contents()
    assert [len(sample) for sample in samples] == [240] * 7


def test_attention_is_taken_apart_and_each_part_can_be_switched_off(opened, ladder):
    page = opened(ladder)
    last = page.locator(".stage").last

    def weights() -> np.ndarray:
        values = np.array(last.locator("tr:not(:first-child) td").all_inner_texts(), float)
        return values.reshape(8, 8)

    trained = weights()
    np.testing.assert_allclose(trained.sum(1), 1, atol=0.05)
    assert not np.triu(trained, 1).any()
    page.get_by_role("checkbox", name="hide the future").uncheck()
    assert np.triu(weights(), 1).any()
    page.get_by_role("checkbox", name="hide the future").check()
    page.get_by_role("checkbox", name="divide by √D").uncheck()
    assert (weights() ** 2).sum() > (trained**2).sum()  # it saturates
    page.get_by_role("checkbox", name="weights from the text").uncheck()
    np.testing.assert_allclose(weights(), np.tril(np.ones((8, 8))) / np.arange(1, 9)[:, None], atol=0.01)
    assert "So head's loss is" in page.locator("#steps .caption").inner_text()


def test_a_wider_head_needs_the_division_by_its_root(opened, ladder):
    page = opened(ladder)
    page.get_by_role("slider", name="Width of the head").fill("9")
    plain, divided = page.locator("#width figcaption").all_inner_texts()
    assert int(plain.split()[-2]) > 95 > int(divided.split()[-2])


@pytest.mark.parametrize("name", ["file", "ladder"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_phone_and_can_be_read_in_both_lights(opened, name, scheme, request):
    page = opened(request.getfixturevalue(name), viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    contrasts = page.evaluate("""() => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        const light = (color) => {
            canvas.fillStyle = color;
            canvas.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((x) => x / 255)
                .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        const behind = (node) => {
            for (; node; node = node.parentElement) {
                const color = getComputedStyle(node).backgroundColor;
                if (!/rgba\\(.*, 0\\)|transparent|\\/ /.test(color)) return color;
            }
        };
        const texts = document.querySelectorAll("h1, h2, p, button, label, dt, dd, textarea, pre, th, figcaption, a");
        const shown = (node) => node.offsetParent && !node.disabled && node.textContent.trim();
        return [...texts].filter(shown).map((node) => {
            const [one, other] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
            return [one / other, node.outerHTML.slice(0, 60)];
        }).filter(([contrast]) => contrast < 4.5);
    }""")
    assert contrasts == []
