/**
 * jaxgpt's models in the browser: the GPT and the rungs of the ladder, in float32, without dropout.
 *
 * Shapes: T tokens, C channels, V tokens of the vocabulary, L blocks, H heads.
 */

import { attend, emptyMemory } from "./attention.js";
import { openCache, readNext } from "./decoding.js";
import { add, layerNorm, linear, rmsNorm } from "./ops.js";
import { createParts } from "./parts.js";

/**
 * What can be switched off; all are on by default.
 *
 * @typedef {object} Switches
 * @property {boolean} [scale] the division of the scores by the root of a head's width
 * @property {boolean} [mask] that a token does not see those after it
 * @property {boolean} [content] weights by what the tokens say; off, each counts the same
 * @property {boolean} [positions] embeddings of positions, or rotation
 * @property {boolean} [residual] that a block adds to the stream; off, it takes its place
 * @property {boolean} [norm] LayerNorm, with its scale and bias
 */

/** @type {Switches} */
export const ALL_ON = {
  scale: true,
  mask: true,
  content: true,
  positions: true,
  residual: true,
  norm: true,
};

/**
 * What a model made of a text.
 *
 * @typedef {object} Reading
 * @property {Float32Array} logits (T, V)
 * @property {Float32Array[][]} attention by block and head, (T, T): row t has what token t takes
 *   from each token
 * @property {Float32Array[][]} scores what goes into the softmax, before the mask
 * @property {Float32Array[]} streams (T, C): what enters the first block, and what leaves each
 */

/**
 * @typedef {object} Model
 * @property {object} config
 * @property {number} layers blocks with attention
 * @property {number} heads in each
 * @property {(tokens: number[], switches?: Switches) => Reading} read at most `block_size` tokens
 * @property {(stream: Float32Array, t: number, switches?: Switches) => Float32Array} lens
 *   the logits (V) that the head reads in position `t` of a stream
 * @property {(prompt?: number[], switches?: Switches) => import("./decoding.js").Cache} start
 *   a cache that has read `prompt`, whose `logits` are those of the next token
 * @property {(cache: import("./decoding.js").Cache, token: number) => Float32Array} next
 *   the logits (V) after one more token
 */

/**
 * @param {object} config jaxgpt's ModelConfig, by the names of its fields
 * @param {Object<string, object>} weights arrays by name
 * @returns {Model}
 */
export function createModel(config, weights) {
  const parts = createParts(config, weights);
  const lastLogits = (tokens, memory, on) => {
    const stream = pass(parts, tokens, memory, on);
    return logitsOf(parts, rowOf(parts, stream, tokens.length - 1), on);
  };
  return {
    config,
    layers: parts.blocks.length,
    heads: parts.heads,
    read: (tokens, switches = {}) => readWhole(parts, tokens, { ...ALL_ON, ...switches }),
    lens: (stream, t, switches = {}) =>
      logitsOf(parts, rowOf(parts, stream, t), { ...ALL_ON, ...switches }),
    start: (prompt = [], switches = {}) => {
      const on = { ...ALL_ON, ...switches };
      const fresh = () => newMemory(parts);
      return openCache(parts.size, prompt, {
        fresh,
        read: (tokens, m) => lastLogits(tokens, m, on),
      });
    },
    next: readNext,
  };
}

function newMemory(parts) {
  return { length: 0, blocks: parts.blocks.map(() => emptyMemory(parts)) };
}

function readWhole(parts, tokens, on) {
  const reading = { attention: [], scores: [], streams: [] };
  const stream = pass(parts, tokens, newMemory(parts), on, reading);
  return { logits: logitsOf(parts, stream, on), ...reading };
}

/**
 * Reads tokens after those in the memory, which they are added to.
 *
 * @returns {Float32Array} what leaves the last block, (T, C)
 */
function pass(parts, tokens, memory, on, reading = null) {
  if (memory.length + tokens.length > parts.size) {
    throw new RangeError(`the model reads ${parts.size} tokens at most`);
  }
  let x = embed(parts, tokens, memory.length, on);
  reading?.streams.push(x);
  parts.blocks.forEach((block, i) => {
    const y = normed(block.ln1, x, on);
    const attended = attend(parts, block, y, memory.blocks[i], memory.length, on);
    const joined = (part) => (block.residual && on.residual ? add(part, x) : part);
    x = joined(attended.out);
    if (block.fc) x = joined(mlp(parts, block, normed(block.ln2, x, on)));
    reading?.attention.push(attended.weights);
    reading?.scores.push(attended.scores);
    reading?.streams.push(x);
  });
  memory.length += tokens.length;
  return x;
}

/** The embeddings of tokens that stand at `start` and after it: (T, C). */
function embed({ wte, wpe, embdNorm, width }, tokens, start, on) {
  const x = new Float32Array(tokens.length * width);
  tokens.forEach((token, t) => {
    x.set(wte.subarray(token * width, (token + 1) * width), t * width);
  });
  if (wpe && on.positions) add(x, wpe.subarray(start * width));
  if (embdNorm) for (let i = 0; i < x.length; i += width) rmsNorm(x, i, width);
  return x;
}

function mlp({ activation }, { fc, out }, x) {
  const hidden = activation(linear(fc, x));
  return out ? linear(out, hidden) : hidden;
}

function logitsOf({ lnF, head }, x, on) {
  const y = normed(lnF, x, on);
  return head ? linear(head, y) : y.slice();
}

function normed(norm, x, on) {
  return norm && on.norm ? layerNorm(norm, x) : x;
}

function rowOf({ width }, stream, t) {
  return stream.subarray(t * width, (t + 1) * width);
}
