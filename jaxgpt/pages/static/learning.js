/** How did it learn? The loss against the steps, and what it wrote at each evaluation. */

import { drawing, element, slider } from "./dom.js";

const CURVE_WIDTH = 640;
const CURVE_HEIGHT = 260;
const LEFT = 44;
const BOTTOM = 34;
const TOP = 12;
const TICKS = 5;

/** Fills the section: the curve, the slider, the sample. */
export function showLearning(root, page) {
  const { losses, samples } = page.data.learning;
  const { figure, mark } = curve(losses, page.data.facts.unit);
  const written = element("div", {});
  root.append(element("div", { class: "columns wide" }, figure, written));
  if (samples.length === 0) return;
  const text = element("pre", { class: "sample", tabindex: "0", "aria-live": "polite" });
  const show = (i) => {
    text.textContent = samples[i].text;
    mark(samples[i].step, samples[i].val_loss);
  };
  const shown = (i) => `step ${samples[i].step.toLocaleString("en")}${lossOf(samples[i])}`;
  const last = samples.length - 1;
  const range = { min: 0, max: last, step: 1, value: last };
  written.append(slider("Written after", range, shown, show), text);
  show(last);
}

function lossOf({ val_loss: loss }) {
  return loss === null ? "" : `, validation loss ${loss.toFixed(2)}`;
}

/** The picture, and a function that marks a place in it. */
function curve(rows, unit) {
  const steps = rows.map(([step]) => step);
  const values = rows.flatMap(([, train, val]) => [train, val]).filter((loss) => loss !== null);
  const last = Math.max(1, ...steps);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const x = (step) => LEFT + ((CURVE_WIDTH - LEFT - TOP) * step) / last;
  const y = (loss) => TOP + ((CURVE_HEIGHT - TOP - BOTTOM) * (most - loss)) / (most - least || 1);
  const path = (column) => {
    const points = rows
      .filter((row) => row[column] !== null)
      .map((row) => `${x(row[0]).toFixed(1)},${y(row[column]).toFixed(1)}`);
    return points.length ? `M${points.join("L")}` : "";
  };
  const dot = drawing("circle", { r: 5, class: "mark", visibility: "hidden" });
  const val = rows.filter((row) => row[2] !== null);
  const svg = drawing(
    "svg",
    {
      class: "curve",
      viewBox: `0 0 ${CURVE_WIDTH} ${CURVE_HEIGHT}`,
      role: "img",
      "aria-label": about(rows, val),
    },
    ...ticks(least, most).map((loss) => grid(y(loss), loss)),
    drawing("text", { x: LEFT, y: CURVE_HEIGHT - 8 }, "step 0"),
    drawing(
      "text",
      { x: CURVE_WIDTH - TOP, y: CURVE_HEIGHT - 8, "text-anchor": "end" },
      `step ${last.toLocaleString("en")}`,
    ),
    drawing("text", { x: CURVE_WIDTH - TOP, y: TOP + 10, "text-anchor": "end" }, `nats a ${unit}`),
    drawing("path", { class: "train", d: path(1) }),
    drawing("path", { class: "val", d: path(2) }),
    ...val.map((row) => drawing("circle", { class: "val", r: 3, cx: x(row[0]), cy: y(row[2]) })),
    dot,
  );
  const key = element(
    "ul",
    { class: "key" },
    element("li", { class: "train" }, "training batch"),
    element("li", { class: "val" }, "validation"),
  );
  const mark = (step, loss) => {
    dot.setAttribute("visibility", loss === null ? "hidden" : "visible");
    dot.setAttribute("cx", x(step));
    dot.setAttribute("cy", y(loss ?? least));
  };
  return { figure: element("figure", {}, key, svg), mark };
}

function grid(y, loss) {
  return drawing(
    "g",
    { class: "grid" },
    drawing("line", { x1: LEFT, x2: CURVE_WIDTH - TOP, y1: y, y2: y }),
    drawing("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, loss.toFixed(1)),
  );
}

/** Round numbers between two losses. */
function ticks(least, most) {
  const rough = (most - least) / TICKS || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const first = Math.ceil(least / step);
  return Array.from({ length: Math.floor(most / step) - first + 1 }, (_, i) => (first + i) * step);
}

function about(rows, val) {
  const loss = val.length
    ? `; validation loss from ${val[0][2].toFixed(2)} to ${val[val.length - 1][2].toFixed(2)}`
    : "";
  return `Loss over ${rows.length ? rows[rows.length - 1][0] : 0} steps${loss}.`;
}
