/** What is attention? From scores to weights in four steps, each of which can be switched off. */

import { choice, element, slider, visible } from "./dom.js";
import { meanOf } from "./ops.js";
import { passageLosses } from "./trace.js";

const PLACES = 8; // of the text, up to the cursor
const SWITCHES = [
  ["scale", "divide by √D"],
  ["mask", "hide the future"],
  ["content", "weights from the text"],
];

/** Fills the section: the model to look at, the switches, the matrices, what they do to the loss. */
export function showSteps(root, ladder) {
  const { store, rungs } = ladder;
  const looking = rungs
    .map(({ name, model }, i) => [i, name, model])
    .filter(([, , model]) => model.layers > 0);
  const stages = element("div", { class: "stages" });
  const told = element("p", { class: "caption", "aria-live": "polite" });
  const which = element("div", { class: "sliders" });
  root.append(
    choice(
      "Whose attention",
      looking.map(([i, name]) => [i, name]),
      store.state.rung,
      (rung) => store.set({ rung, layer: 0, head: 0 }),
    ),
    switches(store),
    which,
    stages,
    told,
  );
  store.watch(["rung"], ({ rung }) => {
    const { layers, heads } = rungs[rung].model;
    const pick = (name, count) =>
      count > 1
        ? [
            slider(name, { min: 1, max: count, step: 1, value: 1 }, String, (n) =>
              store.set({ [name.toLowerCase()]: n - 1 }),
            ),
          ]
        : [];
    which.replaceChildren(...pick("Layer", layers), ...pick("Head", heads));
  });
  store.watch(["trace", "at", "rung", "layer", "head", "switches"], (state) => {
    const seen = attentionSteps(rungs[state.rung].model, state);
    stages.replaceChildren(...seen.stages.map((stage) => stageTable(stage, seen.pieces)));
    told.textContent = `On average a place spreads over ${seen.spread.toFixed(1)} of the ${seen.open.toFixed(1)} that it may see. ${lossWith(ladder, state)}`;
  });
}

function switches(store) {
  const boxes = SWITCHES.map(([name, text]) => {
    const box = element("input", {
      type: "checkbox",
      checked: true,
      change: () => store.set({ switches: { ...store.state.switches, [name]: box.checked } }),
    });
    return element("label", { class: "switch" }, box, text);
  });
  return element("div", { class: "switches" }, ...boxes);
}

/** The matrices of one head for the last places before the cursor, from scores to weights. */
function attentionSteps(model, { tokens, pieces, at, layer, head, switches: on }) {
  const first = Math.max(0, at + 1 - Math.min(PLACES, model.config.block_size));
  const T = at + 1 - first;
  const reading = model.read(tokens.slice(first, at + 1), on);
  const scores = reading.scores[layer][head];
  const weights = reading.attention[layer][head];
  const root = Math.sqrt(model.config.n_embd / model.heads);
  const products = on.scale === false ? scores : scores.map((s) => s * root);
  const hidden = (i) => on.mask !== false && i % T > Math.floor(i / T);
  const masked = [...scores].map((s, i) => (hidden(i) ? -Infinity : s));
  const stages = [
    { name: "query · key", values: [...products], off: on.content === false },
    {
      name: `÷ √D = ${root.toFixed(1)}`,
      values: [...scores],
      off: on.scale === false || on.content === false,
    },
    {
      name: "the future: −∞",
      values: on.content === false ? masked.map((s) => (s === -Infinity ? s : 0)) : masked,
      off: on.mask === false,
    },
    { name: "softmax: weights", values: [...weights], shares: true },
  ];
  return { stages, pieces: pieces.slice(first, at + 1), ...spreadOf(weights, T, hidden) };
}

/** Over how many tokens the weights spread (the exponential of their entropy), and how many there are: means of all rows. */
function spreadOf(weights, T, hidden) {
  let spread = 0;
  let open = 0;
  for (let t = 0; t < T; t++) {
    const row = [...weights.subarray(t * T, (t + 1) * T)];
    const entropy = row.reduce((sum, w) => (w > 0 ? sum - w * Math.log(w) : sum), 0);
    spread += Math.exp(entropy) / T;
    open += row.filter((_, s) => !hidden(t * T + s)).length / T;
  }
  return { spread, open };
}

function stageTable({ name, values, shares, off }, pieces) {
  const T = pieces.length;
  const most = Math.max(1e-9, ...values.filter(Number.isFinite).map(Math.abs));
  const cell = (value) => {
    const share = Number.isFinite(value) ? Math.abs(value) / (shares ? 1 : most) : 0;
    const text = value === -Infinity ? "−∞" : value.toFixed(shares ? 2 : 1).replace("-", "−");
    return element(
      "td",
      {
        class: value < 0 && Number.isFinite(value) ? "minus" : "",
        style: `--share: ${(0.85 * share).toFixed(3)}`,
      },
      text,
    );
  };
  const rows = pieces.map((piece, t) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, visible(piece)),
      ...values.slice(t * T, (t + 1) * T).map(cell),
    ),
  );
  const head = element(
    "tr",
    {},
    element("td"),
    ...pieces.map((piece) => element("th", { scope: "col" }, visible(piece))),
  );
  return element(
    "figure",
    { class: off ? "stage off" : "stage" },
    element("figcaption", {}, name),
    element("table", {}, head, ...rows),
  );
}

/** What the switches do to the loss of the whole model, in words. */
function lossWith(ladder, { rung, switches: on }) {
  const { name } = ladder.rungs[rung];
  const loss = meanLoss(ladder, rung, on).toFixed(2);
  const trained = meanLoss(ladder, rung, {}).toFixed(2);
  const all = Object.values(on).every(Boolean);
  return all
    ? `${name} has a loss of ${trained} on a text that it has not seen.`
    : `So ${name}'s loss is ${loss}; with all of it, ${trained}.`;
}

const measured = new Map();

/** The mean loss of a rung's model over the passage, with `switches`; measured once. */
export function meanLoss({ rungs, data, tokenizer }, rung, on) {
  const key = JSON.stringify([
    rung,
    Object.entries(on)
      .filter(([, value]) => !value)
      .sort(),
  ]);
  if (!measured.has(key)) {
    const { losses } = passageLosses(rungs[rung].model, tokenizer.encode(data.passage).tokens, on);
    measured.set(key, meanOf(losses));
  }
  return measured.get(key);
}
