"""Refreshes storage pools after a volume is created, so that ``virsh vol-list`` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_guard_libvirt.virsh import Virsh
from provisioner.contracts import Observer
from provisioner.contracts.errors import ProvisionerError, TargetUnavailableError

if TYPE_CHECKING:
    from lvp_guard_libvirt.settings import PoolSettings
    from provisioner.contracts import BackEndContext, JobEvent


class PoolRefresher(Observer):
    """Refreshes every configured pool, because an event does not name the pool of its volume."""

    def __init__(self, settings: PoolSettings, _context: BackEndContext) -> None:
        self._virsh = Virsh(settings)
        self._pools = settings.pools

    async def job_changed(self, event: JobEvent) -> None:
        if event.status != "completed" or event.volume_name is None:
            return
        failures = []
        for pool in self._pools:
            try:
                await self._virsh.run_readwrite("pool-refresh", f"--pool={pool}")
            except ProvisionerError as error:
                failures.append(f"{pool}: {error.message}")
        if failures:
            raise TargetUnavailableError(f"storage pools were not refreshed: {'; '.join(failures)}")
