# SPDX-License-Identifier: MIT
"""What the module ``volume`` decides: whether a volume is the wanted one, and how the difference is shown."""

from __future__ import annotations

from .api import ApiError

GIB = 1024**3
# A target may round a size up, LVM to its extents.
_ROUNDING = GIB


class RefusedError(Exception):
    """A job that would be refused, with the server's reasons or the module's own."""

    def __init__(self, plan, message=None):
        self.plan = plan
        self.message = message or "; ".join(one.get("message") or one.get("msg", "") for one in plan["refusals"])
        super().__init__(self.message)

    def as_result(self):
        """Return the error as fields of a module's result."""
        refusals = self.plan["refusals"]
        error = refusals[0].get("error", "refused") if refusals else "refused"
        return {"msg": self.message, "error": error, "plan": self.plan}


def default_target(api):
    """Return the name of the server's default target. Raises ApiError."""
    for target in api.get("targets")["targets"]:
        if target["default"]:
            return target["name"]
    raise ApiError("the server has no default target; set target", error="invalid option")


def find(api, target, name):
    """Return the volume as the server lists it, or None. Raises ApiError."""
    for volume in api.listed("volumes", "volumes"):
        if volume["target"] == target and volume["name"] == name:
            return volume
    return None


def job_request(params):
    """Return the body of the request for the job."""
    body = {"volume_name": params["name"], "volume_size_gb": params["size_gb"]}
    for name in ("image", "image_url", "image_type", "target", "checksum", "priority", "correlation_id"):
        body[name] = params[name]
    if params["cloud_init"]:
        body["cloud_init"] = {key: value for key, value in params["cloud_init"].items() if value is not None}
    return {key: value for key, value in body.items() if value is not None}


def makes(job, params):
    """Return whether a job makes the volume that ``params`` describe. A named image is not compared."""
    asked = job.get("request") or {}
    if params["size_gb"] != asked.get("volume_size_gb") or bool(params["cloud_init"]) != bool(asked.get("cloud_init")):
        return False
    if params["image_url"] is None:
        return True
    return asked.get("image_url", "").partition("?")[0] == params["image_url"].partition("?")[0]


def differences(found, plan, params):
    """Return in what a volume is not the wanted one: ``image``, ``size``, ``cloud-init seed``."""
    differ = []
    if not _has_image(found, plan, params["checksum"]):
        differ.append("image")
    if params["size_gb"] is not None and not 0 <= found["size_bytes"] - params["size_gb"] * GIB < _ROUNDING:
        differ.append("size")
    if params["cloud_init"] and not found.get("seed"):
        differ.append("cloud-init seed")
    return differ


def _has_image(found, plan, checksum):
    """Return whether the volume has the image, by its SHA-256 if both are known, else by the url."""
    wanted = (checksum or plan.get("checksum") or "").lower()
    wanted = wanted[len("sha256:") :] if wanted.startswith("sha256:") else wanted
    if len(wanted) == 64 and found.get("checksum"):
        return found["checksum"] == wanted
    return found["image_url"] == plan["image_url"]


def shown(volume):
    """Return a volume for a diff."""
    if volume is None:
        return {}
    names = ("target", "name", "image_url", "checksum", "size_bytes", "seed")
    return {name: volume[name] for name in names if volume.get(name) is not None}


def would_be(plan, params):
    """Return the volume that a job would make, for a diff."""
    checksum = (plan.get("checksum") or params["checksum"] or "").lower()
    return shown(
        {
            "target": plan.get("target"),
            "name": params["name"],
            "image_url": plan["image_url"],
            "checksum": checksum[len("sha256:") :] if checksum.startswith("sha256:") else checksum or None,
            "size_bytes": plan.get("volume_size_bytes"),
            "seed": plan.get("seed_name"),
        }
    )
