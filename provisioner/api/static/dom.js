// Builds elements. All text goes in as text nodes, so nothing that the service tells can become markup.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") {
      for (const [kind, listener] of Object.entries(value)) element.addEventListener(kind, listener);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, String(value));
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Changes the text only if it differs, so that a screen reader is not told the same again.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function button(label, action, properties = {}) {
  return h("button", { type: "button", ...properties, on: { click: action } }, label);
}

export function badge(text, kind) {
  return h("span", { class: `badge ${kind}` }, text);
}

// A bar from 0 to 100. role: "progressbar" for work, "meter" for a fill level.
export function bar(label, role = "progressbar") {
  const fill = h("span", { class: "fill" });
  const element = h("span", { class: "bar", role, "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  element.set = (percent) => {
    const shown = Math.max(0, Math.min(100, percent));
    element.setAttribute("aria-valuenow", String(Math.round(shown)));
    element.classList.toggle("high", role === "meter" && shown >= 90);
    fill.style.width = `${shown}%`;
  };
  element.set(0);
  return element;
}

// A table that becomes a list of cards on a narrow screen. The roles stay, whatever the style makes of it.
export function table(caption, columns, style = "") {
  const body = h("tbody", { role: "rowgroup" });
  const head = h("tr", { role: "row" }, columns.map((name) =>
    h("th", { role: "columnheader", scope: "col" }, name || h("span", { class: "unseen" }, "Actions"))));
  const whole = h("table", { role: "table", class: style }, h("caption", { class: "unseen" }, caption),
    h("thead", { role: "rowgroup" }, head), body);
  return { whole, body, row: (...cells) => row(columns, cells) };
}

function row(columns, cells) {
  return h("tr", { role: "row" }, cells.map((cell, index) =>
    h("td", { role: "cell", "data-label": columns[index], class: columns[index] ? "" : "actions" }, cell)));
}

// Returns a function that shows a row for each item. The row of an item that has not changed stays as it is, so that a
// click or the focus is never lost to a refresh.
export function keyedRows(body, key, make) {
  let known = new Map();
  return (items) => {
    const next = new Map();
    for (const item of items) {
      const text = JSON.stringify(item);
      const old = known.get(key(item));
      next.set(key(item), old?.text === text ? old : { text, element: changed(old?.element, make(item)) });
    }
    for (const [id, { element }] of known) if (!next.has(id)) element.remove();
    [...next.values()].forEach(({ element }, index) => {
      if (body.children[index] !== element) body.insertBefore(element, body.children[index] ?? null);
    });
    known = next;
  };
}

function changed(old, element) {
  const focused = old?.contains(document.activeElement);
  old?.replaceWith(element);
  if (focused) element.querySelector("button")?.focus();
  return element;
}

// A list of names and values; values that are not known are left out.
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return h("dl", { class: "facts" }, known.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

export function field(label, input, hint) {
  const id = `field-${label.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  input.id = id;
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { class: "field" }, h("label", { for: id }, label), input,
    hint ? h("p", { class: "hint", id: `${id}-hint` }, hint) : null);
}

// Asks before something that cannot be undone. Resolves to whether the user agreed.
export function confirmed(question, agree) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "question" });
    const close = (value) => { dialog.returnValue = value; dialog.close(); };
    dialog.append(h("h2", { id: "question" }, question), h("div", { class: "buttons" },
      button("Back", () => close("no"), { autofocus: true }), button(agree, () => close("yes"), { class: "danger" })));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Says something to a screen reader, without moving the focus.
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

// A place for the outcome of an action or a failed request.
export function notice() {
  const element = h("p", { class: "notice", role: "status" });
  element.show = (text, kind = "") => {
    element.className = text ? `notice ${kind}` : "notice";
    setText(element, text);
  };
  return element;
}
