/** A node with places in a row, such as a text's tokens: the mouse points at them, the arrow keys walk along. */

/**
 * @param {Element} node whose children are spans, a place each
 * @param {(place: number) => void} go called with the place that is pointed at
 */
export function pointable(node, go) {
  for (const kind of ["pointermove", "pointerdown"]) {
    node.addEventListener(kind, (event) => {
      const place = [...node.children].indexOf(event.target.closest("span"));
      if (place >= 0) go(place);
    });
  }
}

/**
 * @param {Element} node
 * @param {() => number} count how many places there are
 * @param {(place: number) => void} go called with each place that is walked to
 * @param {{at?: () => number, vertical?: boolean}} how where the walk goes on from, if not from where it
 *   came to last; whether the keys up and down walk, too
 */
export function walkable(node, count, go, { at = null, vertical = false } = {}) {
  let last = -1;
  node.setAttribute("tabindex", "0");
  node.addEventListener("keydown", (event) => {
    const key = vertical ? event.key.replace("Up", "Left").replace("Down", "Right") : event.key;
    const from = at ? at() : last;
    const steps = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: count() - 1 };
    if (!(key in steps)) return;
    event.preventDefault();
    last = Math.min(Math.max(steps[key], 0), count() - 1);
    go(last);
  });
}
