/** Who looks at whom? Every head's weights as a triangle, and those of one head on the text itself. */

import { decodeArray } from "./arrays.js";
import { choice, element, named, percent, visible } from "./dom.js";
import { cellAt, drawMatrix } from "./matrix.js";
import { walkable } from "./places.js";
import { createStrip } from "./strip.js";
import { onTheme } from "./theme.js";

const NAMED = 3; // tokens that a sentence names
const SETTLED = 4; // places at the beginning of a text that say little: there is nothing to choose from
const CLEAR = 0.25; // the share of a distance that makes a habit of it
const MOST_LABELS = 48; // tokens that have room beside the triangle

/** Fills the section: the heads, the triangle of the chosen one, the text. */
export function showHeads(root, page) {
  const { store, data } = page;
  const average = decodeArray(data.heads.attention);
  const [layers, heads, size] = average.shape;
  const mean = (l, h) => {
    const first = (l * heads + h) * size * size;
    return average.data.subarray(first, first + size * size);
  };
  const matrix = ({ trace, averaged }, l, h) => (averaged ? mean(l, h) : trace.attention(l, h));
  const length = ({ trace, averaged }) => (averaged ? size : trace.length);

  const grid = headGrid(store, layers, heads, (l, h) => habit(mean(l, h), size));
  const triangle = element("canvas", { role: "img" });
  const row = element("div", { class: "row", "aria-hidden": "true" });
  const labels = element("div", { class: "labels", dir: "ltr", "aria-hidden": "true" });
  const frame = element(
    "div",
    {
      class: "triangle",
      role: "group",
      "aria-label": "Weights of the chosen head; the arrow keys walk along the rows",
    },
    triangle,
    labels,
    row,
  );
  const strip = createStrip(store, (at) => sightOf(store.state, at));
  const caption = element("p", { class: "caption", "aria-live": "polite" });
  const sources = [
    [false, "This text"],
    [true, "Average over the validation text"],
  ];
  const source = choice("Whose weights", sources, false, (averaged) => store.set({ averaged }));
  const large = element("div", {}, frame, strip, caption);
  root.append(source, element("div", { class: "columns" }, grid.node, large));

  const point = (event) => store.set({ at: cellAt(event, triangle, length(store.state))[0] });
  frame.addEventListener("pointermove", point);
  frame.addEventListener("pointerdown", point);
  const walk = { at: () => store.state.at, vertical: true };
  walkable(
    frame,
    () => length(store.state),
    (at) => store.set({ at }),
    walk,
  );
  const paint = () => {
    const state = store.state;
    for (const { canvas, l, h } of grid.cells)
      drawMatrix(canvas, matrix(state, l, h), length(state));
    drawMatrix(triangle, matrix(state, state.layer, state.head), length(state));
  };
  store.watch(["trace", "averaged"], ({ pieces, averaged }) => {
    const fit = !averaged && pieces.length <= MOST_LABELS;
    labels.replaceChildren(
      ...(fit ? pieces.map((piece, t) => label(piece, t, pieces.length)) : []),
    );
  });
  store.watch(["trace", "averaged", "layer", "head"], paint);
  onTheme(paint);
  store.watch(["trace", "averaged", "layer", "head", "at"], (state) => {
    const n = length(state);
    row.style.top = `${(100 * Math.min(state.at, n - 1)) / n}%`;
    row.style.height = `${100 / n}%`;
    strip.hidden = state.averaged;
    const told = state.averaged ? habits(mean(state.layer, state.head), size) : looks(state);
    caption.textContent = `Layer ${state.layer + 1}, head ${state.head + 1}. ${told}`;
    triangle.setAttribute("aria-label", caption.textContent);
  });
}

/** A token's text to the right of its place on the diagonal. */
function label(piece, t, n) {
  const style = `left: ${(100 * (t + 1)) / n}%; top: ${(100 * t) / n}%; height: ${100 / n}%`;
  return element("span", { style }, visible(piece));
}

/** The chosen head's weights from the token at `at` to each token. */
function sightOf({ trace, layer, head }, at) {
  const n = trace.length;
  return trace.attention(layer, head).subarray(at * n, (at + 1) * n);
}

/** A button with a small triangle for each head, a layer a row. */
function headGrid(store, layers, heads, about) {
  const node = element("div", { class: "heads", style: `--heads: ${heads}` });
  const cells = [];
  for (let l = 0; l < layers; l++) {
    node.append(element("span", { class: "layer" }, `Layer ${l + 1}`));
    for (let h = 0; h < heads; h++) {
      const canvas = element("canvas", { "aria-hidden": "true" });
      const button = element(
        "button",
        {
          type: "button",
          "aria-label": `Layer ${l + 1}, head ${h + 1}: ${about(l, h)}`,
          click: () => store.set({ layer: l, head: h }),
        },
        canvas,
        element("small", {}, about(l, h)),
      );
      cells.push({ canvas, button, l, h });
      node.append(button);
    }
  }
  store.watch(["layer", "head"], ({ layer, head }) => {
    for (const { button, l, h } of cells) {
      button.setAttribute("aria-pressed", String(l === layer && h === head));
    }
  });
  return { node, cells };
}

/** Where the token at the cursor looks, in words. */
function looks(state) {
  const { pieces, at } = state;
  const weights = sightOf(state, at);
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, NAMED);
  const places = order
    .filter((i) => weights[i] >= 0.05)
    .map((i) => `${named(pieces[i])} (${distance(at - i)}) ${percent(weights[i])}`);
  const rest = places.length ? places.join(", ") : "nothing in particular";
  return `At ${named(pieces[at])} it looks at ${rest}.`;
}

function distance(back) {
  return back === 0 ? "itself" : `${back} back`;
}

/** Mean weight of each distance back, over the rows of an average that have something to choose from. */
function byDistance(mean, size) {
  const first = Math.min(SETTLED, size - 1);
  const sums = new Float64Array(size);
  for (let t = first; t < size; t++) {
    for (let back = 0; back <= t; back++) {
      sums[back] += mean[t * size + t - back] / (size - first);
    }
  }
  return sums;
}

/** What a head does on average, in a word or two. */
function habit(mean, size) {
  const sums = byDistance(mean, size);
  const most = sums.indexOf(Math.max(...sums));
  return sums[most] < CLEAR ? `about ${meanDistance(sums).toFixed(0)} back` : distance(most);
}

/** The same, in a sentence. */
function habits(mean, size) {
  const sums = byDistance(mean, size);
  const order = [...sums.keys()].sort((a, b) => sums[b] - sums[a]).slice(0, NAMED);
  const places = order.map((back) => `${distance(back)} ${percent(sums[back])}`);
  const far = meanDistance(sums).toFixed(1);
  return `Over the validation text it looks at ${places.join(", ")}; ${far} back on average.`;
}

function meanDistance(sums) {
  return sums.reduce((total, share, back) => total + share * back, 0);
}
