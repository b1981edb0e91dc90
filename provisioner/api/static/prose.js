// Shows the little Markdown of api.yaml as elements: paragraphs, lists, `code`, **strong**.

import { h } from "./dom.js";

// Returns the text with its `code` and **strong** parts as elements.
export function words(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).filter(Boolean).map((part) => {
    if (/^`.+`$/s.test(part)) return h("code", {}, part.slice(1, -1));
    if (/^\*\*.+\*\*$/s.test(part)) return h("strong", {}, part.slice(2, -2));
    return part;
  });
}

export function prose(text) {
  return h("div", { class: "prose" }, text.trim().split(/\n{2,}/).map((paragraph) => {
    if (!/^- /.test(paragraph)) return h("p", {}, words(paragraph));
    return h("ul", {}, paragraph.split(/\n(?=- )/).map((item) => h("li", {}, words(item.slice(2)))));
  }));
}
