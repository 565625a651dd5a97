/** Where is it surprised? The loss of each token of a text, as its colour. */

import { debounced, element, named, percent, visible } from "./dom.js";
import { passageLosses } from "./trace.js";

const MOST_NATS = 6; // from here on the colour is as strong as it gets
const LONGEST = 2000; // tokens of a text that are judged

/** Fills the section: the coloured text, its mean, a box for a text of one's own. */
export function showSurprise(root, page) {
  const text = element("div", { class: "passage", dir: "auto" });
  const about = element("p", { class: "caption", "aria-live": "polite" });
  const means = element("dl", { class: "means" });
  const show = (passage) => {
    text.replaceChildren(
      ...passage.pieces.map((piece, i) => colored(piece, passage, i, page, about)),
    );
    means.replaceChildren(
      ...figures(passage, page.data.facts.unit).flatMap(([name, value]) => [
        element("div", {}, element("dt", {}, name), element("dd", {}, value)),
      ]),
    );
    about.textContent = "Point at a place to see what it expected there.";
  };
  const given = page.model ? [own(page, show)] : [];
  root.append(
    element(
      "div",
      { class: "columns wide" },
      element("div", {}, legend(), text, about),
      element("div", {}, means, ...given),
    ),
  );
  show(page.model ? judged(page, page.data.passage) : recorded(page));
}

/** The losses of a text: { pieces (T), losses (T - 1), likeliest (T - 1) }. */
function judged({ model, tokenizer }, text) {
  const tokens = tokenizer.encode(text).tokens.slice(0, LONGEST);
  const found =
    tokens.length > 1 ? passageLosses(model, tokens, {}) : { losses: [], likeliest: [] };
  return { pieces: tokens.map((token) => tokenizer.text(token)), ...found };
}

function recorded({ data, tokenizer }) {
  const { tokens, losses, top } = data.recorded.passage;
  return { pieces: tokens.map((token) => tokenizer.text(token)), losses, likeliest: top };
}

function colored(piece, { losses, likeliest }, i, page, about) {
  if (i === 0) return element("span", { class: "first" }, shown(piece));
  const loss = losses[i - 1];
  const span = element(
    "span",
    { style: `--share: ${Math.min(1, loss / MOST_NATS).toFixed(3)}` },
    shown(piece),
  );
  span.addEventListener("pointerenter", () => {
    const guess = page.tokenizer.text(likeliest[i - 1]);
    const expected = guess === piece ? "as it expected" : `it expected ${named(guess)}`;
    about.textContent = `${named(piece)} had a probability of ${percent(Math.exp(-loss))}: a loss of ${loss.toFixed(2)} nats; ${expected}.`;
  });
  return span;
}

/** Line breaks break the line here. */
function shown(piece) {
  return [...piece].map((c) => (c === "\n" ? "⏎\n" : c === " " ? " " : visible(c))).join("");
}

/** Names and values of what the losses say together. */
function figures({ pieces, losses }, unit) {
  if (losses.length === 0) return [["a text of two characters at least", "–"]];
  const mean = average([...losses]);
  const begins = (i) => /\s$/u.test(pieces[i]) && /^\p{L}/u.test(pieces[i + 1]);
  const within = (i) => /\p{L}$/u.test(pieces[i]) && /^\p{L}/u.test(pieces[i + 1]);
  const of = (test) => [...losses].filter((_, i) => test(i));
  const rows = [
    [`mean loss, nats a ${unit}`, mean.toFixed(3)],
    ["as uncertain as among equally likely", Math.exp(mean).toFixed(1)],
  ];
  if (unit !== "character" || !of(begins).length || !of(within).length) return rows;
  rows.push(["first letters of words", average(of(begins)).toFixed(2)]);
  rows.push(["letters within words", average(of(within)).toFixed(2)]);
  return rows;
}

function average(values) {
  return values.reduce((sum, x) => sum + x, 0) / values.length;
}

function legend() {
  return element(
    "p",
    { class: "legend" },
    "expected",
    element("span", { class: "ramp", "aria-hidden": "true" }),
    `surprised (${MOST_NATS} nats and more)`,
  );
}

/** A box for a text of the reader's own. */
function own(page, show) {
  const box = element("textarea", {
    rows: 8,
    spellcheck: "false",
    "aria-label": "A text to judge",
    input: debounced(() => show(judged(page, box.value)), 200),
  });
  box.value = page.data.passage;
  return element(
    "label",
    { class: "own" },
    element("span", {}, "Change it, or put in a text of your own:"),
    box,
  );
}
