// Follows the server's events. Uses fetch, because EventSource cannot send the token's header.

import { ApiError } from "./api.js";

const SHORTEST_WAIT = 500;
const LONGEST_WAIT = 5000;
// The server sends something at least every 15 seconds.
const SILENCE = 40_000;

// Yields {id, kind, data} from the lines of a stream. Calls `alive` for each piece that arrives.
async function* parse(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    alive();
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = { id: null, kind: null, data: "" };
      for (const line of block.split("\n")) {
        if (line.startsWith("id: ")) event.id = line.slice(4);
        else if (line.startsWith("event: ")) event.kind = line.slice(7);
        else if (line.startsWith("data: ")) event.data += line.slice(6);
      }
      if (event.kind !== null) yield { ...event, data: JSON.parse(event.data || "{}") };
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

// Calls on.event for each event until the signal aborts, and connects again whenever the stream ends.
// on.state gets "live", "polling" (no stream is free) or "retrying"; on.refused gets the error that ends it.
export async function follow(api, on, signal) {
  let last = null;
  let wait = SHORTEST_WAIT;
  while (!signal.aborted) {
    try {
      for await (const event of connection(api, last, signal, () => on.state("live"))) {
        wait = SHORTEST_WAIT;
        last = event.id ?? last;
        if (event.kind === "end" && event.data.reason === "access lost") throw new ApiError(401, event.data.message);
        on.event(event);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && [401, 403].includes(error.status)) {
        on.refused(error);
        return;
      }
      if (error instanceof ApiError && error.status === 429 && (await polled(api, on, signal))) {
        await pause(LONGEST_WAIT, signal);
        continue;
      }
    }
    if (signal.aborted) return;
    on.state("retrying");
    await pause(wait, signal);
    wait = Math.min(LONGEST_WAIT, wait * 2);
  }
}

async function* connection(api, last, signal, opened) {
  const silent = new AbortController();
  let timer = setTimeout(() => silent.abort(), SILENCE);
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silent.abort(), SILENCE);
  };
  const stop = () => silent.abort();
  signal.addEventListener("abort", stop);
  try {
    const headers = last === null ? {} : { "Last-Event-ID": last };
    const response = await api.open("GET", "events", { headers, signal: silent.signal });
    opened();
    yield* parse(response.body, alive);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    silent.abort();
  }
}

// Returns whether the jobs could be asked for instead.
async function polled(api, on, signal) {
  try {
    const data = await api.get("jobs?limit=100", { signal });
    on.state("polling");
    on.event({ id: null, kind: "snapshot", data });
    return true;
  } catch {
    return false;
  }
}
