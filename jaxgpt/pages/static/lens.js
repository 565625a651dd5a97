/**
 * When does it know? Each layer's stream through the head, as if it were the last: the logit lens
 * (nostalgebraist 2020).
 */

import { element, named, percent, visible } from "./dom.js";

const CANDIDATES = 3;

/** Fills the section: a table of the likeliest next tokens, layers down, places across. */
export function showLens(root, page) {
  const { store } = page;
  const table = element("table", { class: "lens" });
  const caption = element("p", { class: "caption", "aria-live": "polite" });
  const scroll = element(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": "Predictions by layer" },
    table,
  );
  root.append(scroll, caption);
  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    if (cell) store.set({ at: cell.cellIndex - 1 });
  });
  store.watch(["trace"], ({ trace, pieces }) => {
    const rows = [];
    for (let l = trace.layers; l >= 0; l--) rows.push(layerRow(page, trace, l));
    table.replaceChildren(
      element("thead", {}, heading("comes next", [...pieces.slice(1), ""], "th")),
      element("tbody", {}, ...rows),
      element("tfoot", {}, heading("is read", pieces, "td")),
    );
  });
  store.watch(["trace", "at"], ({ trace, pieces, at }) => {
    for (const row of table.rows) {
      [...row.cells].forEach((cell, i) => {
        cell.classList.toggle("at", i === at + 1);
      });
    }
    const cell = table.rows[0].cells[at + 1];
    if (cell && !scroll.matches(":hover"))
      scroll.scrollLeft = cell.offsetLeft - scroll.clientWidth / 2;
    caption.textContent = story(page, trace, pieces, at);
  });
}

function heading(name, pieces, tag) {
  const cells = pieces.map((piece) =>
    element(tag, tag === "th" ? { scope: "col" } : {}, visible(piece)),
  );
  return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
}

function layerRow(page, trace, l) {
  const cells = [...trace.tokens].map((_, t) => {
    const [{ token, p }] = trace.lens(l, t, 1);
    const right = token === trace.tokens[t + 1];
    const text = page.tokenizer.text(token);
    return element(
      "td",
      {
        class: right ? "right" : "",
        style: `--share: ${p.toFixed(3)}`,
        title: `${named(text)} ${percent(p)}`,
      },
      visible(text),
    );
  });
  return element("tr", {}, element("th", { scope: "row" }, layerName(l, trace.layers)), ...cells);
}

function layerName(l, layers) {
  if (l === 0) return "embeddings";
  return l === layers ? `layer ${l}: the answer` : `layer ${l}`;
}

/** From where on the answer leads, in words. */
function story(page, trace, pieces, at) {
  const { layers } = trace;
  const [answer] = trace.lens(layers, at, 1);
  let since = layers;
  while (since > 0 && trace.lens(since - 1, at, 1)[0].token === answer.token) since -= 1;
  const from = since === 0 ? "from the embeddings on" : `from layer ${since} on`;
  const before = trace
    .lens(Math.max(0, since - 1), at, CANDIDATES)
    .map(({ token, p }) => `${named(page.tokenizer.text(token))} ${percent(p)}`);
  const earlier = since === 0 ? "" : ` One layer earlier it had ${before.join(", ")}.`;
  return `After ${named(pieces[at])} the answer is ${named(page.tokenizer.text(answer.token))}, ${percent(answer.p)}: it leads ${from}.${earlier}`;
}
