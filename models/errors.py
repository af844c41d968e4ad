"""The errors that a client may see, each with its HTTP status; rendered once, in app/errors.py.

RoundhouseError
├── UnknownModel        404 model_not_found
├── AmbiguousModel      404 model_ambiguous
├── ModelUnusable       400 model_unusable     (incomplete, refused or broken folder)
├── WrongTask           400 wrong_model_task   (chat asked of an embedder)
├── AdapterPathRefused  400 adapter_path_refused (outside of the allowed roots)
├── DoesNotFit          503 model_does_not_fit (needs more memory than the whole budget)
├── Busy                503 overloaded         (queue full, or waited longer than allowed)
├── LoadFailed          503 model_load_failed
├── EngineGone          502 engine_error       (the engine died while answering)
├── Unavailable         503 engine_unavailable (a server elsewhere is down)
├── LoopDetected        508 loop_detected      (servers elsewhere ask each other for a model)
├── InternalFault       500 internal_error     (a bug of ours; the scheduler begins anew)
└── ShuttingDown        503 shutting_down
"""

from __future__ import annotations


class RoundhouseError(Exception):
    """`message` says what went wrong, where, and what to do; `param` names the field of the request that is at fault.

    `retry_after_s` becomes the Retry-After header (seconds, rounded up); every 503 has one.
    """

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class UnknownModel(RoundhouseError):
    status, type, code = 404, "invalid_request_error", "model_not_found"


class AmbiguousModel(RoundhouseError):
    status, type, code = 404, "invalid_request_error", "model_ambiguous"


class ModelUnusable(RoundhouseError):
    status, type, code = 400, "invalid_request_error", "model_unusable"


class WrongTask(RoundhouseError):
    status, type, code = 400, "invalid_request_error", "wrong_model_task"


class AdapterPathRefused(RoundhouseError):
    status, type, code = 400, "invalid_request_error", "adapter_path_refused"


class DoesNotFit(RoundhouseError):
    status, type, code = 503, "server_error", "model_does_not_fit"


class Busy(RoundhouseError):
    status, type, code = 503, "server_error", "overloaded"


class LoadFailed(RoundhouseError):
    status, type, code = 503, "server_error", "model_load_failed"


class EngineGone(RoundhouseError):
    status, type, code = 502, "server_error", "engine_error"


class Unavailable(RoundhouseError):
    status, type, code = 503, "server_error", "engine_unavailable"


class LoopDetected(RoundhouseError):
    status, type, code = 508, "invalid_request_error", "loop_detected"


class InternalFault(RoundhouseError):
    pass


class ShuttingDown(RoundhouseError):
    status, type, code = 503, "server_error", "shutting_down"
