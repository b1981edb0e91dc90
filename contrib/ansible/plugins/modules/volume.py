#!/usr/bin/python
# SPDX-License-Identifier: MIT

from __future__ import annotations

DOCUMENTATION = r"""
module: volume
short_description: Volumes with disk images on a libvirt/KVM host
version_added: 0.1.0
description:
  - Makes a volume with a disk image by a job of libvirt-volume-provisioner, grows it, or removes it.
  - A volume that already has the image and the size is left alone. The image is compared by its SHA-256 if one is
    known, from O(checksum) or from the publisher, else by its url.
author: The libvirt-volume-provisioner developers (@libvirt-volume-provisioner)
extends_documentation_fragment: lvp.provisioner.connection
attributes:
  check_mode:
    description: Asks the server what the job would do. A refused job fails in check mode too.
    support: full
  diff_mode:
    description: Shows the image, the size and the seed of the volume.
    support: full
options:
  name:
    description: Name of the volume.
    type: str
    required: true
  target:
    description: Block target of the volume. If not set, the server's default target.
    type: str
  state:
    description: Whether the volume exists. With V(absent) its data is lost, and that of its cloud-init seed.
    type: str
    choices: [present, absent]
    default: present
  image:
    description: Name of an image, as C(lvp image list) shows it. Exactly one of this and O(image_url) is required.
    type: str
  image_url:
    description: Url of the image. It must belong to a source of the server.
    type: str
  image_type:
    description:
      - Format of the image, such as V(qcow2) or V(raw). If not set, that of the named image, C(qcow2) for a url.
    type: str
  checksum:
    description: Expected digest of the image, C(sha256:HEX) or C(sha512:HEX).
    type: str
  size_gb:
    description:
      - Size in GiB. If not set, the smallest that fits the image, and the size of a volume that exists is not compared.
      - A smaller volume with the right image grows. A volume never shrinks.
    type: int
  online:
    description: Whether a volume in use may grow. Only LVM targets can do so.
    type: bool
    default: false
  replace:
    description:
      - Whether a volume that has another image, is too large, or was not made by the server, is replaced. Its data is
        lost, unless the target keeps replaced volumes. The target's own setting C(replace) must allow it too.
      - If V(false), such a volume is an error.
    type: bool
    default: false
  keep_existing:
    description: Leave any volume of that name as it is, whatever image and size it has, and ask no publisher.
    type: bool
    default: false
  cloud_init:
    description:
      - Data for cloud-init. It is put on a second volume, O(name) with C(-seed) behind it.
      - Used only when the volume is made. The server keeps no data to compare, so a change of it is not noticed; a
        volume without a seed is.
    type: dict
    suboptions:
      user_data:
        description: The file C(user-data).
        type: str
        required: true
      meta_data:
        description: The file C(meta-data).
        type: str
      network_config:
        description: The file C(network-config).
        type: str
  priority:
    description: Queued jobs with a higher priority run first.
    type: int
  correlation_id:
    description: Your own id for the job, in its logs and events.
    type: str
  wait:
    description: Whether to wait for the end of the job. Without it, a job that fails later is not an error.
    type: bool
    default: true
  timeout:
    description: Seconds to wait. The job goes on after that, and the next run waits for it.
    type: int
    default: 3600
notes:
  - If a job for the same volume, image and size is active, the module waits for it and submits no second one.
  - While it waits, the server may be away for five minutes, such as during an update.
seealso:
  - module: lvp.provisioner.image
  - module: lvp.provisioner.volume_info
"""

EXAMPLES = r"""
- name: A volume with the newest Debian 12
  lvp.provisioner.volume:
    name: web-01
    image: debian-12
    size_gb: 20
    keep_existing: true
    cloud_init:
      user_data: "{{ lookup('template', 'user-data.yml') }}"

- name: From a url, over mutual TLS
  lvp.provisioner.volume:
    url: https://kvm-7.example.org:8080
    ca: /etc/ssl/lvp/ca.pem
    cert: /etc/ssl/lvp/ansible.pem
    key: /etc/ssl/lvp/ansible.key
    name: db-01
    target: fast
    image_url: https://images.example.org/db.qcow2
    checksum: sha256:b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c
    size_gb: 100

- name: Remove it
  lvp.provisioner.volume:
    name: web-01
    state: absent
"""

RETURN = r"""
volume:
  description: The volume as the server lists it, with its path, size and image. Absent in check mode and without it.
  returned: when the volume exists
  type: dict
  sample:
    name: web-01
    target: files
    path: /var/lib/libvirt/images/web-01.raw
    size_bytes: 21474836480
job:
  description: The job that made the volume; on failure its last known state, with the reason in C(error).
  returned: when there is a job
  type: dict
plan:
  description: What the job would do, as C(POST /api/v1/plan) returns it.
  returned: in check mode, when a volume would be made
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
from ansible_collections.lvp.provisioner.plugins.module_utils.volumes import (
    GIB,
    RefusedError,
    default_target,
    differences,
    find,
    job_request,
    makes,
    shown,
    would_be,
)


def ensure_present(module, api):
    """Make the volume, grow it, or leave it alone. Return the module's result."""
    params = module.params
    target = params["target"] or default_target(api)
    deadline = jobs.Deadline(params["timeout"])
    found = find(api, target, params["name"])
    if found is not None and params["keep_existing"]:
        return {"changed": False, "volume": found}
    job = jobs.active(api, params["name"], target, lambda: default_target(api))
    if job is not None and makes(job, params):
        return _follow(module, api, target, found, job["job_id"], deadline)
    plan = _plan(api, params, found)
    changes = [] if found is None else differences(found, plan, params)
    if found is not None and not changes:
        return {"changed": False, "volume": found}
    if changes == ["size"] and params["size_gb"] * GIB > found["size_bytes"]:
        return _grow(module, api, target, found)
    if not params["replace"]:
        _refuse_to_replace(params["name"], plan, found, changes)
    if plan["refusals"]:
        raise RefusedError(plan)
    diff = {"before": shown(found), "after": would_be(plan, params)}
    if module.check_mode:
        return {"changed": True, "diff": diff, "plan": plan}
    job_id = jobs.submit(api, ["jobs"], job_request(params), deadline)
    return dict(_finish(module, api, target, job_id, deadline), diff=diff)


def _plan(api, params, found):
    """Return the plan of the job. If the image cannot be asked for, a volume that exists is compared by its url."""
    try:
        return api.post("plan", body=job_request(params))
    except ApiError as error:
        if found is None or not params["image_url"] or error.status not in (422, 502, 503):
            raise
        return {"image_url": params["image_url"].partition("?")[0], "refusals": [error.as_result()]}


def _refuse_to_replace(name, plan, found, changes):
    if found is not None:
        what = " and ".join(changes)
        raise RefusedError(plan, "the volume %s exists with another %s; set replace, or keep_existing" % (name, what))
    if plan.get("replaces"):
        words = "a volume %s exists that the server did not make; set replace, or adopt it with lvp volume adopt"
        raise RefusedError(plan, words % name)


def _grow(module, api, target, found):
    params = module.params
    size = params["size_gb"] * GIB
    diff = {"before": shown(found), "after": shown(dict(found, size_bytes=size))}
    if not module.check_mode:
        body = {"volume_size_gb": params["size_gb"], "online": params["online"]}
        api.post("volumes", target, found["name"], "resize", body=body, limit=params["timeout"])
        found = find(api, target, found["name"])
    return {"changed": True, "diff": diff, "volume": found}


def _follow(module, api, target, found, job_id, deadline):
    """Wait for a job that an earlier run has submitted."""
    diff = {"before": shown(found), "after": "volume of job %s\n" % job_id}
    if module.check_mode:
        return {"changed": True, "diff": diff}
    return dict(_finish(module, api, target, job_id, deadline), diff=diff)


def _finish(module, api, target, job_id, deadline):
    if not module.params["wait"]:
        return {"changed": True, "job": api.get("jobs", job_id)}
    job = jobs.wait(api, job_id, deadline)
    return {"changed": True, "job": job, "volume": find(api, target, module.params["name"])}


def ensure_absent(module, api):
    """Remove the volume. Return the module's result."""
    params = module.params
    target = params["target"] or default_target(api)
    job = jobs.active(api, params["name"], target, lambda: default_target(api))
    if job is not None:
        raise ApiError("job %s works on the volume; wait for its end or cancel it" % job["job_id"], 409, "conflict")
    found = find(api, target, params["name"])
    if found is None:
        return {"changed": False}
    diff = {"before": shown(found), "after": shown(None)}
    if not module.check_mode:
        try:
            api.delete("volumes", target, params["name"], limit=params["timeout"])
        except ApiError as error:
            if error.status != 404:  # another one has removed it meanwhile
                raise
    return {"changed": True, "diff": diff}


def main():
    """Run the module."""
    cloud_init = {
        "user_data": {"type": "str", "required": True, "no_log": True},
        "meta_data": {"type": "str", "no_log": True},
        "network_config": {"type": "str", "no_log": True},
    }
    options = {
        "name": {"type": "str", "required": True},
        "target": {"type": "str"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "image": {"type": "str"},
        "image_url": {"type": "str"},
        "image_type": {"type": "str"},
        "checksum": {"type": "str"},
        "size_gb": {"type": "int"},
        "online": {"type": "bool", "default": False},
        "replace": {"type": "bool", "default": False},
        "keep_existing": {"type": "bool", "default": False},
        "cloud_init": {"type": "dict", "options": cloud_init},
        "priority": {"type": "int"},
        "correlation_id": {"type": "str"},
        "wait": {"type": "bool", "default": True},
        "timeout": {"type": "int", "default": 3600},
    }
    module = AnsibleModule(
        argument_spec=dict(connection_options(), **options),
        mutually_exclusive=[*CONNECTION_EXCLUSIVE, ("image", "image_url"), ("replace", "keep_existing")],
        required_if=[("state", "present", ("image", "image_url"), True)],
        required_by=CONNECTION_NEEDS,
        supports_check_mode=True,
    )
    try:
        ensure = ensure_present if module.params["state"] == "present" else ensure_absent
        result = ensure(module, Api(module.params))
    except (ApiError, RefusedError, jobs.JobError) as error:
        module.fail_json(**error.as_result())
    for warning in (result.get("job") or {}).get("warnings") or ():
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
