/** How the next token is drawn from the model's scores, as jaxgpt/sampler.py does it. */

import { numbers } from "./arrays.js";
import { argmax, logSumExp } from "./ops.js";

/**
 * @param {Float32Array} logits (V)
 * @param {{temperature?: number, topK?: number}} how 0 as the temperature takes the likeliest; 0 as
 *   topK allows all tokens
 * @returns {Float32Array} (V), of sum 1
 */
export function probabilities(logits, { temperature = 1, topK = 0 } = {}) {
  if (temperature === 0) {
    const best = argmax(logits);
    return numbers(logits.length, (token) => Number(token === best));
  }
  const least =
    topK > 0 && topK < logits.length ? logits.toSorted()[logits.length - topK] : -Infinity;
  const allowed = logits.map((logit) => (logit >= least ? logit / temperature : -Infinity));
  const total = logSumExp(allowed);
  return allowed.map((logit) => Math.exp(logit - total));
}

/**
 * The token in whose share of the probabilities, laid end to end, a random number falls.
 *
 * @param {Float32Array} probabilities (V)
 * @param {() => number} random as `seeded` makes it
 */
export function draw(probabilities, random) {
  let left = random() * probabilities.reduce((sum, p) => sum + p, 0);
  const drawn = probabilities.findIndex((p) => {
    left -= p;
    return left < 0;
  });
  return drawn < 0 ? argmax(probabilities) : drawn; // rounding may leave a rest
}

/**
 * The `n` likeliest tokens, the likeliest first.
 *
 * @param {Float32Array} logits (V)
 * @returns {{token: number, p: number}[]}
 */
export function likeliest(logits, n) {
  const total = logSumExp(logits);
  return Array.from(logits, (logit, token) => ({ token, p: Math.exp(logit - total) }))
    .sort((one, other) => other.p - one.p)
    .slice(0, n);
}

/**
 * Random numbers, at least 0 and below 1, the same for the same seed: Tommy Ettinger's Mulberry32.
 *
 * @param {number} seed
 * @returns {() => number}
 */
export function seeded(seed) {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}
