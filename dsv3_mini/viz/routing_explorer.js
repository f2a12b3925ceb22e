// The routing explorer in the browser: canvases for the numbers, ordinary controls and a table for the rest. Python
// runs the model and sends names in `_shown` and numbers as bytes; this file draws them and says what the learner
// chose. All drawings share their columns: an expert stands at the same place in each of them. Text enters the page
// only through `append`, `textContent` and `fillText`, so what looks like markup stays text.

const CHOSEN = 1, NEXT = 2, SHUT_OUT = 3, ALLOWED = 4; // as in routing_view.py
const GUTTER = 132, MARGIN = 10, SHARED_GAP = 8, WIDEST_CELL = 40; // pixels
const ROW = 18, VIEW = 378; // height of a token, and of the part of them that is seen at once
const CIVIDIS = ["#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838"];
const MARKS = { letters: "a", digits: "1", punctuation: ":", space: "␣", other: "?" };
const TEXT_PAUSE = 250, SAVE_PAUSE = 80; // milliseconds without a key or a move before Python hears of it
const TRAITS = ["text", "layer", "token", "colour", "snapshot", "message", "run_message", "_shown", "_cells", "_weights",
  "_scores", "_bias", "_kinds", "_run", "_run_load", "_run_bias", "_run_violation"];
const NUMBERS = { _cells: Uint8Array, _kinds: Uint8Array, _weights: Float32Array, _scores: Float32Array,
  _bias: Float32Array, _run_load: Float32Array, _run_bias: Float32Array, _run_violation: Float32Array };

function tag(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const within = (value, low, high) => Math.min(high, Math.max(low, value));
const several = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
const shorten = (text, longest) => (text.length > longest ? `${text.slice(0, longest - 1)}…` : text);

// A canvas as wide as its frame and as sharp as the screen.
class Sheet {
  constructor(testid, label) {
    this.canvas = tag("canvas", { role: "img", "aria-label": label, "data-testid": testid });
    this.pen = this.canvas.getContext("2d");
  }

  begin(width, height) {
    const sharp = window.devicePixelRatio || 1, { canvas, pen } = this;
    if (canvas.width !== Math.round(width * sharp) || canvas.height !== Math.round(height * sharp)) {
      canvas.width = Math.round(width * sharp);
      canvas.height = Math.round(height * sharp);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    return pen;
  }
}

class Explorer {
  constructor(model, el) {
    this.model = model;
    // Drawn by lot: each widget of a notebook loads this file anew, so that a counter would give two of them one name.
    this.uid = `routing-${Math.random().toString(36).slice(2)}`;
    this.hover = -1; // token under the pointer
    this.seen = {}; // the bytes that were decoded, by trait
    this.root = tag("div", { class: "dsv3-routing", role: "group", "aria-label": "Routing explorer",
      "data-testid": "routing-explorer" });
    this.root.append(this.controls(), this.stage(), this.following(), this.training());
    this.root.addEventListener("keydown", (event) => this.key(event));
    el.append(this.root);
    this.onChange = () => this.later();
    for (const name of TRAITS) model.on(`change:${name}`, this.onChange);
    this.sizes = new ResizeObserver(() => this.update());
    this.sizes.observe(this.root);
    this.themes = new MutationObserver(() => this.update());
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light"] });
    this.update();
    this.root.setAttribute("data-ready", "true");
  }

  remove() {
    for (const name of TRAITS) this.model.off(`change:${name}`, this.onChange);
    this.sizes.disconnect();
    this.themes.disconnect();
    clearTimeout(this.typing);
    clearTimeout(this.saving);
    clearInterval(this.player);
  }

  get(name) { return this.model.get(name); }

  set(name, value) { // seen at once; Python hears of it when the hand rests
    this.model.set(name, value);
    this.update();
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.model.save_changes(), SAVE_PAUSE);
  }

  later() { // several traits change at once; one look at them is enough
    if (this.pending) return;
    this.pending = true;
    queueMicrotask(() => { this.pending = false; this.update(); });
  }

  // ---- what is always there

  controls() {
    this.text = tag("textarea", { id: `${this.uid}-text`, rows: 3, spellcheck: "false", "data-testid": "routing-text",
      oninput: () => this.typed() });
    this.message = tag("p", { class: "rx-message", role: "status", "data-testid": "routing-message" });
    this.layer = tag("input", { type: "range", min: 0, id: `${this.uid}-layer`, "data-testid": "routing-layer",
      oninput: () => this.set("layer", this.shown.layers[this.layer.value]) });
    this.layerName = tag("output", { for: this.layer.id, "data-testid": "routing-layer-name" });
    this.colour = tag("select", { id: `${this.uid}-colour`, "data-testid": "routing-colour",
      onchange: () => this.set("colour", this.colour.value) },
    ...[["weight", "gate weight"], ["type", "token type"], ["domain", "domain"]].map(([value, words]) => tag("option", { value }, words)));
    this.overview = tag("input", { type: "checkbox", id: `${this.uid}-overview`, "data-testid": "routing-overview",
      onchange: () => this.update() });
    this.legend = tag("div", { class: "rx-legend", "data-testid": "routing-legend" });
    return tag("div", {},
      tag("label", { for: this.text.id }, "Text"), this.text, this.message,
      tag("div", { class: "rx-bar" },
        tag("label", { for: this.layer.id }, "Layer"), this.layer, this.layerName,
        tag("label", { for: this.colour.id }, "Colour by"), this.colour,
        tag("span", {}, this.overview, tag("label", { for: this.overview.id }, " all tokens at once"))),
      this.legend);
  }

  stage() {
    this.head = new Sheet("routing-head", "Groups of experts");
    this.grid = new Sheet("routing-grid", "Tokens by experts");
    this.load = new Sheet("routing-load", "Load of the experts");
    this.grid.canvas.removeAttribute("role"); // the frame around it is what a screen reader meets
    this.grid.canvas.removeAttribute("aria-label");
    this.spacer = tag("div");
    this.frame = tag("div", { class: "rx-frame", tabindex: "0", role: "slider", "aria-label": "Token to follow",
      "aria-orientation": "vertical", "aria-valuemin": 0, "data-testid": "routing-tokens",
      onscroll: () => this.paintGrid(),
      onpointermove: (event) => this.point(event),
      onpointerleave: () => this.leave(),
      onclick: (event) => this.click(event) }, this.grid.canvas, this.spacer);
    this.readout = tag("p", { class: "rx-readout", "data-testid": "routing-readout" });
    this.loadWords = tag("p", { class: "rx-words", "data-testid": "routing-load-words" });
    this.tokens = tag("div", { class: "rx-tokens" }, this.head.canvas, this.frame, this.readout, this.loadWords, this.load.canvas);
    return this.tokens;
  }

  following() {
    this.strip = new Sheet("routing-strip", "The token through the layers");
    this.title = tag("p", { class: "rx-title", "data-testid": "routing-followed" });
    this.rows = tag("tbody");
    const heads = ["layer", "experts, with gate weights", "next in line", "shut out by the group limit"];
    this.table = tag("table", { "aria-label": "The token through the layers", "data-testid": "routing-table" },
      tag("thead", {}, tag("tr", {}, ...heads.map((words) => tag("th", { scope: "col" }, words)))), this.rows);
    this.followed = tag("div", { class: "rx-followed" }, this.strip.canvas,
      tag("div", { class: "rx-scroll", tabindex: "0", role: "region", "aria-label": "Experts of the token, by layer" }, this.table));
    this.follow = tag("div", {}, this.title, this.followed);
    return this.follow;
  }

  training() {
    this.shares = new Sheet("routing-run", "Load and routing bias in training");
    this.trend = new Sheet("routing-trend", "MaxVio over the training run");
    this.play = tag("button", { type: "button", "data-testid": "routing-play", onclick: () => this.toggle() }, "▶ Play");
    this.slider = tag("input", { type: "range", min: 0, id: `${this.uid}-step`, "data-testid": "routing-step",
      oninput: () => { this.stop(); this.set("snapshot", Number(this.slider.value)); } });
    this.stepName = tag("output", { for: this.slider.id, "data-testid": "routing-step-name" });
    this.runMessage = tag("p", { class: "rx-message", role: "status", "data-testid": "routing-run-message" });
    this.scrub = tag("div", {},
      tag("div", { class: "rx-bar" }, this.play, tag("label", { for: this.slider.id }, "Training step"), this.slider, this.stepName),
      this.shares.canvas, this.trend.canvas);
    this.run = tag("div", { class: "rx-run", "data-testid": "routing-training" },
      tag("p", { class: "rx-title" }, "The training run"), this.runMessage, this.scrub);
    return this.run;
  }

  // ---- following the traits

  update() {
    this.decode();
    const shown = this.shown = this.get("_shown"), tokens = shown.tokens.length;
    this.readColours();
    this.measure();
    if (!this.typing && this.text.value !== this.get("text")) this.text.value = this.get("text");
    for (const [element, name] of [[this.message, "message"], [this.runMessage, "run_message"]]) {
      if (element.textContent !== this.get(name)) element.textContent = this.get(name);
      element.hidden = !this.get(name);
    }
    this.layerAt = shown.layers.indexOf(this.get("layer"));
    const whole = tokens > 0 && this.layerAt >= 0 &&
      this._cells.length === shown.layers.length * tokens * shown.experts;
    this.tokens.hidden = this.follow.hidden = this.legend.hidden = !whole;
    this.layer.disabled = this.colour.disabled = this.overview.disabled = !whole;
    this.colour.value = this.get("colour");
    if (whole) this.showText(shown);
    else { this.hover = -1; this.layerName.textContent = "none"; this.readout.textContent = ""; }
    this.showRun();
  }

  decode() {
    for (const [name, Type] of Object.entries(NUMBERS)) {
      const bytes = this.get(name);
      if (this.seen[name] === bytes) continue;
      this.seen[name] = bytes;
      this[name] = new Type(bytes.byteLength ? bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) : 0);
      if (name === "_weights") this.heaviest = this._weights.reduce((most, weight) => Math.max(most, weight), 1e-9);
    }
  }

  readColours() {
    const style = getComputedStyle(this.root), read = (name) => style.getPropertyValue(`--rx-${name}`).trim();
    this.ink = read("ink"); this.paper = read("paper"); this.rule = read("rule"); this.band = read("band");
    this.strong = read("strong"); this.mean = read("mean"); this.mark = read("mark"); this.bar = read("bar");
    this.palette = [1, 2, 3, 4, 5].map((number) => read(`kind${number}`));
    this.ramp = read("dark") === "1" ? CIVIDIS : [...CIVIDIS].reverse(); // the larger the weight, the further from paper
  }

  measure() {
    const { experts = 1, shared = 0 } = this.shown;
    this.width = Math.max(320, this.root.clientWidth - 2);
    const room = this.width - GUTTER - MARGIN - (shared ? SHARED_GAP : 0) - 14; // 14: a scroll bar
    this.cell = within(room / (experts + shared), 1, WIDEST_CELL);
  }

  left(expert) { return GUTTER + expert * this.cell; }

  showText(shown) {
    const tokens = shown.tokens.length;
    this.layer.max = shown.layers.length - 1;
    this.layer.value = this.layerAt;
    this.layerName.textContent = `${this.get("layer")} (${several(shown.layers.length, "layer")} with experts)`;
    this.layer.setAttribute("aria-valuetext", `layer ${this.get("layer")}`);
    this.row = this.overview.checked ? within(Math.floor(VIEW / tokens), 2, ROW) : ROW;
    this.hover = Math.min(this.hover, tokens - 1);
    this.frame.style.height = `${Math.min(VIEW, tokens * this.row)}px`;
    this.spacer.style.height = `${Math.max(0, tokens * this.row - Math.min(VIEW, tokens * this.row))}px`;
    this.count();
    this.fillLegend(shown);
    this.paintHead();
    this.paintGrid();
    this.paintLoad();
    this.fillFollowing();
  }

  count() { // tokens by kind and expert, in the layer that is shown
    const { tokens, experts } = this.shown, kinds = this.kindNames();
    this.counts = kinds.map(() => new Uint32Array(experts));
    this.totals = new Uint32Array(experts);
    const start = this.layerAt * tokens.length * experts;
    for (let t = 0, at = start; t < tokens.length; t++) {
      const counts = this.counts[this.kindOf(t)];
      for (let e = 0; e < experts; e++, at++) if (this._cells[at] % ALLOWED === CHOSEN) { counts[e]++; this.totals[e]++; }
    }
    this.average = this.totals.reduce((sum, count) => sum + count, 0) / experts;
    this.busiest = this.totals.indexOf(Math.max(...this.totals));
  }

  kindNames() { return this.get("colour") === "weight" ? ["all"] : this.shown.kinds[this.get("colour")]; }

  kindOf(token) {
    const colour = this.get("colour");
    return colour === "weight" ? 0 : this._kinds[(colour === "domain" ? this.shown.tokens.length : 0) + token];
  }

  kindColour(kind) { return this.palette[Math.min(kind, this.palette.length - 1)]; }

  kindMark(kind) {
    const name = this.kindNames()[kind];
    return this.get("colour") === "type" ? MARKS[name] : name.slice(0, 1);
  }

  fillLegend(shown) {
    const key = JSON.stringify([this.get("colour"), shown.kinds, shown.groups, shown.shared, shown.kept_groups, this.ramp[0]]);
    if (key === this.legendKey) return;
    this.legendKey = key;
    const item = (swatch, words) => tag("span", {}, swatch, ` ${words}`);
    const swatch = (name) => tag("i", { class: `rx-swatch rx-${name}`, "aria-hidden": "true" });
    const items = [];
    if (this.get("colour") === "weight") {
      const scale = swatch("scale");
      scale.style.background = `linear-gradient(to right, ${this.ramp.join(", ")})`;
      items.push(item(scale, `chosen, the gate weight from 0 to ${this.heaviest.toFixed(2)}`));
    } else {
      this.kindNames().forEach((name, kind) => {
        const mark = tag("i", { class: "rx-swatch rx-kind", "aria-hidden": "true" }, this.kindMark(kind));
        mark.style.borderColor = this.kindColour(kind);
        items.push(item(mark, name));
      });
      items.push(item("", "(fainter: a smaller gate weight)"));
    }
    items.push(item("○", "next in line"));
    if (shown.groups > 1) {
      items.push(item("×", "among the best, but shut out by the group limit"));
      items.push(item(swatch("band"), `the ${several(shown.kept_groups, "group")} that the token may use`));
    }
    if (shown.shared) items.push(item(swatch("shared"), "shared expert: takes every token"));
    if (this.get("colour") === "domain") items.push(tag("span", {}, `Domain: ${shown.domain_note}.`));
    this.legend.replaceChildren(...items);
  }

  // ---- the drawings

  paintHead() {
    const { experts, groups, shared } = this.shown, pen = this.head.begin(this.width, 34), size = experts / groups;
    pen.fillStyle = this.ink;
    pen.textAlign = "center";
    for (let g = 0; groups > 1 && g < groups; g++) {
      const words = size * this.cell > 46 ? `group ${g}` : `${g}`;
      pen.fillText(words, this.left((g + 0.5) * size), 9);
    }
    this.numberExperts(pen, 25);
    if (shared) pen.fillText("shared", Math.min(this.left(experts + shared / 2) + SHARED_GAP, this.width - 20), 9);
    this.head.canvas.setAttribute("aria-label", `${several(experts, "expert")} in ${several(groups, "group")}, and ${several(shared, "shared expert")}`);
  }

  numberExperts(pen, y) { // as many numbers as fit
    const every = Math.ceil(20 / this.cell);
    pen.fillStyle = this.ink;
    pen.textAlign = "center";
    for (let e = 0; e < this.shown.experts; e += every) pen.fillText(`${e}`, this.left(e + 0.5), y);
  }

  paintGrid() {
    const { tokens, experts } = this.shown, top = this.frame.scrollTop, row = this.row;
    const height = Math.min(VIEW, tokens.length * row), pen = this.grid.begin(this.width - 14, height);
    const first = Math.floor(top / row), last = Math.min(tokens.length, Math.ceil((top + height) / row));
    const start = this.layerAt * tokens.length * experts;
    this.paintCells(pen, first, last, row, (t) => start + t * experts, (t) => t * row - top);
    if (row >= 11) this.nameTokens(pen, first, last, top);
    const follow = this.followedToken();
    if (follow >= first && follow < last) {
      pen.strokeStyle = this.get("token") >= 0 ? this.strong : this.rule;
      pen.lineWidth = 2;
      pen.strokeRect(1, follow * row - top + 1, this.width - 16, row - 2);
    }
    this.describeToken();
  }

  nameTokens(pen, first, last, top) {
    const kinds = this.get("colour") !== "weight";
    pen.font = "12px ui-monospace, monospace";
    pen.textAlign = "left";
    for (let t = first; t < last; t++) {
      const y = (t + 0.5) * this.row - top;
      if (kinds) {
        pen.fillStyle = this.kindColour(this.kindOf(t));
        pen.fillRect(0, y - this.row / 2 + 1, 4, this.row - 2);
        pen.fillText(this.kindMark(this.kindOf(t)), 8, y);
      }
      pen.fillStyle = this.ink;
      pen.fillText(shorten(this.shown.tokens[t], kinds ? 14 : 16), kinds ? 22 : 6, y);
    }
  }

  // Rows of cells, tokens or layers: `at(i)` is where row i starts in the numbers, `y(i)` where it stands.
  paintCells(pen, first, last, row, at, y, kind = (i) => this.kindOf(i)) {
    const { experts, groups, shared } = this.shown, size = experts / groups, cell = this.cell;
    const inset = cell > 8 && row > 8 ? 1 : 0, byKind = this.get("colour") !== "weight";
    const rings = new Path2D(), crosses = new Path2D(), bands = new Path2D(), radius = Math.max(1.2, Math.min(cell, row) / 2 - 4);
    for (let i = first; i < last; i++) {
      for (let g = 0; groups > 1 && g < groups; g++) {
        if (this._cells[at(i) + g * size] >= ALLOWED) bands.rect(this.left(g * size), y(i), size * cell, row);
      }
    }
    pen.fillStyle = this.band;
    pen.fill(bands);
    for (let i = first; i < last; i++) {
      const start = at(i), middle = y(i) + row / 2;
      if (byKind) pen.fillStyle = this.kindColour(kind(i));
      for (let e = 0; e < experts; e++) {
        const state = this._cells[start + e] % ALLOWED;
        if (state === 0) continue;
        const x = this.left(e), centre = x + cell / 2;
        if (state === CHOSEN) {
          const share = this._weights[start + e] / this.heaviest;
          if (byKind) pen.globalAlpha = 0.3 + 0.7 * share;
          else pen.fillStyle = this.ramp[Math.min(8, Math.floor(share * 9))];
          pen.fillRect(x + inset, y(i) + inset, cell - 2 * inset, row - 2 * inset);
        } else if (state === NEXT) {
          rings.moveTo(centre + radius, middle);
          rings.arc(centre, middle, radius, 0, 2 * Math.PI);
        } else {
          crosses.moveTo(centre - radius, middle - radius);
          crosses.lineTo(centre + radius, middle + radius);
          crosses.moveTo(centre + radius, middle - radius);
          crosses.lineTo(centre - radius, middle + radius);
        }
      }
      pen.globalAlpha = 1;
    }
    pen.strokeStyle = this.mark;
    pen.lineWidth = Math.min(1.6, row / 4);
    pen.stroke(rings);
    pen.stroke(crosses);
    const bottom = y(last - 1) + row;
    this.paintShared(pen, y(first), bottom);
    this.paintBorders(pen, y(first), bottom);
    if (shared) {
      pen.strokeStyle = this.rule;
      pen.strokeRect(this.left(experts) + SHARED_GAP, y(first), shared * cell, bottom - y(first));
    }
  }

  paintShared(pen, top, bottom) { // hatched: these are not chosen, every token passes
    const { experts, shared } = this.shown, x = this.left(experts) + SHARED_GAP, width = shared * this.cell;
    pen.save();
    pen.beginPath();
    pen.rect(x, top, width, bottom - top);
    pen.clip();
    pen.beginPath();
    for (let y = top - width; y < bottom; y += 6) { pen.moveTo(x, y + width); pen.lineTo(x + width, y); }
    pen.strokeStyle = this.rule;
    pen.lineWidth = 1;
    pen.stroke();
    pen.restore();
  }

  paintBorders(pen, top, bottom) {
    const { experts, groups } = this.shown;
    pen.beginPath();
    for (let g = 1; g < groups; g++) {
      const x = Math.round(this.left((g * experts) / groups));
      pen.moveTo(x, top);
      pen.lineTo(x, bottom);
    }
    pen.strokeStyle = this.ink;
    pen.lineWidth = 1.4;
    pen.stroke();
  }

  paintLoad() {
    const { experts, shared, tokens } = this.shown, height = 116, base = 96, top = 10;
    const pen = this.load.begin(this.width, height), most = Math.max(this.totals[this.busiest], this.average, 1);
    const scale = (base - top) / most, kinds = this.kindNames(), plain = kinds.length === 1;
    for (let e = 0; e < experts; e++) {
      let y = base;
      for (let kind = 0; kind < kinds.length; kind++) {
        const part = this.counts[kind][e] * scale;
        if (!part) continue;
        y -= part;
        pen.fillStyle = plain ? this.bar : this.kindColour(kind);
        pen.fillRect(this.left(e) + this.cell * 0.1, y, this.cell * 0.8, Math.max(1, part - (plain ? 0 : 1)));
        if (!plain && part >= 13 && this.cell >= 14) {
          pen.fillStyle = this.paper;
          pen.textAlign = "center";
          pen.fillText(this.kindMark(kind), this.left(e + 0.5), y + part / 2);
        }
      }
    }
    this.axis(pen, base, base - this.average * scale, "tokens", `mean ${Number(this.average.toPrecision(4))}`);
    this.paintBorders(pen, top, base);
    this.numberExperts(pen, base + 11);
    const violation = this.average ? this.totals[this.busiest] / this.average - 1 : 0;
    const words = `Load in layer ${this.get("layer")}: expert ${this.busiest} is the busiest with ${several(this.totals[this.busiest], "token")}; ` +
      `the mean is ${Number(this.average.toPrecision(4))}. MaxVio ${violation.toFixed(2)}.`;
    this.loadWords.textContent = shared ? `${words} (Shared experts take all ${tokens.length}.)` : words;
    this.load.canvas.setAttribute("aria-label", words);
  }

  axis(pen, base, dashed, above, words) { // a base line, a dashed line with its words, and what is drawn
    const right = this.left(this.shown.experts);
    pen.strokeStyle = this.rule;
    pen.lineWidth = 1;
    this.line(pen, GUTTER, base, right, base);
    pen.strokeStyle = this.mean;
    pen.setLineDash([5, 4]);
    this.line(pen, GUTTER - 4, dashed, right, dashed);
    pen.setLineDash([]);
    pen.textAlign = "right";
    pen.fillStyle = this.ink;
    if (base - dashed > 14) pen.fillText(above, GUTTER - 8, base - 5);
    pen.fillText(words, GUTTER - 8, within(dashed, 8, base - 2));
  }

  line(pen, x1, y1, x2, y2) {
    pen.beginPath();
    pen.moveTo(x1, y1);
    pen.lineTo(x2, y2);
    pen.stroke();
  }

  // ---- one token through the layers

  followedToken() { return this.get("token") >= 0 ? this.get("token") : this.hover; }

  describeToken() {
    const { tokens } = this.shown, token = this.get("token");
    this.frame.setAttribute("aria-valuemax", tokens.length);
    this.frame.setAttribute("aria-valuenow", token + 1);
    this.frame.setAttribute("aria-valuetext", token < 0 ? "no token is locked" : `token ${token + 1} of ${tokens.length}, ${tokens[token]}: ${this.inLayer(this.layerAt, token)}`);
  }

  experts(layerAt, token, kind) { // by weight, then by number
    const { tokens, experts } = this.shown, start = (layerAt * tokens.length + token) * experts, found = [];
    for (let e = 0; e < experts; e++) if (this._cells[start + e] % ALLOWED === kind) found.push(e);
    return found.sort((a, b) => this._weights[start + b] - this._weights[start + a]);
  }

  weight(layerAt, token, expert) {
    return this._weights[(layerAt * this.shown.tokens.length + token) * this.shown.experts + expert];
  }

  inLayer(layerAt, token) {
    const words = this.experts(layerAt, token, CHOSEN).map((e) => `${e} (${this.weight(layerAt, token, e).toFixed(2)})`);
    return `layer ${this.shown.layers[layerAt]}, experts ${words.join(", ")}`;
  }

  fillFollowing() {
    const { tokens, layers, experts } = this.shown, token = this.followedToken();
    this.followed.hidden = token < 0;
    if (token < 0) {
      this.title.textContent = "Point at a token to follow it through the layers; a click or the arrow keys lock it.";
      this.followKey = null;
      return;
    }
    const how = this.get("token") >= 0 ? "locked; Escape lets it go" : "under the pointer; a click locks it";
    this.title.textContent = `Token ${token + 1} of ${tokens.length}, ${tokens[token]}, through the layers (${how})`;
    const height = 16 * layers.length, pen = this.strip.begin(this.width, height + 2);
    this.paintCells(pen, 0, layers.length, 16, (l) => (l * tokens.length + token) * experts, (l) => 16 * l, () => this.kindOf(token));
    pen.textAlign = "right";
    pen.fillStyle = this.ink;
    layers.forEach((layer, l) => pen.fillText(`${l === this.layerAt ? "▸ " : ""}layer ${layer}`, GUTTER - 8, 16 * l + 8));
    this.strip.canvas.setAttribute("aria-label", layers.map((_, l) => this.inLayer(l, token)).join("; "));
    if (this.followKey === token && this.followOf === this.seen._cells) { this.markLayer(); return; }
    this.followKey = token; this.followOf = this.seen._cells;
    this.rows.replaceChildren(...layers.map((layer, l) => this.layerRow(layer, l, token)));
    this.markLayer();
  }

  layerRow(layer, l, token) {
    const list = (kind) => this.experts(l, token, kind).join(", ") || "–";
    const chips = this.experts(l, token, CHOSEN).map((e) => tag("span", { class: "rx-chip", "data-expert": e },
      tag("b", {}, `${e}`), ` ${this.weight(l, token, e).toFixed(2)}`));
    return tag("tr", { "data-testid": "routing-layer-row", "data-layer": layer },
      tag("th", { scope: "row" }, `${layer}`), tag("td", {}, ...chips), tag("td", {}, list(NEXT)), tag("td", {}, list(SHUT_OUT)));
  }

  markLayer() {
    [...this.rows.children].forEach((row, l) => row.setAttribute("aria-current", l === this.layerAt ? "true" : "false"));
  }

  // ---- the training run

  showRun() {
    const run = this.get("_run"), steps = run.steps ?? [], usable = steps.length > 0;
    this.run.hidden = !usable && !this.get("run_message");
    const row = usable ? run.layers.indexOf(this.get("layer")) : -1;
    const fits = row >= 0 && !this.tokens.hidden && run.experts === this.shown.experts;
    this.scrub.hidden = !fits;
    if (!fits) { this.stop(); return; }
    const at = within(this.get("snapshot"), 0, steps.length - 1);
    this.slider.max = steps.length - 1;
    this.slider.value = at;
    this.paintShares(run, row, at);
    this.paintTrend(run, row, at);
    const violation = this._run_violation[at * run.layers.length + row];
    this.stepName.textContent = `${steps[at]} · MaxVio ${violation.toFixed(2)}`;
    this.slider.setAttribute("aria-valuetext", `step ${steps[at]}, MaxVio ${violation.toFixed(2)}`);
  }

  // Scales that hold for the whole run: while it plays, what moves is the load and the bias and not the scale.
  runScale(run, row) {
    const key = `${row}`;
    if (this.scaleKey === key && this.scaleOf === this.seen._run_load) return this.scale;
    const { experts, steps, layers } = run;
    let most = 1, reach = 1e-6, worst = 1e-6;
    for (let s = 0; s < steps.length; s++) {
      const start = (s * layers.length + row) * experts, mean = this.biasMean(start, experts);
      worst = Math.max(worst, this._run_violation[s * layers.length + row]);
      for (let e = 0; e < experts; e++) {
        most = Math.max(most, this._run_load[start + e]);
        reach = Math.max(reach, Math.abs(this._run_bias[start + e] - mean));
      }
    }
    this.scaleKey = key; this.scaleOf = this.seen._run_load;
    return (this.scale = { most, reach, worst });
  }

  biasMean(start, experts) {
    let sum = 0;
    for (let e = 0; e < experts; e++) sum += this._run_bias[start + e];
    return sum / experts;
  }

  paintShares(run, row, at) {
    const { experts } = run, start = (at * run.layers.length + row) * experts, { most, reach } = this.runScale(run, row);
    const pen = this.shares.begin(this.width, 206), base = 92, zero = 146, mean = this.biasMean(start, experts);
    let busiest = 0;
    for (let e = 0; e < experts; e++) {
      const share = this._run_load[start + e], bias = this._run_bias[start + e] - mean;
      if (share > this._run_load[start + busiest]) busiest = e;
      const x = this.left(e) + this.cell * 0.1, width = this.cell * 0.8, tall = (share / most) * (base - 10);
      pen.fillStyle = this.bar;
      pen.fillRect(x, base - tall, width, tall);
      const reached = (bias / reach) * 40;
      pen.fillStyle = this.palette[1];
      pen.fillRect(x, Math.min(zero, zero - reached), width, Math.max(1, Math.abs(reached)));
    }
    this.axis(pen, base, base - (base - 10) / most, "load", "mean load");
    pen.strokeStyle = this.rule;
    this.line(pen, GUTTER, zero, this.left(experts), zero);
    pen.fillStyle = this.ink;
    pen.textAlign = "right";
    pen.fillText("bias − mean bias", GUTTER - 8, zero);
    pen.fillText(signed(reach), GUTTER - 8, zero - 34);
    pen.fillText(signed(-reach), GUTTER - 8, zero + 34);
    this.paintBorders(pen, 8, 188);
    this.numberExperts(pen, 198);
    this.shares.canvas.setAttribute("aria-label", `Step ${run.steps[at]}: expert ${busiest} has ` +
      `${this._run_load[start + busiest].toFixed(2)} times the mean load and a routing bias of ${signed(this._run_bias[start + busiest] - mean)} ` +
      `against the mean bias ${mean.toFixed(3)}.`);
  }

  paintTrend(run, row, at) {
    const { steps, layers } = run, { worst } = this.runScale(run, row), pen = this.trend.begin(this.width, 78);
    const right = this.left(run.experts), base = 58, span = Math.max(1, steps[steps.length - 1] - steps[0]);
    const x = (s) => GUTTER + ((steps[s] - steps[0]) / span) * (right - GUTTER);
    const y = (s) => base - (this._run_violation[s * layers.length + row] / worst) * (base - 8);
    pen.strokeStyle = this.rule;
    pen.lineWidth = 1;
    this.line(pen, GUTTER, base, right, base);
    pen.beginPath();
    for (let s = 0; s < steps.length; s++) pen.lineTo(x(s), y(s));
    pen.strokeStyle = this.bar;
    pen.lineWidth = 1.8;
    pen.stroke();
    pen.strokeStyle = this.strong;
    this.line(pen, x(at), 4, x(at), base);
    pen.fillStyle = this.strong;
    pen.beginPath();
    pen.arc(x(at), y(at), 4, 0, 2 * Math.PI);
    pen.fill();
    pen.fillStyle = this.ink;
    pen.textAlign = "right";
    pen.fillText(`MaxVio ${worst.toFixed(2)}`, GUTTER - 8, 8);
    pen.fillText("0", GUTTER - 8, base);
    pen.textAlign = "left";
    pen.fillText(`step ${steps[0]}`, GUTTER, base + 11);
    pen.textAlign = "right";
    pen.fillText(`step ${steps[steps.length - 1]}`, right, base + 11);
    this.trend.canvas.setAttribute("aria-label", `MaxVio from ${this._run_violation[row].toFixed(2)} at step ${steps[0]} to ` +
      `${this._run_violation[(steps.length - 1) * layers.length + row].toFixed(2)} at step ${steps[steps.length - 1]}; at most ${worst.toFixed(2)}.`);
  }

  toggle() {
    if (this.player) { this.stop(); return; }
    const last = this.get("_run").steps.length - 1;
    if (this.get("snapshot") >= last) this.set("snapshot", 0);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.player = setInterval(() => {
      if (!this.root.isConnected || this.get("snapshot") >= last) { this.stop(); return; }
      this.set("snapshot", this.get("snapshot") + 1);
    }, calm ? 700 : within(10_000 / (last + 1), 50, 400)); // the whole run in about ten seconds
    this.play.textContent = "⏸ Pause";
  }

  stop() {
    clearInterval(this.player);
    this.player = null;
    this.play.textContent = "▶ Play";
  }

  // ---- hand and keys

  typed() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => {
      this.typing = null;
      const text = this.text.value;
      this.model.set("text", text.toWellFormed ? text.toWellFormed() : text); // half a surrogate pair cannot be sent
      this.model.save_changes();
    }, TEXT_PAUSE);
  }

  rowAt(event) {
    const y = event.clientY - this.frame.getBoundingClientRect().top + this.frame.scrollTop;
    return within(Math.floor(y / this.row), 0, this.shown.tokens.length - 1);
  }

  point(event) {
    const token = this.rowAt(event), x = event.clientX - this.frame.getBoundingClientRect().left;
    this.readout.textContent = this.about(token, Math.floor((x - GUTTER) / this.cell));
    if (token === this.hover) return;
    this.hover = token;
    if (this.get("token") < 0) { this.paintGrid(); this.fillFollowing(); }
  }

  about(token, expert) {
    const { tokens, experts } = this.shown, name = `Token ${token + 1}, ${tokens[token]}`;
    if (expert < 0 || expert >= experts) return name;
    const at = (this.layerAt * tokens.length + token) * experts + expert;
    const score = this._scores[at], bias = this._bias[this.layerAt * experts + expert];
    const state = { 0: "not chosen", [CHOSEN]: `chosen, gate weight ${this._weights[at].toFixed(3)}`, [NEXT]: "next in line",
      [SHUT_OUT]: "shut out by the group limit" }[this._cells[at] % ALLOWED];
    return `${name}, expert ${expert}: ${state}; score ${score.toFixed(3)}, with the routing bias ${(score + bias).toFixed(3)}`;
  }

  leave() {
    this.hover = -1;
    this.readout.textContent = "";
    if (this.get("token") < 0) { this.paintGrid(); this.fillFollowing(); }
  }

  click(event) {
    const token = this.rowAt(event);
    this.set("token", token === this.get("token") ? -1 : token);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // Lab's own, such as Ctrl+S
    event.stopPropagation(); // a plain key must not reach the notebook: there, x cuts the cell
    if (event.key === "Escape" && this.get("token") >= 0) { this.set("token", -1); event.preventDefault(); return; }
    if (event.target === this.frame && this.frameKey(event.key)) event.preventDefault();
  }

  frameKey(key) {
    const { tokens, layers } = this.shown, token = this.get("token"), page = Math.max(1, Math.floor(VIEW / this.row) - 1);
    const moves = { ArrowDown: token + 1, ArrowUp: token < 0 ? tokens.length - 1 : token - 1, Home: 0, End: tokens.length - 1,
      PageDown: token + page, PageUp: token - page };
    if (key in moves) { this.lock(within(moves[key], 0, tokens.length - 1)); return true; }
    const turn = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (turn) { this.set("layer", layers[within(this.layerAt + turn, 0, layers.length - 1)]); return true; }
    return false;
  }

  lock(token) { // and bring it into sight
    const height = this.frame.clientHeight, top = this.frame.scrollTop, y = token * this.row;
    if (y < top) this.frame.scrollTop = y;
    else if (y + this.row > top + height) this.frame.scrollTop = y + this.row - height;
    this.set("token", token);
  }
}

export default {
  render({ model, el }) {
    const explorer = new Explorer(model, el);
    return () => explorer.remove();
  },
};
