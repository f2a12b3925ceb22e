// The gate stepper in the browser: one drawing (SVG) for each of six steps, and the choice of a step that is missing.
// Python computes every way through the steps and says it in words; this file shows one step of one of them.

const SVG = "http://www.w3.org/2000/svg";
const STEPS = 6;
const WIDTH = 760, HEIGHT = 250, TOP = 44, BASE = 216, GAP = 12; // the drawing; GAP lies between groups
const TRAITS = ["step", "without", "_ways", "_changes"];

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const tag = (name, attributes = {}, ...children) => make(document.createElement(name), attributes, children);
const shape = (name, attributes = {}, ...children) => make(document.createElementNS(SVG, name), attributes, children);
const digits = (value) => value.toFixed(2).replace("-", "−");

class Stepper {
  constructor(model, el) {
    this.model = model;
    // Drawn by lot: each widget of a notebook loads this file anew, so that a counter would give two of them one name.
    this.uid = `gate-${Math.random().toString(36).slice(2)}`;
    this.svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
    this.stage = tag("div", { class: "gs-stage", tabindex: "0", role: "slider", "aria-label": "Step of the gate",
      "aria-valuemin": 1, "aria-valuemax": STEPS, "data-testid": "gate-stage" }, this.svg);
    this.back = tag("button", { type: "button", "data-testid": "gate-previous", onclick: () => this.go(-1) }, "◀ Previous");
    this.forth = tag("button", { type: "button", "data-testid": "gate-next", onclick: () => this.go(1) }, "Next ▶");
    this.head = tag("span", { class: "gs-head", "data-testid": "gate-head" });
    this.words = tag("p", { class: "gs-words", role: "status", "data-testid": "gate-words" });
    this.wrong = tag("p", { class: "gs-wrong", "data-testid": "gate-wrong" });
    this.choices = tag("fieldset", { class: "gs-choices", "data-testid": "gate-choices" },
      tag("legend", {}, "What if a step were missing?"));
    this.root = tag("div", { class: "dsv3-gate", role: "group", "aria-label": "The gate, step by step", "data-testid": "gate-stepper" },
      tag("p", { class: "gs-title" }, model.get("_title")),
      tag("div", { class: "gs-bar" }, this.back, this.forth, this.head), this.wrong, this.stage, this.words, this.choices);
    this.root.addEventListener("keydown", (event) => this.key(event));
    el.append(this.root);
    this.fillChoices();
    this.onChange = () => this.update();
    for (const name of TRAITS) model.on(`change:${name}`, this.onChange);
    this.update();
    this.root.setAttribute("data-ready", "true");
  }

  remove() { for (const name of TRAITS) this.model.off(`change:${name}`, this.onChange); }

  get(name) { return this.model.get(name); }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  go(by) { this.set("step", Math.min(STEPS, Math.max(1, this.get("step") + by))); }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // Lab's own, such as Ctrl+S
    event.stopPropagation(); // a plain key must not reach the notebook: there, x cuts the cell
    if (event.target.type === "radio") return; // there the arrows choose
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -STEPS, End: STEPS }[event.key];
    if (by) { this.go(by); event.preventDefault(); }
  }

  fillChoices() {
    const options = [{ name: "", title: "All steps, as they should be", words: "" }, ...this.get("_changes")];
    this.radios = options.map(({ name }) => tag("input", { type: "radio", name: this.uid, value: name, "data-testid": "gate-choice",
      "data-name": name || "none", onchange: () => this.set("without", name) }));
    options.forEach(({ title, words }, i) => this.choices.append(tag("label", {}, this.radios[i],
      tag("span", {}, tag("b", {}, title), words ? `: ${words}` : ""))));
  }

  update() {
    const step = this.get("step"), without = this.get("without"), way = this.get("_ways")[without];
    const [title, words] = way.words[step - 1];
    this.root.setAttribute("data-step", step);
    this.back.disabled = step === 1;
    this.forth.disabled = step === STEPS;
    this.head.textContent = `Step ${step} of ${STEPS}: ${title}`;
    this.words.textContent = words;
    const change = this.get("_changes").find(({ name }) => name === without);
    this.wrong.hidden = !change;
    this.wrong.textContent = change ? `Wrong on purpose, ${change.title}: ${change.words}.` : "";
    for (const radio of this.radios) radio.checked = radio.value === without;
    this.stage.setAttribute("aria-valuenow", step);
    this.stage.setAttribute("aria-valuetext", `${title}. ${words}`);
    this.draw(way, step);
  }

  draw(way, step) {
    const experts = way.scores.length, groups = this.get("_groups"), size = experts / groups;
    const cell = (WIDTH - GAP * (groups - 1)) / experts, bar = cell * 0.76;
    const left = (e) => e * cell + Math.floor(e / size) * GAP;
    const gates = way.scores.map((_, e) => (way.ids.includes(e) ? way.weights[way.ids.indexOf(e)] : null));
    const values = step === 1 ? way.scores : step <= 3 ? way.biased : step <= 5 ? way.masked : gates;
    const all = step === 6 ? way.weights : [...way.scores, ...way.biased]; // one scale for the steps that choose
    const high = Math.max(...all, 1e-6), low = Math.min(0, ...all);
    const y = (value) => BASE - ((value - low) / (high - low)) * (BASE - TOP);
    const parts = [];
    for (let g = 0; g < groups; g++) parts.push(...this.group(way, step, g, left(g * size), size * cell));
    for (let e = 0; e < experts; e++) {
      const x = left(e) + (cell - bar) / 2, middle = left(e) + cell / 2, value = values[e];
      const best = this.bestTwo(way, size, e), chosen = way.ids.includes(e);
      const strong = { 3: best, 4: way.kept[Math.floor(e / size)], 5: chosen, 6: chosen }[step] ?? true;
      const column = shape("g", { class: `gs-expert${strong ? " gs-strong" : ""}`, "data-expert": e, "data-value": value ?? "" });
      if (value !== null) {
        column.append(shape("rect", { class: "gs-bar-value", x, y: Math.min(y(value), y(0)), width: bar, height: Math.max(0.6, Math.abs(y(value) - y(0))) }));
        if (step === 2) column.append(...this.bias(value - way.scores[e], x, bar, y(way.scores[e]), y(value)));
      }
      const text = value === null ? (step === 6 ? "" : "−∞") : digits(value);
      const above = value === null ? y(0) : Math.min(y(value), y(0));
      if (cell > 27) column.append(shape("text", { class: "gs-value", x: middle, y: above - 4 }, text));
      if (step >= 5 && chosen && cell > 9) column.append(shape("text", { class: "gs-tick", x: middle, y: BASE + 30 }, "✓"));
      if (e % Math.ceil(18 / cell) === 0) column.append(shape("text", { class: "gs-number", x: middle, y: BASE + 16 }, `${e}`));
      parts.push(column);
    }
    parts.push(shape("line", { class: "gs-zero", x1: 0, x2: WIDTH, y1: y(0), y2: y(0) }));
    this.svg.replaceChildren(...parts);
  }

  group(way, step, g, x, width) { // its frame, and what is known of it by this step
    const out = step >= 4 && !way.kept[g], sum = `${width > 100 ? "group " : ""}${g}`;
    const words = step < 3 || this.get("_groups") === 1 ? sum : `${sum}: ${digits(way.group_scores[g])}`;
    const verdict = step < 4 || this.get("_groups") === 1 ? "" : out ? "✗ out" : "✓ kept";
    return [
      shape("rect", { class: `gs-group${out ? " gs-out" : ""}`, x, y: 1, width, height: HEIGHT - 2, rx: 4, "data-group": g, "data-kept": String(!out) }),
      shape("text", { class: "gs-name", x: x + width / 2, y: 15 }, words),
      shape("text", { class: "gs-name", x: x + width / 2, y: 29 }, verdict),
    ];
  }

  bias(value, x, width, from, to) { // what the bias adds to the score, or takes away
    const parts = [shape("rect", { class: "gs-bias", x, y: Math.min(from, to), width, height: Math.abs(to - from) })];
    if (width > 26 && Math.abs(to - from) > 14) {
      parts.push(shape("text", { class: "gs-value", x: x + width / 2, y: (from + to) / 2 + 4 }, `${value > 0 ? "+" : ""}${digits(value)}`));
    }
    return parts;
  }

  bestTwo(way, size, e) { // is e among the two best of its group?
    const start = Math.floor(e / size) * size, group = way.biased.slice(start, start + size);
    return group.filter((value) => value > way.biased[e]).length < 2;
  }
}

export default {
  render({ model, el }) {
    const stepper = new Stepper(model, el);
    return () => stepper.remove();
  },
};
