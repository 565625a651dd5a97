/**
 * A text token by token, as jaxgpt/sampling.py writes it: when the next tokens may not fit into the
 * cache of keys and values, half a window is read afresh. So a text can be of any length.
 */

const CHUNK = 8; // tokens that jaxgpt draws between two looks at how full the cache is

/**
 * @typedef {{length: number, blocks: import("./attention.js").Memory[]}} Keys of the tokens read
 * @typedef {object} Cache
 * @property {number} size of a window, in tokens
 * @property {number[]} tokens the end of the text
 * @property {Keys} memory of the last of them
 * @property {number} drawn tokens since the prompt
 * @property {Float32Array | null} logits of the next token, (V); null before the first
 * @property {{fresh: () => Keys, read: (tokens: number[], memory: Keys) => Float32Array}} how
 */

/** @returns {Cache} */
export function openCache(size, prompt, how) {
  const cache = { size, tokens: [...prompt], memory: how.fresh(), drawn: 0, logits: null, how };
  if (prompt.length > 0) reread(cache, size - chunkOf(size));
  return cache;
}

/**
 * @param {Cache} cache
 * @param {number} token the next one of the text
 * @returns {Float32Array} the logits (V) of the one after it
 */
export function readNext(cache, token) {
  const { size, tokens, memory, how } = cache;
  const chunk = chunkOf(size);
  const first = tokens.length === 0;
  tokens.push(token);
  if (!first) cache.drawn += 1;
  if (cache.drawn % chunk === 0 && memory.length + 1 + chunk > size) {
    reread(cache, Math.floor(size / 2));
  } else {
    cache.logits = how.read([token], memory);
  }
  return cache.logits;
}

function chunkOf(size) {
  return Math.max(1, Math.min(CHUNK, Math.floor(size / 2)));
}

/** Goes on from the last `count` tokens of the text, one at least. */
function reread(cache, count) {
  cache.tokens = cache.tokens.slice(-Math.max(1, count));
  cache.memory = cache.how.fresh();
  cache.logits = cache.how.read(cache.tokens, cache.memory);
}
