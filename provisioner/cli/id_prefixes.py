"""Ids of jobs and checksums of images on the command line: the first characters are enough if they are unique."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.connection import path
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.formatting import printable, size, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.cli.client import Client

# With a million jobs, one id in 4,000 shares its first 8 characters with another.
SHORTEST = 8
# Digits before each dash of an id.
_DASHES = (8, 12, 16, 20)
_ID_DIGITS = 32
# Candidates to show if a prefix is ambiguous.
_SHOWN = 10


class JobId(click.ParamType[str]):
    """A job's id or its first characters, in the API's form."""

    name = "id"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        del param
        text = str(value)
        digits = text.lower().replace("-", "")
        if not re.fullmatch(rf"[0-9a-f]{{1,{_ID_DIGITS}}}", digits):
            raise click.UsageError(f"ID is a job's id or its beginning; found {text!r}", ctx)
        if len(digits) < SHORTEST:
            raise click.UsageError(f"ID needs at least the first {SHORTEST} characters; found {text!r}", ctx)
        starts = (0, *(at for at in _DASHES if at < len(digits)))
        return "-".join(digits[start:stop] for start, stop in zip(starts, (*starts[1:], None), strict=True))


class ImageChecksum(click.ParamType[str]):
    """A checksum of a cached image, or the first digits of its SHA-256, in lower case."""

    name = "checksum"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        del param
        text = str(value)
        checksum = text.lower()
        digits = checksum.removeprefix("sha256:")
        if not re.fullmatch(r"sha512:[0-9a-f]{128}|[0-9a-f]{1,64}|[0-9a-f]{128}", digits):
            raise click.UsageError(f"CHECKSUM is a sha256 or sha512, or the beginning of a sha256; found {text!r}", ctx)
        if len(digits) < SHORTEST:
            raise click.UsageError(f"CHECKSUM needs at least the first {SHORTEST} digits; found {text!r}", ctx)
        return checksum


def whole_job_id(client: Client, given: str) -> str:
    """Return the id of the job that ``given`` names. Raises CliError if no job or several begin so."""
    if len(given) == _ID_DIGITS + len(_DASHES):
        return given
    jobs = client.get(path("jobs"), {"id_prefix": given, "limit": _SHOWN}).data
    # Checked here too: a server that ignores the filter must not decide which job is cancelled.
    found = [entry for entry in jobs["jobs"] if str(entry["job_id"]).startswith(given)]
    if len(found) == 1:
        return str(found[0]["job_id"])
    rows = [[job["job_id"], job["status"], _volume(job), job["created_at"]] for job in found]
    raise _not_one("job", given, ["JOB", "STATUS", "VOLUME", "CREATED"], rows, jobs["count"])


def whole_checksum(client: Client, given: str) -> str:
    """Return the checksum of the cached image that ``given`` names. Raises CliError if none or several begin so."""
    digits = given.removeprefix("sha256:")
    if len(digits) >= 64:
        return given
    images = client.get(path("cache", "images"), {"checksum_prefix": digits, "limit": _SHOWN}).data
    found = [image for image in images["images"] if image["checksum"].startswith(digits)]
    if len(found) == 1:
        return str(found[0]["checksum"])
    rows = [[image["checksum"], size(image["size"]), image.get("url") or image["path"]] for image in found]
    raise _not_one("cached image", given, ["CHECKSUM", "SIZE", "FROM"], rows, images["count"])


def _volume(job: Mapping[str, Any]) -> object:
    return job.get("volume_name") or (job.get("volume") or {}).get("name")


def _not_one(what: str, given: str, header: Sequence[str], rows: Sequence[Sequence[object]], count: int) -> CliError:
    if not rows:
        return CliError(f"no {what} begins with {given}", ExitStatus.REFUSED)
    more = f"\n({count - len(rows)} more)" if count > len(rows) else ""
    words = f"{printable(given)} is the beginning of several; give more of it:\n{table(header, rows)}{more}"
    return CliError(words, ExitStatus.REFUSED)
