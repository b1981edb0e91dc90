// Reads the part of YAML that api.yaml is written in: block and flow collections, plain, quoted and block scalars, comments.
// No anchors, tags or several documents. A test compares the result with another reader's.

export function parse(text) {
  const reader = new Reader(text.split("\n"));
  const value = reader.block(-1);
  reader.skip();
  if (reader.line !== undefined) throw new Error(`line ${reader.at + 1} of the document cannot be read`);
  return value;
}

const KEY = /^("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s#'"{[|>&*!%@`-][^#]*?|-[^\s][^#]*?)\s*:(?=\s|$)/;

class Reader {
  constructor(lines) {
    this.lines = lines;
    this.at = 0;
  }

  get line() { return this.lines[this.at]; }
  get indent() { return this.line.search(/\S/); }

  skip() {
    while (this.line !== undefined && /^\s*(#|$)/.test(this.line)) this.at += 1;
  }

  // The value that begins on this line and is indented more than its parent; a list may stand at its key's own indent.
  block(parent, list = false) {
    this.skip();
    if (this.line === undefined) return null;
    const { indent } = this;
    const text = this.line.slice(indent);
    if (/^- |^-$/.test(text) && (indent > parent || (list && indent === parent))) return this.sequence(indent);
    if (indent <= parent) return null;
    return KEY.test(text) ? this.mapping(indent) : this.value(text, parent);
  }

  sequence(indent) {
    const items = [];
    for (this.skip(); this.line !== undefined && this.indent === indent && /^- |^-$/.test(this.line.slice(indent)); this.skip()) {
      // What follows the dash is a block of its own, as if the dash were a space.
      this.lines[this.at] = `${" ".repeat(indent)} ${this.line.slice(indent + 1)}`;
      items.push(this.block(indent));
    }
    return items;
  }

  mapping(indent) {
    const found = {};
    for (this.skip(); this.line !== undefined && this.indent === indent; this.skip()) {
      const match = KEY.exec(this.line.slice(indent));
      if (!match) break;
      found[scalar(match[1])] = this.value(this.line.slice(indent + match[0].length).trimStart(), indent, true);
    }
    return found;
  }

  // What `text`, the rest of this line, begins.
  value(text, parent, list = false) {
    if (/^(#|$)/.test(text)) {
      this.at += 1;
      return this.block(parent, list);
    }
    if (/^[|>]/.test(text)) return this.literal(text, parent);
    if (/^["'{[]/.test(text)) return this.flow(text);
    return this.plain(text, parent);
  }

  plain(text, parent) {
    const parts = [uncommented(text)];
    for (this.at += 1; this.line?.trim() && this.indent > parent && !/^\s*#/.test(this.line); this.at += 1) {
      parts.push(uncommented(this.line.trim()));
    }
    return scalar(parts.join(" "));
  }

  literal(header, parent) {
    this.at += 1;
    const lines = [];
    while (this.line !== undefined && (!this.line.trim() || this.indent > parent)) {
      lines.push(this.line);
      this.at += 1;
    }
    const indent = lines.find((line) => line.trim())?.search(/\S/) ?? 0;
    const text = lines.map((line) => line.slice(indent)).join("\n");
    const body = text.replace(/\n+$/, "");
    const whole = header[0] === ">" ? folded(body) : body;
    if (header[1] === "-") return whole;
    return header[1] === "+" ? `${whole}${text.slice(body.length)}\n` : `${whole}\n`;
  }

  // A quoted text or a flow collection, which may go on over further lines.
  flow(text) {
    const flow = new Flow(text, () => {
      this.at += 1;
      return this.line?.trim();
    });
    const value = flow.value();
    this.at += 1;
    return value;
  }
}

class Flow {
  constructor(text, more) {
    this.text = text;
    this.more = more;
    this.at = 0;
  }

  peek() {
    for (;;) {
      while (this.text[this.at] === " ") this.at += 1;
      if (this.at < this.text.length) return this.text[this.at];
      const next = this.more();
      if (next === undefined) throw new Error("the document ends inside a collection");
      this.text = next;
      this.at = 0;
    }
  }

  value() {
    const first = this.peek();
    if (first === "{" || first === "[") return this.collection(first);
    if (first === '"' || first === "'") return this.quoted(first);
    const [word] = /^(?:[^,:{}[\]]|:(?!\s|$))*/.exec(this.text.slice(this.at));
    this.at += word.length;
    return scalar(word.trim());
  }

  collection(open) {
    const [found, close] = open === "{" ? [{}, "}"] : [[], "]"];
    this.at += 1;
    while (this.peek() !== close) {
      const item = this.value();
      if (open === "[") {
        found.push(item);
      } else {
        this.peek();
        this.at += 1; // the colon
        found[item] = this.value();
      }
      if (this.peek() === ",") this.at += 1;
    }
    this.at += 1;
    return found;
  }

  quoted(mark) {
    let text = "";
    for (this.at += 1; ; this.at += 1) {
      if (this.at >= this.text.length) {
        this.text = this.more();
        this.at = 0;
        text = `${text.trimEnd()} `;
      }
      const here = this.text[this.at];
      if (here === mark && mark === "'" && this.text[this.at + 1] === "'") this.at += 1;
      else if (here === mark) break;
      else if (here === "\\" && mark === '"') {
        this.at += 1;
        text += ESCAPES[this.text[this.at]] ?? this.text[this.at];
        continue;
      }
      text += this.text[this.at];
    }
    this.at += 1;
    return text;
  }
}

const ESCAPES = { n: "\n", t: "\t", r: "\r" };
const WORDS = { true: true, false: false, null: null, "~": null, "": null };

function scalar(text) {
  if (/^["']/.test(text)) return new Flow(text).value();
  if (Object.hasOwn(WORDS, text)) return WORDS[text];
  return /^[-+]?(\d+|\d+\.\d*)$/.test(text) ? Number(text) : text;
}

function uncommented(text) {
  return text.replace(/(^|\s)#.*$/, "").trim();
}

// Single line breaks become spaces, empty lines remain.
function folded(text) {
  return text.replace(/\n+/g, (breaks) => (breaks.length === 1 ? " " : breaks.slice(1)));
}
