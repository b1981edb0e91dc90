"""Tests of the web page in a real Chromium, against a real daemon and a real image server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest
import trustme

from tests.end_to_end.chromium import chromium
from tests.end_to_end.daemon import until
from tests.servers.images import image_server

pytestmark = pytest.mark.slow

_AXE, _SCREENSHOTS = os.environ.get("LVP_AXE"), os.environ.get("LVP_SCREENSHOTS")

# What the browser itself says about a response that is not a success, or about a server that is away.
_NETWORK = ("network: Failed to load resource",)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as running:
        yield running


@pytest.fixture
def page(browser, make_daemon):
    """Open a page that must not cause an error, except what ``page.expected`` lists. It ends before the daemons do."""
    opened = browser.open()
    opened.expected = ()
    yield opened
    unexpected = [one for one in opened.complaints() if not one.startswith(opened.expected)]
    assert not unexpected


def token(daemon, role, *more):
    made = daemon.lvp("token", "create", role, "--role", role, *more, "--config", daemon.folder / "config.toml")
    assert made.status == 0, made.err
    return made.out.split()[-1]


def sign_in(page, daemon, token=None):
    page.goto(daemon.url + "/")
    page.fill("API token", token or daemon.token)
    page.press("Enter")
    page.find("button", "Sign out")


def open_view(page, name):
    page.click(name, "link")
    page.wait(f"document.querySelector('nav [aria-current]')?.textContent === {json.dumps(name)}")


def held(server, name="plain.qcow2", size=20 * 2**20):
    """Let downloads of the image stop after ``size`` bytes; return its url."""
    server.held[name] = size
    return server.of(name)


def test_submit_to_completion(page, daemon, server, images):
    """The dry run comes first; the job's progress, its end and its stages are shown as they happen."""
    url = held(server)
    sign_in(page, daemon)
    open_view(page, "New volume")
    page.fill("Image", url, "combobox")
    page.fill("Volume name", "web-01")
    page.fill("Size in GiB", "1", "spinbutton")
    page.click("Preview")
    page.see("This would happen")
    page.see("Checksum from")
    assert daemon.call("GET", "/api/v1/jobs").json()["count"] == 0
    page.click("Submit the job")
    page.see("Downloading")
    page.wait("Number(document.querySelector('[role=progressbar]').getAttribute('aria-valuenow')) > 0")
    open_view(page, "Jobs")
    page.see("Downloading")
    server.let_go.set()
    page.see("completed")
    assert page.js("document.getElementById('announcer').textContent") == "The job for web-01 completed."
    page.click("web-01", "link")
    page.see("Stages")
    for text in ("Downloading", "Finalizing", str(daemon.volume("web-01")), "1 GiB"):
        page.see(text)
    open_view(page, "Volumes")
    page.see("web-01")
    page.see("free of")
    open_view(page, "Cache")
    page.see("1 image, ")


def test_speed_and_time_left_over_https(make_daemon, server, images, tmp_path):
    """Over HTTP/2 the events arrive one by one too. The certificate's expiry is shown."""
    file = tmp_path / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    tls = {"tls_certificate": str(file), "tls_key": str(file)}
    slow = {"http": {"plugin": "http", "urls": ["http://127.0.0.1:*"], "rate_limit": "1MiB"}}
    daemon = make_daemon(server=tls, sources=slow).start()
    with chromium(tmp_path / "profile", "--ignore-certificate-errors") as browser:
        page = browser.open()
        page.goto(daemon.url + "/")
        assert page.names("button") == ["Sign in", "Use the browser's certificate"]
        page.click("Use the browser's certificate")
        page.see("A client certificate or a valid API token in X-API-Token is needed")
        page.fill("API token", daemon.token)
        page.press("Enter")
        open_view(page, "New volume")
        page.fill("Image", server.of("plain.qcow2"), "combobox")
        page.fill("Volume name", "web-11")
        page.click("Preview")
        page.click("Submit the job")
        page.wait("/Downloading .* iB of .*iB\\/s, .* left/.test(document.body.innerText.replaceAll(/[KM]iB/g, ' iB'))")
        page.click("Cancel the job for web-11")
        page.click("Cancel the job")
        page.find("button", "Retry the job for web-11")
        open_view(page, "Host")
        page.see("Certificates")
        protocols = {event["params"]["response"]["protocol"] for event in page.events("Network.responseReceived")}
        assert protocols == {"h2"}
        assert [one for one in page.complaints() if not one.startswith(_NETWORK)] == []


def test_dry_run_shows_refusals(page, daemon, server, images):
    sign_in(page, daemon)
    open_view(page, "New volume")
    page.fill("Image", server.of("large.qcow2"), "combobox")
    page.fill("Volume name", "../web")
    page.click("Preview")
    page.see("This would be refused")
    assert "Submit the job" not in page.names("button")


def test_cancel(page, daemon, server, images):
    job_id = daemon.submit(held(server), "web-02")
    assert server.holding.wait(60)
    sign_in(page, daemon)
    page.click("Cancel the job for web-02")
    page.click("Back")
    assert daemon.job(job_id)["status"] == "running"
    page.click("Cancel the job for web-02")
    page.click("Cancel the job")
    assert daemon.job_ended(job_id)["status"] == "cancelled"
    page.find("button", "Retry the job for web-02")
    assert "Cancel the job for web-02" not in page.names("button")
    server.let_go.set()
    page.click("Retry the job for web-02")
    page.see("All jobs")
    page.see("completed")


def test_restart_while_watching(page, make_daemon, server, images):
    """The page says that the service is away, connects again by itself, and shows how the job went on."""
    page.expected = _NETWORK
    daemon = make_daemon(jobs={"shutdown_grace": "0s"}).start()
    job_id = daemon.submit(held(server), "web-03")
    assert server.holding.wait(60)
    sign_in(page, daemon)
    page.see("Downloading")
    daemon.kill()
    page.see("The service is not answering, retrying")
    daemon.config["server"]["bind"] = [daemon.url.removeprefix("http://")]
    server.let_go.set()
    daemon.start()
    page.wait("document.getElementById('connection').hidden")
    assert daemon.job_ended(job_id)["status"] == "completed"
    page.see("completed")
    assert "Sign out" in page.names("button")


def test_viewer_is_offered_nothing_to_change(page, daemon, server, images):
    daemon.submit(held(server), "web-04")
    assert server.holding.wait(60)
    sign_in(page, daemon, token(daemon, "viewer"))
    page.see("Downloading")
    assert page.names("button") == ["Sign out"]
    assert page.names("link")[1:] == ["Jobs", "Volumes", "Cache", "Host", "API", "web-04"]
    server.let_go.set()
    page.see("completed")
    for view in ("Volumes", "Cache", "Host"):
        open_view(page, view)
        page.wait("document.querySelector('main tbody tr') !== null")
        assert page.names("button") == ["Sign out"], view


def test_admin_removes_and_pins(page, daemon, server, images):
    daemon.job_ended(daemon.submit(server.of("zlib.qcow2"), "web-05"))
    sign_in(page, daemon, token(daemon, "admin"))
    open_view(page, "Cache")
    page.click("Pin zlib.qcow2")
    page.find("button", "Unpin zlib.qcow2")
    assert daemon.call("GET", "/api/v1/cache/images").json()["images"][0]["pinned"]
    page.click("Verify zlib.qcow2")
    page.see("is intact")
    page.click("Unpin zlib.qcow2")
    page.find("button", "Pin zlib.qcow2")
    page.click("Prune")
    page.click("Prune the cache")
    page.see("The cache is empty.")
    open_view(page, "Volumes")
    page.click("Remove web-05 on files")
    page.click("Remove the volume")
    page.see("There are no volumes yet.")
    assert not daemon.volume("web-05").exists()


def test_wrong_token(page, daemon):
    page.expected = _NETWORK
    page.goto(daemon.url + "/")
    page.fill("API token", "wrong")
    page.click("Sign in")
    page.see("The API token is unknown: it is wrong or was revoked")
    assert page.focused() == "textbox API token"
    assert page.js("document.querySelector('input').getAttribute('aria-invalid')") == "true"


def test_fill_of_targets_over_time(page, daemon):
    sign_in(page, daemon, token(daemon, "viewer"))
    for _ in range(3):
        open_view(page, "Volumes")
        page.see("free of")
        open_view(page, "Host")
    open_view(page, "Volumes")
    page.wait("document.querySelector('svg.spark') !== null")
    assert page.names("image")[0].startswith("Fill of files since this page was opened: from ")
    show(page, "targets")


def test_revoked_token_signs_out(page, daemon):
    page.expected = _NETWORK
    sign_in(page, daemon, token(daemon, "viewer"))
    page.see("There are no jobs here.")
    config = daemon.folder / "config.toml"
    assert daemon.lvp("token", "revoke", "viewer", "--config", config).status == 0
    page.find("button", "Sign in")
    page.see("revoked")


def test_token_is_kept_in_memory_only(page, daemon):
    sign_in(page, daemon)
    page.see("There are no jobs here.")
    kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state])"
    assert daemon.token not in page.js(kept)
    assert page.js("indexedDB.databases().then(found => found.length)") == 0
    assert page.js("caches.keys().then(found => found.length)") == 0
    assert page.call("Network.getCookies")["cookies"] == []
    page.goto(daemon.url + "/")
    page.find("button", "Sign in")
    assert all(
        url.startswith(daemon.url) and daemon.token not in url for url in page.requested() if "about:" not in url
    )


def test_hostile_text_stays_text(page, make_daemon, server, images):
    """An error, a name or a url from elsewhere never becomes markup."""
    daemon = make_daemon().start()
    attack = "<img src=x onerror=alert(1)>"
    body = {"image_url": server.of("zlib.qcow2"), "volume_name": "web-06", "correlation_id": attack}
    job_id = daemon.call("POST", "/api/v1/jobs", body).json()["job_id"]
    daemon.job_ended(job_id)
    sign_in(page, daemon)
    page.click("web-06", "link")
    page.see(attack)
    assert page.js("document.querySelectorAll('main img').length") == 0


def test_security_policy_is_enforced(page, daemon):
    page.expected = ("security: ", "console: ", "exception: ", "javascript: ", "other: ")
    page.goto(daemon.url + "/")
    assert "TypeError" in page.js(
        "(() => { try { document.body.innerHTML = '<p>'; } catch (error) { return error.name } })()"
    )
    assert page.js("fetch('http://127.0.0.2:1/').then(() => 'sent', error => error.name)") == "TypeError"
    assert page.js(
        "new Promise(done => { addEventListener('securitypolicyviolation', event => done(event.violatedDirective));"
        " const one = document.createElement('style'); one.textContent = 'p {}'; document.head.append(one); })"
    ).startswith("style-src")


def test_keyboard_alone(page, daemon, server, images):
    """Sign in, reach every view and submit, with nothing but keys."""
    page.goto(daemon.url + "/")
    page.press("Tab")
    assert page.focused() == "link Skip to the content"
    page.press("Tab")
    assert page.focused() == "textbox API token"
    page.type(daemon.token)
    page.press("Enter")
    page.find("button", "Sign out")
    until(lambda: page.focused() == "heading Jobs")
    reach(page, "link New volume")
    page.press("Enter")
    until(lambda: page.focused() == "heading New volume")
    reach(page, "Image")
    page.type(server.of("zlib.qcow2"))
    reach(page, "textbox Volume name")
    page.type("web-07")
    page.press("Enter")
    page.see("This would happen")
    reach(page, "button Submit the job")
    outline = page.js("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.press("Enter")
    page.see("completed")


def reach(page, element):
    """Press Tab, and then Shift and Tab, until the element has the focus."""
    for more in ({}, {"modifiers": 8}):
        for _ in range(25):
            if page.focused().endswith(element):
                return
            page.press("Tab", **more)
    raise AssertionError(f"{element} cannot be reached")


def serious_findings(page):
    """Return what axe-core finds, if the environment names its file; `make test-page` does."""
    if not _AXE:
        return []
    page.js(Path(_AXE).read_text() + "; 0")
    return page.js(
        "axe.run(document).then(({violations}) => violations"
        ".filter(({impact}) => ['serious', 'critical'].includes(impact))"
        ".map(({id, nodes}) => `${id}: ${nodes.map(({html}) => html)}`))"
    )


def show(page, name):
    """Keep a screenshot, if the environment names a folder for them."""
    if _SCREENSHOTS:
        page.screenshot(Path(_SCREENSHOTS) / f"{name.lower().replace(' ', '-')}.png")


VIEWS = ("Jobs", "New volume", "Volumes", "Cache", "Host", "API")


def test_accessible_names_and_small_screens(page, daemon, server, images):
    """Every control has a name, each view one main heading, and nothing is wider than a phone's 360 pixels."""
    name = "a-volume-with-quite-a-long-name-that-has-no-space-in-it-01"
    daemon.job_ended(daemon.submit(server.of("zlib.qcow2"), name))
    daemon.job_ended(daemon.submit(server.of("wrong.qcow2"), "web-08"))
    page.resize(360, 740)
    sign_in(page, daemon, token(daemon, "admin"))
    for view in VIEWS:
        open_view(page, view)
        page.wait("document.querySelector('main tbody tr, main form') !== null")
        check_view(page, view)
    page.js("location.hash = '#jobs'")
    page.click(name, "link")
    page.see("Stages")
    check_view(page, "job")


def check_view(page, view):
    show(page, f"phone-{view}")
    assert serious_findings(page) == [], view
    roles = {"button", "link", "textbox", "combobox", "spinbutton", "progressbar", "meter", "table", "navigation"}
    unnamed = [node for node in page.tree() if node["role"]["value"] in roles and not node.get("name", {}).get("value")]
    assert not unnamed, view
    assert page.js("document.querySelectorAll('h1').length") == 1
    assert page.js("document.documentElement.scrollWidth") == page.js("document.documentElement.clientWidth") == 360, (
        view
    )
    ids = "[...document.querySelectorAll('[id]')].map(one => one.id)"
    assert page.js(f"new Set({ids}).size === {ids}.length"), view
    assert "main" in [node["role"]["value"] for node in page.tree()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page, daemon, server, images, scheme):
    """Text has a contrast of at least 4.5 to what is behind it, in both colour schemes."""
    daemon.job_ended(daemon.submit(server.of("zlib.qcow2"), "web-09"))
    daemon.job_ended(daemon.submit(server.of("wrong.qcow2"), "web-10"))
    page.prefer(color_scheme=scheme, reduced_motion="reduce")
    sign_in(page, daemon, token(daemon, "admin"))
    for view in VIEWS:
        open_view(page, view)
        page.wait("document.querySelector('main tbody tr, main form') !== null")
        show(page, f"{scheme}-{view}")
        assert page.js(_CONTRAST) == [], view


# The texts whose contrast is too low, computed as WCAG 2 says.
_CONTRAST = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, index) => sum + c * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) low.push(`${walker.currentNode.textContent}: ${contrast.toFixed(2)}`);
  }
  return low;
})()"""


@pytest.fixture
def foreign(tmp_path):
    """Serve an empty page; return its url, which to a browser is another site than the daemon's."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.html").write_text("<!doctype html><title>evil</title><main><h1>evil</h1></main>")
    with image_server(tmp_path / "evil") as running:
        yield running.of("evil.html").replace("127.0.0.1", "localhost")


def sent_by(page, url):
    """Return the methods and headers of the requests for the url that left the browser."""
    ids = {
        event["params"]["requestId"]: event["params"]["request"]["method"]
        for event in page.events("Network.requestWillBeSent")
        if event["params"]["request"]["url"] == url
    }
    return [
        (ids[event["params"]["requestId"]], event["params"]["headers"])
        for event in page.events("Network.requestWillBeSentExtraInfo")
        if event["params"]["requestId"] in ids
    ]


def test_requests_of_another_site_fail(page, daemon, foreign, images):
    """Even with a credential that the browser would add by itself, as it adds a certificate, a change is rejected."""
    page.expected = (*_NETWORK, "javascript: Access to fetch", "security: ")
    prune, admin = daemon.url + "/api/v1/cache/prune", token(daemon, "admin")
    page.goto(foreign)
    page.js(
        f"fetch('{prune}', {{method: 'POST', mode: 'no-cors', credentials: 'include', body: '{{}}'}}).then(() => 1)"
    )
    (simple,) = sent_by(page, prune)
    assert simple[0] == "POST"
    assert (simple[1]["Origin"], simple[1]["Sec-Fetch-Site"]) == (foreign.rsplit("/", 1)[0], "cross-site")
    kept = {name: value for name, value in simple[1].items() if name.lower() not in {"host", "content-length"}}
    for status, left_out in (
        (403, ()),
        (403, ("Origin",)),
        (403, ("Sec-Fetch-Site",)),
        (415, ("Origin", "Sec-Fetch-Site")),
    ):
        headers = {name: value for name, value in kept.items() if name not in left_out}
        answer = httpx.post(prune, headers={**headers, "X-API-Token": admin}, content="{}", trust_env=False)
        assert answer.status_code == status, left_out
    for more in ("headers: {'Content-Type': 'application/json'}", "headers: {'X-API-Token': 'x'}"):
        outcome = f"fetch('{prune}', {{method: 'POST', {more}, body: '{{}}'}}).then(() => 'read', error => error.name)"
        assert page.js(outcome) == "TypeError"
    assert [method for method, _ in sent_by(page, prune)].count("POST") == 1, "only the browser's preflight was sent"
    assert page.js(f"fetch('{daemon.url}/health').then(() => 'read', error => error.name)") == "TypeError"


def test_page_is_not_shown_in_a_frame(page, daemon, foreign):
    page.expected = ("security: ", *_NETWORK)
    page.goto(foreign)
    page.js(
        "new Promise(done => { const frame = document.createElement('iframe'); frame.onload = done;"
        f" frame.src = '{daemon.url}/'; document.body.append(frame); }})"
    )
    assert any("frame-ancestors" in one for one in page.complaints())
