/** Where is it surprised? The loss of each token of a text, as its colour. */

import { debounced, element, named, percent, visible } from "./dom.js";
import { meanOf } from "./ops.js";
import { pointable, walkable } from "./places.js";
import { passageLosses } from "./trace.js";

const MOST_NATS = 6; // from here on the colour is as strong as it gets
const LONGEST = 2000; // tokens of a text that are judged

/** Fills the section: the coloured text, its mean, a box for a text of one's own. */
export function showSurprise(root, page) {
  const label = "The text; the arrow keys walk along it";
  const text = element("div", {
    class: "passage",
    dir: "auto",
    role: "group",
    "aria-label": label,
  });
  const about = element("p", { class: "caption", "aria-live": "polite" });
  const means = element("dl", { class: "means" });
  let passage = null;
  const tell = (i) => {
    for (const [place, span] of [...text.children].entries())
      span.classList.toggle("at", place === i);
    about.textContent = i === 0 ? "Nothing stands before it." : verdict(passage, i, page);
  };
  const show = (judgement) => {
    passage = judgement;
    text.replaceChildren(
      ...passage.pieces.map((piece, i) => colored(piece, passage.losses[i - 1] ?? 0)),
    );
    means.replaceChildren(
      ...figures(passage, page.data.facts.unit).map(([name, value]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, value)),
      ),
    );
    about.textContent = "Point at a place to see what it expected there.";
  };
  pointable(text, tell);
  walkable(text, () => text.children.length, tell);
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
  const found = tokens.length > 1 ? passageLosses(model, tokens) : { losses: [], likeliest: [] };
  return { pieces: tokens.map((token) => tokenizer.text(token)), ...found };
}

function recorded({ data, tokenizer }) {
  const { tokens, losses, top } = data.recorded.passage;
  return { pieces: tokens.map((token) => tokenizer.text(token)), losses, likeliest: top };
}

function colored(piece, loss) {
  const share = Math.min(1, loss / MOST_NATS).toFixed(3);
  return element("span", { style: `--share: ${share}` }, shown(piece));
}

/** What the model thinks of the i-th piece, in words. */
function verdict({ pieces, losses, likeliest }, i, { tokenizer }) {
  const loss = losses[i - 1];
  const guess = tokenizer.text(likeliest[i - 1]);
  const expected = guess === pieces[i] ? "as it expected" : `it expected ${named(guess)}`;
  const share = percent(Math.exp(-loss));
  return `${named(pieces[i])} had a probability of ${share}, a loss of ${loss.toFixed(2)} nats; ${expected}.`;
}

/** Line breaks break the line here. */
function shown(piece) {
  return [...piece].map((c) => (c === "\n" ? "⏎\n" : c === " " ? " " : visible(c))).join("");
}

/** Names and values of what the losses say together. */
function figures({ pieces, losses }, unit) {
  if (losses.length === 0) return [["a text of two characters at least", "–"]];
  const mean = meanOf(losses);
  const begins = (i) => /\s$/u.test(pieces[i]) && /^\p{L}/u.test(pieces[i + 1]);
  const within = (i) => /\p{L}$/u.test(pieces[i]) && /^\p{L}/u.test(pieces[i + 1]);
  const of = (test) => [...losses].filter((_, i) => test(i));
  const rows = [
    [`mean loss, nats a ${unit}`, mean.toFixed(3)],
    ["as uncertain as among equally likely", Math.exp(mean).toFixed(1)],
  ];
  if (unit !== "character" || !of(begins).length || !of(within).length) return rows;
  rows.push(["first letters of words", meanOf(of(begins)).toFixed(2)]);
  rows.push(["letters within words", meanOf(of(within)).toFixed(2)]);
  return rows;
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
