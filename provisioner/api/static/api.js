// Calls the API. The token stays in this object: it is never stored, and no cookie is set.

export class ApiError extends Error {
  constructor(status, message, retryAfter = null, body = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.body = body;
  }
}

// No answer at all: the service is stopped, restarts or cannot be reached.
export class NoAnswerError extends Error {}

export class Api {
  #token;

  // token: null to use the browser's client certificate.
  constructor(token = null) {
    this.#token = token;
  }

  get = (path, options) => this.#json("GET", path, options);
  post = (path, body, options) => this.#json("POST", path, { ...options, body });
  put = (path) => this.#json("PUT", path);
  remove = (path) => this.#json("DELETE", path);

  // Returns the response itself; raises ApiError if it is not a success.
  async open(method, path, { body, headers = {}, signal } = {}) {
    const sent = { ...headers };
    if (this.#token !== null) sent["X-API-Token"] = this.#token;
    if (method !== "GET") sent["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path.startsWith("/") ? path.slice(1) : `api/v1/${path}`, {
        method,
        headers: sent,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
        cache: "no-store",
        credentials: "same-origin",
        mode: "cors", // in the mode same-origin the Origin would be null, because no referrer is sent
        redirect: "error",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new NoAnswerError("The service does not answer.");
    }
    if (!response.ok) throw await failure(response);
    return response;
  }

  async #json(method, path, options) {
    const response = await this.open(method, path, options);
    try {
      return await response.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new NoAnswerError("The service's answer broke off.");
    }
  }
}

async function failure(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // a proxy's own page
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  return new ApiError(response.status, body.message ?? `The service answered ${response.status}.`, retryAfter, body);
}

// A key that lets a request be sent again without a second job.
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
