/** Arrays out of the page's data, where they are base64 of little-endian numbers. */

/**
 * @param {{shape: number[], type: "float16" | "float32" | "uint8", data: string}} array
 * @returns {{shape: number[], data: Float32Array | Uint8Array}} float16 becomes float32
 */
export function decodeArray({ shape, type, data }) {
  const bytes = bytesOf(atob(data));
  if (type === "uint8") return { shape, data: bytes };
  const view = new DataView(bytes.buffer);
  if (type === "float32") {
    return { shape, data: numbers(bytes.length / 4, (i) => view.getFloat32(4 * i, true)) };
  }
  return { shape, data: numbers(bytes.length / 2, (i) => fromHalf(view.getUint16(2 * i, true))) };
}

/**
 * @param {number} length
 * @param {(i: number) => number} number the i-th
 */
export function numbers(length, number) {
  const array = new Float32Array(length);
  for (let i = 0; i < length; i++) array[i] = number(i);
  return array;
}

/** The bytes that `atob` gives as characters. `Uint8Array.from` would take twenty times as long. */
function bytesOf(characters) {
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** What each exponent of an IEEE 754 half stands for; numbers below the least have that, too. */
const HALF_EXPONENTS = Array.from({ length: 32 }, (_, exponent) =>
  exponent === 31 ? Number.POSITIVE_INFINITY : 2 ** (Math.max(exponent, 1) - 15),
);

/** The number whose bits as a half are `half`; what is not a number becomes infinite. */
function fromHalf(half) {
  const exponent = (half >> 10) & 0x1f;
  const magnitude = (half & 0x3ff) / 1024 + (exponent === 0 ? 0 : 1);
  return (half & 0x8000 ? -magnitude : magnitude) * HALF_EXPONENTS[exponent];
}
