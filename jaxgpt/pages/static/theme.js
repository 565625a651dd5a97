/** Light and dark: by the system, or as the reader chose. What is drawn on a canvas is drawn again. */

const redraws = [];

/** Calls `draw` now, and whenever the colours change. */
export function onTheme(draw) {
  redraws.push(draw);
  draw();
}

/** The button that changes between light and dark. */
export function themeButton(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () =>
    (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const tell = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    for (const draw of redraws) draw();
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  system.addEventListener("change", tell);
  tell();
}

/** A custom property of the style sheet as [red, green, blue]. */
export function colorOf(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const channels = getComputedStyle(probe)
    .color.match(/[\d.]+/g)
    .map(Number);
  probe.remove();
  return channels.slice(0, 3);
}
