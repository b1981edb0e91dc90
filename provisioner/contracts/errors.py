"""The error hierarchy: the HTTP status and category of each error, and whether a retry may help.

Back ends translate the exceptions of their libraries into these at their boundary, with ``raise ... from``. The message
is one sentence that tells the user what to do. The base class removes query strings of urls, which may be signatures.
"""

from __future__ import annotations

from typing import ClassVar

from provisioner.contracts.redaction import redact


class ProvisionerError(Exception):
    """Base of every error that this service raises deliberately.

    ``code`` is the HTTP status of the API's response, ``category`` the response's ``error`` field, ``reason`` the
    heading in docs/troubleshooting.md. ``temporary`` says whether the same request may succeed later.
    """

    code: ClassVar[int] = 500
    category: ClassVar[str] = "internal error"
    reason: ClassVar[str] = "internal-error"
    temporary: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        self.message = redact(message)
        super().__init__(self.message)


# --- requests ---------------------------------------------------------------------------------------


class InvalidRequestError(ProvisionerError):
    """The request is invalid; a retry cannot succeed."""

    code = 400
    category = "invalid request"
    reason = "invalid-request"


class UnauthorizedError(ProvisionerError):
    """The caller is not authenticated."""

    code = 401
    category = "unauthorized"
    reason = "unauthorized"


class ForbiddenError(ProvisionerError):
    """The caller's role does not permit the request."""

    code = 403
    category = "forbidden"
    reason = "forbidden"


class NotFoundError(ProvisionerError):
    """The requested object does not exist."""

    code = 404
    category = "not found"
    reason = "not-found"


class JobNotFoundError(NotFoundError):
    """No job has the requested id."""

    category = "job not found"
    reason = "job-not-found"

    def __init__(self) -> None:
        super().__init__("job not found")


class CancelError(InvalidRequestError):
    """The job has ended and cannot be cancelled."""

    category = "failed to cancel job"
    reason = "job-ended"


class BodyTimeoutError(ProvisionerError):
    """The client sends the request's body too slowly."""

    code = 408
    category = "request timeout"
    reason = "request-timeout"


class LengthRequiredError(ProvisionerError):
    """The request does not say how long its body is."""

    code = 411
    category = "length required"
    reason = "length-required"


class ConflictError(ProvisionerError):
    """The request conflicts with a running job or an existing object."""

    code = 409
    category = "conflict"
    reason = "conflict"


class PayloadTooLargeError(ProvisionerError):
    """The request body is over the limit."""

    code = 413
    category = "payload too large"
    reason = "payload-too-large"


class UnsupportedMediaTypeError(ProvisionerError):
    """The request body is not JSON."""

    code = 415
    category = "unsupported media type"
    reason = "unsupported-media-type"


class TooManyRequestsError(ProvisionerError):
    """The queue is full, or the caller exceeded its limit. ``retry_after`` is in seconds, None if unknown."""

    code = 429
    category = "too many requests"
    reason = "too-many-requests"
    temporary = True

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(ProvisionerError):
    """The service is stopping, or a component it depends on is unavailable."""

    code = 503
    category = "service unavailable"
    reason = "service-unavailable"
    temporary = True


class ConfigError(ProvisionerError):
    """The configuration is invalid; the message has one line per error."""

    category = "invalid configuration"
    reason = "invalid-configuration"


class PluginError(ProvisionerError):
    """An installed plugin cannot be used."""

    category = "plugin error"
    reason = "plugin-error"


# --- images and sources -----------------------------------------------------------------------------


class SourceError(ProvisionerError):
    """The image could not be fetched from its server."""

    code = 502
    category = "source error"
    reason = "source-error"


class UrlNotAllowedError(SourceError):
    """No configured source covers the url. Nothing was fetched."""

    code = 400
    category = "invalid request"
    reason = "url-not-allowed"


class RemoteNotFoundError(SourceError):
    """The image does not exist on the server."""

    reason = "image-not-found"


class RemoteDeniedError(SourceError):
    """The server denies access to the image."""

    reason = "image-denied"


class RemoteUnavailableError(SourceError):
    """The server is unreachable or returned a temporary error, or the transfer broke or stalled.

    ``retry_after`` is the number of seconds after which the server asks to try again, None if it does not say.
    """

    reason = "source-unavailable"
    temporary = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RemoteChangedError(SourceError):
    """The image changed on the server since the download began."""

    reason = "image-changed"
    temporary = True


class ImageError(ProvisionerError):
    """The image itself is unusable."""

    code = 422
    category = "image error"
    reason = "image-error"


class UnsafeImageError(ImageError):
    """The image references external files or uses features that are not allowed."""

    reason = "unsafe-image"


class ImageFormatError(ImageError):
    """The image does not have the declared format."""

    reason = "wrong-format"


class ImageTooLargeError(ImageError):
    """The image's virtual size exceeds the volume."""

    reason = "image-too-large"


class CorruptImageError(ImageError):
    """The image is inconsistent or truncated."""

    reason = "corrupt-image"


class ChecksumMismatchError(ImageError):
    """The image's digest differs from the expected one."""

    reason = "checksum-mismatch"


class MixedDownloadError(ChecksumMismatchError):
    """The digest differs, but the image may be cut or put together from several ones: a fresh download may be right."""


class EncodedDownloadError(ChecksumMismatchError):
    """The digest differs, and the server labelled the transfer as compressed: decoded, it may be right."""


class ChecksumMissingError(ImageError):
    """The configuration requires a checksum, and none is known for the image."""

    reason = "checksum-missing"


class SignatureError(ImageError):
    """A signature is demanded, and the image has none, or one that does not count."""

    reason = "signature-refused"


class CacheError(ProvisionerError):
    """The image cache failed."""

    category = "cache error"
    reason = "cache-error"


class CacheFullError(CacheError):
    """The image does not fit into the cache, even after evicting every unused entry."""

    reason = "cache-full"
    code = 507
    temporary = True


class DamagedImageError(CacheError):
    """A cached image differs from what was verified. It is dropped, and the job that found it fetches it again."""

    reason = "damaged-image"


# --- volumes ----------------------------------------------------------------------------------------


class TargetError(ProvisionerError):
    """The block target failed."""

    category = "target error"
    reason = "target-error"


class VolumeNameError(TargetError):
    """The volume name is invalid on this target."""

    code = 400
    category = "invalid request"
    reason = "invalid-volume-name"


class VolumeExistsError(TargetError):
    """The volume exists, and its configuration, type or size does not permit replacing it."""

    code = 409
    category = "conflict"
    reason = "volume-exists"


class VolumeInUseError(TargetError):
    """The volume is open and was left unchanged."""

    code = 409
    category = "conflict"
    reason = "volume-in-use"


class ResizeError(TargetError):
    """The volume cannot be resized as requested: it would shrink, or the target or its settings do not permit it."""

    code = 409
    category = "conflict"
    reason = "resize-refused"


class NoSpaceError(TargetError):
    """The target does not have enough free space for the volume."""

    reason = "no-space"
    code = 507
    temporary = True


class TargetUnavailableError(TargetError):
    """The target is unavailable (missing volume group, held lock, missing tool)."""

    reason = "target-unavailable"
    code = 503
    temporary = True


class BaseGoneError(TargetUnavailableError):
    """The base to clone was removed, or cannot be cloned any more. The caller copies the image instead."""


class BaseExistsError(TargetError):
    """Another host has made the base meanwhile. The caller clones that one."""


class ConvertError(ProvisionerError):
    """Writing the image onto the volume failed."""

    category = "conversion error"
    reason = "conversion-error"


class ToolError(ProvisionerError):
    """A child process failed. ``status`` is its exit status (negative: the signal), ``stderr`` its error output."""

    category = "tool error"
    reason = "tool-error"

    def __init__(self, message: str, *, tool: str = "", status: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.tool = tool
        self.status = status
        self.stderr = stderr


class RollbackError(ProvisionerError):
    """A rollback step failed or timed out; recovery retries it at the next start."""

    category = "rollback error"
    reason = "rollback-error"
