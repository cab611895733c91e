"""Which error gets which HTTP status, in the form of OpenAI's API. Knows no route."""
from typing import Any

from gramme.request import RequestError
from gramme.serve.async_llm import EngineDead


class HttpError(Exception):
    """An answer that is no success: status, and {"error": {message, type, param, code}}."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None,
                 code: str | int | None = None):
        self.status = status
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}


FORESEEN = (RequestError, EngineDead, HttpError)


def http_error(error: Exception) -> HttpError:
    """The answer to one of FORESEEN."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestError):
        return HttpError(400, str(error), param=error.param)
    return HttpError(503, str(error), "unavailable_error", code=503)
