/** What comes next? The probabilities of the next token, and how a choice among them writes a text. */

import { debounced, element, named, percent, slider, visible } from "./dom.js";
import { draw, probabilities, seeded } from "./sampling.js";
import { createStrip } from "./strip.js";

const BARS = 12;
const WRITTEN = 200; // tokens that "Write" adds
const FRAME = 12; // milliseconds of work between two drawings of the page
const REFRESH = 250; // milliseconds between two looks at the other views while a text is written

/** Fills the section: the text box, the buttons and sliders, the bars. */
export function showNext(root, page) {
  const { store } = page;
  const bars = element("ol", {
    class: "bars",
    "aria-label": "The likeliest next, a click chooses",
  });
  const about = element("p", { class: "caption", "aria-live": "polite" });
  const left = element("div", {}, ...(page.model ? writer(page) : []), createStrip(store), about);
  root.append(element("div", { class: "columns" }, left, element("div", {}, sliders(page), bars)));
  store.watch(["trace", "at", "temperature", "topK", "writing"], (state) => {
    const candidates = candidatesOf(state);
    const came = state.trace.tokens[state.at + 1];
    const choose = page.model && !state.writing ? (token) => page.choose(token) : null;
    bars.replaceChildren(
      ...candidates
        .slice(0, BARS)
        .map(({ token, share }) =>
          bar(page, token, share, candidates[0].share, token === came, choose),
        ),
    );
    about.textContent = sentence(state, page, candidates, came);
  });
}

/** The tokens that may come after the cursor, the likeliest first, and the share that each has by the sliders. */
function candidatesOf({ trace, at, temperature, topK }) {
  const { tokens, logits } = trace.candidates(at);
  const shares = probabilities(logits, { temperature, topK });
  const order = [...shares.keys()].sort((a, b) => logits[b] - logits[a]);
  return order.map((i) => ({ token: tokens[i], share: shares[i] }));
}

function bar(page, token, share, most, came, choose) {
  const text = page.tokenizer.text(token);
  const row = element(
    "button",
    {
      type: "button",
      disabled: choose === null,
      class: share === 0 ? "cut" : "",
      "aria-label": `${named(text)}: ${percent(share)}${came ? ", as in the text" : ""}`,
      ...(choose ? { click: () => choose(token) } : {}),
    },
    element("span", { class: "token" }, visible(text)),
    element(
      "span",
      { class: "track" },
      element("span", { class: "fill", style: `width: ${(100 * share) / (most || 1)}%` }),
    ),
    element("span", { class: "share" }, percent(share)),
    element("span", { class: "came", "aria-hidden": "true" }, came ? "◂ text" : ""),
  );
  return element("li", {}, row);
}

/** What the bars say, in words. */
function sentence({ trace, pieces, at }, { tokenizer }, candidates, came) {
  const [{ token, share }] = candidates;
  const of = trace.candidates(at).all ? "" : ` (of the ${candidates.length} likeliest)`;
  const found = candidates.find((candidate) => candidate.token === came);
  const its = found ? `, which had ${percent(found.share)}` : "";
  const next = came === undefined ? "" : ` In the text comes ${named(tokenizer.text(came))}${its}.`;
  const first = `${named(tokenizer.text(token))} has ${percent(share)}${of}`;
  return `After ${named(pieces[at])}, place ${at + 1} of ${pieces.length}, ${first}.${next}`;
}

function sliders({ store }) {
  const { temperature, topK: most } = store.state;
  return element(
    "div",
    { class: "sliders" },
    slider(
      "Temperature",
      { min: 0, max: 2, step: 0.05, value: temperature },
      (t) => t.toFixed(2),
      (t) => store.set({ temperature: t }),
    ),
    slider(
      "Top-k",
      { min: 1, max: most, step: 1, value: most },
      (k) => (k === most ? "all" : String(k)),
      (k) => store.set({ topK: k }),
    ),
  );
}

/** The text box with its buttons. */
function writer(page) {
  const { store } = page;
  const box = element("textarea", {
    rows: 6,
    spellcheck: "false",
    autocapitalize: "off",
    autocomplete: "off",
    "aria-label": "The text: type, and see it continued",
    input: () => {
      store.set({ writing: false });
      read();
    },
  });
  const note = element("p", { class: "note", role: "status" });
  const read = debounced(() => page.type(box.value), 120);
  const write = element("button", { type: "button", class: "main", click: () => toggle() }, "");
  const one = element(
    "button",
    { type: "button", click: () => page.choose(drawOne(page), store.state.trace.length - 1) },
    "One more",
  );
  const again = element(
    "button",
    { type: "button", click: () => page.type(page.data.prompt) },
    "Start again",
  );
  const toggle = () => (store.state.writing ? store.set({ writing: false }) : writeOn(page, note));
  store.watch(["tokens", "typed"], (state) => {
    const text = state.typed ?? page.tokenizer.decode(state.tokens);
    if (box.value !== text) box.value = text;
    box.scrollTop = state.writing ? box.scrollHeight : box.scrollTop;
  });
  store.watch(["writing"], ({ writing }) => {
    write.textContent = writing ? "Stop" : `Write ${WRITTEN} ${page.data.facts.unit}s`;
    one.disabled = again.disabled = writing;
  });
  store.watch(["unknown"], ({ unknown }) => {
    const signs = unknown.slice(0, 8).map(visible).join(" ");
    note.textContent = unknown.length ? `The model has never seen ${signs}: left out.` : "";
  });
  return [box, element("div", { class: "buttons" }, write, one, again), note];
}

/** A token drawn after the end of the text. */
function drawOne({ store }) {
  const { trace, temperature, topK } = store.state;
  const { logits } = trace.candidates(trace.length - 1);
  return draw(probabilities(logits, { temperature, topK }), Math.random);
}

/** Writes on until there are `WRITTEN` more tokens, or the reader stops it. */
function writeOn(page, note) {
  const { store, model } = page;
  const random = seeded(Math.floor(Math.random() * 2 ** 32));
  const tokens = [...store.state.tokens];
  const cache = model.start(page.window(tokens));
  let left = WRITTEN;
  let looked = performance.now();
  const began = looked;
  store.set({ writing: true, typed: null, unknown: [] });
  const frame = () => {
    const until = performance.now() + FRAME;
    while (store.state.writing && left > 0 && performance.now() < until) {
      const { temperature, topK } = store.state;
      const token = draw(probabilities(cache.logits, { temperature, topK }), random);
      tokens.push(token);
      model.next(cache, token);
      left -= 1;
    }
    if (!store.state.writing) {
      page.look(); // the reader stopped it
      return;
    }
    store.set({ tokens: [...tokens] });
    const now = performance.now();
    if (left === 0 || now - looked > REFRESH) {
      page.look();
      looked = performance.now();
    }
    if (left > 0) {
      requestAnimationFrame(frame);
      return;
    }
    const speed = Math.round((1000 * WRITTEN) / (now - began));
    note.textContent = `${WRITTEN} ${page.data.facts.unit}s, ${speed} a second, in this browser.`;
    store.set({ writing: false });
  };
  requestAnimationFrame(frame);
}
