"""The part of the target that finishes or undoes what was left: carries out what ``recovery_decisions`` decides."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from lvp_target_rbd import recovery_decisions
from lvp_target_rbd.kept import KeepingPool
from provisioner.contracts.errors import ProvisionerError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lvp_target_rbd.export import Exports
    from lvp_target_rbd.staging import Staging

# Seconds between two looks whether a client has closed an image.
LOOK_AGAIN = 1.0
# Seconds. The watch of an export that was killed ends after 30 s.
OWN_WATCH = 40.0


class RecoveringPool(KeepingPool):
    """A pool with the unfinished work of this installation, and of others."""

    _exports: Exports
    _live: set[str]

    async def recover(self, live_jobs: frozenset[str]) -> Sequence[str]:
        return await self._recover(live_jobs, await self._claim())

    async def take_over(self) -> Sequence[str]:
        await self._claim()
        return await self._recover(frozenset(), None)

    async def _recover(self, live_jobs: frozenset[str], owner: str | None) -> Sequence[str]:
        me = await self._claim()
        images = await self._client.inventory()
        live = self._live | {
            image.working.token for image in images.values() if image.working and image.tags.get("job") in live_jobs
        }
        dead = {
            token: noted
            for token, noted in (await trio.to_thread.run_sync(self._exports.work)).items()
            if token not in live
        }
        for token in dead:
            await trio.to_thread.run_sync(self._exports.end, token)
        found = recovery_decisions.candidates([(me, token) for token in dead], images, owner, live)
        for noted in dead.values():
            for name, image_id in noted.items():
                found.setdefault(name, set()).add(image_id)
        forgotten = await self._forget(found)
        for token in dead:
            await trio.to_thread.run_sync(self._exports.settle, token)
        images = await self._client.inventory()
        decisions = recovery_decisions.decide(
            images, lambda job, token: job not in live_jobs and token not in self._live, owner, time.time()
        )
        return [*forgotten, *[await self._recovered(decision) for decision in decisions]]

    async def _forget(self, candidates: Mapping[str, Collection[str]]) -> list[str]:
        """Forget those names that half a rename left; return a sentence for each."""
        found = await self._client.call("unlisted", names=sorted(candidates)) if candidates else []
        left = [(name, image_id) for name, image_id in found if image_id in candidates[name] or not candidates[name]]
        for name, image_id in left:
            await self._client.change("forget", name=name, image_id=image_id)
        return [f"removed the name {name}, which half a rename left" for name, _ in left]

    async def _recovered(self, decision: recovery_decisions.Decision) -> str:
        try:
            await self._carry_out(decision)
        except ProvisionerError as error:
            return f"failed: {decision.sentence}: {error.message}"
        return decision.sentence

    async def _carry_out(self, decision: recovery_decisions.Decision) -> None:
        for step in decision.steps:
            deadline = trio.current_time() + OWN_WATCH
            while True:
                try:
                    await self._client.change(step.call, **step.arguments)
                    break
                except VolumeInUseError:
                    if trio.current_time() >= deadline:
                        raise
                await trio.sleep(LOOK_AGAIN)

    async def _clean_up(self, staging: Staging) -> None:
        """Finish or roll back one staging, as recovery would after a power cut."""
        token, owner = staging.token, staging.owner
        ids = {staging.id, *(() if staging.old is None else (staging.old.id,))} - {""}
        concerned = recovery_decisions.candidates([(owner, token)], {}, owner)
        concerned |= {staging.request.name: ids or {"none"}, **{name: {one} for name, one in staging.noted.items()}}
        await self._forget(concerned)
        images = await self._client.look(*concerned)
        for decision in recovery_decisions.decide(images, lambda _, one: one == token, owner, time.time()):
            await self._carry_out(decision)
