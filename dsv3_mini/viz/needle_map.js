// The needle map in the browser: a choice of maps, a table with a button for each cell, the text behind the chosen one.
// Python finds the text and asks the model; text is set as text, never as markup.

const TRAITS = ["chosen", "line", "column", "_maps", "_shown"];

function tag(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}
const percent = (share) => `${Math.round(100 * share)} %`;

class NeedleMap {
  constructor(model, el) {
    this.model = model;
    this.lengths = model.get("_lengths");
    this.depths = model.get("_depths");
    const names = Object.keys(model.get("_maps"));
    this.select = tag("select", { "data-testid": "needle-choice", onchange: () => this.set({ chosen: this.select.value }) },
      ...names.map((name) => tag("option", { value: name }, name)));
    this.table = tag("table", { "data-testid": "needle-table" });
    this.head = tag("p", { class: "nm-head", role: "status", "data-testid": "needle-head" });
    this.text = tag("pre", { class: "nm-text", tabindex: "0", "aria-label": "What the model was given", "data-testid": "needle-text" });
    this.root = tag("div", { class: "dsv3-needle", role: "group", "aria-label": "Needle map", "data-testid": "needle-map" },
      tag("label", {}, "Map ", this.select), this.table, this.head, this.text);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.fill();
    el.append(this.root);
    this.onChange = () => this.update();
    for (const name of TRAITS) model.on(`change:${name}`, this.onChange);
    this.update();
    this.root.setAttribute("data-ready", "true");
  }

  remove() { for (const name of TRAITS) this.model.off(`change:${name}`, this.onChange); }

  set(values) {
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.model.save_changes();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // Lab's own, such as Ctrl+S
    event.stopPropagation(); // a plain key must not reach the notebook: there, x cuts the cell
    if (event.target.tagName !== "BUTTON") return;
    const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!by) return;
    event.preventDefault();
    this.go(this.model.get("line") + by[0], this.model.get("column") + by[1]);
  }

  go(line, column) {
    line = Math.min(this.depths.length - 1, Math.max(0, line));
    column = Math.min(this.lengths.length - 1, Math.max(0, column));
    this.set({ line, column });
    this.buttons[line][column].focus();
  }

  fill() {
    const trained = this.model.get("_trained");
    this.table.append(tag("caption", {}, `Share found, by depth and tokens in the row. Trained with ${trained} tokens: longer ones are right of the bar.`));
    const beyond = (column) => (column && this.lengths[column] > trained && this.lengths[column - 1] <= trained ? "nm-beyond" : null);
    this.table.append(tag("tr", {}, tag("th", { scope: "col" }, "depth"),
      ...this.lengths.map((length, column) => tag("th", { scope: "col", class: beyond(column) }, String(length)))));
    this.buttons = this.depths.map((depth, line) => this.lengths.map((length, column) => tag("button", { type: "button",
      "data-cell": `${line},${column}`, onclick: () => this.go(line, column) })));
    this.depths.forEach((depth, line) => this.table.append(tag("tr", {}, tag("th", { scope: "row" }, percent(depth)),
      ...this.buttons[line].map((button, column) => tag("td", { class: beyond(column) }, button)))));
  }

  update() {
    const { model } = this, line = model.get("line"), column = model.get("column"), name = model.get("chosen");
    const shares = model.get("_maps")[name] ?? [], shown = model.get("_shown");
    this.select.value = name;
    this.buttons.forEach((row, i) => row.forEach((button, j) => {
      const share = shares[i]?.[j] ?? 0, here = i === line && j === column;
      button.textContent = String(Math.round(100 * share));
      button.style.setProperty("--nm-share", share);
      button.classList.toggle("nm-high", share > 0.5);
      button.setAttribute("aria-pressed", here);
      button.setAttribute("aria-label", `${this.lengths[j]} tokens, depth ${percent(this.depths[i])}: ${percent(share)} found`);
      button.tabIndex = here ? 0 : -1;
    }));
    const right = shown.written === shown.expected;
    const said = shown.written == null ? "" : ` In this row the model writes ${shown.written.trim()}: ${right ? "✓ right" : "✗ wrong"}.`;
    this.head.textContent = `${shown.cell}: ${percent(shown.share)} found.${said}`;
    this.text.replaceChildren(shown.before, tag("mark", {}, shown.needle), `${shown.after}\n`,
      tag("mark", { class: "nm-question" }, `${shown.question}?`), `   (${shown.expected})`);
  }
}

export default {
  render({ model, el }) {
    const view = new NeedleMap(model, el);
    return () => view.remove();
  },
};
