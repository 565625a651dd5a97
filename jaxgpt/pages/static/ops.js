/**
 * The arithmetic below the model, on rows of channels one after the other: (T, C) is T * C numbers.
 *
 * @typedef {{weight: Float32Array, bias: Float32Array | null, nIn: number, nOut: number}} Linear
 *   weight (nOut, nIn): what one output reads is contiguous
 * @typedef {{scale: Float32Array, bias: Float32Array | null}} Norm each (C)
 */

/**
 * @param {Linear} layer
 * @param {Float32Array} x (T, nIn)
 * @returns {Float32Array} (T, nOut)
 */
export function linear({ weight, bias, nIn, nOut }, x) {
  const rows = x.length / nIn;
  const y = new Float32Array(rows * nOut);
  const whole = nOut - (nOut % 4);
  for (let t = 0; t < rows; t += 2) {
    const product = t + 1 < rows ? fourOfTwoRows : fourOfOneRow;
    for (let j = 0; j < whole; j += 4) {
      product(weight, j * nIn, x, t * nIn, nIn, y, t * nOut + j, nOut);
    }
  }
  for (let t = 0; t < rows; t++) {
    for (let j = whole; j < nOut; j++) y[t * nOut + j] = dot(weight, j * nIn, x, t * nIn, nIn);
  }
  return bias ? addToRows(y, bias) : y;
}

/**
 * Four outputs, into `y` at `to`, of the row of `x` that begins at `u`, by the four rows of
 * `weight` that begin at `w0`. To read takes longer than to multiply: `x[i]` serves four times.
 */
function fourOfOneRow(weight, w0, x, u, nIn, y, to) {
  const w1 = w0 + nIn;
  const w2 = w1 + nIn;
  const w3 = w2 + nIn;
  let y0 = 0;
  let y1 = 0;
  let y2 = 0;
  let y3 = 0;
  for (let i = 0; i < nIn; i++) {
    const xi = x[u + i];
    y0 += weight[w0 + i] * xi;
    y1 += weight[w1 + i] * xi;
    y2 += weight[w2 + i] * xi;
    y3 += weight[w3 + i] * xi;
  }
  y[to] = y0;
  y[to + 1] = y1;
  y[to + 2] = y2;
  y[to + 3] = y3;
}

/** The same for this row and the next one, in little more than the time of one by itself. */
function fourOfTwoRows(weight, w0, x, u, nIn, y, to, nOut) {
  const w1 = w0 + nIn;
  const w2 = w1 + nIn;
  const w3 = w2 + nIn;
  const v = u + nIn;
  let y0 = 0;
  let y1 = 0;
  let y2 = 0;
  let y3 = 0;
  let z0 = 0;
  let z1 = 0;
  let z2 = 0;
  let z3 = 0;
  for (let i = 0; i < nIn; i++) {
    const a = x[u + i];
    const b = x[v + i];
    const wi0 = weight[w0 + i];
    const wi1 = weight[w1 + i];
    const wi2 = weight[w2 + i];
    const wi3 = weight[w3 + i];
    y0 += wi0 * a;
    y1 += wi1 * a;
    y2 += wi2 * a;
    y3 += wi3 * a;
    z0 += wi0 * b;
    z1 += wi1 * b;
    z2 += wi2 * b;
    z3 += wi3 * b;
  }
  y[to] = y0;
  y[to + 1] = y1;
  y[to + 2] = y2;
  y[to + 3] = y3;
  y[to + nOut] = z0;
  y[to + nOut + 1] = z1;
  y[to + nOut + 2] = z2;
  y[to + nOut + 3] = z3;
}

/** The dot product of `n` numbers of `a` from `i` on with those of `b` from `j` on. */
export function dot(a, i, b, j, n) {
  let sum = 0;
  for (let k = 0; k < n; k++) sum += a[i + k] * b[j + k];
  return sum;
}

/** Adds `row` (C) to each row of `x` (T, C), in place. */
function addToRows(x, row) {
  for (let i = 0; i < x.length; i += row.length) {
    for (let c = 0; c < row.length; c++) x[i + c] += row[c];
  }
  return x;
}

/** Adds `y` to `x`, in place. */
export function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
  return x;
}

/**
 * Each row to mean 0 and variance 1, then a scale and a bias.
 *
 * @param {Norm} norm
 * @param {Float32Array} x (T, C)
 * @returns {Float32Array} (T, C)
 */
export function layerNorm({ scale, bias }, x) {
  const C = scale.length;
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i += C) {
    let mean = 0;
    for (let c = 0; c < C; c++) mean += x[i + c] / C;
    let variance = 0;
    for (let c = 0; c < C; c++) variance += (x[i + c] - mean) ** 2 / C;
    const factor = 1 / Math.sqrt(variance + 1e-5);
    for (let c = 0; c < C; c++) y[i + c] = (x[i + c] - mean) * factor * scale[c];
  }
  return bias ? addToRows(y, bias) : y;
}

/** `n` channels of `x` from `i` on to a mean square of 1, in place. */
export function rmsNorm(x, i, n) {
  const factor = 1 / Math.sqrt(dot(x, i, x, i, n) / n + 1e-6);
  for (let c = 0; c < n; c++) x[i + c] *= factor;
}

/** The larger of each number and 0, in place. */
export function relu(x) {
  for (let i = 0; i < x.length; i++) if (x[i] < 0) x[i] = 0;
  return x;
}

/** GPT-2's approximation of GELU, by tanh; in place. */
export function gelu(x) {
  const root = Math.sqrt(2 / Math.PI);
  for (let i = 0; i < x.length; i++) {
    x[i] *= 0.5 * (1 + Math.tanh(root * (x[i] + 0.044715 * x[i] ** 3)));
  }
  return x;
}

/** The logarithm of the sum of the exponentials of `n` numbers of `x` from `i` on. */
export function logSumExp(x, i = 0, n = x.length) {
  let most = Number.NEGATIVE_INFINITY;
  for (let k = i; k < i + n; k++) if (x[k] > most) most = x[k];
  let sum = 0;
  for (let k = i; k < i + n; k++) sum += Math.exp(x[k] - most);
  return most + Math.log(sum);
}

/** The place, counted from `i`, of the largest of `n` numbers of `x` from `i` on. */
export function argmax(x, i = 0, n = x.length) {
  let place = 0;
  for (let k = 1; k < n; k++) if (x[i + k] > x[i + place]) place = k;
  return place;
}

/** The mean of numbers, one at least. */
export function meanOf(values) {
  return values.reduce((sum, x) => sum + x, 0) / values.length;
}
