/** Why divide by the root of the width? Random queries and keys, as wide as the reader likes. */

import { element, slider } from "./dom.js";
import { probabilities, seeded } from "./sampling.js";

const KEYS = 8;
const MOST_WIDE = 9; // a power of two

/** Fills the section: the width, and the weights with and without the division. */
export function showWidth(root) {
  const plain = weightBars("softmax(q·k)");
  const divided = weightBars("softmax(q·k / √D)");
  const show = (power) => {
    const D = 2 ** power;
    const scores = randomScores(D);
    plain.show(scores);
    divided.show(scores.map((score) => score / Math.sqrt(D)));
  };
  const pick = slider(
    "Width of the head, D",
    { min: 0, max: MOST_WIDE, step: 1, value: 5 },
    (power) => String(2 ** power),
    show,
  );
  root.append(pick, element("div", { class: "columns" }, plain.node, divided.node));
  show(5);
}

/** The products of a query with `KEYS` keys, all from N(0, 1), the same for the same width. */
function randomScores(D) {
  const random = seeded(7);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  return Float32Array.from({ length: KEYS }, () => {
    let score = 0;
    for (let i = 0; i < D; i++) score += normal() * normal();
    return score;
  });
}

function weightBars(name) {
  const fills = Array.from({ length: KEYS }, () => element("div", { class: "fill" }));
  const told = element("figcaption", {});
  const columns = element(
    "div",
    { class: "upright", role: "img" },
    ...fills.map((fill) => element("div", { class: "track" }, fill)),
  );
  const show = (scores) => {
    const shares = probabilities(scores);
    fills.forEach((fill, i) => {
      fill.style.height = `${100 * shares[i]}%`;
    });
    const most = Math.max(...shares);
    told.textContent = `${name}: the largest weight is ${(100 * most).toFixed(0)} %`;
    columns.setAttribute("aria-label", told.textContent);
  };
  return { node: element("figure", {}, told, columns), show };
}
