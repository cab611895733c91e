"""/v1/responses without state: its body read as a chat, its answer and its events. Knows no engine and no HTTP.

Nothing is stored: previous_response_id and the like are refused by name.
"""
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from uuid import uuid4

import msgspec
from msgspec import Meta

from gramme.request import MAX_COUNT, RequestError, Update
from gramme.serve.job import Job
from gramme.serve.openai import Body, ChatCompletion, Text
from gramme.serve.tools import JsonSchema, ResponseFormat

Json = dict[str, Any]

UNSUPPORTED: dict[str, tuple[Any, ...]] = {  # beside those of all bodies; with the values that say "off"
    "previous_response_id": (), "conversation": (), "prompt": (), "background": (False,), "tools": ([],),
    "tool_choice": ("none", "auto"), "include": ([],), "truncation": ("disabled",), "reasoning": ({},),
    "max_tool_calls": (), "context_management": (), "stream_options": (),
}


class Format(JsonSchema, kw_only=True):
    type: Literal["text", "json_object", "json_schema"] = "text"


class TextOptions(msgspec.Struct, kw_only=True):
    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class Responses(Body, kw_only=True):
    input: Text | Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=4096)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False
    text: TextOptions | None = None
    service_tier: Annotated[str, Meta(pattern="^(auto|default)$", max_length=16)] | None = None
    parallel_tool_calls: bool | None = None

    unsupported: ClassVar = UNSUPPORTED

    def chat(self) -> ChatCompletion:
        """The same question as a chat."""
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        form = self.text.format if self.text else None
        return ChatCompletion(
            messages=messages + [_message(item, i) for i, item in enumerate(items)], stream=self.stream,
            max_completion_tokens=self.max_output_tokens, temperature=self.temperature, top_p=self.top_p,
            response_format=ResponseFormat(type=form.type, json_schema=form) if form else None)


def _message(item: Json, i: int) -> Json:
    role, content = item.get("role"), item.get("content")
    if item.get("type", "message") != "message" or role not in ("user", "assistant", "system", "developer"):
        raise RequestError(f"input[{i}] is no message of user, assistant, system or developer", "input")
    if isinstance(content, list):
        content = "".join(_part(part, i) for part in content)
    if not isinstance(content, str):
        raise RequestError(f"input[{i}].content must be text or a list of text parts", "input")
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(part: Any, i: int) -> str:
    kinds = ("input_text", "output_text", "text")
    if not isinstance(part, dict) or part.get("type") not in kinds or not isinstance(part.get("text"), str):
        raise RequestError(f"input[{i}].content holds a part that is not text; only text is supported", "input")
    return str(part["text"])


class ResponsesReply:
    """One message of one text part."""

    def __init__(self, job: Job, body: Responses, model: str):
        self._job, self._body, self._model = job, body, model
        self._id, self._item, self._sent = "resp_" + uuid4().hex, "msg_" + uuid4().hex, 0

    def begin(self) -> Iterator[Json]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response("in_progress", []))
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", []))
        yield self._on_part("content_part.added", part=_text(""))

    def chunk(self, which: int, update: Update, text: str) -> Iterator[Json]:
        if text:
            yield self._on_part("output_text.delta", delta=text, logprobs=[])

    def end(self) -> Iterator[Json]:
        part, status = _text(self._job.assemblies[0].texts[0]), self._status()
        yield self._on_part("output_text.done", text=part["text"], logprobs=[])
        yield self._on_part("content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=0, item=self._message(status, [part]))
        yield self._event(f"response.{status}", response=self.whole())

    def whole(self) -> Json:
        status = self._status()
        message = self._message(status, [_text(self._job.assemblies[0].texts[0])])
        used = self._job.usage()
        usage = {"input_tokens": used["prompt_tokens"], "input_tokens_details": used["prompt_tokens_details"],
                 "output_tokens": used["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
                 "total_tokens": used["total_tokens"]}
        return self._response(status, [message]) | {"usage": usage}

    def _status(self) -> str:
        return "incomplete" if self._job.assemblies[0].reasons[0] == "length" else "completed"

    def _response(self, status: str, output: list[Json]) -> Json:
        why = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {"id": self._id, "object": "response", "created_at": self._job.created, "model": self._model,
                "status": status, "output": output, "error": None, "incomplete_details": why,
                "instructions": self._body.instructions, "metadata": self._body.metadata or {},
                "max_output_tokens": self._body.max_output_tokens, "temperature": self._job.params.temperature,
                "top_p": self._job.params.top_p, "parallel_tool_calls": False, "tool_choice": "none", "tools": [],
                "previous_response_id": None, "store": False, "truncation": "disabled", "usage": None}

    def _message(self, status: str, content: list[Json]) -> Json:
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _on_part(self, kind: str, **more: Any) -> Json:
        return self._event(f"response.{kind}", item_id=self._item, output_index=0, content_index=0, **more)

    def _event(self, kind: str, **more: Any) -> Json:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **more}


def _text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
