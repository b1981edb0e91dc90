// The view of targets, with their free space, and of the volumes on them.

import { ApiError } from "./api.js";
import { badge, bar, button, confirmed, facts, h, keyedRows, notice, table } from "./dom.js";
import { bytes, fileName, moment, percent, sentence } from "./format.js";
import { attempt } from "./jobs.js";
import { refreshing } from "./session.js";
import { sparkline } from "./sparkline.js";

const MOST = 1000;

export function volumesView(session, signal) {
  const said = notice();
  const targets = h("div", { class: "cards" });
  const [volumes, showVolumes] = volumesPart(session, (volume) => remove(session, volume, said.show, load));
  const kept = h("div");

  async function load() {
    try {
      const [listed, made, replaced] = await Promise.all(
        ["targets", `volumes?limit=${MOST}`, `volumes/replaced?limit=${MOST}`].map((path) => session.api.get(path, { signal })));
      note(session, listed.targets);
      targets.replaceChildren(...listed.targets.map((target) => targetCard(session, target)));
      showVolumes(made);
      kept.replaceChildren(...keptTable(replaced));
    } catch (error) {
      if (error instanceof ApiError) said.show(sentence(error.message), "bad");
    }
  }

  refreshing(session, signal, 15, ["volume"], load);
  session.on("job", ({ kind }) => { if (kind === "job.completed") load(); }, signal);
  return [h("h1", {}, "Targets and volumes"), said, targets, volumes, kept];
}

// Remembers fill levels while the page is open, whichever view is shown.
export function watchTargets(session) {
  refreshing(session, session.signal, 60, [], async () => {
    try {
      note(session, (await session.api.get("targets", { signal: session.signal })).targets);
    } catch {
      // the next time, perhaps
    }
  });
}

function note(session, targets) {
  session.fills ??= new Map();
  for (const target of targets) {
    if (!target.size_bytes) continue;
    const past = session.fills.get(target.name) ?? [];
    past.push(target.thin_pool?.data_percent ?? usedPercent(target));
    session.fills.set(target.name, past.slice(-240));
  }
}

function usedPercent(target) {
  return (1 - target.free_bytes / target.size_bytes) * 100;
}

function targetCard(session, target) {
  const pool = target.thin_pool ?? {};
  const past = session.fills.get(target.name) ?? [];
  return h("section", { class: "card" },
    h("div", { class: "heading" }, h("h2", {}, target.name),
      h("div", { class: "inline" }, target.default ? badge("default", "plain") : null,
        target.healthy ? badge("healthy", "completed") : badge("not healthy", "failed"))),
    target.reason ? h("p", { class: "failure" }, sentence(target.reason)) : null,
    target.size_bytes ? level(`Used on ${target.name}`, usedPercent(target),
      `${bytes(target.free_bytes)} free of ${bytes(target.size_bytes)}`) : null,
    pool.data_percent === undefined ? null
      : level(`Thin pool data of ${target.name}`, pool.data_percent, `Thin pool data ${percent(pool.data_percent)}`),
    pool.metadata_percent === undefined ? null
      : level(`Thin pool metadata of ${target.name}`, pool.metadata_percent, `Thin pool metadata ${percent(pool.metadata_percent)}`),
    past.length > 2 ? sparkline(`Fill of ${target.name} since this page was opened`, past) : null,
    facts([["Plugin", target.plugin], ["Freeable", bytes(target.freeable_bytes)]]));
}

function level(label, value, text) {
  const meter = bar(label, "meter");
  meter.set(value);
  return h("div", { class: "progress" }, meter, h("span", { class: "words" }, text));
}

// Returns the part and a function that shows the volumes in it.
function volumesPart(session, remove) {
  const list = table("Volumes that this service made", ["Volume", "Target", "Size", "Image", "Created", ""]);
  const missing = h("div");
  const none = h("p", { class: "hint" }, "There are no volumes yet.");
  const showRows = keyedRows(list.body, ({ target, name }) => `${target}/${name}`, (volume) => list.row(
    [h("a", { class: "name", href: `#jobs/${volume.job_id}`, title: "The job that made it" }, volume.name),
      h("span", { class: "sub" }, volume.path)],
    volume.target, h("span", { class: "number" }, bytes(volume.size_bytes)),
    h("span", { title: volume.image_url }, fileName(volume.image_url)), moment(volume.created_at),
    session.may("admin") ? h("div", { class: "buttons" }, button("Remove", () => remove(volume),
      { "aria-label": `Remove ${volume.name} on ${volume.target}` })) : ""));
  list.whole.hidden = true;
  none.hidden = true;
  const show = ({ volumes, count, unavailable }) => {
    missing.replaceChildren(...Object.entries(unavailable ?? {}).map(([name, reason]) =>
      h("p", { class: "failure" }, `${name}: ${reason}`)));
    list.whole.hidden = count === 0;
    none.hidden = count > 0;
    showRows(volumes);
  };
  return [h("div", {}, h("h2", {}, "Volumes"), missing, list.whole, none), show];
}

async function remove(session, { target, name }, say, load) {
  if (!(await confirmed(`Remove the volume ${name} on ${target}? Its content is lost.`, "Remove the volume"))) return;
  const path = `volumes/${encodeURIComponent(target)}/${encodeURIComponent(name)}`;
  await attempt(say, () => session.api.remove(path), () => `Removed ${name}.`);
  load();
}

function keptTable({ replaced, count }) {
  if (!count) return [];
  const list = table("Volumes that were replaced and are kept for a while", ["Volume", "Target", "Size", "Kept as", "Kept until"]);
  for (const one of replaced) {
    list.body.append(list.row(h("span", { class: "name" }, one.name), one.target,
      h("span", { class: "number" }, bytes(one.size_bytes)), one.kept_as, moment(one.kept_until)));
  }
  return [h("h2", {}, "Replaced volumes"), list.whole];
}
