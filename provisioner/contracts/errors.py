"""The one tree of errors. Owns their HTTP status, category and whether trying again helps; raises none.

Back ends translate what their libraries raise into these at their boundary, with ``from`` kept. The message
is one sentence a person can act on. It never shows the query of a url, which may be a signature: the base cuts it off.
"""

from __future__ import annotations

from typing import ClassVar

from provisioner.contracts.redaction import redact


class ProvisionerError(Exception):
    """Base of every error this service raises on purpose.

    ``code`` is the HTTP status the API answers with when the error reaches it, ``category`` the API's
    ``error`` field, ``temporary`` whether the same request may succeed later without any change.
    """

    code: ClassVar[int] = 500
    category: ClassVar[str] = "internal error"
    temporary: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        self.message = redact(message)
        super().__init__(self.message)


# --- requests ---------------------------------------------------------------------------------------


class InvalidRequestError(ProvisionerError):
    """The request can never succeed as it stands."""

    code = 400
    category = "invalid request"


class UnauthorizedError(ProvisionerError):
    """Nobody we know is calling."""

    code = 401
    category = "unauthorized"


class ForbiddenError(ProvisionerError):
    """The caller is known, but its role does not allow this."""

    code = 403
    category = "forbidden"


class NotFoundError(ProvisionerError):
    """What the request names does not exist."""

    code = 404
    category = "not found"


class JobNotFoundError(NotFoundError):
    """No job has that id."""

    category = "job not found"

    def __init__(self) -> None:
        super().__init__("job not found")


class CancelError(InvalidRequestError):
    """The job has ended; there is nothing to cancel."""

    category = "failed to cancel job"


class ConflictError(ProvisionerError):
    """The request contradicts what is going on or what is there."""

    code = 409
    category = "conflict"


class PayloadTooLargeError(ProvisionerError):
    """The request body is over the limit."""

    code = 413
    category = "payload too large"


class UnsupportedMediaTypeError(ProvisionerError):
    """The request body is not JSON."""

    code = 415
    category = "unsupported media type"


class TooManyRequestsError(ProvisionerError):
    """The queue is full, or the caller has had its share. ``retry_after``: seconds, where they are known."""

    code = 429
    category = "too many requests"
    temporary = True

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(ProvisionerError):
    """The service is stopping, or something it stands on does not answer."""

    code = 503
    category = "service unavailable"
    temporary = True


class ConfigError(ProvisionerError):
    """The configuration does not hold; the message has one line for each fault."""

    category = "invalid configuration"


class PluginError(ProvisionerError):
    """An installed plugin cannot be used."""

    category = "plugin error"


# --- images and where they come from ----------------------------------------------------------------


class SourceError(ProvisionerError):
    """The image's server would not give it."""

    code = 502
    category = "source error"


class UrlNotAllowedError(SourceError):
    """The url belongs to no configured source. Nothing was fetched."""

    code = 400
    category = "invalid request"


class RemoteNotFoundError(SourceError):
    """The server says there is no such image."""


class RemoteDeniedError(SourceError):
    """The server does not let us have the image."""


class RemoteUnavailableError(SourceError):
    """The server cannot be reached, answers with a passing error, or the transfer broke or stalled."""

    temporary = True


class RemoteChangedError(SourceError):
    """The image on the server is no longer the one the download began with."""

    temporary = True


class ImageError(ProvisionerError):
    """The image itself is at fault."""

    code = 422
    category = "image error"


class UnsafeImageError(ImageError):
    """The image refers to files outside itself or uses features that are not allowed."""


class ImageFormatError(ImageError):
    """The image is not of the format that was declared."""


class ImageTooLargeError(ImageError):
    """The image's virtual size does not fit the volume."""


class CorruptImageError(ImageError):
    """The image contradicts itself or ends too early."""


class ChecksumMismatchError(ImageError):
    """The image's digest is not the expected one."""


class ChecksumMissingError(ImageError):
    """No checksum is known for the image and the configuration demands one."""


class CacheError(ProvisionerError):
    """The image cache cannot do its work."""

    category = "cache error"


class CacheFullError(CacheError):
    """There is no room for the image, even after every evictable entry is gone."""

    code = 507
    temporary = True


class DamagedImageError(CacheError):
    """A cached image has other bytes than were verified. It is dropped, and fetched anew by the job that found it."""


# --- volumes ----------------------------------------------------------------------------------------


class TargetError(ProvisionerError):
    """The block target cannot do its work."""

    category = "target error"


class VolumeNameError(TargetError):
    """The target cannot have a volume of that name."""

    code = 400
    category = "invalid request"


class VolumeExistsError(TargetError):
    """A volume is there and may not be replaced (by config, type or size)."""

    code = 409
    category = "conflict"


class VolumeInUseError(TargetError):
    """The volume is open; it is not touched."""

    code = 409
    category = "conflict"


class NoSpaceError(TargetError):
    """The target has no room for the volume."""

    code = 507
    temporary = True


class TargetUnavailableError(TargetError):
    """The target does not answer (volume group missing, lock held, tool not there)."""

    code = 503
    temporary = True


class ConvertError(ProvisionerError):
    """Writing the image onto the volume failed."""

    category = "conversion error"


class ToolError(ProvisionerError):
    """A child process failed. ``status`` is its exit status (negative: the signal), ``stderr`` its last words."""

    category = "tool error"

    def __init__(self, message: str, *, tool: str = "", status: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.tool = tool
        self.status = status
        self.stderr = stderr


class RollbackError(ProvisionerError):
    """An undo step failed or ran out of time; it is tried again at the next start."""

    category = "rollback error"
