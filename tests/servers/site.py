"""Answers of a site with several files, for ``raw_server``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.servers.raw import Answer, Request, holds, says

if TYPE_CHECKING:
    from collections.abc import Mapping

    import trio

NOT_FOUND = says("404 Not Found\nContent-Length: 9", b"not found")


def site(files: Mapping[str, bytes | str | Answer], missing: Answer = NOT_FOUND) -> Answer:
    """Return an answer that serves ``files`` by path; everything else is ``missing``. The mapping may change."""

    async def answer(request: Request, stream: trio.abc.Stream) -> None:
        found = files.get(request.target.partition("?")[0], missing)
        if isinstance(found, str):
            found = found.encode()
        await (holds(found) if isinstance(found, bytes) else found)(request, stream)

    return answer
