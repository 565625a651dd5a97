/** A matrix of shares as a picture, a cell each, in the accent colour of the style sheet. */

import { colorOf } from "./theme.js";

/**
 * Draws `values` (n * n, rows first, from 0 to 1) on a canvas of n x n pixels, which the style sheet
 * enlarges. Small shares are made visible: what is drawn is their root.
 */
export function drawMatrix(canvas, values, n) {
  canvas.width = canvas.height = n;
  const [red, green, blue] = colorOf("--accent");
  const picture = new ImageData(n, n);
  for (let i = 0; i < n * n; i++) {
    picture.data.set([red, green, blue, 255 * Math.sqrt(Math.min(1, values[i]))], 4 * i);
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** The cell under a pointer: [row, column] of an n x n matrix drawn on `node`. */
export function cellAt(event, node, n) {
  const { left, top, width, height } = node.getBoundingClientRect();
  const place = (offset, size) => Math.min(n - 1, Math.max(0, Math.floor((n * offset) / size)));
  return [place(event.clientY - top, height), place(event.clientX - left, width)];
}
