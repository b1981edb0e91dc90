// The view of cached images: sizes, pins, and what the role may do with them.

import { ApiError } from "./api.js";
import { badge, button, confirmed, field, h, keyedRows, notice, setText, table } from "./dom.js";
import { bytes, fileName, moment, sentence, shortDigest } from "./format.js";
import { attempt } from "./jobs.js";
import { refreshing } from "./session.js";

const MOST = 1000;

export function cacheView(session, signal) {
  const said = notice();
  const sum = h("p", { class: "hint" });
  const list = table("Cached images", ["Image", "Size", "Disk", "Last used", ""]);
  const showRows = keyedRows(list.body, ({ digest }) => digest, imageRow);

  async function load() {
    try {
      const page = await session.api.get(`cache/images?limit=${MOST}`, { signal });
      const size = page.images.reduce((total, image) => total + image.size, 0);
      setText(sum, page.count ? `${page.count} ${page.count === 1 ? "image" : "images"}, ${bytes(size)}` : "The cache is empty.");
      list.whole.hidden = page.count === 0;
      showRows(page.images);
    } catch (error) {
      if (error instanceof ApiError) said.show(sentence(error.message), "bad");
    }
  }

  function imageRow(image) {
    const name = fileName(image.url ?? "") || shortDigest(image.digest);
    const about = [image.format, image.compression, shortDigest(image.digest)].filter(Boolean).join(", ");
    return list.row(
      [h("span", { class: "name", title: image.url }, name), image.pinned ? badge("pinned", "plain") : null,
        h("span", { class: "sub" }, about)],
      h("span", { class: "number" }, bytes(image.size)), h("span", { class: "number" }, bytes(image.virtual_size)),
      moment(image.last_used_at), h("div", { class: "buttons" }, actions(image, name)));
  }

  function actions(image, name) {
    const path = `cache/images/${encodeURIComponent(image.digest)}`;
    const act = (label, run, message) => button(label, () => done(run, message), { "aria-label": `${label} ${name}` });
    const offered = [];
    if (session.may("operator")) {
      offered.push(image.pinned
        ? act("Unpin", () => session.api.remove(`${path}/pin`), () => `Unpinned ${name}.`)
        : act("Pin", () => session.api.put(`${path}/pin`), () => `Pinned ${name}: it stays in the cache.`));
      offered.push(act("Verify", () => session.api.post(`${path}/verify`), ({ status }) =>
        status === "intact" ? `${name} is intact.` : `${name} was damaged and is removed.`));
    }
    if (session.may("admin")) {
      offered.push(act("Remove", async () => {
        if (!(await confirmed(`Remove ${name} from the cache?`, "Remove the image"))) return null;
        return session.api.remove(path);
      }, (answer) => (answer ? `Removed ${name}.` : "")));
    }
    return offered;
  }

  async function done(run, message) {
    await attempt(said.show, run, message);
    load();
  }

  async function prune() {
    if (!(await confirmed("Remove all images that are not pinned and not in use?", "Prune the cache"))) return;
    await done(() => session.api.post("cache/prune"), ({ removed, freed_bytes: freed }) =>
      `Removed ${removed.length} images, ${bytes(freed)}.`);
  }

  list.whole.hidden = true;
  refreshing(session, signal, 60, ["cache"], load);
  return [
    h("div", { class: "heading" }, h("h1", {}, "Cache"), session.may("admin") ? button("Prune", prune) : null),
    sum, said, list.whole, session.may("operator") ? fetchForm(session, said.show) : null,
  ].filter(Boolean);
}

// Downloads an image before a job needs it.
function fetchForm(session, say) {
  const image = h("input", { required: true, maxlength: 4096, autocomplete: "off", spellcheck: "false" });
  const type = h("input", { maxlength: 64, placeholder: "qcow2", autocomplete: "off", spellcheck: "false" });
  const send = async (event) => {
    event.preventDefault();
    const value = image.value.trim();
    const body = { [value.includes("://") ? "image_url" : "image"]: value, ...(type.value.trim() && { image_type: type.value.trim() }) };
    await attempt(say, () => session.api.post("cache/fetch", body), ({ job_id: id }) => {
      location.hash = `#jobs/${id}`;
      return "";
    });
  };
  return h("form", { class: "form", on: { submit: send } }, h("h2", {}, "Download an image into the cache"),
    h("div", { class: "pair" }, field("Image", image, "A url, or the name of an image"), field("Image type", type)),
    h("div", { class: "buttons" }, h("button", { type: "submit" }, "Download")));
}
