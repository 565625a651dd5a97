/** The page of one trained model. */

import { check, GREEDY } from "./check.js";
import { showHeads } from "./heads.js";
import { showLearning } from "./learning.js";
import { showLens } from "./lens.js";
import { showLetters } from "./letters.js";
import { createModel } from "./model.js";
import { showNext } from "./next.js";
import { createStore } from "./store.js";
import { showSurprise } from "./surprise.js";
import { themeButton } from "./theme.js";
import { createTokenizer } from "./tokenizer.js";
import { liveTrace, recordedTrace } from "./trace.js";

/** What the views share: the data, the model (null where it is too large to be here), the state. */
function createPage(data) {
  const tokenizer = createTokenizer(data.tokenizer, data.vocabulary);
  const model = data.weights === null ? null : createModel(data.config, data.weights);
  const start = Math.max(0, data.vocabulary.indexOf?.("\n") ?? 0); // what an empty text begins with
  const window = (tokens) => (tokens.length ? tokens.slice(-data.config.block_size) : [start]);
  const looked = (tokens) => {
    const trace = model
      ? liveTrace(model, tokenizer, window(tokens))
      : recordedTrace(data.recorded, data.vocabulary);
    return {
      trace,
      pieces: [...trace.tokens].map((token) => tokenizer.text(token)),
      at: trace.length - 1,
    };
  };
  const tokens = model ? tokenizer.encode(data.prompt).tokens : data.recorded.tokens;
  const first = looked(tokens);
  const store = createStore({
    tokens,
    typed: null, // the text box as it was typed, which may have more than the tokens
    unknown: [],
    ...first,
    temperature: 1,
    topK: first.trace.candidates(0).tokens.length, // all that there are
    layer: 0,
    head: 0,
    averaged: false,
    writing: false,
  });
  return {
    data,
    tokenizer,
    model,
    store,
    window,
    look: () => store.set(looked(store.state.tokens)),
    /** The text is `text` now. */
    type(text) {
      const { tokens, unknown } = tokenizer.encode(text);
      store.set({ tokens, unknown, typed: text, ...looked(tokens) });
    },
    /** After place `at` of what is read comes `token`, and nothing else. */
    choose(token, at = store.state.at) {
      const { tokens, trace } = store.state;
      const kept = tokens.length
        ? tokens.slice(0, tokens.length - trace.length + at + 1)
        : window([]);
      const longer = [...kept, token];
      store.set({ tokens: longer, typed: null, unknown: [], ...looked(longer) });
    },
  };
}

function showTop({ data, model }) {
  const { facts, config } = data;
  const told = [
    data.title,
    `${facts.parameters.toLocaleString("en")} parameters`,
    model?.layers === 0
      ? null
      : `${config.n_layer} layers of ${config.n_head} heads, ${config.n_embd} wide`,
    facts.step ? `after ${facts.step.toLocaleString("en")} steps` : null,
    facts.val_loss === null ? null : `validation loss ${facts.val_loss.toFixed(3)}`,
  ];
  document.getElementById("facts").textContent = told.filter(Boolean).join(" · ");
  document.getElementById("note").textContent = data.note ?? "";
  themeButton(document.getElementById("theme"));
}

/** What the arithmetic here is worth, measured in this browser. */
function showMeasured({ data, model, tokenizer }) {
  const node = document.getElementById("measured");
  if (!model) {
    node.textContent =
      "This model is too large to be in the page: what you see was recorded by jaxgpt, for this one text.";
    return;
  }
  const { error, places, greedy } = check(model, tokenizer, data.reference);
  node.textContent =
    `The model is in this page, ${data.facts.parameters.toLocaleString("en")} weights in float16, and runs in plain JavaScript. ` +
    `Measured in this browser just now, over ${places} places x ${data.config.vocab_size} ${data.facts.unit}s: the largest difference of a logit ` +
    `from jaxgpt's float32 is ${error.toFixed(4)}, and the first ${GREEDY} ${data.facts.unit}s written without chance are ${greedy ? "the same" : "not the same"}.`;
}

const VIEWS = {
  next: showNext,
  attention: showHeads,
  surprise: showSurprise,
  lens: showLens,
  letters: showLetters,
  learning: showLearning,
};

/** Which sections this model has something for. */
function hasView(name, { data }) {
  if (name === "attention") return data.heads.attention.shape[0] > 0;
  if (name === "letters") return data.letters !== null;
  if (name === "learning") return data.learning.losses.length > 0;
  return true;
}

const page = createPage(JSON.parse(document.getElementById("data").textContent));
showTop(page);
for (const [name, show] of Object.entries(VIEWS)) {
  const section = document.getElementById(name);
  if (hasView(name, page)) show(section.querySelector(".view"), page);
  else section.remove();
}
setTimeout(() => showMeasured(page), 50); // the page is there first
globalThis.jaxgpt = page; // for the curious, in the browser's console
