/** The text that the model reads, token by token; pointing at one, or the arrow keys, move the cursor. */

import { element, visible } from "./dom.js";

/**
 * A line of tokens that follows the store's `trace` and `at`.
 *
 * @param {object} store with `trace`, `pieces` (the tokens' texts) and `at` (the cursor, a place in them).
 * @param {(at: number) => number[] | Float32Array} [tints] a share from 0 to 1 for each token, given the cursor: how strongly it is coloured.
 */
export function createStrip(store, tints = () => []) {
  const line = element("div", {
    class: "strip",
    role: "slider",
    tabindex: "0",
    dir: "ltr",
    "aria-label": "Place in the text",
    "aria-valuemin": "1",
    keydown: (event) => {
      const to = moved(event.key, store.state.at, line.children.length);
      if (to === null) return;
      event.preventDefault();
      store.set({ at: to });
    },
  });
  for (const kind of ["pointermove", "pointerdown"]) {
    line.addEventListener(kind, (event) => {
      const place = [...line.children].indexOf(event.target.closest("span"));
      if (place >= 0) store.set({ at: place });
    });
  }
  store.watch(["trace"], ({ pieces }) => {
    line.replaceChildren(
      ...pieces.map((text) => element("span", {}, text === " " ? text : visible(text))),
    );
    line.setAttribute("aria-valuemax", String(pieces.length));
  });
  store.watch(["trace", "at", "layer", "head"], ({ pieces, at }) => {
    const shares = tints(at);
    [...line.children].forEach((span, i) => {
      span.classList.toggle("at", i === at);
      span.style.setProperty("--share", shares[i] === undefined ? 0 : shares[i].toFixed(3));
    });
    line.setAttribute("aria-valuenow", String(at + 1));
    line.setAttribute(
      "aria-valuetext",
      `${at + 1} of ${pieces.length}: ${visible(pieces[at] ?? "")}`,
    );
  });
  return line;
}

/** Where a key moves the cursor to among `length` places; null for other keys. */
export function moved(key, at, length) {
  const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: length - 1 };
  return key in steps ? Math.min(Math.max(steps[key], 0), length - 1) : null;
}

/**
 * Lets the arrow keys walk along the places of a node, as the mouse does.
 *
 * @param {Element} node
 * @param {() => number} count how many places there are
 * @param {(place: number) => void} tell called with each place that is walked to
 */
export function walkable(node, count, tell) {
  let at = -1;
  node.setAttribute("tabindex", "0");
  node.addEventListener("keydown", (event) => {
    const to = moved(event.key, at, count());
    if (to === null) return;
    event.preventDefault();
    at = to;
    tell(to);
  });
}
