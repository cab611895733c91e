"""Which error gets which HTTP status, in the form of OpenAI's API. Knows no route."""
from typing import Any

from gramme.request import RequestError
from gramme.serve.async_llm import EngineDead, EngineFault


class HttpError(Exception):
    """An answer that is no success: status, and {"error": {message, type, param, code}}."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None,
                 code: str | int | None = None, retry_after_s: int | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}


FORESEEN = (RequestError, EngineDead, EngineFault, HttpError)


def http_error(error: Exception) -> HttpError:
    """The answer to one of FORESEEN."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestError):
        return HttpError(400, str(error), param=error.param)
    if isinstance(error, EngineFault):
        return HttpError(500, str(error), "internal_error")
    return HttpError(503, "the engine has ended", "unavailable_error", code=503, retry_after_s=5)
