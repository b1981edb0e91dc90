// Reads the schemas of the API's document: references, names and types in words.

export function resolved(document, node) {
  let found = node;
  while (found.$ref) {
    found = found.$ref.slice(2).split("/").reduce((part, name) => part[name], document);
  }
  return found;
}

// The name of the object that a schema refers to, or null.
export function nameOf(schema) {
  return schema.$ref?.startsWith("#/components/schemas/") ? schema.$ref.split("/").at(-1) : null;
}

// The type and its limits in words, such as "integer, at least 1".
export function typeOf(schema) {
  const limits = [
    schema.format && !/^(int|double)/.test(schema.format) ? schema.format : null,
    schema.minimum !== undefined ? `at least ${schema.minimum}` : null,
    schema.maximum !== undefined ? `at most ${schema.maximum}` : null,
    schema.minLength > 1 ? `at least ${schema.minLength} characters` : null,
    schema.maxLength !== undefined ? `at most ${schema.maxLength} characters` : null,
    schema.default !== undefined ? `default ${schema.default}` : null,
    schema.enum ? `one of ${schema.enum.join(", ")}` : null,
    schema.oneOf ? `one of ${schema.oneOf.map((one) => nameOf(one) ?? typeOf(one)).join(", ")}` : null,
  ];
  return [schema.type ?? "any", ...limits.filter((limit) => limit !== null)].join(", ");
}

// "jobList" and "JobList" as "job list".
export function named(name) {
  return name.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
}

export function exampleOf(document, reference) {
  const { value } = resolved(document, reference);
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
