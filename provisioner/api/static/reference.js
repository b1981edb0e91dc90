// The view of the API's reference: the operations and objects of api.yaml, which this service serves.

import { ApiError } from "./api.js";
import { badge, field, h, notice, setText, table } from "./dom.js";
import { sentence } from "./format.js";
import { prose, words } from "./prose.js";
import { exampleOf, named, nameOf, resolved, typeOf } from "./schema.js";
import { parse } from "./yaml.js";

const METHODS = ["get", "post", "put", "delete"];
let known = null; // the document; it stays the same while the page is open

// anchor: the name of an object or the id of an operation that is shown open.
export function referenceView(session, signal, anchor) {
  const said = notice();
  const content = h("div", { class: "reference" });
  const count = h("p", { class: "hint", role: "status" });
  const search = h("input", { type: "search", autocomplete: "off", spellcheck: "false", on: { input: () => filter() } });

  function filter() {
    const wanted = search.value.trim().toLowerCase().split(/\s+/);
    const entries = [...content.querySelectorAll("details.entry")];
    for (const entry of entries) entry.hidden = !wanted.every((word) => entry.dataset.text.includes(word));
    for (const group of content.querySelectorAll("section")) {
      group.hidden = [...group.querySelectorAll("details.entry")].every(({ hidden }) => hidden);
    }
    const left = entries.filter(({ hidden }) => !hidden).length;
    setText(count, search.value.trim() ? `${left} of ${entries.length} entries` : "");
  }

  async function load() {
    await null; // the view is shown first, even if the document is known already
    try {
      known ??= parse(await (await session.api.open("GET", "/page/api.yaml", { signal })).text());
    } catch (error) {
      if (error.name !== "AbortError") said.show(error instanceof ApiError ? sentence(error.message) : error.message, "bad");
      return;
    }
    content.append(h("details", {}, h("summary", {}, "Conventions"), prose(known.info.description)),
      ...known.tags.map(({ name, description }) => tagPart(name, description)), schemasPart());
    if (anchor) reveal(document.getElementById(`entry-${anchor}`));
  }

  load();
  return [
    h("div", { class: "heading" }, h("h1", {}, "API"),
      h("a", { href: "page/api.yaml", download: true }, "Download as OpenAPI")),
    h("p", { class: "hint" }, "Every request that this service understands. The same rights apply as on this page: ",
      `you are ${session.me.name}, ${session.me.role}.`),
    said, h("form", { class: "form", role: "search", on: { submit: (event) => event.preventDefault() } },
      field("Find", search, "Words of a path, a name or a description"), count), content];
}

function reveal(entry) {
  if (entry === null) return;
  entry.open = true;
  entry.scrollIntoView();
  entry.querySelector("summary").focus();
}

function tagPart(tag, description) {
  const entries = Object.entries(known.paths).flatMap(([path, item]) => METHODS
    .filter((method) => item[method]?.tags.includes(tag))
    .map((method) => operationPart(path, method, item[method], item.parameters ?? [])));
  return h("section", {}, h("h2", {}, sentence(tag)), h("p", { class: "hint" }, words(description)), ...entries);
}

// An entry that opens. Its content is made when it is opened first, so that the view is there at once.
function entry(id, summary, text, content) {
  const element = h("details", { class: "entry", id: `entry-${id}` }, h("summary", {}, summary));
  element.dataset.text = text.toLowerCase();
  element.addEventListener("toggle", () => {
    if (element.open && element.children.length === 1) element.append(...content().filter(Boolean));
  });
  return element;
}

function operationPart(path, method, operation, shared) {
  const title = [badge(method.toUpperCase(), method), " ", h("code", {}, path), " ", h("span", { class: "sub" }, operation.summary)];
  const text = `${method} ${path} ${operation.operationId} ${operation.summary} ${operation.description ?? ""}`;
  return entry(operation.operationId, title, text, () => {
    const parameters = [...shared, ...(operation.parameters ?? [])].map((one) => resolved(known, one));
    return [
      operation.description ? prose(operation.description) : null,
      parameters.length ? parametersPart(parameters) : null,
      ...(operation.requestBody ? bodyPart("Request", operation.requestBody) : []),
      ...responsesPart(operation.responses)];
  });
}

function parametersPart(parameters) {
  const shown = table("Parameters", ["Parameter", "In", "Type", "Meaning"]);
  for (const one of parameters) {
    shown.body.append(shown.row([h("code", {}, one.name), " ", one.required ? badge("required", "idle") : null],
      one.in, typePart(one.schema), h("span", {}, words(one.description ?? ""))));
  }
  return h("div", {}, h("h3", {}, "Parameters"), shown.whole);
}

function bodyPart(title, body) {
  return Object.entries(body.content ?? {}).flatMap(([kind, { schema, examples }]) => [
    h("h3", {}, `${title}, `, h("code", {}, kind)), body.description ? prose(body.description) : null,
    h("p", {}, typePart(schema)), ...examplesPart(examples)]);
}

function responsesPart(responses) {
  const shown = table("Responses", ["Status", "When", "Body"]);
  const examples = [];
  for (const [status, reference] of Object.entries(responses)) {
    const response = resolved(known, reference);
    const [kind, body] = Object.entries(response.content ?? {})[0] ?? [];
    shown.body.append(shown.row(badge(status, status < "300" ? "completed" : "failed"),
      h("span", {}, words(response.description)), body ? typePart(body.schema, kind) : ""));
    if (body?.examples && status < "300") examples.push(...examplesPart(body.examples, `${status}: `));
  }
  return [h("h3", {}, "Responses"), shown.whole, ...examples];
}

function examplesPart(examples = {}, before = "") {
  return Object.entries(examples).map(([name, reference]) => h("details", { class: "example" },
    h("summary", {}, `Example ${before}${named(name)}`),
    h("pre", { tabindex: 0, role: "region", "aria-label": `Example ${named(name)}` }, exampleOf(known, reference))));
}

// The type of a schema; the name of an object leads to it.
function typePart(schema, kind = "application/json") {
  const name = nameOf(schema);
  if (name !== null) return h("a", { href: `#api/${name}` }, name);
  if (schema.items) return h("span", {}, "list of ", typePart(schema.items));
  return h("span", {}, kind === "application/json" ? typeOf(schema) : kind);
}

function schemasPart() {
  const entries = Object.entries(known.components.schemas).map(([name, schema]) =>
    entry(name, [h("code", {}, name)], `${name} ${schema.description ?? ""}`, () => schemaPart(schema)));
  return h("section", {}, h("h2", {}, "Objects"), h("p", { class: "hint" }, "What requests and responses consist of."), ...entries);
}

function schemaPart(schema) {
  const parts = schema.allOf ?? [schema];
  const own = parts.filter(({ properties }) => properties);
  const rows = own.flatMap(({ properties, required = [] }) => Object.entries(properties)
    .map(([name, one]) => [name, one, required.includes(name)]));
  const shown = table("Fields", ["Field", "Type", "Meaning"]);
  for (const [name, one, required] of rows) {
    shown.body.append(shown.row([h("code", {}, name), " ", required ? badge("always", "idle") : null], typePart(one),
      h("span", {}, words(one.description ?? ""))));
  }
  const bases = parts.map(nameOf).filter(Boolean);
  return [
    schema.description ? prose(schema.description) : null,
    bases.length ? h("p", {}, "Everything of ", ...bases.map((name) => h("a", { href: `#api/${name}` }, name)), ", and:") : null,
    rows.length ? shown.whole : h("p", {}, typeOf(schema))];
}
