// The form for a new volume. What the job would do is shown before it is sent.

import { ApiError, newKey } from "./api.js";
import { button, facts, field, h, notice } from "./dom.js";
import { bytes, duration, sentence } from "./format.js";

export function submitView(session, signal) {
  const said = notice();
  const plan = h("section", { class: "plan", "aria-live": "polite" });
  const names = h("datalist", { id: "image-names" });
  const input = {
    image: h("input", { required: true, list: "image-names", maxlength: 4096, autocomplete: "off", spellcheck: "false" }),
    name: h("input", { required: true, maxlength: 255, autocomplete: "off", spellcheck: "false" }),
    size: h("input", { type: "number", min: 1, max: 8589934591, step: 1, inputmode: "numeric" }),
    target: h("select", {}, h("option", { value: "" }, "The default")),
    type: h("input", { maxlength: 64, placeholder: "qcow2", autocomplete: "off", spellcheck: "false" }),
    checksum: h("input", { maxlength: 255, placeholder: "sha256:…", autocomplete: "off", spellcheck: "false" }),
    correlation: h("input", { maxlength: 255, autocomplete: "off", spellcheck: "false" }),
    priority: h("input", { type: "number", min: -1000, max: 1000, step: 1 }),
  };

  function wanted() {
    const image = input.image.value.trim();
    const fields = {
      [image.includes("://") ? "image_url" : "image"]: image,
      volume_name: input.name.value.trim(),
      volume_size_gb: input.size.valueAsNumber,
      target: input.target.value,
      image_type: input.type.value.trim(),
      checksum: input.checksum.value.trim(),
      correlation_id: input.correlation.value.trim(),
      priority: input.priority.valueAsNumber,
    };
    return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== "" && !Number.isNaN(value)));
  }

  async function preview(event) {
    event.preventDefault();
    const body = wanted();
    said.show("");
    plan.replaceChildren(h("p", {}, "Asking what the job would do…"));
    try {
      const answer = await session.api.post("plan", body, { signal });
      const key = newKey(); // the same for each try, so that there is one job
      plan.replaceChildren(...planned(answer, () => send(body, key)));
    } catch (error) {
      plan.replaceChildren();
      fail(error);
    }
  }

  async function send(body, key) {
    try {
      const { job_id: id } = await session.api.post("jobs", body, { headers: { "Idempotency-Key": key }, signal });
      location.hash = `#jobs/${id}`;
    } catch (error) {
      fail(error);
    }
  }

  function fail(error) {
    if (signal.aborted) return;
    said.show(error instanceof ApiError ? sentence(error.message) : "The service does not answer. Try again.", "bad");
  }

  const form = h("form", { class: "form", on: { submit: preview, input: () => plan.replaceChildren() } },
    field("Image", input.image, "A url, or the name of an image"), names,
    field("Volume name", input.name),
    h("div", { class: "pair" },
      field("Size in GiB", input.size, "Empty: the smallest that fits"), field("Target", input.target)),
    h("details", {}, h("summary", {}, "More"), h("div", { class: "pair" },
      field("Image type", input.type), field("Priority", input.priority)),
      field("Checksum", input.checksum, "Empty: as published beside the image"),
      field("Correlation id", input.correlation)),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "main" }, "Preview")));

  suggest(session, signal, names, input.target);
  return [h("h1", {}, "New volume"), form, said, plan];
}

async function suggest(session, signal, names, targets) {
  try {
    const [named, listed] = await Promise.all(["images", "targets"].map((path) => session.api.get(path, { signal })));
    names.append(...named.images.map((image) => h("option", { value: image.name }, image.description ?? "")));
    const allowed = session.me.limits?.targets;
    for (const target of listed.targets) {
      if (allowed && !allowed.includes(target.name)) continue;
      const space = target.free_bytes === undefined ? "" : `, ${bytes(target.free_bytes)} free`;
      targets.append(h("option", { value: target.name }, `${target.name}${space}`));
    }
  } catch {
    // the form works without suggestions
  }
}

function planned(plan, send) {
  const refused = plan.refusals.map((one) => h("li", {}, sentence(one.message)));
  const { replaces } = plan;
  return [
    h("h2", {}, refused.length ? "This would be refused" : "This would happen"),
    refused.length ? h("ul", { class: "refusals" }, refused) : null,
    replaces ? h("p", { class: "notice warn" }, replacement(replaces)) : null,
    facts([
      ["Image", plan.image_url],
      ["Source", plan.source],
      ["Download", plan.download_bytes === 0 ? "Nothing; it is in the cache" : bytes(plan.download_bytes)],
      ["Checksum", plan.checksum],
      ["Checksum from", plan.checksum_from && (plan.checksum_from === "server" ? "The server" : "The request")],
      ["Signed by", plan.signed_by && `${plan.signed_by.name ?? plan.signed_by.key}`],
      ["Volume", plan.volume_name && [plan.volume_name, plan.target && `on ${plan.target}`].filter(Boolean).join(" ")],
      ["Size", bytes(plan.volume_size_bytes) || "As the image needs"],
      ["Provisioned by", plan.provisioned_by],
      ["Space needed", bytes(plan.space_needed_bytes)],
      ["Space free", bytes(plan.space_free_bytes)],
    ]),
    refused.length ? null : h("div", { class: "buttons" }, button("Submit the job", send, { class: "main" })),
  ].filter(Boolean);
}

function replacement({ name, size_bytes: size, ours, keep_seconds: kept }) {
  const whose = ours ? "" : ", which this service did not make,";
  const then = kept === undefined ? "" : kept === 0 ? " Its content would be lost." : ` It would be kept for ${duration(kept)}.`;
  return `The volume ${name}${whose} of ${bytes(size)} would be replaced.${then}`;
}
