/** A card for each rung: its loss, what it looks at, what it expects, and what it writes. */

import { debounced, element, named, percent, visible } from "./dom.js";
import { draw, likeliest, probabilities, seeded } from "./sampling.js";
import { createStrip } from "./strip.js";

const SEEN = 16; // places of a window that a card shows
const EXPECTED = 4; // likeliest next tokens
const LENGTH = 240; // tokens of a sample
const SLICE = 12; // milliseconds of writing between two drawings of the page

/** Fills the section: the text, the buttons, the cards. */
export function showCards(root, ladder) {
  const { store, rungs, tokenizer } = ladder;
  const worst = Math.log(ladder.data.vocabulary.length);
  const cards = rungs.map((rung, i) => createCard(rung, rungs[i - 1], worst, tokenizer));
  const write = element("button", { type: "button", class: "main", click: () => toggle() }, "");
  const text = element("input", {
    value: ladder.data.prompt,
    spellcheck: "false",
    "aria-label": "The text that all of them read",
    input: debounced(() => read(), 150),
  });
  const read = () => {
    const { tokens } = tokenizer.encode(text.value);
    if (tokens.length === 0) return;
    const pieces = tokens.map((token) => tokenizer.text(token));
    store.set({ tokens, pieces, trace: tokens, at: tokens.length - 1 });
  };
  let running = false;
  const toggle = () => {
    running = !running;
    write.textContent = running ? "Stop" : "Have them write";
    if (running) writeAll(rungs, cards, ladder, () => running, toggle);
  };
  write.textContent = "Have them write";
  root.append(
    element("div", { class: "reading" }, text, write),
    createStrip(store),
    element("div", { class: "cards" }, ...cards.map(({ node }) => node)),
  );
  store.watch(["trace", "at"], ({ tokens, at }) => {
    for (const card of cards) card.look(tokens.slice(0, at + 1));
  });
}

function createCard(rung, before, worst, tokenizer) {
  const { model, loss, name, idea, parameters } = rung;
  const sees = element("table", { class: "sees" });
  const expects = element("p", { class: "expects" });
  const sample = element(
    "pre",
    { class: "sample", tabindex: "0", "aria-label": `What ${name} writes` },
    rung.sample,
  );
  const gain = before
    ? `, ${Math.abs(before.loss.val - loss.val).toFixed(2)} ${loss.val < before.loss.val ? "better" : "worse"}`
    : "";
  const node = element(
    "article",
    { class: "card" },
    element("h3", {}, name),
    element("p", { class: "idea" }, idea),
    element(
      "p",
      { class: "loss" },
      element("strong", {}, loss.val.toFixed(2)),
      ` validation loss${gain}`,
    ),
    element(
      "div",
      { class: "track" },
      element("div", { class: "fill", style: `width: ${(100 * loss.val) / worst}%` }),
    ),
    element(
      "p",
      { class: "size" },
      `${parameters.toLocaleString("en")} parameters, ${model.config.block_size} characters of context`,
    ),
    sees,
    expects,
    sample,
  );
  const look = (tokens) => {
    const window = tokens.slice(-model.config.block_size);
    const { logits, attention } = model.read(window);
    const V = model.config.vocab_size;
    sees.replaceChildren(...seenRows(window, attention, tokenizer));
    expects.textContent = expectation(logits.subarray((window.length - 1) * V), tokenizer);
  };
  return { node, look, sample };
}

/** The last places of a window, and below them a row for each head: its weights from the last place. */
function seenRows(window, attention, tokenizer) {
  const T = window.length;
  const first = Math.max(0, T - SEEN);
  const places = window.slice(first);
  const heads = attention.flat().map((weights) => weights.subarray(T * (T - 1) + first, T * T));
  const alone = new Float32Array(places.length).fill(0);
  alone[places.length - 1] = 1; // a bigram looks at nothing but the last
  const cell = (share) => element("td", { style: `--share: ${share.toFixed(3)}` });
  return [
    element(
      "tr",
      {},
      ...places.map((token) => element("th", { scope: "col" }, visible(tokenizer.text(token)))),
    ),
    ...(heads.length ? heads : [alone]).map((shares) =>
      element("tr", {}, ...[...shares].map(cell)),
    ),
  ];
}

function expectation(logits, tokenizer) {
  const expected = likeliest(logits, EXPECTED);
  return `expects ${expected.map(({ token, p }) => `${named(tokenizer.text(token))} ${percent(p)}`).join(", ")}`;
}

/** All rungs write at once, each from the same random numbers. */
function writeAll(rungs, cards, ladder, running, done) {
  const { tokens } = ladder.store.state;
  const seed = Math.floor(Math.random() * 2 ** 32);
  const writers = rungs.map(({ model }, i) =>
    createWriter(model, tokens, seeded(seed), ladder.tokenizer, cards[i].sample),
  );
  const slice = () => {
    if (!running()) return;
    const until = performance.now() + SLICE;
    let left = writers.filter((writer) => writer.left > 0);
    while (left.length && performance.now() < until) {
      for (const writer of left) writer.add();
      left = left.filter((writer) => writer.left > 0);
    }
    for (const writer of writers) writer.show();
    if (left.length) requestAnimationFrame(slice);
    else done();
  };
  requestAnimationFrame(slice);
}

function createWriter(model, tokens, random, tokenizer, node) {
  const cache = model.start(tokens);
  const written = [];
  return {
    left: LENGTH,
    add() {
      const token = draw(probabilities(cache.logits), random);
      written.push(token);
      model.next(cache, token);
      this.left -= 1;
    },
    show() {
      node.textContent = tokenizer.decode(written);
      node.scrollTop = node.scrollHeight;
    },
  };
}
