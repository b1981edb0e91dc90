// Uses the types that openapi-typescript makes, with openapi-fetch: every value that the service answers is checked.
import { deepStrictEqual as same, ok } from "node:assert";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import createClient from "openapi-fetch";
import { Agent, fetch, Request, type RequestInfo } from "undici";

import type { components, paths } from "./api.js";

type Job = components["schemas"]["Job"];
type JobRequest = components["schemas"]["JobRequest"];
type JobStatus = components["schemas"]["JobStatus"];

const SIZE_GB = 3;
const SIZE = SIZE_GB * 2 ** 30;
const ENDED: JobStatus[] = ["completed", "failed", "cancelled"];

function setting(name: string): string {
  const found = process.env[name];
  if (found === undefined) throw new Error(`${name} is not set`);
  return found;
}

/** Make a client with a token, or else with a certificate. */
function connect() {
  const token = process.env["LVP_TOKEN"];
  const ca = readFileSync(setting("LVP_CA"));
  const pair = token
    ? {}
    : { cert: readFileSync(setting("LVP_CERTIFICATE")), key: readFileSync(setting("LVP_KEY")) };
  const dispatcher = new Agent({ connect: { ca, ...pair } });
  return createClient<paths>({
    baseUrl: setting("LVP_URL"),
    headers: token ? { "X-API-Token": token } : {},
    // Node's own fetch has no setting for certificates.
    Request: Request as unknown as typeof globalThis.Request,
    fetch: ((request: RequestInfo) => fetch(request, { dispatcher })) as unknown as typeof globalThis.fetch,
  });
}

const api = connect();

/** Return the body of a success response. */
function answered<T>(result: { data?: T; error?: unknown }): T {
  if (result.data === undefined) throw new Error(JSON.stringify(result.error));
  return result.data;
}

async function wait(job_id: string, wanted: JobStatus[]): Promise<Job> {
  for (let round = 0; round < 6000; round++) {
    const job = answered(await api.GET("/api/v1/jobs/{job_id}", { params: { path: { job_id } } }));
    if (wanted.includes(job.status)) return job;
    await sleep(10);
  }
  throw new Error(`job ${job_id} did not get to ${wanted}`);
}

async function submit(body: JobRequest): Promise<string> {
  return answered(await api.POST("/api/v1/jobs", { body })).job_id;
}

/** Submit a job for a volume of 3 GiB, and find it in every list. */
async function provision(volume: string): Promise<string> {
  const checksum = setting("LVP_CHECKSUM");
  const body: JobRequest = { volume_name: volume, image_url: setting("LVP_IMAGE_URL"), volume_size_gb: SIZE_GB };
  const plan = answered(await api.POST("/api/v1/plan", { body }));
  same([plan.volume_size_bytes, plan.refusals], [SIZE, []]);

  const job = await wait(await submit(body), ENDED);
  same([job.status, job.volume?.size_bytes, job.volume?.provisioned_by], ["completed", SIZE, "copy"]);
  same([job.progress?.bytes_total, job.progress?.bytes_processed, job.progress?.percent], [SIZE, SIZE, 100]);
  same([job.request.volume_size_gb, job.request.image_type, job.request.priority], [SIZE_GB, "qcow2", 0]);
  same([job.submitted_by, job.waiting_for], [setting("LVP_PRINCIPAL"), undefined]);
  ok(Date.parse(job.created_at) <= Date.parse(job.updated_at));

  const query = { status: "completed", volume_name: volume, limit: 5 } as const;
  const page = answered(await api.GET("/api/v1/jobs", { params: { query } }));
  same([page.count, page.offset, page.limit, page.jobs[0]?.job_id], [1, 0, 5, job.job_id]);
  const { volumes } = answered(await api.GET("/api/v1/volumes"));
  const found = volumes.find((one) => one.name === volume);
  same([found?.size_bytes, found?.checksum, found?.job_id], [SIZE, checksum, job.job_id]);
  const prefix = { checksum_prefix: checksum.slice(0, 12) };
  const cache = answered(await api.GET("/api/v1/cache/images", { params: { query: prefix } }));
  const image = cache.images[0];
  same([cache.count, image?.virtual_size, image?.digest], [1, SIZE, `sha256:${checksum}`]);
  return job.job_id;
}

async function cancel(volume: string): Promise<void> {
  const held = { image_url: setting("LVP_HELD_URL"), image_type: "raw", priority: -7 };
  const job_id = await submit({ volume_name: volume, ...held });
  same((await wait(job_id, ["running"])).request.priority, -7);
  const cancelled = await api.POST("/api/v1/jobs/{job_id}/cancel", { params: { path: { job_id } } });
  same([answered(cancelled).status, answered(cancelled).job_id], ["cancelled", job_id]);
  same((await wait(job_id, ENDED)).status, "cancelled");
}

/** Provoke errors that have a type. */
async function fail(ended: string): Promise<void> {
  const unknown = await api.GET("/api/v1/jobs/{job_id}", { params: { path: { job_id: randomUUID() } } });
  const late = await api.POST("/api/v1/jobs/{job_id}/cancel", { params: { path: { job_id: ended } } });
  const body: JobRequest = { volume_name: "x", image_url: "https://elsewhere.example/disk.qcow2" };
  const refused = await api.POST("/api/v1/jobs", { body });
  const expected = [
    [unknown, 404],
    [late, 400],
    [refused, 400],
  ] as const;
  for (const [result, status] of expected) {
    same([result.response.status, result.error?.code], [status, status]);
    ok(result.error?.message);
    ok(result.response.headers.get("X-Request-ID"));
  }
  same(unknown.error?.error, "job not found");
}

const volume = setting("LVP_VOLUME");
const caller = answered(await api.GET("/api/v1/whoami"));
same([caller.principal, caller.role], [setting("LVP_PRINCIPAL"), "operator"]);
const { targets } = answered(await api.GET("/api/v1/targets"));
ok((targets[0]?.size_bytes ?? 0) > SIZE);
const ended = await provision(volume);
await cancel(`${volume}-cancelled`);
await fail(ended);
