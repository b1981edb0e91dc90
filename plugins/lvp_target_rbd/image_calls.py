"""A script: makes one call to the images of a pool, and prints the result as JSON.

It runs under the distribution's Python, whose Ceph packages install the modules ``rados`` and ``rbd``; the service may
run under another one. A process of its own can be killed when the cluster hangs, and does not share a client's identity
with another. Knows names, ids, metadata and watchers; what they mean is decided by its caller.

``image_calls.py REQUEST``, a JSON object with ``conf``, ``keyring``, ``user``, ``pool``, ``namespace``, ``data_pool``,
``options`` (of Ceph), ``call`` and ``arguments``. Prints ``{"result": ...}``, or ``{"error": KIND, "message": TEXT}``.

Two facts about Ceph decide how it is written. A rename reports success to the loser of a race, so only the id under the
new name is believed. A rename that was interrupted leaves two names for one image, and removing either would remove the
image, so nothing is removed unless the pool's directory lists it under that very name.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import rados
import rbd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lvp_target_rbd.pool_reads import (
        ASIDE,
        TAGS,
        CallError,
        clones_of,
        connected,
        failure_of,
        id_of,
        inventory,
        listed_name,
        look,
        metadata,
        refuse_watched,
        snapshots_of,
        space,
        unlisted,
        verify,
    )  # fmt: skip
else:
    sys.path.append(__file__.rpartition("/")[0])
    from pool_reads import (
        ASIDE,
        TAGS,
        CallError,
        clones_of,
        connected,
        failure_of,
        id_of,
        inventory,
        listed_name,
        look,
        metadata,
        refuse_watched,
        snapshots_of,
        space,
        unlisted,
        verify,
    )  # fmt: skip

SNAPSHOT = "image"
_FEATURES = (
    rbd.RBD_FEATURE_LAYERING
    | rbd.RBD_FEATURE_EXCLUSIVE_LOCK
    | rbd.RBD_FEATURE_OBJECT_MAP
    | rbd.RBD_FEATURE_FAST_DIFF
    | rbd.RBD_FEATURE_DEEP_FLATTEN
)
# Seconds. A lease on a name is held for one call; longer than any of them takes on a healthy cluster.
_LEASE, _LEASE_WAIT, _LEASE_POLL = 30, 40, 0.05
_MAY_RENEW = 1


def rename(io: Any, source: str, name: str, image_id: str) -> None:
    """Rename an image. Raises CallError if it does not have the new name afterwards."""
    verify(io, source, image_id)
    with suppress(rbd.ImageExists):
        rbd.RBD().rename(io, source, name)
    if listed_name(io, image_id) != name or id_of(io, name) != image_id:
        raise CallError("exists", f"the name {name} was taken meanwhile")


def remove(io: Any, name: str, image_id: str) -> None:
    """Remove an image, and its own snapshot if it is a base. Raises CallError if it has watchers, clones, snapshots."""
    verify(io, name, image_id)
    refuse_watched(io, name, image_id)
    try:
        with rbd.Image(io, image_id=image_id) as image:
            _drop_snapshot(image, name)
    except rbd.ImageNotFound:
        pass  # created half-way; there is nothing but its name
    rbd.RBD().remove(io, name)


def _drop_snapshot(image: Any, name: str) -> None:
    names = snapshots_of(image)
    if clones := clones_of(image):
        # Ceph would let go of the snapshot: it does not refuse that for clones of format 2.
        raise CallError("busy", f"{name} has {clones} clones")
    own = str(json.loads(metadata(image, TAGS) or "{}").get("name", "")).startswith("lvp.base.")
    if names and not (own and names == [SNAPSHOT]):
        raise CallError("busy", f"{name} has snapshots ({', '.join(names)})")
    if names:
        if image.is_protected_snap(SNAPSHOT):
            image.unprotect_snap(SNAPSHOT)
        image.remove_snap(SNAPSHOT)


def forget(io: Any, name: str, image_id: str) -> None:
    """Remove a name that half a rename left, never the image."""
    if id_of(io, name) == image_id and listed_name(io, image_id) != name:
        io.remove_object("rbd_id." + name)


def create(io: Any, name: str, size: int, tags: str, data_pool: str) -> dict[str, Any]:
    """Create an image, with its tags; return its id and size."""
    _prepare_removal(io)
    try:
        rbd.RBD().create(io, name, size, old_format=False, features=_FEATURES, data_pool=data_pool or None)
    except rbd.OperationNotSupported as error:
        pool = io.get_pool_name()
        text = f"{error}; if {pool} is erasure-coded, set it as data_pool, and pool to a replicated one"
        raise CallError("unavailable", text) from None
    with rbd.Image(io, name) as image:
        image.metadata_set(TAGS, tags)
        return {"id": image.id(), "size": image.size()}


def _prepare_removal(io: Any) -> None:
    """Create the list through which librbd removes images, because on a full cluster it cannot be created."""
    with rados.WriteOpCtx() as operation:
        operation.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
        io.operate_write_op(operation, "rbd_trash")


def clone(io: Any, base: str, name: str, size: int, tags: str, data_pool: str) -> dict[str, Any]:
    """Clone a base, with tags of its own, and extend the clone to ``size`` bytes; return its id and size."""
    base_id = id_of(io, base)
    if base_id is None or listed_name(io, base_id) != base:
        raise CallError("missing", f"the base {base} does not exist")
    rbd.RBD().clone(io, base, SNAPSHOT, io, name, features=_FEATURES, data_pool=data_pool or None)
    with rbd.Image(io, name) as image:
        image.metadata_set(TAGS, tags)  # a clone begins with its parent's
        if size > image.size():
            image.resize(size)
        return {"id": image.id(), "size": image.size()}


def tag(io: Any, name: str, image_id: str, tags: str) -> None:
    """Replace the tags of an image."""
    verify(io, name, image_id)
    with rbd.Image(io, image_id=image_id) as image:
        image.metadata_set(TAGS, tags)


def resize(io: Any, name: str, image_id: str, size: int, online: bool) -> None:
    """Grow an image; unless ``online``, refuse it if a client has it open."""
    verify(io, name, image_id)
    if not online:
        refuse_watched(io, name, image_id)
    with rbd.Image(io, image_id=image_id) as image:
        if size > image.size():
            image.resize(size)


def publish_base(io: Any, name: str, image_id: str, base: str, tags: str) -> None:
    """Take the snapshot that clones need, then give the base its name: a base that is found can be cloned."""
    verify(io, name, image_id)
    refuse_watched(io, name, image_id)
    with rbd.Image(io, image_id=image_id) as image:
        image.metadata_set(TAGS, tags)
        if SNAPSHOT not in snapshots_of(image):
            image.create_snap(SNAPSHOT)
        if not image.is_protected_snap(SNAPSHOT):
            image.protect_snap(SNAPSHOT)
    rename(io, name, base, image_id)


def publish(io: Any, staged: str, staged_id: str, name: str, tags: str, old: dict[str, str] | None) -> None:
    """Give a staged image its name.

    ``old`` is the image that has it now: its ``id``, the name ``to`` give it, ``aside``, the note for it, and
    ``keep_as``, its name at the end, or an empty one.

    Raises CallError with everything as it was, except if another client takes the name in the middle: then ``old``
    stays under its new name.
    """
    verify(io, staged, staged_id)
    refuse_watched(io, staged, staged_id)
    with rbd.Image(io, image_id=staged_id) as image:
        if tags and image.metadata_get(TAGS) != tags:
            image.metadata_set(TAGS, tags)
    with leased(io, name):
        if old is not None:
            set_aside(io, name, old["id"], old["to"], old["aside"])
        try:
            rename(io, staged, name, staged_id)
        except CallError:
            if old is not None:
                with suppress(CallError):
                    put_back(io, old["to"], old["id"], name)
            raise
    if old is not None and old["keep_as"]:
        rename(io, old["to"], old["keep_as"], old["id"])
    if not tags:
        _clear_note(io, staged_id)


def set_aside(io: Any, name: str, image_id: str, to: str, aside: str) -> None:
    """Rename an image that no client has open. One that opens it in between is seen after the rename.

    An empty ``aside`` leaves the note that it has.
    """
    verify(io, name, image_id)
    refuse_watched(io, name, image_id)
    if aside:
        note(io, name, image_id, aside)
    rename(io, name, to, image_id)
    try:
        refuse_watched(io, name, image_id)
    except CallError:
        rename(io, to, name, image_id)
        if aside:
            _clear_note(io, image_id)
        raise


def put_back(io: Any, aside: str, image_id: str, name: str) -> None:
    """Give an image that was set aside its name again."""
    rename(io, aside, name, image_id)
    _clear_note(io, image_id)


def _clear_note(io: Any, image_id: str) -> None:
    with rbd.Image(io, image_id=image_id) as image, suppress(KeyError):
        image.metadata_remove(ASIDE)


def note(io: Any, name: str, image_id: str, aside: str) -> None:
    """Replace the note of an image that was set aside."""
    verify(io, name, image_id)
    with rbd.Image(io, image_id=image_id) as image:
        image.metadata_set(ASIDE, aside)


def discard(io: Any, name: str, image_id: str, to: str, aside: str) -> None:
    """Remove an image: first its name, so that no client can open it while its data goes. ``aside`` as above."""
    with leased(io, name):
        set_aside(io, name, image_id, to, aside)
    try:
        remove(io, to, image_id)
    except CallError:  # it has snapshots by now
        rename(io, to, name, image_id)
        if aside:
            _clear_note(io, image_id)
        raise


def retire(io: Any, base: str, base_id: str, to: str) -> None:
    """Remove a base: first its name, so that it cannot be cloned, then the rest unless it has clones by then."""
    verify(io, base, base_id)
    rename(io, base, to, base_id)
    try:
        remove(io, to, base_id)
    except CallError:
        with rbd.Image(io, image_id=base_id, read_only=True) as image:
            whole = SNAPSHOT in snapshots_of(image)
        if whole:
            rename(io, to, base, base_id)
        raise


@contextmanager
def leased(io: Any, name: str) -> Iterator[None]:
    """Keep other hosts from giving or taking the name meanwhile. The cluster's clock ends a dead client's lease.

    Nothing depends on the lease: a client that was frozen past its end is stopped by the ids.
    """
    key, cookie = "lvp.lease.name." + name, str(time.monotonic_ns())
    deadline = time.monotonic() + _LEASE_WAIT
    while True:
        try:
            io.lock_exclusive(key, "lvp", cookie, "", _LEASE, 0)
            break
        except (rados.ObjectBusy, rados.ObjectExists):
            if time.monotonic() > deadline:
                raise CallError("busy", f"another host is changing {name}") from None
            time.sleep(_LEASE_POLL)
    try:
        yield
    finally:
        release(io, key, cookie)


def release(io: Any, key: str, cookie: str) -> None:
    """Give up a lease and remove its object, if the lease is still ours."""
    with suppress(rados.Error):
        io.lock_exclusive(key, "lvp", cookie, "", _LEASE, _MAY_RENEW)
        io.remove_object(key)


CALLS: dict[str, Callable[..., Any]] = {
    one.__name__: one
    for one in (
        look, inventory, unlisted, forget, create, clone, tag, resize, publish_base, publish, discard, retire,
        set_aside, put_back, note, rename, remove,
    )
}  # fmt: skip


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request."""
    try:
        with connected(request) as (cluster, io):
            arguments = request["arguments"]
            if request["call"] == "space":
                return {"result": space(cluster, io, **arguments)}
            if request["call"] == "survey":
                found = {"space": space(cluster, io, arguments["pool"]), "images": look(io, arguments["names"])}
                return {"result": found}
            return {"result": CALLS[request["call"]](io, **arguments)}
    except (CallError, rados.Error, rbd.Error) as error:
        return failure_of(error)


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))
