"""The routes for kept volumes: list them, restore or remove one, and adopt a volume that this service did not make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Response, g, request

from provisioner.api import requests, responses
from provisioner.api.volume_listing import Listing
from provisioner.auth import authorization
from provisioner.contracts import KeepingTarget, Owner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart import Blueprint

    from provisioner.api.services import Services
    from provisioner.contracts import KeptVolume


def add_kept_volumes(
    api: Blueprint, services: Services, answer: Callable[[object], Response], body: Callable[..., Awaitable[Any]]
) -> None:
    """Add the routes. ``answer`` makes a response, ``body`` reads the request's."""
    targets = services.back_ends.targets.items()
    calls = {name: target.kept for name, target in targets if isinstance(target, KeepingTarget)}
    listing: Listing[KeptVolume] = Listing(services, calls, lambda one: (one.target, one.volume, one.replaced_at))

    @api.get("/volumes/replaced", provide_automatic_options=False)
    async def list_replaced_volumes() -> Response:
        page = requests.read_query(request.args, requests.Page)
        kept, unavailable = await listing.all()
        shown = [kept_body(one) for one in kept[page.offset : page.offset + page.limit]]
        about = {"count": len(kept), "offset": page.offset, "limit": page.limit}
        return answer({"replaced": shown, **about, **({"unavailable": unavailable} if unavailable else {})})

    @api.post("/volumes/<target>/<name>/restore", provide_automatic_options=False)
    async def restore_volume(target: str, name: str) -> Response:
        g.about = {"target": target, "volume": name}
        authorization.check_volume(g.principal, target, name)
        wanted = await body(requests.RestoreRequest) if await request.get_data() else requests.RestoreRequest()
        kept_as, volume = await services.supervisor.kept.restore(target, name, wanted.kept_as or None)
        replaced = volume.replaced
        if replaced is not None:
            g.about |= {"replaced": replaced.owner, "kept_as": replaced.kept_as or ""}
        done = {
            "status": "restored",
            "target": target,
            "name": name,
            "ours": volume.owner is Owner.OURS,
            "restored_from": kept_as,
        }
        return answer(done if replaced is None else {**done, "replaced": responses.replaced_body(replaced)})

    @api.delete("/volumes/<target>/<name>/replaced", provide_automatic_options=False)
    async def remove_replaced_volume(target: str, name: str) -> Response:
        g.about = {"target": target, "volume": name}
        authorization.check_volume(g.principal, target, name)
        wanted = requests.read_query(request.args, requests.KeptQuery)
        kept = await services.supervisor.kept.remove(target, name, wanted.kept_as or None)
        g.about |= {"kept_as": kept.kept_as}
        return answer({"status": "removed", "target": target, "name": name, "kept_as": kept.kept_as})

    @api.post("/volumes/<target>/<name>/adopt", provide_automatic_options=False)
    async def adopt_volume(target: str, name: str) -> Response:
        g.about = {"target": target, "volume": name}
        authorization.check_volume(g.principal, target, name)
        await services.supervisor.kept.adopt(target, name)
        return answer({"status": "adopted", "target": target, "name": name})


def kept_body(kept: KeptVolume) -> dict[str, Any]:
    """Return a kept volume as clients see it."""
    body = {
        "name": kept.volume,
        "target": kept.target,
        "ours": kept.owner is Owner.OURS,
        "kept_as": kept.kept_as,
        "size_bytes": kept.size_bytes,
        "replaced_at": responses.timestamp(kept.replaced_at),
        "replaced_by": kept.job_id,
        "kept_until": responses.timestamp(kept.kept_until),
    }
    return {**body, "image_url": kept.provenance.image_url} if kept.provenance and kept.provenance.image_url else body
