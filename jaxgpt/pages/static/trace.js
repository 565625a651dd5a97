/**
 * What the views show of one text: computed by a model in the page, or recorded by jaxgpt.
 *
 * Shapes: T tokens, V tokens of the vocabulary, C channels.
 */

import { decodeArray, numbers } from "./arrays.js";
import { argmax, logSumExp } from "./ops.js";
import { likeliest } from "./sampling.js";

/**
 * @typedef {{tokens: number[], logits: Float32Array, lse: number, all: boolean}} Candidates
 *   for the next token: all of the vocabulary, or the likeliest; a probability is exp(logit - lse)
 * @typedef {object} Trace
 * @property {number[]} tokens
 * @property {number} length T
 * @property {number} layers
 * @property {number} heads
 * @property {(token: number) => string} text what to show for a token
 * @property {(t: number) => Candidates} candidates after token t
 * @property {(layer: number, head: number) => Float32Array} attention (T, T), rows are queries
 * @property {(layer: number, t: number, n: number) => {token: number, p: number}[]} lens
 *   the n likeliest that the head sees after token t; layer 0 is the embeddings
 * @property {Float32Array} losses (T - 1) in nats: of each token but the first
 */

/**
 * @param {import("./model.js").Model} model
 * @param {import("./tokenizer.js").Tokenizer} tokenizer
 * @param {number[]} tokens (T), at most `block_size`
 * @param {import("./model.js").Switches} switches
 * @returns {Trace}
 */
export function liveTrace(model, tokenizer, tokens, switches = {}) {
  const V = model.config.vocab_size;
  const { logits, attention, streams } = model.read(tokens, switches);
  const every = Array.from({ length: V }, (_, token) => token);
  return {
    tokens,
    length: tokens.length,
    layers: model.layers,
    heads: model.heads,
    text: tokenizer.text,
    candidates: (t) => {
      const row = logits.subarray(t * V, (t + 1) * V);
      return { tokens: every, logits: row, lse: logSumExp(row), all: true };
    },
    attention: (layer, head) => attention[layer][head],
    lens: (layer, t, n) => likeliest(model.lens(streams[layer], t, switches), n),
    get losses() {
      return lossesOf(logits, V, tokens.slice(1));
    },
  };
}

/**
 * @param {object} recorded of the page's data
 * @param {Object<number, string>} vocabulary what to show for each token
 * @returns {Trace}
 */
export function recordedTrace(recorded, vocabulary) {
  const { tokens, top, lens, losses } = recorded;
  const attention = decodeArray(recorded.attention);
  const logits = decodeArray(top.logits);
  const shares = decodeArray(lens.probs);
  const [layers, heads, T] = attention.shape;
  return {
    tokens,
    length: T,
    layers,
    heads,
    text: (token) => vocabulary[token],
    candidates: (t) => {
      const n = logits.shape[1];
      const row = logits.data.subarray(t * n, (t + 1) * n);
      return { tokens: top.ids[t], logits: row, lse: top.lse[t], all: false };
    },
    attention: (layer, head) => {
      const first = (layer * heads + head) * T * T;
      return numbers(T * T, (i) => attention.data[first + i] / 255);
    },
    lens: (layer, t, n) => {
      const first = (layer * T + t) * shares.shape[2];
      const ids = lens.ids[layer][t].slice(0, n);
      return ids.map((token, i) => ({ token, p: shares.data[first + i] }));
    },
    losses: Float32Array.from(losses),
  };
}

/**
 * How well each token of a text of any length is predicted, in windows end to end as in
 * jaxgpt/evaluation.py: the last one begins early enough to be whole.
 *
 * @param {import("./model.js").Model} model
 * @param {number[]} tokens (N)
 * @param {import("./model.js").Switches} switches
 * @returns {{losses: Float32Array, likeliest: Int32Array}} of each token but the first, (N - 1)
 */
export function passageLosses(model, tokens, switches = {}) {
  const V = model.config.vocab_size;
  const S = model.config.block_size;
  const count = Math.max(0, tokens.length - 1);
  const losses = new Float32Array(count);
  const best = new Int32Array(count);
  for (let from = 0; from < count; from += S) {
    const start = Math.max(0, Math.min(from, count - S));
    const inputs = tokens.slice(start, Math.min(start + S, count));
    const { logits } = model.read(inputs, switches);
    const skipped = from - start;
    const targets = tokens.slice(from + 1, start + inputs.length + 1);
    losses.set(lossesOf(logits.subarray(skipped * V), V, targets), from);
    for (let t = skipped; t < inputs.length; t++) best[start + t] = argmax(logits, t * V, V);
  }
  return { losses, likeliest: best };
}

/** The losses of the first tokens' `targets` (n) by the logits (T, V), in nats. */
function lossesOf(logits, V, targets) {
  return numbers(targets.length, (t) => logSumExp(logits, t * V, V) - logits[t * V + targets[t]]);
}
