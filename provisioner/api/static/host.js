// The view of the host: readiness, warnings, certificates and sources.

import { ApiError } from "./api.js";
import { badge, facts, h, notice, table } from "./dom.js";
import { duration, moment, sentence } from "./format.js";
import { refreshing } from "./session.js";

export function hostView(session, signal) {
  const said = notice();
  const health = h("div");
  const certificates = h("div");
  const sources = h("div");

  async function load() {
    try {
      const [about, ready, listed] = await Promise.all([
        session.api.get("/health", { signal }), readiness(session, signal), session.api.get("sources", { signal })]);
      health.replaceChildren(...healthPart(about, ready));
      sources.replaceChildren(...sourcesPart(listed.sources));
    } catch (error) {
      if (error instanceof ApiError) said.show(sentence(error.message), "bad");
      return;
    }
    certificates.replaceChildren(...certificatesPart(session, await expiries(session, signal)));
  }

  refreshing(session, signal, 15, [], load);
  return [h("h1", {}, "Host"), said, health, certificates, sources];
}

async function readiness(session, signal) {
  try {
    return await session.api.get("/readyz", { signal });
  } catch (error) {
    if (error instanceof ApiError && error.status === 503) return { status: "not ready", ...error.body };
    throw error;
  }
}

// The metrics have the times at which certificates expire.
async function expiries(session, signal) {
  try {
    const text = await (await session.api.open("GET", "/metrics", { signal })).text();
    const found = text.matchAll(/^libvirt_volume_provisioner_certificate_expiry_timestamp_seconds\{certificate="([^"]+)"\} (\S+)$/gm);
    return [...found].map(([, name, seconds]) => [name, Number(seconds)]).filter(([, seconds]) => Number.isFinite(seconds));
  } catch {
    return [];
  }
}

function healthPart(about, ready) {
  const warnings = [...new Set([...(about.warnings ?? []), ...(ready.warnings ?? [])])];
  return [
    h("p", {}, ready.status === "ready" ? badge("ready", "completed") : badge("not ready", "failed"), " ",
      badge(about.status, about.status === "healthy" ? "completed" : "pending")),
    list("Not ready because", ready.reasons ?? []), list("Warnings", warnings),
    facts([["Version", about.version], ["Uptime", about.uptime], ["Time on the host", moment(about.timestamp)]]),
  ].filter(Boolean);
}

function list(title, texts) {
  if (!texts.length) return null;
  return h("section", { class: "notice warn" }, h("h2", {}, title), h("ul", {}, texts.map((text) => h("li", {}, sentence(text)))));
}

function certificatesPart(session, known) {
  const own = session.me.expires_at ? [[`Your ${session.me.via}`, Date.parse(session.me.expires_at) / 1000]] : [];
  const rows = [...known.map(([name, at]) => [sentence(name), at]), ...own];
  if (!rows.length) return [];
  const shown = table("When certificates expire", ["Certificate", "Expires", "Left"]);
  for (const [name, at] of rows) {
    const left = at - Date.now() / 1000;
    shown.body.append(shown.row(name, moment(at * 1000),
      left < 0 ? badge("expired", "failed") : left < 14 * 86400 ? badge(duration(left), "pending") : duration(left)));
  }
  return [h("h2", {}, "Certificates"), shown.whole];
}

function sourcesPart(sources) {
  if (!sources.length) return [];
  const shown = table("Image sources", ["Source", "Addresses", "Health"]);
  for (const source of sources) {
    shown.body.append(shown.row([h("span", { class: "name" }, source.name), h("span", { class: "sub" }, source.plugin)],
      source.urls.map((url) => h("div", {}, url)), source.healthy ? badge("healthy", "completed")
        : [badge("failing", "failed"), h("span", { class: "sub" }, sentence(source.reason))]));
  }
  return [h("h2", {}, "Sources"), shown.whole];
}
