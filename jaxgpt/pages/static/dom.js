/** Elements of a page, and how tokens and numbers are shown. */

/** An HTML element: `attributes` are set as they are, functions as event listeners. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element, as `element`. */
export function drawing(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value !== null)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** A token's text in one line: what cannot be seen gets a sign of its own. */
export function visible(text) {
  const signs = [...text].map((c) => {
    const code = c.codePointAt(0);
    if (c === "\n") return "⏎";
    if (c === " ") return "␣";
    if (c === "\t") return "⇥";
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    if (code === 127 || (code >= 0x80 && code < 0xa0) || (code >= 0xd800 && code < 0xe000))
      return "�";
    return /\p{M}|\p{Cf}/u.test(c) ? `◌${c}` : c;
  });
  return signs.join("");
}

/** A token's name in a sentence: "e", the space, the line break. */
export function named(text) {
  if (text === " ") return "the space";
  if (text === "\n") return "the line break";
  return `“${visible(text)}”`;
}

/** A share as a percentage of two digits or so. */
export function percent(share) {
  const value = 100 * share;
  if (value < 0.1) return value === 0 ? "0 %" : "< 0.1 %";
  return `${value.toFixed(value < 10 ? 1 : 0)} %`;
}

/** Calls `run` once, when no call has come for `ms` milliseconds. */
export function debounced(run, ms) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, ms);
  };
}

/** A slider with its name and its value beside it; `shown` makes a text of the value. */
export function slider(name, { min, max, step, value }, shown, changed) {
  const output = element("output", {}, shown(value));
  const input = element("input", {
    type: "range",
    min,
    max,
    step,
    value,
    "aria-label": name,
    "aria-valuetext": shown(value),
    input: () => {
      const now = Number(input.value);
      output.textContent = shown(now);
      input.setAttribute("aria-valuetext", shown(now));
      changed(now);
    },
  });
  return element("label", { class: "slider" }, element("span", {}, name), input, output);
}

/** A group of buttons, of which one is on. `options` are pairs of value and name. */
export function choice(name, options, value, changed) {
  const group = element("div", { class: "choice", role: "group", "aria-label": name });
  for (const [option, text] of options) {
    const button = element("button", { type: "button" }, text);
    button.setAttribute("aria-pressed", String(option === value));
    button.addEventListener("click", () => {
      for (const other of group.children)
        other.setAttribute("aria-pressed", String(other === button));
      changed(option);
    });
    group.append(button);
  }
  return group;
}
