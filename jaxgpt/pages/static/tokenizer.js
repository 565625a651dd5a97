/** Text to tokens and back, as jaxgpt/data/tokenizer.py and bpe.py do it. */

/**
 * @typedef {object} Tokenizer
 * @property {(text: string) => {tokens: number[], unknown: string[]}} encode
 *   the tokens, and the distinct characters that have none and were left out
 * @property {(tokens: number[]) => string} decode
 * @property {(token: number) => string} text what to show for a token
 * @property {number | null} endOfText the token on which writing stops
 */

// How GPT-2 cuts a text into pieces which no token crosses. JavaScript's \s is not Unicode's.
const PIECES = [
  /'s|'t|'re|'ve|'m|'ll|'d/,
  / ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+/u,
  /\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/u,
];
const PIECE = new RegExp(PIECES.map((pattern) => pattern.source).join("|"), "gu");

/**
 * @param {object} description of kind char, bytes, bpe or recorded
 * @param {string[] | Object<number, string>} vocabulary what to show for each token
 * @returns {Tokenizer}
 */
export function createTokenizer(description, vocabulary) {
  const text = (token) => vocabulary[token];
  const kinds = { char: characters, bytes: utf8, bpe: bytePairs, recorded: recordedTokens };
  return { text, endOfText: null, ...kinds[description.kind](description, text) };
}

/** Each character, which is a code point, is a token. */
function characters({ characters }) {
  const all = [...characters];
  const tokens = new Map(all.map((character, token) => [character, token]));
  return {
    encode: (text) => {
      const given = [...text];
      return {
        tokens: given.filter((one) => tokens.has(one)).map((one) => tokens.get(one)),
        unknown: [...new Set(given.filter((one) => !tokens.has(one)))],
      };
    },
    decode: (some) => some.map((token) => all[token]).join(""),
  };
}

/** Each byte of the text in UTF-8 is a token. */
function utf8() {
  return {
    encode: (text) => ({ tokens: [...toBytes(text)], unknown: [] }),
    decode: (tokens) => fromBytes(tokens),
  };
}

/** Byte pairs, merged as in GPT-2. */
function bytePairs({ merges, vocab, end_of_text }) {
  const ranks = new Map(merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
  const names = new Map(Object.entries(vocab).map(([name, token]) => [token, name]));
  const alphabet = byteNames();
  const bytes = new Map(alphabet.map((name, byte) => [name, byte]));
  return {
    encode: (text) => {
      const pieces = text.match(PIECE) ?? [];
      const tokens = pieces.flatMap((piece) =>
        merged(piece, ranks, alphabet).map((name) => vocab[name]),
      );
      return { tokens, unknown: [] };
    },
    decode: (tokens) =>
      fromBytes(tokens.flatMap((token) => [...names.get(token)].map((name) => bytes.get(name)))),
    endOfText: end_of_text,
  };
}

/** Of a page that knows no tokens but those it shows. */
function recordedTokens(_, text) {
  return {
    encode: (given) => ({ tokens: [], unknown: [...new Set(given)] }),
    decode: (tokens) => tokens.map(text).join(""),
  };
}

/** The names of a piece's tokens: those of its bytes, joined by the merges, the first one first. */
function merged(piece, ranks, alphabet) {
  const parts = Array.from(toBytes(piece), (byte) => alphabet[byte]);
  for (;;) {
    let best = Number.POSITIVE_INFINITY;
    let place = -1;
    for (let i = 0; i + 1 < parts.length; i++) {
      const rank = ranks.get(`${parts[i]} ${parts[i + 1]}`);
      if (rank < best) [best, place] = [rank, i];
    }
    if (place < 0) return parts;
    parts.splice(place, 2, parts[place] + parts[place + 1]);
  }
}

/** The printable character that stands for each byte in a tokenizer.json. */
function byteNames() {
  const printable = (byte) =>
    (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte < 0xad) || byte > 0xad;
  let others = 0;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(printable(byte) ? byte : 256 + others++),
  );
}

function toBytes(text) {
  return new TextEncoder().encode(text);
}

function fromBytes(bytes) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
}
