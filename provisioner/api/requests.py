"""Request bodies and queries as ``api.yaml`` defines them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from provisioner.api.field_errors import describe
from provisioner.contracts import GIB, Checksum, ImageUrl
from provisioner.contracts.errors import InvalidRequestError
from provisioner.jobs import JobFilter, JobSpec, Status
from provisioner.pipeline.cloud_init import CloudInit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from werkzeug.datastructures import MultiDict

    from provisioner.cache import Entry

S = TypeVar("S", bound=msgspec.Struct)

Url = Annotated[str, Meta(min_length=1, max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Format = Annotated[str, Meta(min_length=1, max_length=64)]
Digest = Annotated[str, Meta(max_length=255)]
IdPrefix = Annotated[
    str, Meta(pattern="^[0-9A-Fa-f-]{8,36}$", description="the first 8 to 36 characters of a job's id")
]
DigestPrefix = Annotated[
    str,
    Meta(
        pattern="^(sha256:)?[0-9A-Fa-f]{8,64}$",
        description="the first 8 to 64 digits of a SHA-256, with or without sha256:",
    ),
]
# Of an uploaded image: parts of a path, so that limits of callers can cover a folder.
UploadName = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$",
        max_length=200,
        description="letters, digits, '.', '_' and '-', in parts separated by '/'",
    ),
]
DEFAULT_FORMAT = "qcow2"
# The most GiB whose size in bytes fits an int64.
Gibibytes = Annotated[int, Meta(ge=1, le=2**33 - 1)]


class FetchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /cache/fetch. Exactly one of ``image_url`` and ``image``, a name, says which image is meant."""

    image_url: Url | msgspec.UnsetType = msgspec.UNSET
    image: Name | msgspec.UnsetType = msgspec.UNSET
    image_type: Format | msgspec.UnsetType = msgspec.UNSET
    checksum: Digest | msgspec.UnsetType = msgspec.UNSET

    def asked(self) -> dict[str, str | int]:
        """Return the fields for readers of the job."""
        fields: dict[str, str | int] = msgspec.to_builtins(self)
        return fields

    def spec(self) -> JobSpec:
        """Return the job for the supervisor; ``image`` must have been resolved. Raises InvalidRequestError."""
        return JobSpec(
            image_url=ImageUrl.parse(self.image_url or ""),
            image_format=self.image_type or DEFAULT_FORMAT,
            checksum=Checksum.parse(self.checksum) if self.checksum else None,
        )


class JobRequest(FetchRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /jobs."""

    volume_name: Name
    # Absent: the smallest that fits the image.
    volume_size_gb: Gibibytes | msgspec.UnsetType = msgspec.UNSET
    correlation_id: Name | msgspec.UnsetType = msgspec.UNSET
    target: Name | msgspec.UnsetType = msgspec.UNSET
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    cloud_init: CloudInit | msgspec.UnsetType = msgspec.UNSET

    def asked(self) -> dict[str, str | int]:
        """Return the fields for readers of the job: without the cloud-init data, which may hold secrets."""
        fields: dict[str, str | int] = msgspec.to_builtins(msgspec.structs.replace(self, cloud_init=msgspec.UNSET))
        return fields

    def spec(self) -> JobSpec:
        """Return the job for the supervisor. Raises InvalidRequestError."""
        if self.cloud_init:
            self.cloud_init.check()
        return msgspec.structs.replace(
            super().spec(),
            volume_name=self.volume_name,
            size_bytes=(self.volume_size_gb or 0) * GIB,
            target=self.target or None,
            correlation_id=self.correlation_id or None,
            priority=self.priority,
            cloud_init=self.cloud_init.seal() if self.cloud_init else None,
        )


class ResizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /volumes/{target}/{name}/resize."""

    volume_size_gb: Gibibytes
    online: bool = False


class RestoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /volumes/{target}/{name}/restore."""

    kept_as: Name | msgspec.UnsetType = msgspec.UNSET


class KeptQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Query of DELETE /volumes/{target}/{name}/replaced."""

    kept_as: Name | msgspec.UnsetType = msgspec.UNSET


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Query of a paginated list."""

    offset: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class SubmitQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Query of POST /jobs."""

    dry_run: Literal["true", "false"] = "false"


class JobPage(Page, frozen=True, kw_only=True):
    """Query of GET /jobs."""

    # Not None: msgspec reads "null" in a query as None, but "null" is a valid volume name.
    status: Status | msgspec.UnsetType = msgspec.UNSET
    volume_name: Name | msgspec.UnsetType = msgspec.UNSET
    correlation_id: Name | msgspec.UnsetType = msgspec.UNSET
    id_prefix: IdPrefix | msgspec.UnsetType = msgspec.UNSET

    def wanted(self) -> JobFilter:
        """Return the filter for the job store."""
        return JobFilter(
            status=self.status or None,
            volume_name=self.volume_name or None,
            correlation_id=self.correlation_id or None,
            id_prefix=self.id_prefix.lower() if self.id_prefix else None,
        )


class UploadStateQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Query of GET /cache/images/{checksum}/upload."""

    # Absent: the size is not checked.
    size: Annotated[int, Meta(ge=1, le=2**63 - 1)] | msgspec.UnsetType = msgspec.UNSET
    name: UploadName | msgspec.UnsetType = msgspec.UNSET


class UploadQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Query of PUT /cache/images."""

    checksum: Digest
    name: UploadName | msgspec.UnsetType = msgspec.UNSET
    image_type: Format | msgspec.UnsetType = msgspec.UNSET
    pinned: Literal["true", "false"] = "true"


class ImagePage(Page, frozen=True, kw_only=True):
    """Query of GET /cache/images."""

    checksum_prefix: DigestPrefix | msgspec.UnsetType = msgspec.UNSET

    def wanted(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries that the query asks for."""
        if not self.checksum_prefix:
            return entries
        digits = self.checksum_prefix.lower().removeprefix("sha256:")
        return [entry for entry in entries if entry.sha256.startswith(digits)]


def read_body(body: bytes, kind: type[S]) -> S:
    """Decode a JSON body as ``kind``. An optional field that is null or empty counts as absent.

    Raises InvalidRequestError naming the wrong field and its valid values.
    """
    try:
        fields = msgspec.json.decode(body)
        if isinstance(fields, dict):
            fields = _without_blanks(fields, kind)
        return msgspec.convert(fields, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(describe(str(error), kind)) from error


def read_query(query: MultiDict[str, str], kind: type[S]) -> S:
    """Convert query parameters, whose names ``check_query`` has checked, to ``kind``. Raises InvalidRequestError."""
    try:
        return msgspec.convert(query.to_dict(), kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(describe(str(error), kind)) from error


def check_query(query: MultiDict[str, str], kind: type[msgspec.Struct] | None) -> None:
    """Raise InvalidRequestError for a query parameter that ``kind`` does not have, or that is repeated.

    ``kind`` None: no parameter is known.
    """
    known = kind.__struct_fields__ if kind else ()
    for name, values in query.lists():
        if name not in known:
            allowed = f"allowed: {', '.join(known)}" if known else "there are none here"
            raise InvalidRequestError(f"unknown query parameter {name!r}; {allowed}")
        if len(values) > 1:
            raise InvalidRequestError(f"query parameter {name!r} is given more than once")


def _without_blanks(fields: Mapping[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the fields without optional ones that are null or empty."""
    optional = {field.name for field in msgspec.structs.fields(kind) if not field.required}
    return {name: value for name, value in fields.items() if name not in optional or value not in (None, "")}
