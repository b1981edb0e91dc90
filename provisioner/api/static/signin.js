// The sign-in form. A token is checked with the service before anything is shown.

import { Api, ApiError } from "./api.js";
import { button, field, h, notice } from "./dom.js";
import { sentence } from "./format.js";

// A browser presents certificates over HTTPS only.
const mayHaveCertificate = () => location.protocol === "https:";

// Returns [api, whoami] if the browser's certificate has a role here, else null.
export async function byCertificate() {
  if (!mayHaveCertificate()) return null;
  const api = new Api();
  try {
    return [api, await api.get("whoami")];
  } catch {
    return null;
  }
}

// signedIn is called with the api and the answer of whoami.
export function signInView(signedIn, message = "") {
  const said = notice();
  const token = h("input", { type: "password", required: true, autocomplete: "off", spellcheck: "false", maxlength: 512 });
  const send = h("button", { type: "submit", class: "main" }, "Sign in");

  async function submit(event) {
    event.preventDefault();
    const value = token.value.trim();
    if (!/^[\x21-\x7e]+$/.test(value)) {
      fail("A token consists of letters, digits and signs, without spaces.");
      return;
    }
    await enter(new Api(value));
  }

  async function enter(api) {
    send.disabled = true;
    try {
      const me = await api.get("whoami");
      token.value = "";
      signedIn(api, me);
    } catch (error) {
      fail(error instanceof ApiError ? sentence(error.message) : "The service does not answer. Try again.");
    } finally {
      send.disabled = false;
    }
  }

  function fail(text) {
    said.show(text, "bad");
    token.setAttribute("aria-invalid", "true");
    token.focus();
  }

  said.show(message, message ? "warn" : "");
  return [h("form", { class: "form sign-in", on: { submit } },
    h("h1", {}, "Sign in"),
    field("API token", token, "It stays in this page's memory and is gone when you close or reload the page."), said,
    h("div", { class: "buttons" }, send,
      mayHaveCertificate() ? button("Use the browser's certificate", () => enter(new Api())) : null))];
}
