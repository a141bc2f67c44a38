"""Every error that Steelyard raises on purpose.

    SteelyardError
    ├── RequestError                  the client can mend it
    │   ├── InvalidImageError         bytes that no decoder accepts
    │   │   ├── UnsupportedImageError     a format outside the allow-list
    │   │   └── ImageTooLargeError        too many bytes, pixels, or too long a side
    │   ├── InvalidOptionError        an option outside its range
    │   ├── UnknownModelError         no such model here
    │   ├── UnknownVersionError       no such version in the registry
    │   └── UnauthorizedError         an admin route without its key
    ├── CapacityError                 nobody's fault, later it works
    │   ├── OverloadedError           the queue is full
    │   ├── QuotaExceededError        a key's rate or concurrency is used up
    │   ├── DeadlineExceededError     the request's time ran out while it waited
    │   └── UnavailableError          no release, in doubt, or shutting down
    ├── ReleaseError                  a weight version that may not serve
    │   ├── ReleaseRejectedError      permanent: the same bytes will fail again
    │   └── ReleaseFaultError         transient: the store, memory or time failed
    ├── RegistryError                 the registry is unreachable or answers nonsense
    ├── LedgerError                   the ledger of decisions is unreachable
    ├── ConversionError               a weights file that cannot become a release
    ├── EvaluationError               a version that cannot be evaluated on that data
    ├── SettingsError                 an illegal combination of settings
    └── BackendError                  the runtime failed on a batch

Messages say what happened, to what, and what to do next. They never hold paths of the server,
library names or client data. Status codes live at the edge, in ``serve/errors.py``.
"""

from __future__ import annotations


class SteelyardError(Exception):
    """Root of the tree; ``code`` is stable and safe to match on."""

    code = "internal"


class RequestError(SteelyardError):
    """The client sent something that cannot be answered."""

    code = "invalid_request"


class InvalidImageError(RequestError):
    """The bytes are not a complete image of an allowed format."""

    code = "invalid_image"


class UnsupportedImageError(InvalidImageError):
    """The image's format is not one of JPEG, PNG and WebP."""

    code = "unsupported_image"


class ImageTooLargeError(InvalidImageError):
    """The image exceeds the limit on bytes, pixels or side length."""

    code = "image_too_large"


class InvalidOptionError(RequestError):
    """A query option or body field is outside its range."""

    code = "invalid_option"


class UnknownModelError(RequestError):
    """No model of that name is served here."""

    code = "unknown_model"


class UnknownVersionError(RequestError):
    """The registry holds no such version of the model."""

    code = "unknown_version"


class UnauthorizedError(RequestError):
    """The route needs a key that was not given or is wrong."""

    code = "unauthorized"


class CapacityError(SteelyardError):
    """The service cannot take this request now; ``retry_after_s`` says when to come back."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        """Keep the message and the advice for the ``Retry-After`` header (seconds, > 0)."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(CapacityError):
    """The queue is full: the request was refused at the door."""

    code = "overloaded"


class QuotaExceededError(CapacityError):
    """The key of the request may not send so many a second, or so many at once."""

    code = "quota_exceeded"


class DeadlineExceededError(CapacityError):
    """The request's deadline passed before its answer was ready."""

    code = "deadline_exceeded"


class UnavailableError(CapacityError):
    """No release can answer now: starting, in doubt or shutting down."""

    code = "unavailable"


class ReleaseError(SteelyardError):
    """A release may not serve; ``step`` names the step of the weights flow that refused it."""

    code = "release_error"
    permanent = False

    def __init__(self, message: str, *, step: str) -> None:
        """Keep the message and the step: fetch, verify, contract, load, warm or golden."""
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling with the keyword-only step."""
        return (_rebuild_release_error, (type(self), str(self), self.step))


class ReleaseRejectedError(ReleaseError):
    """The release's own bytes are at fault: retrying cannot help, a new ``promote`` is needed."""

    code = "release_rejected"
    permanent = True


class ReleaseFaultError(ReleaseError):
    """The surroundings failed (store, memory, time): retried with backoff."""

    code = "release_fault"


class RegistryError(SteelyardError):
    """The registry cannot be reached or answered nonsense."""

    code = "registry_unreachable"


class LedgerError(SteelyardError):
    """The ledger of decisions cannot be reached, or holds what this version cannot read."""

    code = "ledger_unreachable"


class ConversionError(SteelyardError):
    """A weights file cannot be turned into a release."""

    code = "conversion_failed"


class EvaluationError(SteelyardError):
    """A version cannot be evaluated: the data cannot be read, does not fit its classes, or the evaluation failed."""

    code = "evaluation_failed"


class SettingsError(SteelyardError):
    """A setting, or a combination of settings, is illegal."""

    code = "invalid_settings"


class BackendError(SteelyardError):
    """The runtime failed on a batch."""

    code = "backend_failed"


def _rebuild_release_error(kind: type[ReleaseError], message: str, step: str) -> ReleaseError:
    return kind(message, step=step)
