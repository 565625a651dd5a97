/** The page of the ladder: all rungs side by side, and attention taken apart. */

import { showCards } from "./cards.js";
import { createModel } from "./model.js";
import { showSteps } from "./steps.js";
import { createStore } from "./store.js";
import { themeButton } from "./theme.js";
import { createTokenizer } from "./tokenizer.js";
import { showWidth } from "./width.js";
import { showWithout } from "./without.js";

function createLadder(data) {
  const tokenizer = createTokenizer(data.tokenizer, data.vocabulary);
  const { tokens } = tokenizer.encode(data.prompt);
  const rungs = data.rungs.map((rung) => ({
    ...rung,
    model: createModel(rung.config, rung.weights),
  }));
  const store = createStore({
    trace: null, // the strip is drawn again when it changes
    pieces: tokens.map((token) => tokenizer.text(token)),
    tokens,
    at: tokens.length - 1,
    layer: 0,
    head: 0,
    rung: 1,
    switches: {},
  });
  return { data, tokenizer, rungs, store };
}

const ladder = createLadder(JSON.parse(document.getElementById("data").textContent));
document.getElementById("facts").textContent = ladder.data.caption;
themeButton(document.getElementById("theme"));
const SECTIONS = { rungs: showCards, steps: showSteps, width: showWidth, without: showWithout };
for (const [name, show] of Object.entries(SECTIONS)) {
  show(document.getElementById(name).querySelector(".view"), ladder);
}
globalThis.jaxgpt = ladder; // for the curious, in the browser's console
