"""A volume and its cloud-init seed, with the real daemon: both there or both as before, and no data left anywhere."""

from __future__ import annotations

import stat

import httpx
import pytest

from provisioner.auth.tokens import TokenFile
from tests.contents import data_of, first_bytes
from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import until
from tests.servers.seeds import files_of, label_of, read_by_cloud_init

pytestmark = pytest.mark.slow  # a real daemon

SECRET = "pa55w0rd-of-the-guest"
USER = f"#cloud-config\npassword: {SECRET}\n# déjà vu\n"
NETWORK = "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n"
OLD_SECRET = "the-old-pa55w0rd"


def submit(daemon, server, user=USER, name="web-01", **more):
    data = {} if user is None else {"cloud_init": {"user_data": user, **more}}
    return daemon.submit(server.of("sparse.raw"), name, "raw", **data)


def finished(daemon, server, *args, **more):
    job = daemon.job_ended(submit(daemon, server, *args, **more))
    assert job["status"] == "completed", job
    return job


def places_of(daemon, secret):
    """Return the files below the daemon's folder that contain ``secret``, except volumes."""
    found = [path for path in daemon.folder.rglob("*") if path.is_file()]
    hidden = [path for path in found if path.parent != daemon.volumes]
    return [path for path in hidden if any(secret.encode() in data for _, data in data_of(path))]


def volume_files(daemon):
    """Return the names of all files of the target, those of the seeds being kept or staged too."""
    found = (path for path in daemon.volumes.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(daemon.volumes)) for path in found}


@pytest.fixture
def admin(daemon):
    """A daemon whose client is an administrator."""
    return as_admin(daemon)


def as_admin(daemon):
    token = TokenFile(daemon.folder / "state" / "tokens.json").create("admin", "admin")
    (daemon.folder / "client-token").write_text(token)
    return daemon


def test_volume_and_seed(daemon, server, images, tmp_path):
    """isoinfo, blkid and cloud-init itself read the seed; the job and the list of volumes name it."""
    job = finished(daemon, server, network_config=NETWORK)
    seed = daemon.volume("web-01-seed")
    assert job["seed"] == {"name": "web-01-seed", "path": str(seed), "size_bytes": 4 * 2**20}
    assert label_of(seed) == ("iso9660", "CIDATA")
    meta = f'instance-id: {job["job_id"]}\nlocal-hostname: "web-01"\n'
    files = {"user-data": USER, "meta-data": meta, "network-config": NETWORK}
    assert files_of(seed, "-R") == files_of(seed, "-J") == files
    assert same(images["sparse.raw"], daemon.volume("web-01"))
    read = read_by_cloud_init(seed, tmp_path / "cloud")
    assert read["user_data"] == USER
    assert read["meta_data"]["instance-id"] == job["job_id"]
    assert read["meta_data"]["local-hostname"] == "web-01"
    assert read["network_config"]["ethernets"] == {"eth0": {"dhcp4": True}}
    volumes = {one["name"]: one for one in daemon.call("GET", "/api/v1/volumes").json()["volumes"]}
    assert volumes["web-01"]["seed"] == "web-01-seed"
    assert volumes["web-01-seed"]["seed_of"] == "web-01"
    assert "cloud-init seed of web-01" in daemon.lvp("volume", "list").out
    grown = daemon.call("POST", "/api/v1/volumes/files/web-01-seed/resize", {"volume_size_gb": 1})
    assert (grown.status_code, grown.json()["message"]) == (
        409, "volume web-01-seed is the cloud-init seed of web-01; its size is fixed"
    )  # fmt: skip


def test_data_is_nowhere_else(make_daemon, server):
    """While the job waits, its data is in one file that only the service may read; afterwards only in the seed."""
    daemon = make_daemon(log={"level": "debug", "format": "json"}, audit={"log": True}).start()
    server.held = {"sparse.raw": 1}
    job_id = submit(daemon, server, meta_data=f"instance-id: {SECRET}\n")
    assert server.holding.wait(60)
    file = daemon.folder / "state" / "cloud-init" / f"{job_id}.iso"
    assert places_of(daemon, SECRET) == [file]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert daemon.job(job_id)["request"]["cloud_init"] is True
    assert SECRET not in daemon.call("GET", f"/api/v1/jobs/{job_id}").text + daemon.lvp("job", "show", job_id).out
    server.let_go.set()
    assert daemon.job_ended(job_id)["status"] == "completed"
    until(lambda: not file.exists())
    assert places_of(daemon, SECRET) == []
    again = daemon.call("POST", f"/api/v1/jobs/{job_id}/retry")
    assert again.status_code == 409
    assert "was removed at its end; submit a new job with it" in again.json()["message"]


def test_cancelled_job_leaves_no_data(daemon, server):
    server.held = {"sparse.raw": 1}
    job_id = submit(daemon, server)
    assert server.holding.wait(60)
    assert daemon.lvp("job", "cancel", job_id).status == 0
    until(lambda: not places_of(daemon, SECRET))
    assert volume_files(daemon) == set()


def test_restart_while_downloading(daemon, server):
    """The job runs again with its data, which needs no client."""
    server.held = {"sparse.raw": 1}
    job_id = submit(daemon, server)
    assert server.holding.wait(60)
    daemon.kill()
    server.let_go.set()
    daemon.start()
    assert daemon.job_ended(job_id)["status"] == "completed"
    assert files_of(daemon.volume("web-01-seed"), "-R")["user-data"] == USER
    until(lambda: not places_of(daemon, SECRET))


def test_lost_data_fails_the_job(daemon, server):
    server.held = {"sparse.raw": 1}
    job_id = submit(daemon, server)
    assert server.holding.wait(60)
    daemon.kill()
    (daemon.folder / "state" / "cloud-init" / f"{job_id}.iso").unlink()
    server.let_go.set()
    daemon.start()
    job = daemon.job_ended(job_id)
    assert job["status"] == "failed"
    assert "the job's cloud-init data is lost; submit the job again" in job["error"]
    assert volume_files(daemon) == set()


def test_replaced_together(daemon, server):
    """A new seed replaces the old one with the volume; without a seed the job is refused."""
    finished(daemon, server, OLD_SECRET)
    refused = daemon.job_ended(submit(daemon, server, None))
    assert refused["status"] == "failed"
    assert "has the cloud-init seed web-01-seed" in refused["error"]
    assert files_of(daemon.volume("web-01-seed"), "-R")["user-data"] == OLD_SECRET
    finished(daemon, server)
    assert files_of(daemon.volume("web-01-seed"), "-R")["user-data"] == USER
    assert volume_files(daemon) == {"web-01.raw", "web-01-seed.raw"}


def test_replaced_seed_is_kept_as_configured(make_daemon, server):
    daemon = make_daemon(targets={"files": {
        "plugin": "file", "directory": "", "make_directory": True, "overcommit": True, "keep_replaced": "1d"
    }})  # fmt: skip
    daemon.config["targets"]["files"]["directory"] = str(daemon.volumes)
    as_admin(daemon.start())
    finished(daemon, server, OLD_SECRET)
    finished(daemon, server)
    kept = daemon.call("GET", "/api/v1/volumes/replaced").json()["replaced"]
    assert [one["name"] for one in kept] == ["web-01", "web-01-seed"]
    for name in ("web-01", "web-01-seed"):
        assert daemon.lvp("volume", "restore", "files", name).status == 0
    assert files_of(daemon.volume("web-01-seed"), "-R")["user-data"] == OLD_SECRET


def test_removed_together(admin, server):
    daemon = admin
    finished(daemon, server)
    done = daemon.lvp("volume", "remove", "files", "web-01", "--yes")
    assert "removed volume web-01 and its cloud-init seed web-01-seed from files" in done.out
    assert volume_files(daemon) == set()


def test_seed_that_was_left_is_removed(admin, server):
    """The service died between the two removals: the same request finishes."""
    daemon = admin
    finished(daemon, server)
    daemon.volume("web-01").unlink()
    answer = daemon.call("DELETE", "/api/v1/volumes/files/web-01")
    assert answer.json() == {"status": "removed", "target": "files", "name": "web-01", "seed": "web-01-seed"}
    assert daemon.call("DELETE", "/api/v1/volumes/files/web-01").status_code == 404


def test_open_seed_keeps_both(daemon, server):
    """A seed in use refuses the job before anything is done, and the volume's removal keeps the seed."""
    finished(daemon, server, OLD_SECRET)
    before = daemon.volume("web-01").stat().st_ino
    with daemon.volume("web-01-seed").open("rb"):
        job = daemon.job_ended(submit(daemon, server))
        assert job["status"] == "failed"
        assert "web-01-seed is in use" in job["error"]
    assert daemon.volume("web-01").stat().st_ino == before
    assert files_of(daemon.volume("web-01-seed"), "-R")["user-data"] == OLD_SECRET


@pytest.mark.parametrize("foreign", [True, False])
def test_name_of_the_seed_is_taken(daemon, server, foreign):
    """A volume that is no seed is never replaced by one, and a seed never by an ordinary volume."""
    if foreign:
        daemon.volume("web-01-seed").write_bytes(b"somebody's")
    else:
        finished(daemon, server, None, name="web-01-seed")
    before = first_bytes(daemon.volume("web-01-seed"), 10)
    job = daemon.job_ended(submit(daemon, server))
    assert "another volume has it" in job["error"]
    assert first_bytes(daemon.volume("web-01-seed"), 10) == before
    assert not daemon.volume("web-01").exists()
    finished(daemon, server, name="web-02")
    job = daemon.job_ended(submit(daemon, server, None, name="web-02-seed"))
    assert "is the cloud-init seed of web-02" in job["error"]


def test_both_names_are_reserved(daemon, server):
    server.held = {"sparse.raw": 1}
    submit(daemon, server)
    assert server.holding.wait(60)
    body = {"image_url": server.of("full.raw"), "volume_name": "web-01-seed", "volume_size_gb": 1, "image_type": "raw"}
    assert daemon.call("POST", "/api/v1/jobs", body).status_code == 409
    server.let_go.set()


def test_invalid_data(daemon, server):
    for data, words in (
        ({}, "cloud_init: user_data is required"),
        ({"user_data": 1}, "cloud_init.user_data must be text, not a whole number"),
        ({"user_data": ""}, "cloud_init.user_data must not be empty"),
        ({"user_data": "x", "vendor": SECRET}, "cloud_init: unknown field 'vendor'"),
        (SECRET, "cloud_init must be an object, not text"),
    ):
        body = {"image_url": server.of("sparse.raw"), "volume_name": "web-01", "cloud_init": data}
        answer = daemon.call("POST", "/api/v1/jobs", body)
        assert answer.status_code == 400
        assert words in answer.json()["message"]
        assert SECRET not in answer.text


def test_size_limits(make_daemon, server):
    """The request's limit comes first; with a larger one, the data's own."""
    body = {"image_url": server.of("sparse.raw"), "volume_name": "web-01", "image_type": "raw", "volume_size_gb": 1}
    large, too_large = {"user_data": "x" * 2**20}, {"user_data": "x" * 2**20, "meta_data": "y"}
    daemon = make_daemon().start()
    assert daemon.call("POST", "/api/v1/jobs", {**body, "cloud_init": large}).status_code == 413
    daemon.stop()
    daemon.config["server"]["max_body"] = "2MiB"
    daemon.start()
    answer = daemon.call("POST", "/api/v1/jobs", {**body, "cloud_init": too_large})
    assert (answer.status_code, answer.json()["message"]) == (400, "cloud_init must be at most 1 MiB in total")
    job_id = daemon.call("POST", "/api/v1/jobs", {**body, "cloud_init": large}).json()["job_id"]
    assert daemon.job_ended(job_id)["status"] == "completed"
    assert len(files_of(daemon.volume("web-01-seed"), "-R")["user-data"]) == 2**20


def test_command_line(daemon, server, tmp_path):
    user, network, binary = tmp_path / "user", tmp_path / "network", tmp_path / "binary"
    user.write_text(USER)
    network.write_text(NETWORK)
    binary.write_bytes(b"\x1f\x8b\xff")
    url = (server.of("sparse.raw"), "web-01", 1, "--type", "raw")
    done = daemon.lvp("job", "submit", *url, "--network-config", network)
    assert (done.status, "need --user-data" in done.err) == (2, True)
    done = daemon.lvp("job", "submit", *url, "--user-data", binary)
    assert (done.status, "is not UTF-8 text" in done.err) == (2, True)
    done = daemon.lvp("job", "submit", *url, "--user-data", user, "--network-config", network, "--dry-run")
    assert "seed:     web-01-seed" in done.out
    assert done.status == 0, done.err
    done = daemon.lvp("job", "submit", *url, "--user-data", user, "--network-config", network, "--wait")
    assert done.status == 0, done.err
    assert files_of(daemon.volume("web-01-seed"), "-R")["network-config"] == NETWORK


def test_idempotency_key_covers_the_data(daemon, server):
    """The same key with other data is a conflict, also after the job's end."""
    keys = {"X-API-Token": daemon.token, "Idempotency-Key": "k"}

    def post(user):
        body = {"image_url": server.of("sparse.raw"), "volume_name": "web-01", "volume_size_gb": 1,
                "image_type": "raw", "cloud_init": {"user_data": user}}  # fmt: skip
        return httpx.post(f"{daemon.url}/api/v1/jobs", json=body, headers=keys, trust_env=False)

    job_id = post(USER).json()["job_id"]
    assert daemon.job_ended(job_id)["status"] == "completed"
    assert post(USER).json()["job_id"] == job_id
    assert post(OLD_SECRET).status_code == 409
