// The strip of drafts in the browser: boxes of tokens, round by round, with buttons to play and step. Python decodes and
// says in `_steps` what each forward pass gave; this file shows the first `step` of them. Text enters only as text.

const TRAITS = ["prompt", "depth", "step", "message", "_steps"];
const DRAFTED = 550, JUDGED = 850; // milliseconds that a round is shown before and after its verdict

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

class Strip {
  constructor(model, el) {
    this.model = model;
    this.pending = false; // a round is drafted and not judged yet
    this.timer = null; // while it plays
    // Drawn by lot: each widget of a notebook loads this file anew, so that a counter would give two of them one name.
    this.uid = `strip-${Math.random().toString(36).slice(2)}`;
    this.text = tag("textarea", { id: `${this.uid}-prompt`, rows: 4, spellcheck: "false", "data-testid": "strip-prompt" });
    this.depth = tag("select", { id: `${this.uid}-depth`, "data-testid": "strip-depth", onchange: () => this.ask() },
      ...model.get("_depths").map((depth) => tag("option", { value: depth }, `${depth}`)));
    this.decode = tag("button", { type: "button", "data-testid": "strip-decode", onclick: () => this.ask() }, "Decode");
    const button = (name, words, label, press) => tag("button", { type: "button", "data-testid": `strip-${name}`, "aria-label": label, onclick: press }, words);
    this.first = button("first", "|◀", "To the prompt alone", () => this.move(-Infinity));
    this.back = button("back", "◀ Back", "One round back", () => this.move(-1));
    this.player = tag("button", { type: "button", class: "ss-play", "data-testid": "strip-play", onclick: () => this.toggle() });
    this.forth = button("forth", "Step ▶", "One round on", () => this.move(1));
    this.last = button("last", "▶|", "To the end", () => this.move(Infinity));
    this.place = tag("span", { class: "ss-place", "data-testid": "strip-place" });
    this.message = tag("p", { class: "ss-message", role: "status", "data-testid": "strip-message" });
    this.stage = tag("div", { class: "ss-stage", tabindex: "0", role: "slider", "aria-label": "Forward passes shown",
      "aria-valuemin": 0, "data-testid": "strip-stage" });
    this.legend = tag("p", { class: "ss-legend" }, ...Object.entries(model.get("_kinds")).map(([kind, [sign, words]]) =>
      tag("span", {}, tag("span", { class: `ss-token ss-${kind}` }, tag("span", { class: "ss-sign" }, sign)), ` ${words}`)));
    this.words = tag("p", { class: "ss-words", "aria-live": "polite", "data-testid": "strip-words" });
    this.numbers = tag("dl", { class: "ss-numbers", "data-testid": "strip-numbers" });
    this.soFar = tag("pre", { class: "ss-text", tabindex: "0", "aria-label": "Text so far", "data-testid": "strip-text" });
    this.shown = tag("div", {}, tag("div", { class: "ss-bar" }, this.first, this.back, this.player, this.forth, this.last, this.place),
      this.stage, this.words, this.numbers, this.legend, tag("p", { class: "ss-caption" }, "The text so far, as it comes out:"), this.soFar);
    this.root = tag("div", { class: "dsv3-strip", role: "group", "aria-label": "Speculative decoding, round by round", "data-testid": "strip" },
      tag("div", { class: "ss-ask" }, tag("label", { for: `${this.uid}-prompt` }, "Prompt"), this.text,
        tag("div", { class: "ss-choose" }, tag("label", { for: `${this.uid}-depth` }, "Drafts in a round"), this.depth, this.decode)),
      this.message, this.shown);
    this.root.addEventListener("keydown", (event) => this.key(event));
    el.append(this.root);
    this.onChange = () => this.update();
    for (const name of TRAITS) model.on(`change:${name}`, this.onChange);
    this.text.value = this.given = model.get("prompt");
    this.update();
    this.root.setAttribute("data-ready", "true");
  }

  remove() {
    this.pause();
    for (const name of TRAITS) this.model.off(`change:${name}`, this.onChange);
  }

  get(name) { return this.model.get(name); }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  get all() { return this.get("_steps").length; }

  ask() { // decode what stands in the fields; what comes back is played
    const prompt = this.text.value.toWellFormed?.() ?? this.text.value, depth = Number(this.depth.value);
    this.pause();
    if (prompt === this.get("prompt") && depth === this.get("depth")) return this.move(-Infinity, true);
    this.wanted = true;
    this.model.set("prompt", prompt);
    this.model.set("depth", depth);
    this.model.save_changes();
  }

  move(by, play = false) {
    this.pause();
    this.set("step", Math.min(this.all, Math.max(0, this.get("step") + by)));
    if (play) this.play();
  }

  toggle() { this.timer ? this.pause() : this.play(); }

  play() {
    if (!this.all) return;
    if (this.get("step") >= this.all) this.set("step", 0);
    this.timer = setTimeout(() => this.tick(), 250);
    this.update();
  }

  tick() { // a round is drafted first, and judged a little later
    const step = this.get("step");
    if (!this.pending && step > 0) {
      this.pending = true;
      this.timer = setTimeout(() => this.tick(), DRAFTED);
      return this.update();
    }
    this.pending = false;
    this.timer = step + 1 < this.all ? setTimeout(() => this.tick(), JUDGED) : null;
    this.set("step", step + 1);
    this.update();
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    this.pending = false;
    if (this.root?.hasAttribute("data-ready")) this.update();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // Lab's own, such as Ctrl+S
    event.stopPropagation(); // a plain key must not reach the notebook: there, x cuts the cell
    if (event.target === this.text || event.target === this.depth || event.target === this.soFar) return;
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity }[event.key];
    if (by && this.all) this.move(by);
    else if (event.key === " " && event.target === this.stage) this.toggle();
    else return;
    event.preventDefault();
  }

  update() {
    const prompt = this.get("prompt"), steps = this.get("_steps"), step = Math.min(this.get("step"), steps.length);
    if (prompt !== this.given) this.text.value = this.given = prompt; // set from a cell, or sent from here
    this.depth.value = this.get("depth");
    if (this.message.textContent !== this.get("message")) this.message.textContent = this.get("message");
    this.message.hidden = !this.get("message");
    this.shown.hidden = !steps.length;
    if (steps !== this.drawn) {
      this.drawn = steps;
      this.fill(steps);
      if (this.wanted) {
        this.wanted = false;
        return this.play();
      }
    }
    const rest = this.pending ? step + 1 : step;
    this.groups.forEach((group, number) => {
      group.hidden = number >= rest;
      group.classList.toggle("ss-pending", this.pending && number === step);
      group.classList.toggle("ss-now", number === rest - 1);
    });
    this.first.disabled = this.back.disabled = step === 0;
    this.forth.disabled = this.last.disabled = step === steps.length;
    this.player.textContent = this.timer ? "❚❚ Pause" : "▶ Play";
    this.place.textContent = step === 0 ? `the prompt; ${steps.length - 1} rounds follow` : step === 1 ? "prefill" : `round ${step - 1} of ${steps.length - 1}`;
    const now = steps[step - 1];
    let words = now ? now.words : "Press Play, or step with the buttons or the arrow keys.";
    if (this.pending) words = `Round ${step}: the module has drafted; the model reads all of it in one forward pass.`;
    else if (step === steps.length && steps.length) words += ` Done. ${this.get("_words")}`;
    if (this.words.textContent !== words) this.words.textContent = words; // said aloud only when it changes
    this.stage.setAttribute("aria-valuemax", steps.length);
    this.stage.setAttribute("aria-valuenow", step);
    this.stage.setAttribute("aria-valuetext", now ? `${now.words} ${this.spoken(now)}` : "the prompt alone");
    this.soFar.textContent = now ? now.text : prompt;
    this.count(now, step);
  }

  spoken(step) {
    const kinds = this.get("_kinds");
    return step.tokens.map(([label, kind]) => `${kinds[kind][1]}: ${label}`).join("; ");
  }

  count(now, step) {
    const [made, kept] = now ? now.drafts : [0, 0], rounds = Math.max(0, step - 1), tokens = now ? now.made : 0;
    const rows = { "tokens": tokens, "rounds": rounds, "tokens per round": rounds ? ((tokens - 1) / rounds).toFixed(2) : "–",
      "first drafts accepted": made ? `${kept} of ${made}` : "–" };
    this.numbers.replaceChildren(...Object.entries(rows).map(([name, value]) =>
      tag("div", {}, tag("dt", {}, name), tag("dd", { "data-name": name }, `${value}`))));
  }

  fill(steps) {
    const kinds = this.get("_kinds");
    this.groups = steps.map((step, number) => tag("span", { class: "ss-round", "data-testid": "strip-round", "data-round": number },
      tag("span", { class: "ss-number" }, number ? `${number}` : "prefill"),
      ...step.tokens.map(([label, kind]) => tag("span", { class: `ss-token ss-${kind}`, "data-kind": kind, title: kinds[kind][1] },
        tag("span", { class: "ss-sign" }, kinds[kind][0]), tag("span", { class: "ss-label" }, label)))));
    this.stage.replaceChildren(...this.groups);
  }
}

export default {
  render({ model, el }) {
    const strip = new Strip(model, el);
    return () => strip.remove();
  },
};
