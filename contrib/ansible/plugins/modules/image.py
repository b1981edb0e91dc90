#!/usr/bin/python
# SPDX-License-Identifier: MIT

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Cached disk images of a libvirt/KVM host
version_added: 0.1.0
description:
  - Downloads a disk image into the cache of libvirt-volume-provisioner, so that volumes need no download; pins it so
    that it is never evicted; or removes it from the cache.
author: The libvirt-volume-provisioner developers (@libvirt-volume-provisioner)
extends_documentation_fragment: lvp.provisioner.connection
attributes:
  check_mode:
    description:
      - An image that is cached from the same url counts as present. Only the download finds out whether the publisher
        has a newer one at this url.
    support: full
  diff_mode:
    description: Shows which image is cached, and whether it is pinned.
    support: full
options:
  image:
    description: Name of an image, as C(lvp image list) shows it.
    type: str
  image_url:
    description: Url of the image. It must belong to a source of the server.
    type: str
  checksum:
    description:
      - Digest of the image, C(sha256:HEX) or C(sha512:HEX). With a SHA-256 the image is not asked for if it is cached.
      - With O(state=absent), a SHA-256 names the image to remove.
    type: str
  image_type:
    description: Format of the image. If not set, that of the named image, C(qcow2) for a url.
    type: str
  state:
    description: Whether the image is cached. V(absent) removes every cached image of the url or digest.
    type: str
    choices: [present, absent]
    default: present
  pinned:
    description: Whether the image is protected from eviction. If not set, that is left as it is.
    type: bool
  wait:
    description: Whether to wait for the download. Without it, O(pinned) can be set only for an image that is cached.
    type: bool
    default: true
  timeout:
    description: Seconds to wait. The download goes on after that.
    type: int
    default: 3600
seealso:
  - module: lvp.provisioner.volume
"""

EXAMPLES = r"""
- name: Have the newest Debian 12 in the cache before the maintenance window
  lvp.provisioner.image:
    image: debian-12
    pinned: true

- name: Remove an image
  lvp.provisioner.image:
    image_url: https://images.example.org/old.qcow2
    state: absent
"""

RETURN = r"""
image:
  description: The image as C(GET /api/v1/cache/images) lists it.
  returned: when the image is cached
  type: dict
job:
  description: The job that looked for the image; on failure its last known state.
  returned: when there is a job
  type: dict
error:
  description: Category of the error, that of the API, or V(job failed), V(job cancelled), V(timeout), V(unreachable).
  returned: on failure
  type: str
status_code:
  description: HTTP status of the error response; 0 if there was none.
  returned: when a request failed
  type: int
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lvp.provisioner.plugins.module_utils import jobs
from ansible_collections.lvp.provisioner.plugins.module_utils.api import (
    CONNECTION_EXCLUSIVE,
    CONNECTION_NEEDS,
    Api,
    ApiError,
    connection_options,
)

_NAMES = ("image", "image_url", "checksum", "image_type")


def ensure_present(module, api):
    """Cache the image and pin it as asked. Return the module's result."""
    params = module.params
    wanted = _wanted(api, params)
    entries = _cached(api, **wanted)
    sure = wanted["checksum"] is not None and entries
    if sure or (module.check_mode and entries):
        return _pin(module, api, {"changed": False, "image": entries[0]}, before=entries[0])
    if module.check_mode:
        after = {"url": wanted["url"], "pinned": bool(params["pinned"])}
        return {"changed": True, "diff": {"before": {}, "after": after}}
    deadline = jobs.Deadline(params["timeout"])
    body = {name: params[name] for name in _NAMES if params[name] is not None}
    job_id = jobs.submit(api, ["cache", "fetch"], body, deadline)
    if not params["wait"]:
        return {"changed": True, "job": api.get("jobs", job_id)}
    job = jobs.wait(api, job_id, deadline)
    image = next((one for one in api.listed("images", "cache", "images") if one["path"] == job["image_path"]), None)
    if image is None:
        raise ApiError("the image was evicted from the cache at once; it needs more room", error="evicted")
    changed = not job.get("cache_hit")
    result = {"changed": changed, "image": image, "job": job}
    return _pin(module, api, result, before=image if not changed else None)


def _wanted(api, params):
    """Return the url and the SHA-256 of the image, each None if unknown."""
    url, checksum = params["image_url"], params["checksum"]
    if params["image"]:
        found = api.get("images", params["image"])
        url, checksum = found["image_url"], checksum or found.get("checksum")
    checksum = (checksum or "").lower()
    checksum = checksum[len("sha256:") :] if checksum.startswith("sha256:") else checksum
    return {"url": url.partition("?")[0] if url else None, "checksum": checksum if len(checksum) == 64 else None}


def _cached(api, url, checksum):
    """Return the cached images of a digest if there is one, else of the url."""
    if checksum is not None:
        return list(api.listed("images", "cache", "images", checksum_prefix=checksum))
    return [one for one in api.listed("images", "cache", "images") if url is not None and one.get("url") == url]


def _pin(module, api, result, before):
    """Pin or unpin the image of a result; return the result with the difference."""
    image, pinned = result["image"], module.params["pinned"]
    if pinned is not None and bool(image.get("pinned")) != pinned:
        result = dict(result, changed=True, image=dict(image, pinned=pinned))
        if not module.check_mode:
            (api.put if pinned else api.delete)("cache", "images", image["checksum"], "pin")
    if result["changed"]:
        result["diff"] = {"before": _shown(before), "after": _shown(result["image"])}
    return result


def _shown(image):
    names = ("url", "checksum", "size", "pinned")
    return {name: image[name] for name in names if name in image} if image else {}


def ensure_absent(module, api):
    """Remove the image. Return the module's result."""
    wanted = _wanted(api, module.params)
    if not any(wanted.values()):
        raise ApiError("only a SHA-256 names the image to remove; give that or image_url", error="invalid option")
    entries = _cached(api, **wanted)
    if not entries:
        return {"changed": False}
    if not module.check_mode:
        for entry in entries:
            _remove(api, entry)
    return {"changed": True, "diff": {"before": [_shown(entry) for entry in entries], "after": []}}


def _remove(api, entry):
    try:
        api.delete("cache", "images", entry["checksum"])
    except ApiError as error:
        if error.status != 404:  # evicted meanwhile
            raise


def main():
    """Run the module."""
    options = {
        "image": {"type": "str"},
        "image_url": {"type": "str"},
        "checksum": {"type": "str"},
        "image_type": {"type": "str"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "pinned": {"type": "bool"},
        "wait": {"type": "bool", "default": True},
        "timeout": {"type": "int", "default": 3600},
    }
    module = AnsibleModule(
        argument_spec=dict(connection_options(), **options),
        mutually_exclusive=[*CONNECTION_EXCLUSIVE, ("image", "image_url")],
        required_if=[
            ("state", "present", ("image", "image_url"), True),
            ("state", "absent", ("image", "image_url", "checksum"), True),
        ],
        required_by=CONNECTION_NEEDS,
        supports_check_mode=True,
    )
    try:
        ensure = ensure_present if module.params["state"] == "present" else ensure_absent
        result = ensure(module, Api(module.params))
    except (ApiError, jobs.JobError) as error:
        module.fail_json(**error.as_result())
    for warning in (result.get("job") or {}).get("warnings") or ():
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
