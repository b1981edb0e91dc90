// The view of all jobs: a filter by status, and a row for each job that follows its progress.

import { ApiError } from "./api.js";
import { badge, button, confirmed, h, notice, bar, setText, table } from "./dom.js";
import { bytes, duration, fileName, moment, percent, sentence } from "./format.js";
import { ENDED, refreshing } from "./session.js";

const STATUSES = ["pending", "running", "completed", "failed", "cancelled"];
const PAGE = 25;

export function jobName(job) {
  return job.volume_name ?? `download of ${fileName(job.image_url)}`;
}

// What a running job does, in words: "Downloading 42 %, 252 of 600 MiB, 118 MiB/s, 3 s left".
export function progressText(job, rate) {
  const { progress } = job;
  if (job.status === "pending") return "Waiting for a worker";
  if (!progress) return "";
  const parts = [`${sentence(progress.stage)} ${percent(progress.percent)}`];
  if (progress.bytes_total) parts.push(`${bytes(progress.bytes_processed)} of ${bytes(progress.bytes_total)}`);
  if (rate) parts.push(`${bytes(rate)}/s`);
  if (progress.eta_sec !== undefined) parts.push(`${duration(progress.eta_sec)} left`);
  return parts.join(", ");
}

function outcomeText({ status, error, volume }) {
  if (status !== "completed") return error ? sentence(error) : "";
  return volume ? `${bytes(volume.size_bytes)} on ${volume.target}` : "In the cache";
}

// The bar and the words of a job's progress. The parts stay, so that only what changed is drawn and read out.
export function progressPart(session) {
  const progress = bar("Progress");
  const words = h("span", { class: "words" });
  const element = h("div", { class: "progress" }, progress, words);
  element.update = (job) => {
    progress.hidden = job.status !== "running";
    progress.set(job.progress?.percent ?? 0);
    setText(words, ENDED.has(job.status) ? outcomeText(job) : progressText(job, session.rates.get(job.job_id)?.rate));
    words.classList.toggle("failure", job.status === "failed");
  };
  return element;
}

// The buttons for what the role may do with the job; `say` shows how it went.
export function actionsPart(session, say) {
  const element = h("div", { class: "buttons" });
  let shown = null;
  element.update = (job) => {
    if (shown === job.status) return;
    shown = job.status;
    element.replaceChildren();
    if (session.mayCancel(job)) element.append(action("Cancel", job, () => cancel(session, job, say)));
    if (session.mayRetry(job)) element.append(action("Retry", job, () => retry(session, job, say)));
  };
  return element;
}

function action(label, job, run) {
  return button(label, run, { "aria-label": `${label} the job for ${jobName(job)}` });
}

async function cancel(session, job, say) {
  if (!(await confirmed(`Cancel the job for ${jobName(job)}? What it has made is removed.`, "Cancel the job"))) return;
  await attempt(say, () => session.api.post(`jobs/${job.job_id}/cancel`), () => `Cancelling the job for ${jobName(job)}.`);
}

async function retry(session, job, say) {
  await attempt(say, () => session.api.post(`jobs/${job.job_id}/retry`), (answer) => {
    location.hash = `#jobs/${answer.job_id}`;
    return `Submitted the job for ${jobName(job)} again.`;
  });
}

// Runs an action and shows its outcome.
export async function attempt(say, run, message) {
  try {
    say(message(await run()), "good");
  } catch (error) {
    say(error instanceof ApiError ? sentence(error.message) : "The service does not answer. Try again.", "bad");
  }
}

export function jobsView(session, signal) {
  let status = "";
  let most = PAGE;
  const rows = new Map();
  const said = notice();
  const count = h("p", { class: "hint" });
  const jobs = table("Jobs, the newest first", ["Volume", "Status", "Progress", "Submitted", ""], "jobs");
  const more = button("Show more", () => { most += PAGE; load(); }, { hidden: true });

  const filter = h("select", { id: "status", on: { change: () => { status = filter.value; most = PAGE; load(); } } },
    h("option", { value: "" }, "All"), STATUSES.map((name) => h("option", { value: name }, sentence(name))));

  async function load() {
    const query = new URLSearchParams({ limit: most, ...(status && { status }) });
    try {
      const page = await session.api.get(`jobs?${query}`, { signal });
      show(page.jobs);
      setText(count, page.count ? `${page.jobs.length} of ${page.count}` : "There are no jobs here.");
      more.hidden = page.jobs.length >= page.count;
    } catch (error) {
      if (error instanceof ApiError) said.show(sentence(error.message), "bad");
    }
  }

  // Keeps the rows that stay in place, so that the focus stays too.
  function show(wanted) {
    const ids = new Set(wanted.map((job) => job.job_id));
    for (const [id, row] of rows) {
      if (!ids.has(id)) { row.element.remove(); rows.delete(id); }
    }
    let next = jobs.body.firstChild;
    for (const job of wanted) {
      if (!rows.has(job.job_id)) rows.set(job.job_id, jobRow(session, jobs, said.show));
      const row = rows.get(job.job_id);
      row.update(job);
      if (row.element === next) next = next.nextSibling;
      else jobs.body.insertBefore(row.element, next);
    }
  }

  const soon = refreshing(session, signal, 60, ["snapshot"], load);
  session.on("job", ({ job, kind }) => {
    const row = rows.get(job.job_id);
    if (row) row.update(job);
    if (kind !== "job.progress" && (!row || status)) soon();
  }, signal);

  return [
    h("div", { class: "heading" }, h("h1", {}, "Jobs"),
      h("div", { class: "inline" }, h("label", { for: "status" }, "Status"), filter)),
    said, jobs.whole, h("div", { class: "below" }, count, more),
  ];
}

function jobRow(session, jobs, say) {
  const name = h("a", { class: "name" });
  const image = h("span", { class: "sub" });
  const status = h("span");
  const progress = progressPart(session);
  const time = h("time");
  const by = h("span", { class: "sub" });
  const actions = actionsPart(session, say);
  const element = jobs.row([name, image], status, progress, [time, by], actions);
  return {
    element,
    update(job) {
      name.href = `#jobs/${job.job_id}`;
      setText(name, jobName(job));
      setText(image, fileName(job.image_url));
      image.title = job.image_url;
      if (status.textContent !== job.status) status.replaceChildren(badge(job.status, job.status));
      progress.update(job);
      time.dateTime = job.created_at;
      setText(time, moment(job.created_at));
      setText(by, job.submitted_by ?? "");
      actions.update(job);
    },
  };
}
