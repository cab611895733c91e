"""OpenAI's request bodies, checked and mapped to SamplingParams. Knows no engine and no HTTP."""
import json
from typing import Annotated, Any

import msgspec

from gramme.request import MAX_COUNT, MAX_SALT_CHARS, RequestError, SamplingParams

UNSUPPORTED = ("tools", "functions", "suffix", "audio", "prediction", "structured_outputs", "use_beam_search")


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Sampled(msgspec.Struct, kw_only=True):
    """What chat and completions share; None: the model's default."""

    model: str | None = None
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
    priority: Annotated[int, msgspec.Meta(ge=-MAX_COUNT, le=MAX_COUNT)] = 0
    cache_salt: Annotated[str, msgspec.Meta(max_length=MAX_SALT_CHARS)] = ""
    best_of: int | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None


class Completion(Sampled, kw_only=True):
    prompt: str | list[str | int | list[int]]
    echo: bool = False
    logprobs: int | None = None
    add_special_tokens: bool = True

    def prompts(self) -> list[str | list[int]]:
        p = self.prompt
        if isinstance(p, str):
            return [p]
        if p and all(isinstance(x, int) for x in p):
            return [p]
        if not p or len(p) > 1024 or any(isinstance(x, int) for x in p):
            raise RequestError("prompt must be a string, token ids, or a list of 1 to 1024 of either", "prompt")
        return p


class ChatCompletion(Sampled, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class Embeddings(msgspec.Struct, kw_only=True):
    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str = "float"


class Tokenize(msgspec.Struct, kw_only=True):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    model: str | None = None


class Detokenize(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


def parse(body: bytes, kind: type) -> tuple[Any, list[str]]:
    """The record and the names of unknown fields. Raises RequestError for anything that is not as it should be."""
    try:
        raw = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_not_finite)
        if b"\\u" in body:  # escapes may spell half a surrogate pair, which no message can carry
            json.dumps(raw, ensure_ascii=False).encode()
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(raw, dict):
        raise RequestError("the body must be a JSON object")
    for name in raw:
        if raw[name] and (name in UNSUPPORTED or name.startswith("guided_")):
            raise RequestError(f"{name} is not supported", name)
    try:
        record = msgspec.convert(raw, kind)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        field = str(error).partition("`$.")[2].partition("`")[0].partition("[")[0].partition(".")[0]
        raise RequestError(str(error), field or None) from None
    if isinstance(record, Sampled):
        _check_supported(record)
    return record, [name for name in raw if name not in kind.__struct_fields__]


def sampling(body: Sampled, defaults: dict[str, Any], **fixed: Any) -> SamplingParams:
    """SamplingParams of a body: what it says, then the model's defaults."""
    names = set(SamplingParams.__dataclass_fields__) & set(Sampled.__struct_fields__) - {"max_tokens", "logit_bias"}
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    return SamplingParams(**(defaults | given | {"logit_bias": _bias(body.logit_bias or {})} | fixed))


def _bias(raw: dict[str, float]) -> dict[int, float]:
    if not all(k.isascii() and k.isdigit() and len(k) < 12 for k in raw):
        raise RequestError("logit_bias: keys must be token ids", "logit_bias")
    return {int(k): v for k, v in raw.items()}


def _check_supported(body: Sampled) -> None:
    if body.best_of is not None and body.best_of != body.n:
        raise RequestError("best_of other than n is not supported", "best_of")
    if body.response_format is not None and body.response_format.get("type") != "text":
        raise RequestError("response_format other than text is not supported", "response_format")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise RequestError("the body holds a key twice")
    return made


def _not_finite(name: str) -> None:
    raise RequestError(f"{name} is not a JSON number")
