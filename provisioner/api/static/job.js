// The view of one job: progress, facts and how long each stage took.

import { ApiError } from "./api.js";
import { badge, bar, facts, h, notice, setText, table } from "./dom.js";
import { bytes, duration, moment, sentence } from "./format.js";
import { actionsPart, jobName, progressPart } from "./jobs.js";
import { ENDED, refreshing } from "./session.js";

export function jobView(session, signal, id) {
  const said = notice();
  const heading = h("h1", {}, "Job");
  const status = h("span");
  const progress = progressPart(session);
  const actions = actionsPart(session, said.show);
  const details = h("div");
  let drawn = null;

  function show(job) {
    setText(heading, jobName(job));
    if (status.textContent !== job.status) status.replaceChildren(badge(job.status, job.status));
    progress.update(job);
    progress.hidden = ENDED.has(job.status);
    actions.update(job);
    const state = [job.status, job.attempts, job.waiting_for].join();
    if (state !== drawn) {
      drawn = state;
      details.replaceChildren(...[outcome(job), about(job), stages(job)].flat().filter(Boolean));
    }
  }

  async function load() {
    try {
      show(await session.api.get(`jobs/${encodeURIComponent(id)}`, { signal }));
    } catch (error) {
      if (error instanceof ApiError) said.show(sentence(error.message), "bad");
    }
  }

  refreshing(session, signal, 60, ["snapshot"], load);
  session.on("job", ({ job }) => { if (job.job_id === id) show(job); }, signal);
  return [
    h("p", { class: "back" }, h("a", { href: "#jobs" }, "All jobs")),
    h("div", { class: "heading" }, h("div", { class: "inline" }, heading, status), actions),
    said, progress, details,
  ];
}

function about(job) {
  const { request } = job;
  return [h("h2", {}, "Request"), facts([
    ["Image", job.image_url],
    ["Image type", request.image_type],
    ["Checksum", request.checksum],
    ["Size", request.volume_size_gb ? `${request.volume_size_gb} GiB` : job.volume_name ? "The smallest that fits" : null],
    ["Target", request.target],
    ["Priority", request.priority || null],
    ["Submitted", moment(job.created_at)],
    ["By", job.submitted_by],
    ["Correlation id", job.correlation_id],
    ["Job id", job.job_id],
  ])];
}

function outcome(job) {
  if (!ENDED.has(job.status) && !job.waiting_for) return [];
  const { volume, replaced } = job;
  return [h("h2", {}, "Result"), facts([
    ["Error", job.error && h("span", { class: "failure" }, sentence(job.error))],
    ["Volume", volume && `${volume.path}, ${bytes(volume.size_bytes)}`],
    ["Target", volume?.target],
    ["Provisioned by", volume?.provisioned_by],
    ["Image", job.cache_hit === undefined ? null : job.cache_hit ? "From the cache" : "Downloaded"],
    ["Signed by", job.signed_by && `${job.signed_by.name ?? ""} ${job.signed_by.kind} ${job.signed_by.key}`.trim()],
    ["Replaced", replaced && (replaced.kept_as
      ? `${replaced.name}, kept as ${replaced.kept_as} until ${moment(replaced.kept_until)}` : replaced.name)],
    ["Waiting for", job.waiting_for],
    ["Warnings", job.warnings?.join("; ")],
    ["Attempts", job.attempts > 1 ? job.attempts : null],
    ["Ended", ENDED.has(job.status) ? moment(job.updated_at) : null],
  ])];
}

function stages(job) {
  const timings = Object.entries(job.timings ?? {});
  if (!timings.length) return [];
  const total = timings.reduce((sum, [, seconds]) => sum + seconds, 0);
  const list = table("Seconds spent in each stage", ["Stage", "Time", "Share"], "stages");
  for (const [stage, seconds] of timings) {
    const share = bar(`Share of ${stage}`, "meter");
    share.set(total ? (seconds / total) * 100 : 0);
    share.classList.remove("high");
    list.body.append(list.row(sentence(stage), h("span", { class: "number" }, duration(seconds)), share));
  }
  list.body.append(list.row("Total", h("span", { class: "number" }, duration(total)), ""));
  return [h("h2", {}, "Stages"), list.whole];
}
