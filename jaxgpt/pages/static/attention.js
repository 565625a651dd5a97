/**
 * Causal self-attention: softmax(q · k / sqrt(D)) v, and the memory of keys and values.
 *
 * Shapes: T tokens that are read, N in the memory then, S at most, C = H * D channels.
 */

import { dot, linear, logSumExp, rmsNorm } from "./ops.js";

/**
 * @typedef {{keys: Float32Array, values: Float32Array}} Memory of a block, (S, C) and (S + 1, C)
 * @typedef {{out: Float32Array, scores: Float32Array[], weights: Float32Array[]}} Attended
 *   out (T, C); scores, before mask and softmax, and weights of each head: (T, N)
 */

/**
 * @param {import("./parts.js").Parts} parts
 * @returns {Memory}
 */
export function emptyMemory({ size, width }) {
  // A row more for the shifted half of the last token's values.
  return { keys: new Float32Array(size * width), values: new Float32Array((size + 1) * width) };
}

/**
 * @param {import("./parts.js").Parts} parts
 * @param {import("./parts.js").Block} block
 * @param {Float32Array} x (T, C)
 * @param {Memory} memory of the tokens before, to which these are added
 * @param {number} start how many tokens those are
 * @param {import("./model.js").Switches} on
 * @returns {Attended}
 */
export function attend(parts, block, x, memory, start, on) {
  const { width, heads } = parts;
  const rows = x.length / width;
  const qkv = linear(block.attn, x);
  for (let t = 0; t < rows; t++) {
    if (parts.qkNorm) normalise(parts, qkv, t);
    if (parts.rotary && on.positions) rotate(parts, qkv, t, start + t);
    remember(parts, qkv, t, memory, start + t);
  }
  const mixed = new Float32Array(rows * width);
  const scores = [];
  const weights = [];
  for (let h = 0; h < heads; h++) {
    scores.push(scoresOf(parts, h, qkv, memory.keys, start + rows, on));
    weights.push(weightsOf(scores[h], start, rows, on));
    averageValues(parts, h, weights[h], memory.values, mixed);
  }
  return { out: block.proj ? linear(block.proj, mixed) : mixed, scores, weights };
}

/** Where the queries, and then the keys, of row `t` of `qkv` (T, 3 C) begin, head by head. */
function starts({ width, heads }, t) {
  return Array.from({ length: 2 * heads }, (_, i) => 3 * t * width + (i * width) / heads);
}

/** Queries and keys to a mean square of 1, each head's by itself. */
function normalise(parts, qkv, t) {
  for (const i of starts(parts, t)) rmsNorm(qkv, i, parts.width / parts.heads);
}

/** Rotates queries and keys of row `t`, channels in pairs, by angles that grow with `position`. */
function rotate(parts, qkv, t, position) {
  const { cos, sin } = parts.rotary;
  const pairs = parts.width / parts.heads / 2;
  for (const i of starts(parts, t)) {
    for (let pair = 0; pair < pairs; pair++) {
      const c = cos[position * pairs + pair];
      const s = sin[position * pairs + pair];
      const a = qkv[i + pair];
      const b = qkv[i + pairs + pair];
      qkv[i + pair] = a * c - b * s;
      qkv[i + pairs + pair] = a * s + b * c;
    }
  }
}

/** Puts keys and values of row `t` into the memory, at `place`, shifted values one later. */
function remember({ width, heads, valueShift }, qkv, t, { keys, values }, place) {
  const key = (3 * t + 1) * width;
  const D = width / heads;
  keys.set(qkv.subarray(key, key + width), place * width);
  for (let c = 0; c < width; c++) {
    const later = valueShift && c % D >= D / 2;
    values[(later ? place + 1 : place) * width + c] = qkv[key + width + c];
  }
}

/** The dot product of each query with each key, (T, N), over the square root of D. */
function scoresOf({ width, heads }, head, qkv, keys, length, on) {
  const D = width / heads;
  const divisor = on.scale ? Math.sqrt(D) : 1;
  const rows = qkv.length / (3 * width);
  const scores = new Float32Array(rows * length);
  for (let t = 0; t < rows; t++) {
    const query = 3 * t * width + head * D;
    for (let s = 0; s < length; s++) {
      scores[t * length + s] = dot(qkv, query, keys, s * width + head * D, D) / divisor;
    }
  }
  return scores;
}

/** Their softmax over what each token may see: itself and those before it. */
function weightsOf(scores, start, rows, on) {
  const length = start + rows;
  const weights = new Float32Array(scores.length);
  for (let t = 0; t < rows; t++) {
    const row = t * length;
    const seen = on.mask ? start + t + 1 : length;
    const total = logSumExp(scores, row, seen);
    for (let s = 0; s < seen; s++) {
      weights[row + s] = on.content ? Math.exp(scores[row + s] - total) : 1 / seen;
    }
  }
  return weights;
}

/** The average of the values by `weights` (T, N), into the channels of `head` of `mixed` (T, C). */
function averageValues({ width, heads }, head, weights, values, mixed) {
  const D = width / heads;
  const rows = mixed.length / width;
  const length = weights.length / rows;
  for (let t = 0; t < rows; t++) {
    const to = t * width + head * D;
    for (let s = 0; s < length; s++) {
      const weight = weights[t * length + s];
      const from = s * width + head * D;
      if (weight !== 0) for (let d = 0; d < D; d++) mixed[to + d] += weight * values[from + d];
    }
  }
}
