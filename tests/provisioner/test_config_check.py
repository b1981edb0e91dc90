"""``lvp config check`` and ``lvp doctor``: every fault at once, nothing called right unseen, no secret shown."""

from __future__ import annotations

import datetime as dt
import socket
from pathlib import Path

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from provisioner import config_check, diagnosis, registry
from provisioner.config import Faults, check_secret, dump, load
from provisioner.contracts import SecretRef
from provisioner.linux import state_lock
from provisioner.signatures import openpgp
from tests.signers import Cosign, Minisign

PLUGINS = registry.load()
CA = trustme.CA()
OTHER = trustme.CA()
LEAF = CA.issue_cert("localhost")
DAY = dt.timedelta(days=1)


def expired():
    now = dt.datetime.now(dt.UTC)
    return CA.issue_cert("localhost", not_before=now - 2 * DAY, not_after=now - DAY)


def revocation_list(until):
    now = dt.datetime.now(dt.UTC)
    key = CA._private_key
    name = x509.load_pem_x509_certificate(CA.cert_pem.bytes()).subject
    made = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(now - 3 * DAY).next_update(now + until)
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def files(tmp_path):
    """Certificates, keys and secrets that are right."""
    contents = {
        "server.pem": b"".join(pem.bytes() for pem in LEAF.cert_chain_pems),
        "server.key": LEAF.private_key_pem.bytes(),
        "ca.pem": CA.cert_pem.bytes(),
        "crl.pem": revocation_list(DAY),
        "password": b"hunter2\n",
        "token.key": b"ab" * 32 + b"\n",
        "cosign.pub": Cosign().public_key,
        "minisign.pub": Minisign().public_key,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "disks").mkdir()
    return tmp_path


CONFIG = """
state_directory = "{0}/state"
[server]
bind = ["127.0.0.1:{port}"]
tls_certificate = "{0}/server.pem"
tls_key = "{0}/server.key"
client_ca = "{0}/ca.pem"
client_crl = "{0}/crl.pem"
[auth]
token_key = "file:{0}/token.key"
[sources.web]
plugin = "http"
urls = ["https://images.example.org/"]
username = "u"
password = "file:{0}/password"
ca_file = "{0}/ca.pem"
client_certificate = "{0}/server.pem"
client_key = "{0}/server.key"
[sources.web.signature]
kind = "cosign"
public_key = "{0}/cosign.pub"
[images.appliance]
url = "https://images.example.org/appliance.qcow2"
[images.appliance.signature]
kind = "minisign"
public_key = "{0}/minisign.pub"
[targets.disks]
plugin = "file"
directory = "{0}/disks"
"""


def write(folder, text=CONFIG, port=0):
    file = folder / "config.toml"
    file.write_text(text.format(folder, port=port))
    return file


def check(file, **options):
    return config_check.check(file, PLUGINS, **options)


def test_check_finds_no_fault(files):
    report = check(write(files), host=True)
    assert (report.faults, report.unchecked) == ([], [])


def test_check_core_and_plugin_faults_together(files):
    text = (
        CONFIG
        + """
[jobs]
max_concurrent = 0
[sources.more]
plugin = "http"
urls = ["nonsense", "https://x/"]
proxy = "nonsense"
conections = 3
stall_timeout = "soon"
[targets.b]
plugin = "lvm"
volume_group = "a b"
size_tolerance_percent = 200
[targets.c]
plugin = "flie"
[converters]
vmdk = "native"
[guards.libvirt]
plugin = "libvirt"
virsh = "virsh"
[[cache.prewarm]]
url = "https://elsewhere.example/x.qcow2?sig=hunter2"
image_type = "cow"
"""
    )
    report = check(write(files, text), files=False)
    expected = [
        "jobs.max_concurrent: found 0",
        "sources.more: 'nonsense' is not a prefix of http or https URLs",
        "sources.more: proxy must be a url",
        "sources.more.conections: unknown key; did you mean 'connections'?",
        'sources.more.stall_timeout: found "soon"',
        "targets.b: volume_group 'a b' is not a valid name",
        "targets.b: size_tolerance_percent must be 0 to 100",
        "targets.c.plugin: no installed plugin provides 'flie'",
        "converters.vmdk: native reads only",
        'guards.libvirt.virsh: found "virsh", allowed: an absolute path',
        'cache.prewarm[0].image_type: found "cow", allowed: qcow2, raw',
    ]
    for words in expected:
        assert [line for line in report.faults if words in line], words
    assert all(line.startswith(f"{files}/config.toml: ") for line in report.faults)
    assert len(report.faults) == len(expected)


def test_check_prewarm_source(files):
    text = CONFIG + '[[cache.prewarm]]\nurl = "https://elsewhere.example/x.qcow2?sig=hunter2"\n'
    (fault,) = check(write(files, text), files=False).faults
    assert fault.endswith("cache.prewarm[0].url: https://elsewhere.example/x.qcow2 belongs to no configured source")


@pytest.mark.parametrize(
    "line",
    [
        'password = "hunter2"',
        "password = ['hunter2']",
        'bearer_token = "hunter2"',
        'headers = "hunter2"',
        'headers = {{ X-Api = "hunter2" }}',
        'pasword = "hunter2"',
        'urls = ["https://user:hunter2@images.example.org/"]',
        'proxy = "http://user:hunter2@proxy.example.org:3128"',
        'urls = "https://images.example.org/?sig=hunter2"',
    ],
)
def test_check_never_shows_a_secret(files, line):
    text = f'{CONFIG}[sources.more]\nplugin = "http"\n{line}\n'
    report = check(write(files, text))
    assert report.faults
    assert "hunter2" not in "\n".join(report.faults + report.unchecked)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('image = "debian"', None),
        ('image = "fedora"', 'cache.prewarm[0].image: there is no image named "fedora"; there are: '),
        ('image = "debian"\nurl = "https://images.example.org/x"', "cache.prewarm[0]: set either url or image"),
        ('every = "1h"', "cache.prewarm[0]: set either url or image"),
        ('image = "debian"\nimage_type = "raw"', "cache.prewarm[0]: checksum and image_type go with url"),
    ],
)
def test_check_prewarm_by_name(files, line, fault):
    image = '[images.debian]\nurl = "https://images.example.org/{{version}}.qcow2"\n'
    faults = check(write(files, f"{CONFIG}{image}[[cache.prewarm]]\n{line}\n")).faults
    assert [one for one in faults if fault is None or fault not in one] == []
    assert bool(faults) == (fault is not None)


@pytest.mark.parametrize("key", ["ca_file", "client_certificate", "client_key", "credentials_file"])
def test_check_refuses_relative_paths_of_plugins(files, key):
    text = f'{CONFIG}[sources.more]\nplugin = "s3"\n{key} = "relative"\n'
    faults = check(write(files, text), files=False).faults
    assert any(f"sources.more.{key}: " in line and "allowed: an absolute path" in line for line in faults)


def encrypted_key():
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(LEAF.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("server.pem", None, "server.tls_certificate: {0} cannot be read: No such file"),
        ("server.pem", LEAF.private_key_pem.bytes(), "server.tls_certificate: {0} contains a private key, but no cert"),
        ("server.pem", b"x", "server.tls_certificate: {0} is no certificate (PEM)"),
        ("server.pem", expired().cert_chain_pems[0].bytes(), "server.tls_certificate: {0} expired on "),
        ("server.key", None, "server.tls_key: {0} cannot be read: No such file"),
        ("server.key", LEAF.cert_chain_pems[0].bytes(), "server.tls_key: {0} contains a certificate, but no private"),
        ("server.key", CA.issue_cert("x").private_key_pem.bytes(), "server.tls_key: {0} is not the key of "),
        ("server.key", encrypted_key(), "server.tls_key: {0} is encrypted"),
        ("ca.pem", b"", "server.client_ca: {0} is no certificate"),
        ("ca.pem", CA.private_key_pem.bytes(), "server.client_ca: {0} contains a private key"),
        ("crl.pem", revocation_list(-DAY), "server.client_crl: {0} expired on "),
        ("crl.pem", CA.cert_pem.bytes(), "server.client_crl: {0} contains no revocation list"),
        ("password", None, "sources.web.password: file:{0} cannot be read: No such file"),
        ("password", b"", "sources.web.password: file:{0} is empty"),
        ("password", b"a\nb", "sources.web.password: file:{0} is empty, or has line breaks"),
        ("password", b"\xff", "sources.web.password: file:{0} is not text"),
        ("cosign.pub", None, "sources.web.signature.public_key: the public_key {0} cannot be read: No such file"),
        ("minisign.pub", b"x", "images.appliance.signature.public_key: {0} is not a minisign public key"),
        ("token.key", b"hunter2", "auth.token_key: the token key {0} must be 64 hex digits"),
    ],
)
def test_check_files(files, name, content, words):
    file = write(files)
    if content is None:
        (files / name).unlink()
    else:
        (files / name).write_bytes(content)
    faults = check(file).faults
    assert any(f"{file}: {words.format(files / name)}" in fault for fault in faults), faults
    assert "hunter2" not in "\n".join(faults)
    assert check(file, files=False).faults == []


def test_check_files_despite_other_faults(files):
    """What is wrong elsewhere does not hide a missing file or a taken address."""
    for name in ("server.key", "password", "token.key"):
        (files / name).write_bytes(b"\n\nx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = CONFIG.replace("[server]", "[jobs]\nmax_queued = 0\n[server]\nmax_connections = 0")
        text = text.replace("urls = [", "connections = 0\nurls = [")
        file = write(files, text.replace("[auth]", "[auth]\nmax_failures = 0"), taken.getsockname()[1])
        faults = check(file, host=True).faults
    keys = ["jobs.max_queued", "server.max_connections", "auth.max_failures", "server.tls_key", "auth.token_key",
            "sources.web.password", "server.bind[0]"]  # fmt: skip
    for key in keys:
        assert any(f": {key}: " in fault for fault in faults), key


def test_check_files_of_a_source(files):
    text = CONFIG.replace('client_key = "{0}/server.key"', 'client_key = "{0}/ca.pem"')
    (fault,) = check(write(files, text)).faults
    assert "sources.web.client_key: " in fault
    assert "contains a certificate, but no private key" in fault


def test_check_folders_of_a_source(files):
    (files / "images").mkdir()
    table = '[sources.local]\nplugin = "file"\nfolders = ["{0}/images", "{0}/missing", "{0}/password"]\n'
    faults = check(write(files, CONFIG + table)).faults
    assert [fault.partition(": ")[2] for fault in faults] == [
        f"sources.local.folders[1]: {files}/missing cannot be opened: No such file or directory",
        f"sources.local.folders[2]: {files}/password cannot be opened: Not a directory",
    ]


def test_check_of_a_secret_that_only_the_service_has(files, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    text = CONFIG.replace("file:{0}/password", "credential:web").replace("file:{0}/token.key", "env:NOT_SET")
    report = check(write(files, text))
    assert report.faults == []
    assert [line.split(": ", 1)[1] for line in report.unchecked] == [
        "auth.token_key: env:NOT_SET was not checked: only the service has the variable NOT_SET",
        "sources.web.password: credential:web was not checked: only the service has its credentials",
    ]


def test_check_of_a_file_for_root(files, monkeypatch):
    """Members of the service's group may read the configuration, but not what it names."""

    def denied(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("provisioner.tls.diagnostics.read_small", denied)
    report = check(write(files))
    assert report.faults == []
    assert any("server.tls_key: " in line and "user 1000 cannot read it" in line for line in report.unchecked)


def openpgp_config(files, keyring):
    (files / "keyring.gpg").write_bytes(keyring)
    text = CONFIG.replace(
        'kind = "cosign"\npublic_key = "{0}/cosign.pub"', 'kind = "openpgp"\nkeyring = "{0}/keyring.gpg"'
    )
    return write(files, text)


def test_check_keyring(files, gpg):
    file = openpgp_config(files, gpg.keyring("publisher"))
    assert check(file).faults == []
    assert (True, f"sources.web.signature.keyring: {files}/keyring.gpg has public keys") in findings(file)
    assert (True, "sources.web.signature.kind: /usr/bin/gpgv checks OpenPGP signatures") in findings(file)
    assert any("the sandbox of gpgv" in what for _, what in findings(file))
    assert not any("gpgv" in what for _, what in findings(write(files)))


def test_check_no_keyring(files):
    (fault,) = check(openpgp_config(files, b"x")).faults
    assert "sources.web.signature.keyring: " in fault
    assert "is not a file of OpenPGP public keys; write one with 'gpg --export KEY > FILE'" in fault


def test_check_gpgv_missing(files, gpg, monkeypatch):
    monkeypatch.setitem(openpgp.ENVIRONMENT, "PATH", "/nonexistent")
    (fault,) = check(openpgp_config(files, gpg.keyring("publisher"))).faults
    assert fault.endswith(
        "sources.web.signature.kind: OpenPGP signatures need the program gpgv, which is not installed: "
        "install the package gpgv"
    )


def test_check_public_key_for_root(files, monkeypatch):
    def denied(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("provisioner.signatures.keys.read_small", denied)
    report = check(write(files))
    assert report.faults == []
    assert any("cosign.pub was not checked: user 1000 cannot read it" in line for line in report.unchecked)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("kind = 5", "sources.web.signature.kind: found 5"),
        ('kind = "pgp"', 'sources.web.signature.kind: found "pgp"'),
        (
            'kind = "openpgp"',
            "sources.web.signature: openpgp signatures need keyring, the file of the publisher's public",
        ),
        ('kind = "cosign"', "sources.web.signature: cosign signatures need public_key"),
        ('kind = "cosign"\nkeyring = "/k"\npublic_key = "/k"', "sources.web.signature: keyring is for openpgp"),
        ('kind = "openpgp"\nkeyring = "/k"\npublic_key = "/k"', "public_key is for minisign and cosign"),
        ('kind = "openpgp"\nkeyring = "k"', "signature.keyring: found a string (not shown), allowed: an absolute path"),
        ('kind = "openpgp"\nkeyrnig = "/k"', "signature.keyrnig: unknown key; did you mean 'keyring'?"),
        (
            'kind = "openpgp"\nkeyring = "/k"\nfiles = ["x"]',
            "files: 'x' is not a pattern such as '{{dir}}/SHA256SUMS.gpg'",
        ),
        (
            'kind = "minisign"\npublic_key = "/k"\nfiles = ["{{dir}}/x"]',
            "must end with .minisig, after the signed file",
        ),
        ('kind = "openpgp"\nkeyring = "/k"\nfiles = ["http://a b/"]', "files: it must be 1 to"),
    ],
)
def test_check_signature_table(files, table, words):
    text = CONFIG.replace('kind = "cosign"\npublic_key = "{0}/cosign.pub"', table)
    faults = check(write(files, text), files=False).faults
    assert any(words.replace("{{", "{").replace("}}", "}") in fault for fault in faults), faults


def test_check_signature_urls(files):
    """A signature that no source, or not the source itself, can fetch would never be found."""
    elsewhere = 'files = ["https://images.example.org/a.bundle", "https://elsewhere.example.org/a.bundle"]\n'
    text = CONFIG.replace('public_key = "{0}/cosign.pub"\n', 'public_key = "{0}/cosign.pub"\n' + elsewhere)
    other = elsewhere.replace("bundle", "minisig")
    text = text.replace('public_key = "{0}/minisign.pub"\n', 'public_key = "{0}/minisign.pub"\n' + other)
    assert [fault.split(": ", 1)[1] for fault in check(write(files, text)).faults] == [
        "images.appliance.signature.files[1]: https://elsewhere.example.org/a.minisig belongs to no configured source",
        "sources.web.signature.files[1]: https://elsewhere.example.org/a.bundle does not belong to this source",
    ]


def test_check_addresses(files):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = write(files, port=taken.getsockname()[1])
        (fault,) = check(file, host=True).faults
        assert "server.bind[0]: the daemon cannot listen on 127.0.0.1:" in fault
        assert check(file).faults == []
        with state_lock.locked(files / "state"):
            (line,) = check(file, host=True).unchecked
        assert line.endswith("was not checked: the daemon is running")


@pytest.mark.parametrize(("folder", "ok"), [("{0}", True), ("{0}/missing", False)])
def test_check_unix_socket(files, folder, ok):
    address = f"unix:{folder.format(files)}/lvp.sock"
    text = CONFIG.replace("127.0.0.1:{port}", address)
    assert (check(write(files, text), host=True).faults == []) == ok
    assert not Path(address.removeprefix("unix:")).exists()


def test_check_unix_socket_where_a_file_is(files):
    (files / "lvp.sock").write_text("")
    (fault,) = check(write(files, CONFIG.replace("127.0.0.1:{port}", f"unix:{files}/lvp.sock")), host=True).faults
    assert f"the daemon cannot create {files}/lvp.sock: a file has this name" in fault


def test_check_unix_socket_with_a_long_path(files):
    (fault,) = check(write(files, CONFIG.replace("127.0.0.1:{port}", f"unix:/{'x' * 107}"))).faults
    assert "the path of a unix socket has at most 107 bytes" in fault


def test_check_secret_reads_the_environment():
    assert check_secret(SecretRef("env:X"), {"X": "hunter2"}).ok
    assert check_secret(SecretRef("env:X"), {"X": ""}).ok is False
    assert check_secret(SecretRef("env:X"), {}).ok is None


def findings(file):
    config = load(file)
    found = trio.run(diagnosis.examine, config, PLUGINS.make(config))
    return [(finding.ok, finding.what) for part in found.values() for finding in part]


def test_doctor_opens_what_it_calls_right(files, monkeypatch):
    """Every file that gets an "ok" was opened, and every one that is missing gets none."""
    opened = set()
    real = config_check.diagnostics.read_small
    monkeypatch.setattr(
        "provisioner.tls.diagnostics.read_small", lambda path, *args: opened.add(str(path)) or real(path, *args)
    )
    said = findings(write(files))
    for name in ("server.pem", "server.key", "ca.pem", "crl.pem"):
        assert str(files / name) in opened
        assert any(ok and str(files / name) in what for ok, what in said)
    assert any(ok and what.startswith("sources.web.password: ") for ok, what in said)
    assert any(ok and what.startswith("server.bind[0]: ") for ok, what in said)
    assert (None, f"token file {files}/state/tokens.json was not checked: No such file or directory") in said


def test_doctor_finds_what_is_missing(files):
    file = write(files)
    for name in ("server.key", "password"):
        (files / name).unlink()
    wrong = [what for ok, what in findings(file) if ok is False]
    assert any(what.startswith("server.tls_key: ") for what in wrong)
    assert any(what.startswith("sources.web.password: ") for what in wrong)
    assert not any(ok and str(files / "server.key") in what for ok, what in findings(file))


def test_show_has_every_default_of_plugins(files):
    config = load(write(files))
    shown = dump(config, PLUGINS.make(config).settings)
    for line in (
        'stall_timeout = "30s"',
        'min_rate = "1KiB"',
        "allow_addresses = []",
        'replace = "swap"',
        "overcommit = false",
        "threads = 4",
    ):
        assert f"{line}\n" in shown, line
    again = files / "again.toml"
    again.write_text(shown)
    reread = load(again)
    assert dump(reread, PLUGINS.make(reread).settings) == shown
    assert "hunter2" not in shown


def any_documents():
    """A value of every TOML type in the place of every section, table and key that the registry looks at."""
    values = [1, -1.5, True, "", "x", [], [1], [{}], {}, {"x": 1}, {"x": {}}, dt.date(2024, 1, 1)]
    for value in values:
        yield from ({section: value} for section in ("state_directory", "cache", *registry.SECTIONS))
        yield from ({section: {"x": value}} for section in registry.SECTIONS)
        yield from ({"sources": {"x": {"plugin": "http", key: value}}} for key in ("urls", "headers", "plugin"))
        yield {"targets": {"x": {"plugin": "file", "directory": value}}}
        yield {"cache": {"prewarm": [{"url": value}, {"image_type": value}, value]}}


def test_check_any_type_anywhere():
    """No document makes the check itself fail."""
    for document in any_documents():
        PLUGINS.check(document, Faults("f"))
