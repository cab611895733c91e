"""The answer of /v1/responses: its items (reasoning, a message, calls) and its events in order. Knows no HTTP."""
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import msgspec

from gramme.request import Update
from gramme.serve.answer import Answer
from gramme.serve.job import Job
from gramme.serve.responses import Responses

Json = dict[str, Any]


class Item:
    """One item of the output, open until another begins; `text` is its message, its reasoning or its arguments."""

    def __init__(self, kind: str, place: int, **more: Any):
        self.kind, self.place, self.more, self.text = kind, place, more, ""
        self.id = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}[kind] + uuid4().hex

    def part(self) -> Json:
        if self.kind == "message":
            return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}
        return {"type": "reasoning_text", "text": self.text}

    def json(self, status: str, parts: list[Json]) -> Json:
        head = {"id": self.id, "type": self.kind, "status": status}
        match self.kind:
            case "message":
                return head | {"role": "assistant", "content": parts}
            case "reasoning":
                return head | {"summary": [], "content": parts}
        return head | self.more | {"arguments": self.text}


class ResponsesReply:
    """Fed an answer's deltas, it opens an item, lets it grow, closes it when another begins."""

    def __init__(self, job: Job, body: Responses, model: str, answer: Answer):
        self._job, self._body, self._model, self._answer = job, body, model, answer
        self._id, self._sent = "resp_" + uuid4().hex, 0
        self._items: list[Item] = []
        self._done: list[Json] = []

    def begin(self) -> Iterator[Json]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response("in_progress"))

    def chunk(self, which: int, update: Update, text: str) -> Iterator[Json]:
        delta = self._answer.delta(text, last=update.finish_reason is not None)
        if "reasoning" in delta:
            yield from self._grow("reasoning", delta["reasoning"])
        if "content" in delta:
            yield from self._grow("message", delta["content"])
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                yield from self._open("function_call", call_id=call["id"], name=call["function"]["name"])
            yield from self._grow("function_call", call["function"]["arguments"])

    def end(self) -> Iterator[Json]:
        yield from self._finish()
        yield self._event(f"response.{self._status()}", response=self.whole())

    def whole(self) -> Json:
        if not self._items:  # nothing was streamed
            [a] = self._job.assemblies
            list(self.chunk(0, Update(id="", finish_reason=a.reasons[0]), a.texts[0]))
            list(self._finish())
        used = self._job.usage()
        usage = {"input_tokens": used["prompt_tokens"], "input_tokens_details": used["prompt_tokens_details"],
                 "output_tokens": used["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
                 "total_tokens": used["total_tokens"]}
        timings = {"timings": self._job.timings()} if self._body.timings else {}
        return self._response(self._status()) | {"usage": usage} | timings

    def _finish(self) -> Iterator[Json]:
        if not self._items:
            yield from self._open("message")
        yield from self._close(self._status())

    def _grow(self, kind: str, text: str) -> Iterator[Json]:
        if not self._items or self._items[-1].kind != kind:
            yield from self._open(kind)
        if text:
            item = self._items[-1]
            item.text += text
            match kind:
                case "message":
                    yield self._on_part("output_text.delta", delta=text, logprobs=[])
                case "reasoning":
                    yield self._on_part("reasoning_text.delta", delta=text)
                case _:
                    yield self._on_item("function_call_arguments.delta", delta=text)

    def _open(self, kind: str, **more: Any) -> Iterator[Json]:
        yield from self._close("completed")
        self._items.append(item := Item(kind, len(self._items), **more))
        yield self._event("response.output_item.added", output_index=item.place, item=item.json("in_progress", []))
        if kind != "function_call":
            yield self._on_part("content_part.added", part=item.part())

    def _close(self, status: str) -> Iterator[Json]:
        if len(self._done) == len(self._items):
            return
        item = self._items[-1]
        match item.kind:
            case "message":
                yield self._on_part("output_text.done", text=item.text, logprobs=[])
            case "reasoning":
                yield self._on_part("reasoning_text.done", text=item.text)
            case _:
                yield self._on_item("function_call_arguments.done", name=item.more["name"], arguments=item.text)
        if item.kind != "function_call":
            yield self._on_part("content_part.done", part=item.part())
        self._done.append(item.json(status, [item.part()]))
        yield self._event("response.output_item.done", output_index=item.place, item=self._done[-1])

    def _status(self) -> str:
        return "incomplete" if self._job.assemblies[0].reasons[0] == "length" else "completed"

    def _response(self, status: str) -> Json:
        why = {"reason": "max_output_tokens"} if status == "incomplete" else None
        body = self._body
        return {"id": self._id, "object": "response", "created_at": self._job.created, "model": self._model,
                "status": status, "output": list(self._done), "error": None, "incomplete_details": why,
                "instructions": body.instructions, "metadata": body.metadata or {},
                "max_output_tokens": body.max_output_tokens, "temperature": self._job.params.temperature,
                "top_p": self._job.params.top_p, "parallel_tool_calls": body.parallel_tool_calls is not False,
                "tool_choice": msgspec.to_builtins(body.tool_choice or "auto"),
                "tools": [{"parameters": None, "strict": None} | msgspec.to_builtins(t) for t in body.tools or ()],
                "previous_response_id": None, "store": False, "truncation": "disabled", "usage": None}

    def _on_part(self, kind: str, **more: Any) -> Json:
        return self._on_item(kind, content_index=0, **more)

    def _on_item(self, kind: str, **more: Any) -> Json:
        item = self._items[-1]
        return self._event(f"response.{kind}", item_id=item.id, output_index=item.place, **more)

    def _event(self, kind: str, **more: Any) -> Json:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **more}
