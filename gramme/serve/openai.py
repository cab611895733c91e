"""What clients send: the bodies of OpenAI's API and its neighbours, each field bounded. Knows no engine and no HTTP.

Where a field has a namesake in SamplingParams its bound is there; all others carry theirs here. /openapi.json is made
from these classes.
"""
import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gramme.request import MAX_COUNT, MAX_SALT_CHARS, RequestError, SamplingParams
from gramme.serve.tools import ResponseFormat, Structured, ToolChoice, Tools

MAX_BODY_BYTES = 8 << 20
MAX_UNIQUE_BYTES = 64 << 10  # of a body that is searched for keys that stand twice: no quick parser does it
MAX_PROMPTS = 1024
MAX_TOKENIZE_CHARS = 1 << 20  # no context bounds what /tokenize is given

Text = Annotated[str, Meta(max_length=MAX_BODY_BYTES)]
Label = Annotated[str, Meta(max_length=512)]
Name = Annotated[str, Meta(max_length=256)]
Token = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Tokens = Annotated[list[Token], Meta(max_length=1 << 20)]
Prompt = Text | Annotated[list[Text | Token | Tokens], Meta(max_length=1 << 20)]
Messages = Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=4096)]
Integer = Annotated[int, Meta(ge=-MAX_COUNT, le=MAX_COUNT)]
Float = Annotated[float, Meta(ge=-1e9, le=1e9)]
Scalars = Annotated[dict[Name, bool | Integer | Float | Label | None], Meta(max_length=64)]

# Known, and not done here: refused by name unless the value says "off".
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "chat_template": (), "documents": ([],), "frequency_penalty_decay": (),
    "function_call": ("none",), "functions": ([],), "length_penalty": (1,), "modalities": (["text"],),
    "parallel_tool_calls": (), "prediction": (), "prompt_embeds": (), "reasoning_effort": ("none",),
    "store": (False,), "suffix": ("",),
    "thinking_token_budget": (), "tool_choice": ("none",), "tools": ([],), "truncate_prompt_tokens": (),
    "use_beam_search": (False,), "verbosity": ("medium",), "web_search_options": (),
}
GUIDED = ["guided_json", "guided_regex", "guided_choice", "guided_grammar"]
RESERVED = {"chat_template", "tokenize", "tools", "messages", "documents", "add_generation_prompt", "bos_token",
            "eos_token", "continue_final_message", "tokenizer"}  # not to be set by chat_template_kwargs


class StreamOptions(msgspec.Struct):
    include_usage: bool = False
    include_obfuscation: bool = False


class Body(msgspec.Struct, kw_only=True):
    """What every body may hold. The labels are for the caller's own records; nothing here keeps or uses them."""

    model: Name | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    metadata: Annotated[dict[Name, Label], Meta(max_length=16)] | None = None


class Sampled(Body, kw_only=True):
    """What chat and completions share; None: the model's default."""

    max_tokens: int | None = None
    n: int = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    priority: Annotated[int, Meta(ge=-MAX_COUNT, le=MAX_COUNT)] = 0
    cache_salt: Annotated[str, Meta(min_length=1, max_length=MAX_SALT_CHARS)] | None = None
    service_tier: Annotated[str, Meta(pattern="^(auto|default)$", max_length=16)] | None = None
    return_token_ids: bool = False
    timings: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: Structured | None = None


class Completion(Sampled, kw_only=True):
    prompt: Prompt
    echo: bool = False
    logprobs: int | None = None
    add_special_tokens: bool = True

    def prompts(self) -> list[str | list[int]]:
        return prompts(self.prompt, "prompt")


class ChatCompletion(Sampled, kw_only=True):
    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = None  # the default is true, unless the final message is continued
    continue_final_message: bool = False
    chat_template_kwargs: Scalars | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


class Embeddings(Body, kw_only=True):
    input: Prompt
    encoding_format: Annotated[str, Meta(pattern="^(float|base64)$", max_length=8)] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    timings: bool = False


class Tokenize(Body, kw_only=True):
    prompt: Annotated[str, Meta(max_length=MAX_TOKENIZE_CHARS)] | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool | None = None  # the default is true, unless the final message is continued
    continue_final_message: bool = False
    chat_template_kwargs: Scalars | None = None


class Detokenize(Body, kw_only=True):
    tokens: Tokens


def prompts(given: Any, param: str) -> list[str | list[int]]:
    """One prompt or several: a string, token ids, or a list of either."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(x, int) for x in given):
        return [given]
    if not given or len(given) > MAX_PROMPTS or any(isinstance(x, int) for x in given):
        raise RequestError(f"{param} must be a string, token ids, or a list of 1 to {MAX_PROMPTS} of either", param)
    return list(given)


def parse(body: bytes, kind: type[msgspec.Struct]) -> tuple[Any, list[str]]:
    """The record and the names of unknown fields; null means absent.

    Raises RequestError for anything that is not as it should be.
    """
    fields = {name: value for name, value in _fields(body).items() if bytes(value) != b"null"}
    names, off = set(kind.__struct_fields__), UNSUPPORTED | getattr(kind, "unsupported", {})
    for name, value in fields.items():
        if name in GUIDED:
            raise RequestError(f"{name} has another name now: structured_outputs", name)
        if name in off and name not in names and _read(value, Any) not in off[name]:
            raise RequestError(f"{name} is not supported", name)
    known = {name: value for name, value in fields.items() if name in names}
    return _read(msgspec.json.encode(known), kind), [name for name in fields if name not in names and name not in off]


def sampling(body: Sampled, defaults: dict[str, Any], **fixed: Any) -> SamplingParams:
    """SamplingParams of a body: what it says, then the model's defaults."""
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream", "stream_options")
    names = set(SamplingParams.__dataclass_fields__) & set(Sampled.__struct_fields__) - {
        "max_tokens", "logit_bias", "structured_outputs"}
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    return SamplingParams(**(defaults | given | {"logit_bias": _bias(body.logit_bias or {})} | fixed))


def template_variables(given: dict[str, Any] | None) -> dict[str, Any]:
    for name in given or ():
        if name in RESERVED:
            raise RequestError(f"chat_template_kwargs must not hold {name}", "chat_template_kwargs")
    return given or {}


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The object's fields, not yet read: what is unknown is never built."""
    if len(body) <= MAX_UNIQUE_BYTES:
        try:
            json.loads(body, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise error if isinstance(error, RequestError) else RequestError(f"the body is not JSON: {error}") from None
    found: dict[str, msgspec.Raw] = _read(body, dict[str, msgspec.Raw])
    return found


def _read(data: bytes | msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        field = str(error).partition("`$.")[2].partition("`")[0].partition("[")[0].partition(".")[0]
        raise RequestError(str(error), field or None) from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error!s:.200}") from None


def _bias(raw: dict[str, float]) -> dict[int, float]:
    if not all(k.isascii() and k.isdigit() and len(k) < 12 for k in raw):
        raise RequestError("logit_bias: keys must be token ids", "logit_bias")
    return {int(k): v for k, v in raw.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise RequestError("the body holds a key twice")
    return made
