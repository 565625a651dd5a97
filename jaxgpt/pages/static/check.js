/** How far the model in the page is from jaxgpt itself. */

import { decodeArray } from "./arrays.js";
import { argmax } from "./ops.js";

export const GREEDY = 50; // tokens

/**
 * @param {import("./model.js").Model} model
 * @param {import("./tokenizer.js").Tokenizer} tokenizer
 * @param {{tokens: number[], logits: object, prompt: string, greedy: string}} reference jaxgpt's
 * @returns {{error: number, places: number, greedy: boolean}} the largest difference of a logit, in
 *   how many places of the text, and whether the likeliest tokens after the prompt are the same
 */
export function check(model, tokenizer, reference) {
  const expected = decodeArray(reference.logits).data;
  const { logits } = model.read(reference.tokens);
  const error = logits.reduce((most, x, i) => Math.max(most, Math.abs(x - expected[i])), 0);
  const text = greedyText(model, tokenizer, reference.prompt);
  return { error, places: reference.tokens.length, greedy: text === reference.greedy };
}

/** What the model writes after `prompt` if it always takes the likeliest token. */
function greedyText(model, tokenizer, prompt) {
  const cache = model.start(tokenizer.encode(prompt).tokens);
  const tokens = [];
  while (tokens.length < GREEDY) {
    const token = argmax(cache.logits);
    if (token === tokenizer.endOfText) break;
    tokens.push(token);
    model.next(cache, token);
  }
  return tokenizer.decode(tokens);
}
