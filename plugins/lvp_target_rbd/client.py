"""Calls the scripts that talk to Ceph, and translates their errors. Never loads a Ceph library into this process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvp_target_rbd.records import Image, images_of
from provisioner.contracts import run_tool, shielded
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    ProvisionerError,
    TargetError,
    TargetUnavailableError,
    ToolError,
    VolumeExistsError,
    VolumeInUseError,
)

if TYPE_CHECKING:
    from lvp_target_rbd.settings import RbdSettings

_CALLS = Path(__file__).with_name("image_calls.py")
LEASE_HOLDER = Path(__file__).with_name("lease_holder.py")
# A call makes some ten operations one after the other, but a cluster that hangs is noticed at the first.
_SLACK = 4.0
# Seconds for which a killed process may take to end.
_KILL_TIME = 40.0
# Seconds. Removing an image takes a while for each terabyte; if the cluster hangs, one of its operations times out.
LONG = 3600.0
_LONG_CALLS = {"remove", "discard", "retire"}
_ERRORS: dict[str, type[ProvisionerError]] = {
    "missing": NotFoundError,
    "exists": VolumeExistsError,
    "moved": VolumeExistsError,
    "busy": VolumeInUseError,
    "unavailable": TargetUnavailableError,
}


class Client:
    """A client of one pool and namespace."""

    def __init__(self, settings: RbdSettings) -> None:
        self._settings = settings

    async def look(self, *names: str) -> dict[str, Image]:
        """Return those of the named images that exist."""
        return images_of(await self.call("look", names=list(names)))

    async def inventory(self) -> dict[str, Image]:
        """Return every image."""
        return images_of(await self.call("inventory"))

    async def call(self, call: str, **arguments: object) -> Any:
        """Make a call of ``image_calls.py``; a cancel kills it.

        Raises the error that the answer means; TargetUnavailableError if the cluster does not answer.
        """
        settings = self._settings
        argv = [settings.python, "-I", str(_CALLS), self.request(call, arguments)]
        try:
            done = await run_tool(argv, name="the call to Ceph", timeout=self._patience(call))
            answer = json.loads(done.stdout)
        except ToolError as error:
            raise TargetUnavailableError(f"pool {settings.place}: {_why_no_answer(error)}") from error
        except ValueError as error:
            raise TargetError(f"pool {settings.place}: the answer to {call} cannot be read") from error
        if "error" in answer:
            raise self.error(answer)
        return answer["result"]

    async def change(self, call: str, **arguments: object) -> Any:
        """Make a call that must not be cut in the middle, although it could be repaired."""
        with shielded(f"finish the change of pool {self._settings.place}", self._patience(call) + _KILL_TIME):
            return await self.call(call, **arguments)

    def _patience(self, call: str) -> float:
        return LONG if call in _LONG_CALLS else self._settings.op_timeout * _SLACK

    def request(self, call: str, arguments: dict[str, object]) -> str:
        """Return the request of a script."""
        settings = self._settings
        seconds = str(int(settings.op_timeout))
        options = {"rados_osd_op_timeout": seconds, "rados_mon_op_timeout": seconds, "client_mount_timeout": seconds}
        request = {
            "conf": settings.conf,
            "keyring": settings.keyring_path(os.environ),
            "user": settings.user,
            "pool": settings.pool,
            "namespace": settings.namespace,
            "options": options,
            "call": call,
            "arguments": arguments,
        }
        return json.dumps(request)

    def error(self, answer: dict[str, str]) -> ProvisionerError:
        """Return the error that the answer of a script means."""
        kind, message = answer["error"], answer["message"]
        place = f"pool {self._settings.place}"
        if kind == "timeout":
            return TargetUnavailableError(
                f"{place} did not answer within {self._settings.op_timeout} ({message}); look at 'ceph status'"
            )
        if kind == "denied":
            return TargetUnavailableError(
                f"{place} refuses client.{self._settings.user} ({message}); check its key and its capabilities"
            )
        if kind == "full":
            return NoSpaceError(f"{place} is full ({message}); add disks or raise the quota, then remove volumes")
        return _ERRORS.get(kind, TargetError)(f"{place}: {message}")


def _why_no_answer(error: ToolError) -> str:
    if "No module named" in error.stderr:
        return f"{error.message}; install ceph-common, or set python to the distribution's Python"
    return error.message
