/** What has it learnt of letters? Their embeddings in the plane where they differ most. */

import { decodeArray } from "./arrays.js";
import { drawing, element, named, percent, visible } from "./dom.js";
import { walkable } from "./places.js";

const PLANE_WIDTH = 640;
const PLANE_HEIGHT = 460;
const MARGIN = 28;
const NEIGHBORS = 3;
const KINDS = [
  ["vowel", "vowels", /^[aeiou]$/],
  ["consonant", "consonants", /^\p{Ll}$/u],
  ["capital", "capitals", /^\p{Lu}$/u],
  ["digit", "digits", /^\p{Nd}$/u],
  ["space", "spaces", /^\s$/],
  ["other", "others", /./su],
];

/** Fills the section: the plane, a legend, and the nearest of the letter under the pointer. */
export function showLetters(root, page) {
  const { tokens, xy, share } = page.data.letters;
  const points = decodeArray(xy).data;
  const place = scaled(points);
  const texts = tokens.map((token) => page.tokenizer.text(token));
  const caption = element(
    "p",
    { class: "caption", "aria-live": "polite" },
    "Point at a letter to see its nearest, or walk along them with the arrow keys.",
  );
  const lines = drawing("g", { class: "lines" });
  const tell = (i) => {
    const nearest = nearestOf(points, i);
    lines.replaceChildren(...nearest.map((j) => line(place(i), place(j))));
    caption.textContent = `Nearest to ${named(texts[i])} here: ${nearest.map((j) => named(texts[j])).join(", ")}.`;
  };
  const letters = texts.map((text, i) => {
    const [x, y] = place(i);
    const mark = drawing("text", { x, y, class: kindOf(text)[0] }, visible(text));
    for (const kind of ["pointerenter", "pointerdown"]) mark.addEventListener(kind, () => tell(i));
    return mark;
  });
  const about = `The letters' embeddings in two dimensions: ${percent(share[0])} and ${percent(share[1])} of their differences.`;
  const plane = drawing(
    "svg",
    {
      class: "plane",
      viewBox: `0 0 ${PLANE_WIDTH} ${PLANE_HEIGHT}`,
      role: "img",
      "aria-label": about,
    },
    lines,
    ...letters,
  );
  walkable(plane, () => texts.length, tell);
  const there = KINDS.filter(([kind]) => texts.some((text) => kindOf(text)[0] === kind));
  const key = element(
    "ul",
    { class: "key" },
    ...there.map(([kind, name]) => element("li", { class: kind }, name)),
  );
  const told = element("div", {}, key, element("p", { class: "caption" }, about), caption);
  root.append(element("div", { class: "columns wide" }, plane, told));
}

function kindOf(text) {
  return KINDS.find(([, , pattern]) => pattern.test(text)) ?? KINDS[KINDS.length - 1];
}

/** From a point's number to its place in the picture. */
function scaled(points) {
  const side = (offset, size) => {
    const values = [...points].filter((_, i) => i % 2 === offset);
    const least = Math.min(...values);
    const range = Math.max(...values) - least || 1;
    return (i) => MARGIN + ((size - 2 * MARGIN) * (points[2 * i + offset] - least)) / range;
  };
  const [x, y] = [side(0, PLANE_WIDTH), side(1, PLANE_HEIGHT)];
  return (i) => [x(i), y(i)];
}

function nearestOf(points, i) {
  const distance = (j) =>
    Math.hypot(points[2 * i] - points[2 * j], points[2 * i + 1] - points[2 * j + 1]);
  const others = [...Array(points.length / 2).keys()].filter((j) => j !== i);
  return others.sort((a, b) => distance(a) - distance(b)).slice(0, NEIGHBORS);
}

function line([x1, y1], [x2, y2]) {
  return drawing("line", { x1, y1, x2, y2 });
}
