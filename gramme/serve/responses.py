"""/v1/responses without state: its body, read as a chat. Knows no answer, no engine and no HTTP.

Nothing is stored: previous_response_id and the like are refused by name.
"""
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from gramme.request import MAX_COUNT, RequestError
from gramme.serve.openai import Body, ChatCompletion, Text
from gramme.serve.tools import (
    MAX_TOOLS,
    Choice,
    Function,
    JsonSchema,
    Named,
    ResponseFormat,
    Tool,
)

Json = dict[str, Any]

UNSUPPORTED: dict[str, tuple[Any, ...]] = {  # beside those of all bodies; with the values that say "off"
    "previous_response_id": (), "conversation": (), "prompt": (), "background": (False,), "include": ([],),
    "truncation": ("disabled",), "reasoning": ({},),
    "max_tool_calls": (), "context_management": (), "stream_options": (),
}


class Format(JsonSchema, kw_only=True):
    type: Literal["text", "json_object", "json_schema"] = "text"


class FlatTool(Function, kw_only=True):
    """A function, its fields beside its type."""

    type: Literal["function"]


class FlatChoice(Named, kw_only=True):
    type: Literal["function"]


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
    tools: Annotated[list[FlatTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    timings: bool = False

    unsupported: ClassVar = UNSUPPORTED

    def chat(self) -> ChatCompletion:
        """The same question as a chat."""
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        for i, item in enumerate(items):
            _add(messages, item, i)
        form, choice = self.text.format if self.text else None, self.tool_choice
        return ChatCompletion(
            messages=messages, stream=self.stream, max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature, top_p=self.top_p, parallel_tool_calls=self.parallel_tool_calls,
            timings=self.timings,
            response_format=ResponseFormat(type=form.type, json_schema=form) if form else None,
            tools=[_nested(t) for t in self.tools] if self.tools else None,
            tool_choice=Choice(type="function", function=choice) if isinstance(choice, FlatChoice) else choice)


def _nested(tool: FlatTool) -> Tool:
    return Tool(type="function", function=Function(name=tool.name, description=tool.description,
                                                   parameters=tool.parameters, strict=tool.strict))


def _add(messages: list[Json], item: Json, i: int) -> None:
    """An item of the input as a message; calls one after another are one message's."""
    match item.get("type", "message"):
        case "function_call":
            call = {"id": _text(item, "call_id", i), "type": "function", "function": {
                "name": _text(item, "name", i), "arguments": _text(item, "arguments", i)}}
            if not (messages and "tool_calls" in messages[-1]):
                messages.append({"role": "assistant", "content": None, "tool_calls": []})
            messages[-1]["tool_calls"].append(call)
        case "function_call_output":
            messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", i),
                             "content": _content(item.get("output"), i)})
        case "reasoning":
            pass  # of an earlier answer: templates drop it
        case "message" if item.get("role") in ("user", "assistant", "system", "developer"):
            role = "system" if item["role"] == "developer" else item["role"]
            messages.append({"role": role, "content": _content(item.get("content"), i)})
        case _:
            raise RequestError(f"input[{i}] is no message of user, assistant, system or developer, and no function "
                               "call or its output", "input")


def _text(item: Json, name: str, i: int) -> str:
    if not isinstance(item.get(name), str):
        raise RequestError(f"input[{i}].{name} must be a string", "input")
    return str(item[name])


def _content(content: Any, i: int) -> str:
    if isinstance(content, list):
        content = "".join(_part(part, i) for part in content)
    if not isinstance(content, str):
        raise RequestError(f"input[{i}]: its text must be a string or a list of text parts", "input")
    return content


def _part(part: Any, i: int) -> str:
    kinds = ("input_text", "output_text", "text")
    if not isinstance(part, dict) or part.get("type") not in kinds or not isinstance(part.get("text"), str):
        raise RequestError(f"input[{i}].content holds a part that is not text; only text is supported", "input")
    return str(part["text"])
