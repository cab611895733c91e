"""What a body says of the answer's form: tools, response_format, structured_outputs; and how the answer is then read.

Knows the model's template and its control tokens; no engine and no HTTP.
"""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gramme.grammar.source import check, parse_schema
from gramme.grammar.tools import ANY_OBJECT, calls_grammar
from gramme.request import MAX_LARK_CHARS, RequestError, StructuredOutputsParams
from gramme.text.calls import NAME, Form, tool_form
from gramme.text.parsing import AnswerParser, thinking
from gramme.text.tokenizer import Tokenizer

MAX_TOOLS = 128


class Function(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]+$", min_length=1, max_length=64)]
    description: Annotated[str, Meta(max_length=1 << 16)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    function: Function


class Named(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(max_length=64)]


class Choice(msgspec.Struct, kw_only=True):
    """tool_choice that names a function."""

    type: Literal["function"]
    function: Named


class JsonSchema(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(max_length=64)] = ""
    description: Annotated[str, Meta(max_length=1 << 16)] | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Structured(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's structured_outputs; bounds are StructuredOutputsParams'."""

    json: dict[str, Any] | str | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool = False


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | Choice


@dataclass(frozen=True)
class Reading:
    """How an answer is constrained and how its text is taken apart."""

    asked: StructuredOutputsParams | None = None
    param: str | None = None  # the field that asked for it
    shown: Sequence[Mapping[str, Any]] | None = None  # tools for the template
    form: Form | None = None  # of calls that may come
    marks: tuple[str, str] | None = None  # around reasoning
    names: tuple[str, ...] = ()
    certain: bool = False  # a grammar guarantees the calls
    several: bool = True

    def check(self) -> None:
        """Raises RequestError, with the place, when it cannot be done. Some milliseconds of work."""
        if self.asked is not None:
            check(self.asked, self.param or "structured_outputs")

    def parser(self, opened: bool) -> AnswerParser | None:
        """For one sample; `opened`: the prompt ends inside the reasoning. None: the text is the content."""
        if self.form is None and self.marks is None:
            return None
        return AnswerParser(self.form, self.marks, names=self.names, opened=opened, certain=self.certain,
                            most=None if self.several else 1)

    def visible(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Special tokens that the parser must see in the text."""
        marks = [*(self.marks or ()), *([self.form.mark, self.form.named, "[CALL_ID]"] if self.form else [])]
        return frozenset(tokenizer.added[m] for m in marks if m in tokenizer.added)


def reading(body: Any, template: str | None, tool_template: str | None, tokenizer: Tokenizer) -> Reading:
    """Of a chat body. Raises RequestError naming the field that is at fault."""
    asked, param = structured(body)
    marks = thinking(template or "") if asked is None else None
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise RequestError("tool_choice needs tools", "tool_choice")
        return Reading(asked, param, marks=marks)
    functions = _functions(body.tools)
    if body.tool_choice == "none":
        return Reading(asked, param, marks=marks)
    form = tool_form(tool_template or "")
    if form is None:
        raise RequestError("the model's chat template shows no tools", "tools")
    if asked is not None:
        check(asked, param or "structured_outputs")
        marks = None
    else:
        marks = thinking(tool_template or "")
    return _with_tools(body, functions, form, marks, tokenizer, asked)


def structured(body: Any) -> tuple[StructuredOutputsParams | None, str | None]:
    """The form that response_format or structured_outputs asks for, and which of them does."""
    form, direct = body.response_format, body.structured_outputs
    if direct is not None:
        if form is not None and form.type != "text":
            raise RequestError("give either response_format or structured_outputs", "response_format")
        return StructuredOutputsParams(**msgspec.structs.asdict(direct)), "structured_outputs"
    if form is None or form.type == "text":
        return None, None
    if form.type == "json_object":
        return StructuredOutputsParams(json_object=True), "response_format"
    if form.json_schema is None or form.json_schema.schema is None:
        raise RequestError("response_format json_schema needs json_schema.schema", "response_format")
    try:
        return StructuredOutputsParams(json=form.json_schema.schema), "response_format"
    except RequestError as error:
        raise RequestError(str(error), "response_format") from None


def history(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates want them: a call's arguments as an object, reasoning under both of its names."""
    return [_past(m) if isinstance(m, dict) and m.get("role") == "assistant" else m for m in messages]


def _past(message: dict[str, Any]) -> dict[str, Any]:
    calls, reasoning = message.get("tool_calls"), message.get("reasoning_content", message.get("reasoning"))
    out = dict(message)
    if isinstance(reasoning, str):
        out |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if isinstance(calls, list):
        out["tool_calls"] = [_past_call(c) for c in calls]
    return out


def _past_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _functions(tools: Sequence[Tool]) -> dict[str, Function]:
    functions = {t.function.name: t.function for t in tools}
    if any(NAME.fullmatch(name) is None for name in functions):
        raise RequestError("tools: a name has a line break in it", "tools")  # a pattern's $ lets one pass
    if len(functions) != len(tools):
        raise RequestError("tools: two functions have the same name", "tools")
    return functions


def _with_tools(body: Any, functions: dict[str, Function], form: Form, marks: tuple[str, str] | None,
                tokenizer: Tokenizer, answer: StructuredOutputsParams | None) -> Reading:
    """`answer`: the form of an answer that is no call."""
    choice, several = body.tool_choice or "auto", body.parallel_tool_calls is not False
    forced = choice != "auto"
    if isinstance(choice, Choice):
        if choice.function.name not in functions:
            raise RequestError(f"tool_choice names {choice.function.name!r}, which is not in tools", "tool_choice")
        functions, several = {choice.function.name: functions[choice.function.name]}, False
    strict = forced or answer is not None or any(f.strict for f in functions.values())
    asked = _calls(functions, form, tokenizer, several, not forced, answer) if strict else None
    shown = [msgspec.to_builtins(t) for t in body.tools]
    return Reading(asked, "tools", shown, form, None if forced else marks, tuple(functions), strict, several)


def _calls(functions: dict[str, Function], form: Form, tokenizer: Tokenizer, several: bool, free: bool,
           answer: StructuredOutputsParams | None) -> StructuredOutputsParams:
    """What is not strict must still be an object when calls are optional; calls that are forced follow their schema."""
    schemas = [(name, _schema(name, f) if f.strict or not free else ANY_OBJECT) for name, f in functions.items()]
    control = {tokenizer.token_str(i): i for i in tokenizer.special_ids}
    lark = calls_grammar(schemas, form, control, several=several, free=free, answer=answer)
    if len(lark) > MAX_LARK_CHARS:
        raise RequestError(f"the tools' grammar has {len(lark)} characters, the most are {MAX_LARK_CHARS}", "tools")
    return StructuredOutputsParams(grammar=lark)


def _schema(name: str, function: Function) -> Mapping[str, Any]:
    text = json.dumps({"type": "object", **(function.parameters or {})})
    try:
        check(StructuredOutputsParams(json=text), "tools")
        return parse_schema(text)
    except RequestError as error:
        raise RequestError(f"tools: {name}: {error}", "tools") from None
