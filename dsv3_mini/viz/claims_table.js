// The claims table in the browser: three controls, a table, and a line that says how many rows are left.
// Python selects; this module asks (verdict, element, text) and shows the rows named in `visible`.
// All text of claims goes in as text, never as markup.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function control(prefix, name, title, field) {
  field.id = `${prefix}-${name}`;
  field.dataset.testid = `claims-${name}`;
  return make("div", { class: "dsv3-claims-control" }, make("label", { for: field.id }, title), field);
}

function choice(model, name, options) {
  const select = make("select", {}, make("option", { value: "" }, "all"));
  for (const [value, title] of options) select.append(make("option", { value }, title));
  select.addEventListener("change", () => send(model, name, select.value));
  return select;
}

function send(model, name, value) {
  model.set(name, value);
  model.save_changes();
}

function row(claim) {
  const line = make("tr", { "data-id": claim.id });
  line.append(
    make("th", { scope: "row" }, claim.id),
    make("td", {}, claim.element),
    make("td", {}, claim.claim),
    make("td", { class: "dsv3-claims-verdict" },
      make("span", { "aria-hidden": "true" }, `${claim.mark} `), claim.verdict),
    make("td", {}, claim.why, " ", make("em", {}, `(${claim.place})`)),
  );
  return line;
}

function render({ model, el }) {
  // Ids of controls must differ between two tables on a page, and this module is loaded anew for each of them.
  const prefix = `dsv3-claims-${Math.random().toString(36).slice(2)}`;
  const verdict = choice(model, "verdict", model.get("verdicts").map((v) => [v.name, `${v.mark} ${v.name}`]));
  const element = choice(model, "element", model.get("elements").map((name) => [name, name]));
  const text = make("input", { type: "search", autocomplete: "off" });
  text.addEventListener("input", () => send(model, "text", text.value));
  const fields = { verdict, element, text };

  const count = make("p", { role: "status", class: "dsv3-claims-count", "data-testid": "claims-count" });
  const heads = ["id", "where on the page", "claim", "verdict", "why, and the place in the report"];
  const body = make("tbody");
  const table = make("table", { "aria-label": "Claims of the summary, checked against the report" },
    make("thead", {}, make("tr", {}, ...heads.map((title) => make("th", { scope: "col" }, title)))), body);
  const lines = new Map(model.get("rows").map((claim) => [claim.id, row(claim)]));
  body.append(...lines.values());
  // The table scrolls in itself; a part that scrolls must be reachable by keyboard.
  const frame = make("div", { class: "dsv3-claims-frame", tabindex: "0", role: "region", "aria-label": "Claims" }, table);

  const root = make("div", { class: "dsv3-claims", "data-testid": "claims" },
    make("div", { class: "dsv3-claims-controls" },
      control(prefix, "verdict", "Verdict", verdict),
      control(prefix, "element", "Where on the page", element),
      control(prefix, "text", "Words", text)),
    count, frame);
  // A plain key pressed in a control must not reach the notebook, where "x" cuts the cell.
  root.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
  });

  function show() {
    const visible = new Set(model.get("visible"));
    for (const [id, line] of lines) line.hidden = !visible.has(id);
    count.textContent = model.get("count");
    for (const [name, field] of Object.entries(fields)) {
      if (field.value !== model.get(name)) field.value = model.get(name); // a cell set the filter
    }
  }
  const changes = "change:visible change:count change:verdict change:element change:text";
  model.on(changes, show);
  show();
  el.append(root);
  return () => model.off(changes, show);
}

export default { render };
