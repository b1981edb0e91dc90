// What the signed-in user may do, and the jobs as the event stream tells them.

import { follow } from "./events.js";

const RANK = { viewer: 0, operator: 1, admin: 2 };
export const ENDED = new Set(["completed", "failed", "cancelled"]);
// Ended jobs that are kept in memory.
const MOST = 500;

// Events: "job" (detail: {job, kind}), "snapshot", "volume", "cache", "connection" (detail: state), "refused".
export class Session extends EventTarget {
  #stop = new AbortController();

  constructor(api, me) {
    super();
    this.api = api;
    this.me = me;
    this.jobs = new Map();
    this.rates = new Map();
    this.state = "live";
  }

  get signal() {
    return this.#stop.signal;
  }

  start() {
    follow(this.api, {
      event: (event) => this.#took(event),
      state: (state) => this.#connected(state),
      refused: (error) => this.#tell("refused", error),
    }, this.signal);
  }

  end() {
    this.#stop.abort();
  }

  may(role) {
    return RANK[this.me.role] >= RANK[role];
  }

  // Callers with limits of volumes, targets or sources cancel only their own jobs.
  mayCancel(job) {
    const { volumes, targets, sources } = this.me.limits ?? {};
    const limited = [volumes, targets, sources].some((limit) => limit !== undefined && limit !== null);
    return this.may("operator") && !ENDED.has(job.status) && (!limited || job.submitted_by === this.me.principal);
  }

  mayRetry(job) {
    return this.may("operator") && ["failed", "cancelled"].includes(job.status);
  }

  on(kind, listener, signal) {
    this.addEventListener(kind, (event) => listener(event.detail), { signal });
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  #connected(state) {
    if (this.state === state) return;
    this.state = state;
    this.#tell("connection", state);
  }

  #took({ kind, data }) {
    const subject = kind.split(".")[0];
    if (kind === "snapshot") {
      for (const job of data.jobs) this.#know(job);
      this.#tell("snapshot", data);
    } else if (subject === "job") {
      this.#know(data);
      this.#tell("job", { job: data, kind });
    } else if (kind === "service.stopping") {
      this.#connected("stopping");
    } else if (subject === "volume" || subject === "cache") {
      this.#tell(subject, data);
    }
  }

  #know(job) {
    this.jobs.delete(job.job_id); // to the end: the newest is last
    this.jobs.set(job.job_id, job);
    this.#measure(job);
    if (this.jobs.size > MOST) {
      const oldest = [...this.jobs.values()].find((one) => ENDED.has(one.status));
      if (oldest) this.jobs.delete(oldest.job_id);
    }
  }

  // Keeps the speed of a running job: the mean of the last few seconds, weighted to the newest.
  #measure(job) {
    const { stage, bytes_processed: done } = job.progress ?? {};
    if (ENDED.has(job.status) || done === undefined) {
      this.rates.delete(job.job_id);
      return;
    }
    const now = performance.now() / 1000;
    const before = this.rates.get(job.job_id);
    if (!before || before.stage !== stage || done < before.done) {
      this.rates.set(job.job_id, { stage, done, at: now, rate: null });
    } else if (now - before.at > 0.5) {
      const current = (done - before.done) / (now - before.at);
      const rate = before.rate === null ? current : before.rate * 0.6 + current * 0.4;
      this.rates.set(job.job_id, { stage, done, at: now, rate });
    }
  }
}

// Runs `work` now, every `seconds`, and soon after each of the events, until the signal aborts.
export function refreshing(session, signal, seconds, kinds, work) {
  let timer = null;
  const run = async () => {
    clearTimeout(timer);
    if (!document.hidden && session.state !== "retrying") await work();
    if (!signal.aborted) timer = setTimeout(run, seconds * 1000);
  };
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(run, 250);
  };
  for (const kind of [...kinds, "connection"]) session.on(kind, soon, signal);
  document.addEventListener("visibilitychange", soon, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  run();
  return soon;
}
