"""Reads a pool of Ceph: names and ids, what is known about an image, the space. A part of ``image_calls.py``."""

from __future__ import annotations

import errno
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import rados
import rbd

if TYPE_CHECKING:
    from collections.abc import Iterator

TAGS, ASIDE = "lvp", "lvp.aside"
# Opening an image takes a few round trips; a pool has hundreds.
_OPENERS = 16
KINDS = {
    errno.ENOENT: "missing", errno.EEXIST: "exists", errno.EBUSY: "busy", errno.ENOTEMPTY: "busy",
    errno.EPERM: "denied", errno.EACCES: "denied", errno.ENOSPC: "full", errno.EDQUOT: "full",
    errno.ETIMEDOUT: "timeout",
}  # fmt: skip


class CallError(Exception):
    """The call cannot be done; ``kind`` says why, as in the answer."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def failure_of(error: Exception) -> dict[str, str]:
    """Return what a script prints about an error: its kind, and the message."""
    if isinstance(error, CallError):
        return {"error": error.kind, "message": str(error)}
    return {"error": KINDS.get(abs(getattr(error, "errno", 0) or 0), "other"), "message": str(error)}


@contextmanager
def connected(request: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the cluster, and the I/O context of the request's pool and namespace."""
    cluster = _cluster(request)
    try:
        try:
            io = cluster.open_ioctx(request["pool"])
        except rados.ObjectNotFound:
            raise CallError("unavailable", f"the pool {request['pool']} does not exist") from None
        with io:
            io.set_namespace(request["namespace"])
            io.set_osdmap_full_try()  # on a full cluster, removing works and a write fails; otherwise both wait
            yield cluster, io
    finally:
        cluster.shutdown()


def _cluster(request: dict[str, Any]) -> Any:
    options = {**request["options"], "rbd_default_clone_format": "2"}
    if request["keyring"]:
        options["keyring"] = request["keyring"]
    try:
        cluster = rados.Rados(conffile=request["conf"], rados_id=request["user"], conf=options)
        cluster.connect()
    except rados.Error as error:
        kind = KINDS.get(abs(getattr(error, "errno", 0) or 0), "other")
        if kind == "missing" or getattr(error, "errno", 0) == errno.EIO:  # no key, or one that cannot be read
            raise CallError("denied", str(error)) from None
        raise CallError(kind if kind in {"denied", "timeout"} else "unavailable", str(error)) from None
    return cluster


# --- names and ids ---


def id_of(io: Any, name: str) -> str | None:
    """Return the id of the image that ``name`` leads to, or None. After half a rename two names lead to one image."""
    try:
        found: bytes = io.read("rbd_id." + name)
    except rados.ObjectNotFound:
        return None
    return found[4:].decode()


def listed_name(io: Any, image_id: str) -> str | None:
    """Return the one name under which the pool's directory lists the image, or None."""
    key = "id_" + image_id
    with rados.ReadOpCtx() as operation:
        values, _ = io.get_omap_vals_by_keys(operation, (key,))
        try:
            io.operate_read_op(operation, "rbd_directory")
        except rados.ObjectNotFound:  # nothing was ever created here
            return None
        found = dict(values)
    if key not in found:
        return None
    length = struct.unpack_from("<I", found[key])[0]
    name: str = found[key][4 : 4 + length].decode()
    return name


def verify(io: Any, name: str, image_id: str) -> None:
    """Raise CallError unless the name leads to that image, and the directory lists it so."""
    if id_of(io, name) != image_id or listed_name(io, image_id) != name:
        raise CallError("moved", f"{name} was removed or replaced meanwhile")


# --- looking ---


def clones_of(image: Any) -> int:
    """Return the number of the image's clones, also of removed snapshots, which stay until the last clone goes."""
    number = 0
    for snapshot in list(image.list_snaps()):
        image.set_snap_by_id(snapshot["id"])
        number += sum(1 for _ in image.list_children2())
        image.set_snap_by_id(None)
    return number


def snapshots_of(image: Any) -> list[str]:
    """Return the names of the image's snapshots, without removed ones."""
    removed = rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH
    return [snapshot["name"] for snapshot in image.list_snaps() if snapshot["namespace"] != removed]


def watchers(io: Any, image_id: str) -> list[str]:
    """Return the addresses of the clients that have the image open for writing; a look registers none."""
    with rbd.Image(io, image_id=image_id, read_only=True) as image:
        return sorted(one["addr"] for one in image.watchers_list())


def refuse_watched(io: Any, name: str, image_id: str) -> None:
    """Raise CallError if a client has the image open."""
    try:
        found = watchers(io, image_id)
    except rbd.ImageNotFound:
        return
    if found:
        raise CallError("busy", f"{name} is open on the client {', '.join(found)}")


def describe(io: Any, name: str) -> dict[str, Any] | None:
    """Return what is known about the image of that name; None if the directory does not list it."""
    image_id = id_of(io, name)
    if image_id is None or listed_name(io, image_id) != name:
        return None
    about: dict[str, Any] = {"name": name, "id": image_id}
    try:
        with rbd.Image(io, image_id=image_id, read_only=True) as image:
            about["size"] = image.size()
            about["tags"], about["aside"] = metadata(image, TAGS), metadata(image, ASIDE)
            about["watchers"] = sorted(one["addr"] for one in image.watchers_list())
            about["snapshots"], about["clones"] = snapshots_of(image), clones_of(image)
            if about["aside"] or name.startswith("lvp.base."):
                about["used"] = _used(image)
    except rbd.ImageNotFound:  # created or removed half-way
        about["broken"] = True
    return about


def metadata(image: Any, key: str) -> str:
    """Return a value of an image's metadata; empty if it has none."""
    try:
        value: str = image.metadata_get(key)
    except KeyError:
        return ""
    return value


def _used(image: Any) -> int:
    used = 0

    def add(_start: int, length: int, exists: bool) -> None:
        nonlocal used
        used += length if exists else 0

    image.diff_iterate(0, image.size(), None, add, include_parent=False, whole_object=True)
    return used


def look(io: Any, names: list[str]) -> list[Any]:
    """Return what is known about the named images; None for those that do not exist."""
    return [describe(io, name) for name in names]


def inventory(io: Any) -> list[Any]:
    """Return what is known about every image."""
    names = rbd.RBD().list(io)
    with ThreadPoolExecutor(_OPENERS) as pool:
        return [found for found in pool.map(lambda name: describe(io, name), names) if found is not None]


def unlisted(io: Any, names: list[str]) -> list[list[str]]:
    """Return those names, each with its id, that lead to an image although the directory does not list it so."""
    found = ((name, id_of(io, name)) for name in names)
    return [[name, image_id] for name, image_id in found if image_id and listed_name(io, image_id) != name]


def _check_data_pool(cluster: Any, pool: str, namespace: str) -> None:
    """Raise CallError unless images may have their data in the pool; rados.Error if the key does not open it."""
    try:
        data = cluster.open_ioctx(pool)
    except rados.ObjectNotFound:
        raise CallError("unavailable", f"the data pool {pool} does not exist") from None
    with data:
        # What Ceph records, without a namespace, once it has seen that parts of objects can be overwritten.
        try:
            ready = data.read("rbd_info") == b"overwrite validated"
        except rados.ObjectNotFound:
            ready = False
        if not ready:
            raise CallError(
                "unavailable",
                f"the data pool {pool} is not ready for images: 'rbd pool init {pool}' makes it so, and "
                f"'ceph osd pool set {pool} allow_ec_overwrites true' before, if it is erasure-coded",
            )
        data.set_namespace(namespace)
        with suppress(rados.ObjectNotFound):
            data.stat("rbd_directory")


def space(cluster: Any, io: Any, pool: str) -> dict[str, Any]:
    """Return the space of a pool, and its flags. Reads from it, so that a pool that hangs is noticed.

    ``pool`` is the pool of ``io``, or the pool for data, which has to be ready for it.
    """
    if pool != io.get_pool_name():
        _check_data_pool(cluster, pool, io.get_namespace())
    with suppress(rados.ObjectNotFound):
        io.stat("rbd_directory")
    status, answer, text = cluster.mon_command(json.dumps({"prefix": "df", "detail": "detail", "format": "json"}), b"")
    if status:
        raise CallError(KINDS.get(-status, "other"), f"the monitors do not report the space: {text}")
    for one in json.loads(answer)["pools"]:
        if one["name"] == pool:
            figures: dict[str, Any] = one["stats"]
            return figures
    raise CallError("missing", f"the pool {pool} does not exist")
