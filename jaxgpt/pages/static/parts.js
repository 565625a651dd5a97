/** Each architecture of jaxgpt as the same few parts, from its weights by name. */

import { decodeArray, numbers } from "./arrays.js";
import { gelu, relu } from "./ops.js";

/**
 * @typedef {import("./ops.js").Linear} Linear
 * @typedef {import("./ops.js").Norm} Norm
 * @typedef {object} Block attention, then an MLP; a part that is null is left out
 * @property {Norm | null} ln1 before the attention
 * @property {Linear} attn C to 3 C: queries, keys and values
 * @property {Linear | null} proj after the attention
 * @property {Norm | null} ln2 before the MLP
 * @property {Linear | null} fc the MLP's first layer, before its activation
 * @property {Linear | null} out its second layer
 * @property {boolean} residual whether both add to the stream, or take its place
 * @typedef {object} Parts
 * @property {number} size of a window, in tokens (S)
 * @property {number} width of the stream, in channels (C)
 * @property {number} heads in a block (H)
 * @property {Float32Array} wte (V, C)
 * @property {Float32Array | null} wpe (S, C)
 * @property {boolean} embdNorm whether the embeddings are RMS-normalised
 * @property {boolean} qkNorm whether queries and keys are
 * @property {{cos: Float32Array, sin: Float32Array} | null} rotary (S, D / 2) each
 * @property {boolean} valueShift whether half of each head's values are those of the token before
 * @property {(x: Float32Array) => Float32Array} activation of the MLP
 * @property {Block[]} blocks
 * @property {Norm | null} lnF before the head
 * @property {Linear | null} head C to V; null where the stream is the logits
 */

const PLAIN = {
  wpe: null,
  embdNorm: false,
  qkNorm: false,
  rotary: null,
  valueShift: false,
  lnF: null,
};

/**
 * @param {object} config of jaxgpt's ModelConfig, by the names of its fields
 * @param {Object<string, object>} weights arrays by name, such as "h.0.attn.c_attn.kernel"
 * @returns {Parts}
 */
export function createParts(config, weights) {
  const of = readers(weights);
  if (config.architecture === "gpt") return gptParts(config, of);
  if (config.architecture === "bigram") return bigramParts(config, of);
  return rungParts(config, of);
}

/** Of jaxgpt/model/gpt.py. */
function gptParts(config, of) {
  const { n_layer, n_head, n_embd, block_size, vocab_size, positions } = config;
  const wte = of.embedding("wte");
  const tied = { weight: wte, bias: null, nIn: n_embd, nOut: vocab_size };
  const block = (name) => ({
    ln1: of.norm(`${name}.ln_1`),
    attn: of.linear(`${name}.attn.c_attn`),
    proj: of.linear(`${name}.attn.c_proj`),
    ln2: of.norm(`${name}.ln_2`),
    fc: of.linear(`${name}.mlp.c_fc`),
    out: of.linear(`${name}.mlp.c_proj`),
    residual: true,
  });
  return {
    size: block_size,
    width: n_embd,
    heads: n_head,
    wte,
    wpe: of.embedding("wpe"),
    embdNorm: config.embd_norm,
    qkNorm: config.qk_norm,
    rotary: positions === "rotary" ? rotaryTables(block_size, n_embd / n_head) : null,
    valueShift: config.value_shift,
    activation: config.activation === "relu" ? relu : gelu,
    blocks: Array.from({ length: n_layer }, (_, i) => block(`h.${i}`)),
    lnF: of.norm("ln_f"),
    head: config.tie_head ? tied : of.linear("lm_head"),
  };
}

/** Of the ladder's first rung, a table: its rows are the stream and the logits at once. */
function bigramParts({ block_size, vocab_size }, of) {
  const wte = of.embedding("table");
  return { ...PLAIN, size: block_size, width: vocab_size, heads: 0, wte, blocks: [], head: null };
}

/** Of the other rungs, jaxgpt/model/ladder.py. */
function rungParts({ architecture, n_layer, n_head, n_embd, block_size }, of) {
  const deep = architecture === "blocks" || architecture === "layernorm";
  const block = (name) => ({
    ln1: of.norm(`${name}ln_1`),
    attn: stacked(["query", "key", "value"].map((part) => of.linear(`${name}attn.${part}`))),
    proj: of.linear(`${name}attn.proj`),
    ln2: of.norm(`${name}ln_2`),
    fc: of.linear(deep ? `${name}c_fc` : "think"),
    out: of.linear(`${name}c_proj`),
    residual: deep,
  });
  return {
    ...PLAIN,
    size: block_size,
    width: n_embd,
    heads: architecture === "head" ? 1 : n_head,
    wte: of.embedding("wte"),
    wpe: of.embedding("wpe"),
    activation: relu,
    blocks: deep ? Array.from({ length: n_layer }, (_, i) => block(`h.${i}.`)) : [block("")],
    lnF: of.norm("ln_f"),
    head: of.linear("lm_head"),
  };
}

/** Functions from a part's name to the part, or to null where the weights have none. */
function readers(weights) {
  const array = (name) => (name in weights ? decodeArray(weights[name]) : null);
  const data = (name) => array(name)?.data ?? null;
  return {
    embedding: (name) => data(`${name}.embedding`),
    norm: (name) => {
      const scale = data(`${name}.scale`);
      return scale && { scale, bias: data(`${name}.bias`) };
    },
    linear: (name) => {
      const kernel = array(`${name}.kernel`);
      if (!kernel) return null;
      const [nIn, nOut] = kernel.shape;
      const weight = transposed(kernel.data, nIn, nOut);
      return { weight, bias: data(`${name}.bias`), nIn, nOut };
    },
  };
}

/** (n, m) to (m, n). */
function transposed(matrix, n, m) {
  return numbers(n * m, (i) => matrix[(i % n) * m + Math.floor(i / n)]);
}

/** Layers without bias that read the same, as one whose outputs lie side by side. */
function stacked(layers) {
  const weight = new Float32Array(layers.reduce((size, layer) => size + layer.weight.length, 0));
  layers.reduce((place, layer) => {
    weight.set(layer.weight, place);
    return place + layer.weight.length;
  }, 0);
  const { nIn } = layers[0];
  return { weight, bias: null, nIn, nOut: weight.length / nIn };
}

/** Su et al. 2021, https://arxiv.org/abs/2104.09864, with `size` as the base. */
function rotaryTables(size, headWidth) {
  const pairs = headWidth / 2;
  const angle = (i) => Math.floor(i / pairs) * size ** (-(i % pairs) / pairs);
  const table = (wave) => numbers(size * pairs, (i) => wave(angle(i)));
  return { cos: table(Math.cos), sin: table(Math.sin) };
}
