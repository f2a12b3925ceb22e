// The idea graph in the browser: one drawing (SVG), one panel, and the keys. Python sends everything to draw and to
// say in `_faces`; this file holds no text about the report. Text enters the page only through `append` and
// `setAttribute`, so what looks like markup stays text.

const SVG = "http://www.w3.org/2000/svg";
const MIN_SCALE = 1, MAX_SCALE = 4; // as in idea_graph_widget.py
const STATES = { none: ["○", "not begun"], begun: ["◐", "begun"], right: ["✓", "all right"] };
const EXERCISE_MARKS = { "not attempted": "○", begun: "◐", "wrong so far": "✗", right: "✓" };
const VERDICTS = {
  faithful: "faithful: the report agrees",
  simplified: "simplified: the right direction, but something that matters is lost",
  wrong: "wrong: the report says otherwise",
  outside: "outside: the report says nothing of the kind",
  missing: "missing: the summary leaves this out",
};
const PARTS = { "the model (§2)": "model", "training it (§3, §4)": "training", "after training (§5)": "after" };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const TRAITS = ["face", "selected", "selected_link", "needed_for", "states", "view"];

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const tag = (name, attributes = {}, ...children) => make(document.createElement(name), attributes, children);
const shape = (name, attributes = {}, ...children) => make(document.createElementNS(SVG, name), attributes, children);


class Graph {
  constructor(model, el) {
    this.model = model;
    // Ids must differ between two graphs in one notebook, and this module is loaded anew for each of them.
    this.uid = `idea-graph-${Math.random().toString(36).slice(2)}`;
    this.face = null; // the face that is drawn
    this.pending = false;
    this.root = tag("div", { class: "dsv3-ideas", role: "group", "aria-label": "Idea graph", "data-testid": "idea-graph" });
    this.root.append(this.bar(), this.body(), (this.legend = tag("div", { class: "ig-legend" })),
      (this.chain = tag("details", { class: "ig-chain", "data-testid": "idea-chain" })));
    this.root.addEventListener("keydown", (event) => this.key(event));
    el.append(this.root);
    this.onChange = () => this.later();
    for (const name of TRAITS) model.on(`change:${name}`, this.onChange);
    this.update();
    this.root.setAttribute("data-ready", "true");
  }

  remove() {
    for (const name of TRAITS) this.model.off(`change:${name}`, this.onChange);
    clearTimeout(this.saving);
  }

  get(name) { return this.model.get(name); }
  get data() { return this.get("_faces")[this.get("face")]; }

  set(values) { // one message to Python for all of them
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.model.save_changes();
    this.update();
  }

  // ---- what is always there

  bar() {
    const faces = { report: "What the report says", summary: "What a popular summary says" };
    this.faceButtons = Object.entries(faces).map(([face, words]) =>
      tag("button", { type: "button", "data-testid": `face-${face}`, "data-face": face, onclick: () => this.turn(face) }, words));
    this.search = tag("input", {
      type: "search", placeholder: "Find an idea", "aria-label": "Find an idea", "data-testid": "idea-search",
      oninput: () => this.mark(),
    });
    this.needs = tag("button", { type: "button", "data-testid": "needs-button", onclick: () => this.toggleNeeds() },
      "What do I need before this?");
    const zoom = [["zoom-in", "+", "Zoom in", 1.25], ["zoom-out", "−", "Zoom out", 0.8]].map(([id, sign, words, factor]) =>
      tag("button", { type: "button", "data-testid": id, "aria-label": words, onclick: () => this.zoom(factor) }, sign));
    zoom.push(tag("button", { type: "button", "data-testid": "zoom-reset", "aria-label": "Show the whole graph",
      onclick: () => this.whole() }, "0"));
    return tag("div", { class: "ig-bar" },
      tag("div", { class: "ig-faces", role: "group", "aria-label": "Face of the graph" }, ...this.faceButtons),
      this.search, this.needs,
      tag("div", { class: "ig-zoom", role: "group", "aria-label": "Zoom" }, ...zoom));
  }

  body() {
    this.svg = shape("svg", { class: "ig-drawing", role: "group", "data-testid": "idea-drawing" });
    this.tip = tag("div", { class: "ig-tip", role: "tooltip", id: `${this.uid}-tip`, hidden: true, "data-testid": "idea-tip" });
    this.stage = tag("div", { class: "ig-stage" }, this.svg, this.tip);
    this.panel = tag("div", { class: "ig-panel-text", role: "region", "aria-label": "About the idea", "aria-live": "polite",
      tabindex: "0", "data-testid": "idea-panel" });
    this.svg.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.svg.addEventListener("pointerdown", (event) => this.grab(event));
    this.svg.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) this.svg.addEventListener(end, () => this.drop());
    this.svg.addEventListener("click", (event) => this.click(event));
    // On the stage, since a focus listener would make the SVG itself a stop for Tab.
    for (const name of ["pointerover", "focusin"]) this.stage.addEventListener(name, (event) => this.hint(event));
    for (const name of ["pointerout", "focusout"]) this.stage.addEventListener(name, () => this.unhint());
    return tag("div", { class: "ig-body" }, this.stage, tag("div", { class: "ig-panel" }, this.panel));
  }

  // ---- following the traits

  later() { // several traits may change at once; one look at them is enough
    if (this.pending) return;
    this.pending = true;
    queueMicrotask(() => { this.pending = false; this.update(); });
  }

  update() {
    const face = this.get("face");
    if (face !== this.face) { this.face = face; this.draw(); }
    this.applyView();
    const state = JSON.stringify([face, ...TRAITS.slice(1, 5).map((name) => this.get(name))]);
    if (state === this.shown) return; // the view alone moved
    this.shown = state;
    this.mark();
    this.fillPanel();
  }

  draw() {
    const data = this.data;
    this.root.setAttribute("data-face", this.face);
    for (const button of this.faceButtons) button.setAttribute("aria-pressed", button.dataset.face === this.face);
    this.svg.setAttribute("aria-label", `${data.title}: ${Object.keys(data.nodes).length} ideas, ` +
      `${Object.keys(data.edges).length} links. Arrow keys move, Enter opens, Escape closes.`);
    this.svg.style.aspectRatio = `${data.width} / ${data.height}`;
    const head = `${this.uid}-head`;
    this.edges = {}; this.nodes = {};
    this.svg.replaceChildren(shape("defs", {}, shape("marker",
      { id: head, viewBox: "0 0 10 10", refX: 9, refY: 5, markerWidth: 5, markerHeight: 5, orient: "auto" },
      shape("path", { d: "M0 0L10 5L0 10z", fill: "context-stroke" }))));
    for (const [id, edge] of Object.entries(data.edges)) this.svg.append((this.edges[id] = this.drawEdge(id, edge, head)));
    for (const [id, node] of Object.entries(data.nodes)) this.svg.append((this.nodes[id] = this.drawNode(id, node)));
    this.drawLegend(data);
    this.drawChain(data.chain);
    this.search.value = "";
  }

  drawEdge(id, edge, head) {
    const { x1, y1, x2, y2 } = edge;
    const words = [`${this.title(edge.from)} ${edge.relation} ${this.title(edge.to)}`];
    if (edge.conjecture) words.push("conjecture");
    if (edge.verdict) words.push(this.face === "summary" ? edge.verdict : `in the summary ${edge.verdict}`);
    return shape("g", {
      class: `ig-edge ${edge.conjecture ? "ig-conjecture" : ""} ${this.face === "summary" ? `ig-${edge.verdict}` : ""}`,
      role: "button", tabindex: "-1", "data-testid": "idea-link", "data-id": id, "data-verdict": edge.verdict,
      "aria-label": words.join(", "),
    }, shape("line", { x1, y1, x2, y2, class: "ig-hit" }),
    shape("line", { x1, y1, x2, y2, class: "ig-line", "marker-end": `url(#${head})` }),
    ...edge.lines.map((line, i) => shape("text", { x: edge.x, y: edge.y + 13 * i, "text-anchor": edge.anchor }, line)));
  }

  drawNode(id, node) {
    const [width, height] = this.data.box, x = node.x - width / 2, y = node.y - height / 2;
    const top = node.y - 8 * node.label.length - 1;
    const part = PARTS[node.part];
    return shape("g", {
      class: `ig-node ${node.conjecture ? "ig-conjecture" : ""} ${part ? `ig-${part}` : ""}`,
      role: "button", tabindex: "-1", "data-testid": "idea-node", "data-id": id,
    }, shape("rect", { class: "ig-ring", x: x - 4, y: y - 4, width: width + 8, height: height + 8, rx: 12 }),
    shape("rect", { class: "ig-box", x, y, width, height, rx: 9 }),
    ...node.label.map((line, i) => shape("text", { class: "ig-label", x: node.x, y: top + 16 * i }, line)),
    ...node.foot.map((line, i) => shape("text", { class: "ig-foot", x: node.x, y: top + 16 * node.label.length + 13 * i }, line)),
    shape("rect", { class: "ig-pill", y: y - 9, height: 18, rx: 9 }),
    shape("text", { class: "ig-badge", x: x + width - 12, y: y + 4.5, "data-testid": "idea-badge" }));
  }

  title(id) { return this.data.nodes[id]?.title ?? id; }

  drawLegend(data) {
    const item = (...words) => tag("span", {}, ...words), swatch = (name) => tag("i", { class: `ig-swatch ig-${name}` });
    const items = this.face === "report"
      ? [...Object.entries(PARTS).map(([words, part]) => item(swatch(part), words)),
        ...Object.values(STATES).map(([mark, words]) => item(`${mark} ${words}`)), "(exercises)"]
      : [item(swatch("dashed"), "conjecture"), "What the report says of a link:",
        ...Object.entries(data.marks).map(([verdict, mark]) => item(`${mark} ${verdict}`))];
    this.legend.replaceChildren(...items);
    if (data.conjecture) this.legend.append(tag("p", { "data-testid": "idea-conjecture" }, data.conjecture));
  }

  drawChain(chain) {
    const rows = chain.works.map((work) => tag("li", { "data-after": String(work.after_report) },
      tag("b", {}, work.topic), `: ${work.reference} (${work.where})`,
      work.after_report ? tag("strong", { class: "ig-after" }, ` Published ${work.published}, after the report.`) : null,
      work.verdict ? tag("span", { class: `ig-${work.verdict}` }, ` ${this.mark_of(work.verdict)} ${work.verdict}. `) : null,
      work.reason ?? null));
    this.chain.replaceChildren(tag("summary", {}, chain.title), tag("ol", {}, ...rows));
  }

  mark_of(verdict) { return this.get("_faces").summary.marks[verdict] ?? "–"; }

  // ---- marks on the drawing: what is open, what is lit, how far the exercises are

  mark() {
    const selected = this.get("selected"), link = this.get("selected_link"), goal = this.get("needed_for");
    const lit = this.face === "report" && goal ? new Set([...(this.data.nodes[goal]?.needed ?? []), goal]) : null;
    const order = lit ? [...lit] : [];
    const found = this.matches();
    const states = this.face === "report" ? this.get("states") : {};
    for (const [id, group] of Object.entries(this.nodes)) {
      const state = states[id], node = this.data.nodes[id];
      group.classList.toggle("ig-selected", id === selected);
      group.classList.toggle("ig-lit", Boolean(lit?.has(id)));
      group.classList.toggle("ig-faint", lit ? !lit.has(id) : Boolean(found) && !found.includes(id));
      group.setAttribute("aria-pressed", id === selected);
      group.setAttribute("data-state", state?.state ?? "");
      const step = lit?.has(id) ? `step ${order.indexOf(id) + 1} of ${order.length}` : "";
      group.setAttribute("aria-label", [node.title, node.place, node.conjecture ? "name is conjecture" : "", state?.words, step]
        .filter(Boolean).join(", "));
      const badge = [step && `${order.indexOf(id) + 1}.`, state && `${STATES[state.state][0]} ${state.count}`]
        .filter(Boolean).join("  ");
      group.querySelector(".ig-badge").replaceChildren(badge);
      const pill = group.querySelector(".ig-pill"), width = badge ? 8 * badge.length + 14 : 0; // 13 px type
      pill.setAttribute("width", width);
      pill.setAttribute("x", node.x + this.data.box[0] / 2 - 5 - width);
    }
    for (const [id, group] of Object.entries(this.edges)) {
      const { from, to } = this.data.edges[id];
      group.classList.toggle("ig-selected", id === link);
      group.classList.toggle("ig-near", from === selected || to === selected);
      group.classList.toggle("ig-faint", lit ? !(lit.has(from) && lit.has(to)) : Boolean(found));
      group.setAttribute("aria-pressed", id === link);
    }
    this.rove(this.nodes, selected);
    this.rove(this.edges, link);
    const known = this.face === "report" && this.data.nodes[selected];
    this.needs.disabled = !known && !lit;
    this.needs.setAttribute("aria-pressed", Boolean(lit));
  }

  rove(groups, wanted) { // one stop for Tab among the ideas, one among the links; arrow keys do the rest
    const all = Object.values(groups);
    const stop = groups[wanted] ?? all.find((group) => group.getAttribute("tabindex") === "0") ?? all[0];
    for (const group of all) group.setAttribute("tabindex", group === stop ? "0" : "-1");
  }

  // ---- the panel

  fillPanel() {
    const node = this.data.nodes[this.get("selected")], edge = this.data.edges[this.get("selected_link")];
    const content = node ? this.aboutNode(this.get("selected"), node) : edge ? this.aboutLink(edge) : [
      tag("p", {}, "Choose an idea: click it, or press Tab, walk with the arrow keys and open with Enter. ",
        "A link opens in the same way. Drag to move the drawing; the wheel, + and - zoom, 0 shows all of it."),
      tag("p", {}, this.data.source)];
    const close = node || edge
      ? tag("button", { type: "button", class: "ig-close", "aria-label": "Close", "data-testid": "panel-close",
        onclick: () => this.close() }, "×") : null;
    this.panel.replaceChildren(...[close, ...content].filter(Boolean));
    this.panel.setAttribute("data-open", this.get("selected") || this.get("selected_link"));
    this.panel.scrollTop = 0;
  }

  aboutNode(id, node) {
    const parts = [tag("p", { class: "ig-title" }, node.title), tag("p", { class: "ig-sentence" }, node.sentence), tag("p", {}, node.explanation)];
    const rows = tag("dl");
    const row = (name, ...content) => rows.append(tag("dt", {}, name), tag("dd", { "data-row": name }, ...content));
    row("Place", node.place);
    if (node.evidence) row("Name", node.conjecture ? "conjecture: our reading of the section's text"
      : "recovered from a lost link label of the page");
    if (node.lessons) row("Lessons", this.list(node.lessons.map((lesson) => this.lessonLink(lesson))));
    if (node.code) row("Code", ...(node.code_note ? [tag("p", {}, node.code_note)] : []),
      ...(node.code.length ? [this.list(node.code.map(({ name, place }) => [tag("code", {}, name), ` ${place}`]))] : []));
    const state = this.face === "report" && this.get("states")[id];
    if (state) row("Exercises", this.list(state.exercises.map((exercise) =>
      `${EXERCISE_MARKS[exercise.state]} ${exercise.id} ${exercise.title}: ${exercise.state}`)));
    if (node.needed) row("Before it", node.needed.length
      ? this.list(node.needed.map((name) => this.jump(name, this.title(name))), "ol") : "nothing: you can begin here");
    const links = Object.entries(this.data.edges).filter(([, edge]) => edge.from === id || edge.to === id);
    row("Links", this.list(links.map(([name, edge]) => this.linkButton(name, edge))));
    const same = this.data.same[id], other = this.face === "report" ? "summary" : "report";
    if (same) row(other === "report" ? "In the report" : "In the summary", tag("button",
      { type: "button", class: "ig-jump", "data-testid": "other-face", onclick: () => this.turn(other, same) },
      this.get("_faces")[other].nodes[same].title));
    return [...parts, rows];
  }

  aboutLink(edge) {
    const summary = this.face === "summary";
    const parts = [
      tag("p", { class: "ig-title" }, `${this.title(edge.from)} — ${edge.relation} → ${this.title(edge.to)}`),
      edge.conjecture ? tag("p", { class: "ig-sentence" }, "This link is conjecture: the picture of the page is not preserved.") : null,
    ];
    const rows = tag("dl");
    const row = (name, ...content) => rows.append(tag("dt", {}, name), tag("dd", { "data-row": name }, ...content));
    row("Place", edge.place);
    if (edge.verdict) {
      row(summary ? "The report" : "The summary",
        tag("p", { class: `ig-verdict ig-${edge.verdict}`, "data-testid": "idea-verdict" },
          `${this.mark_of(edge.verdict)} ${VERDICTS[edge.verdict]}`),
        tag("p", { "data-testid": "idea-reason" }, edge.reason));
      if (edge.claims.length) row("Claims", edge.claims.join(", "));
    }
    row("Ideas", this.list([edge.from, edge.to].map((id) => this.jump(id, this.title(id)))));
    return [...parts, rows];
  }

  list(items, kind = "ul") {
    return tag(kind, {}, ...items.map((item) => tag("li", {}, ...(Array.isArray(item) ? item : [item]))));
  }

  jump(id, words) {
    return tag("button", { type: "button", class: "ig-jump", "data-jump": id, onclick: () => this.open(id) }, words);
  }

  linkButton(id, edge) {
    const words = `${this.title(edge.from)} — ${edge.relation} → ${this.title(edge.to)}`;
    const verdict = edge.verdict ? ` ${this.mark_of(edge.verdict)} ${this.face === "summary" ? "" : "in the summary "}${edge.verdict}` : "";
    return tag("button", { type: "button", class: "ig-jump", "data-jump": id,
      onclick: () => this.openLink(id) }, words + verdict);
  }

  // A lesson opens in this Lab: Lab runs the command that `data-commandlinker-command` names when such an element is
  // clicked (and asks first in a notebook that it does not trust yet: one with code cells that were never run here).
  // Its path starts at the server's root. Elsewhere, and with the middle button, it is a link.
  lessonLink({ number, title, file }) {
    const words = `${number} ${title}`;
    if (!file) return `${words} (not written yet)`;
    const encode = (path) => path.split("/").map(encodeURIComponent).join("/");
    const config = JSON.parse(document.getElementById("jupyter-config-data")?.textContent ?? "{}");
    const folder = this.folder(config);
    if (folder === null) return tag("a", { href: encode(file), "data-lesson": number }, words);
    const address = new URL(encode(file), `http://lab/${encode(folder)}/`).pathname.replace(/^\/+/, ""); // takes ".." out
    return tag("a", {
      href: `${config.baseUrl ?? "/"}lab/tree/${address}`, "data-lesson": number,
      "data-commandlinker-command": "docmanager:open",
      "data-commandlinker-args": JSON.stringify({ path: decodeURIComponent(address) }),
    }, words);
  }

  folder({ serverRoot }) { // of this notebook, from the server's root; the page's address knows it only sometimes
    const root = serverRoot?.replace(/\/$/, "");
    for (const folder of this.get("_folders")) {
      if (root !== undefined && `${folder}/`.startsWith(`${root}/`)) return folder.slice(root.length + 1);
    }
    const path = /\/tree\/(.*)$/.exec(location.pathname)?.[1];
    return path === undefined ? null : decodeURIComponent(path).split("/").slice(0, -1).join("/");
  }

  // ---- what a learner does

  open(id) {
    this.set({ selected: id, selected_link: "" });
    this.reveal(this.data.nodes[id]);
  }

  close() {
    const group = this.nodes[this.get("selected")] ?? this.edges[this.get("selected_link")];
    this.set({ selected: "", selected_link: "", needed_for: "" });
    group?.focus({ preventScroll: true });
  }

  turn(face, selected) {
    if (face === this.get("face")) return;
    const { same, width, height } = { ...this.get("_faces")[face], same: this.data.same };
    this.set({ face, selected: selected ?? same[this.get("selected")] ?? "", selected_link: "", needed_for: "",
      view: { x: width / 2, y: height / 2, scale: 1 } });
  }

  toggleNeeds() {
    const open = this.get("selected"), lit = this.get("needed_for");
    this.set({ needed_for: open === lit ? "" : open });
  }

  matches() {
    const words = this.search.value.trim().toLowerCase();
    if (!words) return null;
    const text = (node) => `${node.title} ${node.place} ${node.sentence}`.toLowerCase();
    const all = Object.entries(this.data.nodes);
    // Names before everything else that a node says.
    const named = all.filter(([, node]) => node.title.toLowerCase().includes(words));
    return [...new Set([...named, ...all.filter(([, node]) => text(node).includes(words))].map(([id]) => id))];
  }

  click(event) {
    if (this.dragged) { this.dragged = false; return; } // some browsers click what lies under the end of a drag
    const group = event.target.closest("[data-id]");
    if (!group) return;
    this.openGroup(group);
    group.focus({ preventScroll: true });
  }

  openGroup(group) {
    const id = group.getAttribute("data-id");
    if (group.classList.contains("ig-node")) this.open(id);
    else this.openLink(id);
  }

  openLink(id) { this.set({ selected: "", selected_link: id }); }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // Lab's own, such as Ctrl+S
    event.stopPropagation(); // a plain key must not reach the notebook: there, x cuts the cell
    const done = event.target === this.search ? this.searchKey(event.key) : this.graphKey(event);
    if (done) event.preventDefault();
  }

  searchKey(key) {
    if (key === "Enter" && this.matches()?.length) { this.open(this.matches()[0]); return true; }
    if (key === "Escape" && this.search.value) { this.search.value = ""; this.mark(); return true; }
    return false;
  }

  graphKey({ key, target }) {
    const group = target.closest(".ig-node, .ig-edge");
    if (key === "Escape") { this.unhint(); this.close(); return true; }
    if (key === "+" || key === "=") { this.zoom(1.25); return true; }
    if (key === "-") { this.zoom(0.8); return true; }
    if (key === "0") { this.whole(); return true; }
    if (!group) return false;
    if (key === "Enter" || key === " ") { this.openGroup(group); return true; }
    if (ARROWS[key]) { this.walk(group, ARROWS[key]); return true; }
    return false;
  }

  walk(group, [dx, dy]) { // to the nearest one in that direction; off the straight line counts three times
    const isNode = group.classList.contains("ig-node"), groups = isNode ? this.nodes : this.edges;
    const place = (id) => {
      if (isNode) return this.data.nodes[id];
      const { x1, y1, x2, y2 } = this.data.edges[id];
      return { x: (x1 + x2) / 2, y: (y1 + y2) / 2 };
    };
    const here = place(group.getAttribute("data-id"));
    let best = null, least = Infinity;
    for (const id of Object.keys(groups)) {
      const { x, y } = place(id), ahead = (x - here.x) * dx + (y - here.y) * dy;
      const aside = Math.abs((x - here.x) * dy) + Math.abs((y - here.y) * dx);
      if (ahead > 1 && ahead + 3 * aside < least) { best = id; least = ahead + 3 * aside; }
    }
    if (best === null) return;
    this.rove(groups, best);
    groups[best].focus({ preventScroll: true });
    this.reveal(place(best));
  }

  // ---- hints: one sentence under the pointer or the focus

  hint(event) {
    const group = event.target.closest("[data-id]");
    if (!group || this.start) return;
    const id = group.getAttribute("data-id"), edge = this.data.edges[id];
    this.tip.replaceChildren(edge ? group.getAttribute("aria-label") : this.data.nodes[id].sentence);
    this.tip.hidden = false;
    group.setAttribute("aria-describedby", this.tip.id);
    const stage = this.stage.getBoundingClientRect(), box = group.getBoundingClientRect();
    const left = box.left - stage.left + box.width / 2 - this.tip.offsetWidth / 2;
    const below = box.bottom - stage.top + 8;
    this.tip.style.left = `${Math.max(4, Math.min(left, stage.width - this.tip.offsetWidth - 4))}px`;
    this.tip.style.top = `${below + this.tip.offsetHeight < stage.height ? below : box.top - stage.top - this.tip.offsetHeight - 8}px`;
  }

  unhint() {
    this.tip.hidden = true;
    this.svg.querySelector("[aria-describedby]")?.removeAttribute("aria-describedby");
  }

  // ---- the view: which point is in the middle, and how far it is enlarged

  applyView() {
    const { width, height } = this.data, { x, y, scale } = this.get("view");
    const w = width / scale, h = height / scale;
    this.svg.setAttribute("viewBox", `${x - w / 2} ${y - h / 2} ${w} ${h}`);
    this.root.setAttribute("data-scale", scale.toFixed(3));
  }

  look({ x, y, scale }) {
    const { width, height } = this.data, within = (value, low, high) => Math.min(high, Math.max(low, value));
    const view = { x: within(x, 0, width), y: within(y, 0, height), scale: within(scale, MIN_SCALE, MAX_SCALE) };
    this.model.set("view", view);
    this.applyView();
    clearTimeout(this.saving); // Python hears of it when the hand rests
    this.saving = setTimeout(() => this.model.save_changes(), 60);
  }

  zoom(factor, at = this.get("view")) { // the point `at` stays where it is
    const view = this.get("view"), scale = Math.min(MAX_SCALE, Math.max(MIN_SCALE, view.scale * factor));
    const share = view.scale / scale;
    this.look({ x: at.x + (view.x - at.x) * share, y: at.y + (view.y - at.y) * share, scale });
  }

  whole() { this.look({ x: this.data.width / 2, y: this.data.height / 2, scale: 1 }); }

  reveal({ x, y }) { // move only if a box at (x, y), with its focus ring, would be cut off
    const { width, height, box } = this.data, { scale, ...middle } = this.get("view");
    const room = { x: (width / scale - box[0]) / 2 - 10, y: (height / scale - box[1]) / 2 - 10 };
    const fit = (value, axis) => {
      const off = value - middle[axis];
      return Math.abs(off) <= room[axis] ? middle[axis] : value - Math.sign(off) * Math.max(0, room[axis]);
    };
    const next = { x: fit(x, "x"), y: fit(y, "y") };
    if (next.x !== middle.x || next.y !== middle.y) this.look({ ...next, scale });
  }

  wheel(event) {
    const { scale } = this.get("view");
    const unit = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1; // lines, pages or pixels
    const factor = Math.exp(-event.deltaY * unit * 0.0015);
    if ((factor > 1 && scale >= MAX_SCALE) || (factor < 1 && scale <= MIN_SCALE)) return; // the page may scroll
    event.preventDefault();
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    this.zoom(factor, point);
  }

  grab(event) {
    if (event.button !== 0) return;
    this.dragged = false;
    this.start = { x: event.clientX, y: event.clientY, view: this.get("view"), unit: 1 / this.svg.getScreenCTM().a };
  }

  drag(event) {
    if (!this.start) return;
    const dx = event.clientX - this.start.x, dy = event.clientY - this.start.y;
    if (!this.dragged && Math.hypot(dx, dy) < 5) return; // a hand shakes while it clicks
    if (!this.dragged) { this.dragged = true; this.unhint(); this.svg.setPointerCapture(event.pointerId); }
    const { view, unit } = this.start;
    this.look({ x: view.x - dx * unit, y: view.y - dy * unit, scale: view.scale });
  }

  drop() { this.start = null; }
}

export default {
  render({ model, el }) {
    const graph = new Graph(model, el);
    return () => graph.remove();
  },
};
