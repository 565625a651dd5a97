/** The text that the model reads, token by token; pointing at one, or the arrow keys, move the cursor. */

import { element, visible } from "./dom.js";
import { pointable, walkable } from "./places.js";

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
    dir: "ltr",
    "aria-label": "Place in the text",
    "aria-valuemin": "1",
  });
  const go = (at) => store.set({ at });
  pointable(line, go);
  walkable(line, () => line.children.length, go, { at: () => store.state.at });
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
