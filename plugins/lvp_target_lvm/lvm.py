"""Runs the LVM tools: command lines, timeouts and retries.

A report may be cancelled and killed at any time. A change is shielded until it ends or times out, because a
killed ``lvcreate`` leaves half a volume; the caller then checks the outcome.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import trio

from lvp_target_lvm import report
from lvp_target_lvm.errors import Meaning, as_error, meaning_of
from lvp_target_lvm.rwlock import RWLock, lock_of
from provisioner.contracts import ShieldExpiredError, ToolResult, run_tool, shielded
from provisioner.contracts.errors import ProvisionerError, TargetError, TargetUnavailableError, ToolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from lvp_target_lvm.report import Inventory
    from lvp_target_lvm.settings import LvmSettings

# Override settings in the host's lvm.conf that would change the report format or make LVM wait for locks itself.
_PINS = (
    'log{prefix="" command_names=0 report_command_log=0 verbose=0 silent=0}'
    ' report{binary_values_as_numeric=0 list_item_separator="," mark_hidden_devices=1 two_word_unknown_device=0'
    " compact_output=0 headings=1 prefixes=0 quoted=1}"
)
_NO_WAIT = " global{wait_for_locks=0}"
# udev opens a device for some tenths of a second after each close. LVM itself retries for five seconds; a second try
# covers a busy host.
_BUSY_TRIES = 2
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 2.0
# Maximum age in seconds of a report that a job's lookups share. A report is about as old when the change that follows
# it runs, so whatever must hold then is read again or checked by LVM itself.
_FRESH = 1.0
# Longer than run_tool takes to terminate a tool and then kill it.
_KILL_TIME = 5.0


class Lvm:
    """The LVM tools for one volume group. ``calls`` counts the runs of each command."""

    def __init__(self, settings: LvmSettings) -> None:
        self.group = settings.volume_group
        self.calls: Counter[str] = Counter()
        self._settings = settings
        self._program = f"{settings.tool_path}/lvm" if settings.tool_path else "lvm"
        self._shared_lock: RWLock | None = None
        self._alone: trio.lowlevel.Task | None = None
        self._seen: tuple[float, int, Inventory] | None = None  # when, and after how many changes

    @property
    def _lock(self) -> RWLock:
        # Created on first use: targets may be created before trio runs.
        if self._shared_lock is None:
            self._shared_lock = lock_of((self._program, self.group))
        return self._shared_lock

    async def inventory(self) -> Inventory:
        """Return the volume group and its volumes, in one call (two if it holds no volume).

        Raises TargetUnavailableError if the group is missing or the report fails; a failed report never means
        that a volume does not exist.
        """
        changes = self._lock.changes
        fields = ",".join((*report.VOLUME_FIELDS, *report.GROUP_FIELDS))
        group, volumes = report.read(await self._report("lvs", fields))
        if group is None:
            group, _ = report.read(await self._report("vgs", ",".join(report.GROUP_FIELDS)))
        if group is None:
            raise TargetUnavailableError(f"volume group {self.group} does not exist")
        inventory = report.Inventory(group, volumes)
        self._seen = (trio.current_time(), changes, inventory)
        return inventory

    async def recent_inventory(self) -> Inventory:
        """Return the inventory; reuse one read less than a second ago unless this process changed the group since."""
        if self._seen is not None:
            at, changes, inventory = self._seen
            if changes == self._lock.changes and trio.current_time() - at < _FRESH:
                await trio.lowlevel.checkpoint()
                return inventory
        return await self.inventory()

    async def setting(self, key: str) -> str:
        """Return the value of an LVM setting of this host, such as ``devices/scan_lvs``, as lvm.conf writes it."""
        text = (await self._run("lvmconfig", "--typeconfig", "full", key)).stdout
        return text.partition("=")[2].strip().strip('"')

    async def version(self) -> str:
        """Return the version of the tools, for example ``2.03.16(2)``."""
        lines = (await self._run("version")).stdout.splitlines()
        return next((line.split(":", 1)[1].split()[0] for line in lines if "LVM version" in line), "unknown")

    async def extents_of(self, volume: str) -> list[str]:
        """Return the physical extents of a linear volume, as ``/dev/vdb:10-19``, in order."""
        return report.read_extents(await self._report("lvs", "lv_name,seg_pe_ranges"), volume)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Keep every other change of this process out until the block ends. Reports in the block would deadlock."""
        async with self._lock.write():
            self._alone = trio.lowlevel.current_task()
            try:
                yield
            finally:
                self._alone = None

    async def change(self, command: str, *words: str, config: str = "") -> None:
        """Run a command that changes metadata. It can be cancelled between two tries, not while a command runs.

        Retries while another program holds the lock (up to ``lock_patience``), and once if the device is busy.
        ``config`` overrides settings of lvm.conf. Raises the error that ``as_error`` derives from LVM's message.
        """
        argv = [self._program, command, "--yes", "--config", _PINS + _NO_WAIT + config, *words]
        delays, give_up_at = _delays(), trio.current_time() + self._settings.lock_patience
        busy = 0
        while True:
            is_alone = self._alone is trio.lowlevel.current_task()
            async with nullcontext() if is_alone else self._lock.write():
                result = await self._shielded(command, argv)
            if result.status == 0:
                return
            meaning = meaning_of(result.stderr)
            busy += meaning is Meaning.BUSY
            again = meaning is Meaning.LOCKED and trio.current_time() < give_up_at
            if not again and not (meaning is Meaning.BUSY and busy < _BUSY_TRIES):
                raise as_error(command, result.status, result.stderr)
            await trio.sleep(next(delays))

    async def _shielded(self, command: str, argv: list[str]) -> ToolResult:
        await trio.lowlevel.checkpoint()
        self.calls[command] += 1
        limit = self._settings.change_timeout
        try:
            with shielded(f"run {command}", limit + _KILL_TIME):
                return await run_tool(argv, timeout=limit, check=False)
        except ToolError as error:
            raise _unavailable(command, error) from error
        except ShieldExpiredError as error:
            raise TargetUnavailableError(f"{command} did not end within {limit:g} s and could not be killed") from error

    async def _report(self, command: str, fields: str) -> str:
        words = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, self.group)
        async with self._lock.read():
            return (await self._run(command, *words)).stdout

    async def _run(self, command: str, *words: str) -> ToolResult:
        self.calls[command] += 1
        argv = [self._program, command, "--config", _PINS, *words]
        try:
            result = await run_tool(argv, timeout=self._settings.report_timeout, check=False)
        except ToolError as error:
            raise _unavailable(command, error) from error
        if result.status:
            raise _as_unavailable(as_error(command, result.status, result.stderr))
        return result


def _as_unavailable(error: ProvisionerError) -> TargetError:
    # A failed report never means that a volume does not exist.
    return error if isinstance(error, TargetUnavailableError) else TargetUnavailableError(error.message)


def _unavailable(command: str, error: ToolError) -> TargetUnavailableError:
    return TargetUnavailableError(f"{command}: {error.message}")


def _delays() -> Iterator[float]:
    delay = _FIRST_DELAY
    while True:
        yield delay
        delay = min(delay * 2, _LONGEST_DELAY)
