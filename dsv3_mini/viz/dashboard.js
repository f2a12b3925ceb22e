// The dashboard in the browser: a button, numbers and charts (SVG). Python trains, and says in `_shown` what there is
// to see, words included; this file draws it and passes the button on. Text enters the page only as text.

const SVG = "http://www.w3.org/2000/svg";
const TRAITS = ["state", "message", "_shown"];
const WIDTH = 360, HEIGHT = 170, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22;
const DASHES = ["", "7 4", "7 3 2 3", "2 3", "12 3"];

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const tag = (name, attributes = {}, ...children) => make(document.createElement(name), attributes, children);
const shape = (name, attributes = {}, ...children) => make(document.createElementNS(SVG, name), attributes, children);
const look = (number) => ({ style: `stroke: var(--db-line${(number % DASHES.length) + 1})`, "stroke-dasharray": DASHES[number % DASHES.length] });

// Ticks at round numbers, three to six of them.
function ticks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

class Dashboard {
  constructor(model, el) {
    this.model = model;
    this.button = tag("button", { type: "button", "data-testid": "dashboard-button", onclick: () => this.press() });
    this.state = tag("span", { role: "status", "data-testid": "dashboard-state" });
    this.message = tag("p", { class: "db-message", "data-testid": "dashboard-message" });
    this.bar = tag("progress", { max: 1, "aria-label": "Share of the run's tokens that were trained on", "data-testid": "dashboard-progress" });
    this.numbers = tag("dl", { "data-testid": "dashboard-numbers" });
    this.charts = tag("div", { class: "db-charts" });
    this.root = tag("div", { class: "dsv3-dashboard", role: "group", "aria-label": "Training run", "data-testid": "dashboard" },
      tag("div", { class: "db-head" }, this.button, tag("span", { class: "db-title" }, model.get("_title")), this.state),
      this.message, this.bar, this.numbers, this.charts);
    this.root.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return; // Lab's own, such as Ctrl+S
      event.stopPropagation(); // a plain key must not reach the notebook: there, x cuts the cell
    });
    el.append(this.root);
    this.onChange = () => this.update();
    for (const name of TRAITS) model.on(`change:${name}`, this.onChange);
    this.update();
    this.root.setAttribute("data-ready", "true");
  }

  remove() { for (const name of TRAITS) this.model.off(`change:${name}`, this.onChange); }

  press() { this.model.send({ ask: this.button.textContent === "Stop" ? "stop" : "start" }); }

  update() {
    const state = this.model.get("state"), [words, action] = this.model.get("_states")[state] ?? [state, ""];
    this.root.setAttribute("data-state", state);
    if (this.state.textContent !== words) this.state.textContent = words; // said aloud only when it changes
    this.button.textContent = action;
    this.button.hidden = !action;
    const message = this.model.get("message");
    this.message.textContent = message;
    this.message.hidden = !message;
    const shown = this.model.get("_shown");
    if (shown === this.last) return;
    this.last = shown;
    this.bar.value = shown.progress ?? 0;
    this.numbers.replaceChildren(...Object.entries(shown.numbers ?? {}).map(([name, value]) =>
      tag("div", {}, tag("dt", {}, name), tag("dd", { "data-testid": "dashboard-number", "data-name": name }, value))));
    this.charts.replaceChildren(...(shown.charts ?? []).map((chart) => this.chart(chart)));
  }

  chart({ name, title, lines, last_step: steps, words, from_zero: fromZero, at }) {
    const named = Object.entries(lines), heights = named.flatMap(([, points]) => points.map(([, height]) => height));
    let low = Math.min(...heights, ...(fromZero ? [0] : [])), high = Math.max(...heights);
    if (!(high > low)) [low, high] = heights.length ? [low - (fromZero ? 0 : 0.5), low + 1] : [0, 1];
    const room = (high - low) * 0.05;
    [low, high] = [fromZero ? low : low - room, high + room];
    const x = (step) => LEFT + (step / steps) * (WIDTH - LEFT - RIGHT);
    const y = (height) => HEIGHT - BOTTOM - ((height - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const parts = [];
    for (const height of ticks(low, high)) {
      parts.push(shape("line", { class: "db-grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(height), y2: y(height) }));
      parts.push(shape("text", { x: LEFT - 5, y: y(height) + 4, "text-anchor": "end" }, `${height}`.replace("-", "−")));
    }
    parts.push(shape("rect", { class: "db-frame", x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM }));
    parts.push(shape("text", { x: LEFT, y: HEIGHT - 6 }, "0"));
    parts.push(shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, `step ${steps}`));
    if (at != null) parts.push(shape("line", { class: "db-at", x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM, "data-at": at }));
    named.forEach(([line, points], number) => {
      const path = points.map(([step, height]) => `${x(step).toFixed(1)},${y(height).toFixed(1)}`).join(" ");
      parts.push(shape("polyline", { class: "db-line", points: path, "data-line": line, "data-points": points.length, ...look(number) }));
      if (points.length > 0 && points.length < 9) parts.push(...points.map(([step, height]) =>
        shape("circle", { class: "db-dot", cx: x(step), cy: y(height), r: 2.6, style: `fill: var(--db-line${(number % DASHES.length) + 1})` })));
    });
    const legend = named.map(([line], number) => tag("span", {},
      shape("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" }, shape("line", { class: "db-line", x1: 0, x2: 26, y1: 4, y2: 4, ...look(number) })), line));
    return tag("figure", { "data-testid": "dashboard-chart", "data-name": name },
      tag("figcaption", {}, title), tag("div", { class: "db-legend" }, ...legend),
      shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${words}` }, ...parts));
  }
}

export default {
  render({ model, el }) {
    const dashboard = new Dashboard(model, el);
    return () => dashboard.remove();
  },
};
