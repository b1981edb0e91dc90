// Starts the page: signs in, shows the view that the address names, and says whether the service answers.

import { cacheView } from "./cache.js";
import { announce, button, h, setText } from "./dom.js";
import { sentence } from "./format.js";
import { hostView } from "./host.js";
import { jobView } from "./job.js";
import { jobName, jobsView } from "./jobs.js";
import { referenceView } from "./reference.js";
import { Session } from "./session.js";
import { byCertificate, signInView } from "./signin.js";
import { submitView } from "./submit.js";
import { volumesView, watchTargets } from "./volumes.js";

const VIEWS = [
  { id: "jobs", title: "Jobs", role: "viewer", view: jobsView, one: jobView },
  { id: "new", title: "New volume", role: "operator", view: submitView },
  { id: "volumes", title: "Volumes", role: "viewer", view: volumesView },
  { id: "cache", title: "Cache", role: "viewer", view: cacheView },
  { id: "host", title: "Host", role: "viewer", view: hostView },
  { id: "api", title: "API", role: "viewer", view: referenceView, one: referenceView },
];
const CONNECTION = {
  live: "",
  stopping: "The service is stopping: it takes no new jobs.",
  polling: "Too many pages are open: this one asks every few seconds.",
  retrying: "The service is not answering, retrying…",
};

const part = (id) => document.getElementById(id);
let session = null;
let shown = null;

function show(elements) {
  part("main").replaceChildren(...elements);
}

// Shows the view of the address. The focus goes to its heading, so that a screen reader begins there.
function route() {
  if (session === null) return;
  const [id, argument] = decodeURIComponent(location.hash.slice(1)).split("/");
  const offered = VIEWS.filter(({ role }) => session.may(role));
  const chosen = offered.find((view) => view.id === id) ?? offered[0];
  shown?.abort();
  shown = new AbortController();
  const make = argument && chosen.one ? chosen.one : chosen.view;
  show(make(session, AbortSignal.any([shown.signal, session.signal]), argument));
  for (const link of part("navigation").children) {
    if (link.hash === `#${chosen.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${chosen.title} – Volume provisioner`;
  const heading = part("main").querySelector("h1");
  heading.tabIndex = -1;
  heading.focus();
  scrollTo(0, 0);
}

function signedIn(api, me) {
  session = new Session(api, me);
  part("navigation").replaceChildren(...VIEWS.filter(({ role }) => session.may(role))
    .map(({ id, title }) => h("a", { href: `#${id}` }, title)));
  part("navigation").hidden = false;
  part("account").replaceChildren(
    h("span", { id: "who" }, h("strong", {}, me.name), ` ${me.role}`), button("Sign out", () => signOut()));
  part("account").hidden = false;
  session.on("connection", showConnection, session.signal);
  session.on("job", tellEnd, session.signal);
  session.on("refused", (error) => signOut(sentence(error.message)), session.signal);
  session.start();
  watchTargets(session);
  route();
  announce(`Signed in as ${me.name}, ${me.role}.`);
}

function signOut(message = "You are signed out.") {
  shown?.abort();
  session.end();
  session = null;
  part("navigation").hidden = true;
  part("account").hidden = true;
  part("account").replaceChildren();
  showConnection("live");
  show(signInView(signedIn, message));
  part("main").querySelector("input").focus();
}

function showConnection(state) {
  const banner = part("connection");
  setText(banner, CONNECTION[state]);
  banner.hidden = state === "live";
}

function tellEnd({ job, kind }) {
  if (["job.completed", "job.failed", "job.cancelled"].includes(kind)) {
    announce(`The job for ${jobName(job)} ${job.status === "cancelled" ? "was cancelled" : job.status}.`);
  }
}

async function start() {
  setText(part("host"), location.hostname);
  addEventListener("hashchange", route);
  part("skip").addEventListener("click", (event) => {
    event.preventDefault();
    part("main").focus();
  });
  const found = await byCertificate();
  if (found) signedIn(...found);
  else show(signInView(signedIn));
}

start();
