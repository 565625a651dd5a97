/** What if it is taken away? The loss of a trained model without each of its ideas. */

import { element } from "./dom.js";
import { meanLoss } from "./steps.js";

const IDEAS = [
  [
    "content",
    "attention that depends on the text (a plain mean instead)",
    ({ layers }) => layers > 0,
  ],
  ["scale", "the division by the root of the head's width", ({ layers }) => layers > 0],
  ["mask", "the triangle that hides the future", ({ layers }) => layers > 0],
  ["positions", "the positions", ({ layers }) => layers > 0],
  ["residual", "the residual stream", ({ layers }) => layers > 1],
  ["norm", "the LayerNorms", ({ config }) => ["gpt", "layernorm"].includes(config.architecture)],
];

/** Fills the section: a row for each idea, for the model that is chosen above. */
export function showWithout(root, ladder) {
  const { store, rungs } = ladder;
  const heading = element("h3", { "aria-live": "polite" });
  const list = element("dl", { class: "without" });
  root.append(heading, list);
  const worst = 2 * Math.log(ladder.data.vocabulary.length);
  store.watch(["rung"], ({ rung }) => {
    const { name, model } = rungs[rung];
    heading.textContent = `${name}, chosen above`;
    const ideas = IDEAS.filter(([, , has]) => has(model));
    const rows = [
      [{}, "as it was trained"],
      ...ideas.map(([idea, text]) => [{ [idea]: false }, `without ${text}`]),
    ];
    list.replaceChildren();
    const add = () => {
      if (store.state.rung !== rung || rows.length === 0) return; // another one was chosen meanwhile
      const [on, text] = rows.shift();
      list.append(...lossRow(text, meanLoss(ladder, rung, on), worst));
      setTimeout(add, 0); // the page answers between two of them
    };
    setTimeout(add, 0);
  });
}

function lossRow(text, loss, worst) {
  const width = Math.min(100, (100 * loss) / worst);
  const track = element(
    "div",
    { class: "track" },
    element("div", { class: "fill", style: `width: ${width}%` }),
  );
  return [element("dt", {}, text), element("dd", {}, track, element("span", {}, loss.toFixed(2)))];
}
