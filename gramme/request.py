"""What a caller asks of the engine and what the engine answers, as frozen records.

Every bound that does not need a model is checked here, at construction, so that the Python API, the command line and
HTTP share them. Knows no tokenizer and no model: what depends on the vocabulary is checked by `SamplingParams.check`.
Field names are vLLM's, so that scripts and people move over.
"""
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from json import dumps
from operator import add
from typing import Any, Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort", "deadline", "error"]
Pooling = Literal["mean", "last"]

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_BAD_WORDS = 128
MAX_LOGIT_BIAS = 1024
MAX_ALLOWED_TOKENS = 1 << 18
MAX_COUNT = (1 << 31) - 1
MAX_SALT_CHARS = 256
MAX_GRAMMAR_CHARS = 1 << 16  # of a schema's JSON text, or of all choices together
MAX_LARK_CHARS = 1 << 18  # it may hold the schemas of many tools
MAX_REGEX_CHARS = 1 << 14
MAX_CHOICES = 4096


class RequestError(ValueError):
    """The request is at fault, not the engine; `param` names the field."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Bound:
    """What a field may hold. Of a list at most `most` entries, each within the bound; of a string its length counts."""

    kind: type
    low: float = 0
    high: float = 0
    above: bool = False  # `low` itself is outside
    most: int | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        if self.most is None:
            self._check_one(name, value)
        elif not isinstance(value, tuple | dict) or len(value) > self.most:
            raise RequestError(f"{name} must have at most {self.most} entries", name)
        else:
            for entry in value.values() if isinstance(value, dict) else value:
                self._check_one(name, entry)

    def _check_one(self, name: str, value: Any) -> None:
        right = type(value) is self.kind or (self.kind is float and type(value) is int)
        if not right or not self._holds(value):
            raise RequestError(f"{name} must be {self}, not {value!r:.40}", name)

    def _holds(self, value: Any) -> bool:
        if self.choices or self.kind not in (int, float, str):
            return not self.choices or value in self.choices
        size = len(value) if self.kind is str else value
        return bool(self.low <= size <= self.high) and not (self.above and size == self.low)

    def __str__(self) -> str:
        if self.choices or self.kind is bool:
            return " or ".join(self.choices or ("true", "false"))
        if self.kind not in (int, float, str):
            return self.kind.__name__
        span = f"above {self.low:g}, up to {self.high:g}" if self.above else f"from {self.low} to {self.high}"
        return f"a string of {self.low} to {self.high} characters" if self.kind is str else f"{_NOUN[self.kind]} {span}"


_NOUN = {int: "an integer", float: "a number"}


def _bounded(default: Any, low: float = 0, high: float = 0, *, above: bool = False, kind: type = int,
             most: int | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A field with its bound. None, where it is the default, stays allowed."""
    return field(default=default, metadata={"bound": Bound(kind, low, high, above, most, choices)})


def check_bounds(record: Any) -> None:
    """Raise RequestError, naming the field, when a `_bounded` field of a dataclass holds what it may not."""
    for f in fields(record):
        value = getattr(record, f.name)
        if "bound" in f.metadata and (value is not None or f.default is not None):
            f.metadata["bound"].check(f.name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """The form that an answer must have: exactly one of the fields is given. The engine's grammars compile it.

    Raises RequestError when none or several are given, or one is too large.
    """

    json: str | Mapping[str, Any] | bool | None = _bounded(None, 1, MAX_GRAMMAR_CHARS, kind=str)  # a schema, as text
    regex: str | None = _bounded(None, 1, MAX_REGEX_CHARS, kind=str)  # of the whole answer, in Rust's syntax
    choice: Sequence[str] | None = _bounded(None, 1, MAX_GRAMMAR_CHARS, kind=str, most=MAX_CHOICES)
    grammar: str | None = _bounded(None, 1, MAX_LARK_CHARS, kind=str)  # Lark, as llguidance reads it
    json_object: bool = _bounded(False, kind=bool)  # any JSON object

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        try:
            if self.json is not None and not isinstance(self.json, str):
                set_(self, "json", dumps(self.json, ensure_ascii=False, allow_nan=False))
            set_(self, "choice", tuple(self.choice) if isinstance(self.choice, list) else self.choice)
            check_bounds(self)
        except (TypeError, ValueError, RecursionError) as error:  # RequestError is a ValueError
            raise RequestError(f"structured_outputs: {error!s:.200}", "structured_outputs") from None
        given = [f.name for f in fields(self) if getattr(self, f.name) not in (None, False, ())]
        if len(given) != 1:
            names = ", ".join(f.name for f in fields(self))
            raise RequestError(f"structured_outputs: give exactly one of {names}, not {len(given)}",
                               "structured_outputs")
        if sum(map(len, self.choice or ())) > MAX_GRAMMAR_CHARS:
            most = f"{MAX_GRAMMAR_CHARS} characters together"
            raise RequestError(f"structured_outputs: the choices have more than {most}", "structured_outputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens. Lists are given as any sequence and kept as tuples.

    The order in which they act is vLLM's: allowed tokens, bad words, min_tokens, logit bias, then repetition, frequency
    and presence penalties; then greedy (temperature 0), or temperature, min_p, top_k, top_p.

    Raises RequestError, naming the field, when a value is out of bounds.
    """

    n: int = _bounded(1, 1, MAX_N)
    temperature: float = _bounded(1.0, 0, 2, kind=float)
    top_p: float = _bounded(1.0, 0, 1, above=True, kind=float)
    top_k: int = _bounded(0, -1, MAX_COUNT)  # 0 or -1: off
    min_p: float = _bounded(0.0, 0, 1, kind=float)
    seed: int | None = _bounded(None, -(1 << 63), (1 << 64) - 1)
    presence_penalty: float = _bounded(0.0, -2, 2, kind=float)
    frequency_penalty: float = _bounded(0.0, -2, 2, kind=float)
    repetition_penalty: float = _bounded(1.0, 0, 10, above=True, kind=float)
    logit_bias: Mapping[int, float] = _bounded((), -100, 100, kind=float, most=MAX_LOGIT_BIAS)
    allowed_token_ids: Sequence[int] | None = _bounded(None, 0, MAX_COUNT, most=MAX_ALLOWED_TOKENS)
    bad_words: Sequence[str] = _bounded((), 1, MAX_STOP_CHARS, kind=str, most=MAX_BAD_WORDS)
    stop: str | Sequence[str] = _bounded((), 1, MAX_STOP_CHARS, kind=str, most=MAX_STOP_STRINGS)
    stop_token_ids: Sequence[int] = _bounded((), 0, MAX_COUNT, most=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool = _bounded(False, kind=bool)
    ignore_eos: bool = _bounded(False, kind=bool)
    max_tokens: int | None = _bounded(None, 0, MAX_COUNT)  # None: the rest of the context
    min_tokens: int = _bounded(0, 0, MAX_COUNT)
    logprobs: int | None = _bounded(None, 0, MAX_LOGPROBS)  # None: none; 0: the chosen token only
    prompt_logprobs: int | None = _bounded(None, 0, MAX_LOGPROBS)
    logprobs_mode: Literal["raw", "processed"] = _bounded("raw", kind=str, choices=("raw", "processed"))
    detokenize: bool = _bounded(True, kind=bool)
    skip_special_tokens: bool = _bounded(True, kind=bool)
    structured_outputs: StructuredOutputsParams | None = _bounded(None, kind=StructuredOutputsParams)  # noqa: RUF009

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()))
        for name in ("stop_token_ids", "bad_words", "allowed_token_ids"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise RequestError(f"{name} must be a list, not a string", name)
            set_(self, name, None if value is None else tuple(value))
        set_(self, "logit_bias", dict(self.logit_bias or {}))
        check_bounds(self)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}", "min_tokens")
        if self.allowed_token_ids == ():
            raise RequestError("allowed_token_ids must not be empty", "allowed_token_ids")
        for token in self.logit_bias:
            Bound(int, 0, MAX_COUNT).check("logit_bias", token)

    def check(self, vocab_size: int) -> None:
        """Raise RequestError when a token id lies outside the vocabulary."""
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("allowed_token_ids", self.allowed_token_ids or ()),
                          ("logit_bias", self.logit_bias)):
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise RequestError(f"{name}: token id {token} is outside the vocabulary of {vocab_size}", name)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


PARTS = ("parse", "template", "tokenise", "queue", "grammar", "prefill", "flush")


@dataclass(frozen=True, slots=True)
class Stamps:
    """When each stage of a request was over, in nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.

    0: it is not over. In order; a stage that a request does not have is over when the one before it is. The time to
    the first token is told in PARTS, each the difference of two neighbours: their sum is that time, by construction.
    """

    arrived_ns: int = 0
    parsed_ns: int = 0  # the body is there and read, the form that it asks for checked
    rendered_ns: int = 0  # the template has made one text of the conversation
    tokenised_ns: int = 0  # the engine can have it
    due_ns: int = 0  # its turn has come: there are a row and pages for it, whether its grammar is there or not
    scheduled_ns: int = 0  # its first row is planned
    sampled_ns: int = 0  # the engine has its first token
    flushed_ns: int = 0  # the first of the answer was handed over: of a stream, to its connection

    @property
    def ttft_ns(self) -> int:
        """From arrival to the first of the answer; 0 before that."""
        return self.flushed_ns - self.arrived_ns if self.flushed_ns else 0

    def parts(self) -> dict[str, int]:
        """Nanoseconds by PARTS; none before the first of the answer."""
        s = (self.arrived_ns, self.parsed_ns, self.rendered_ns, self.tokenised_ns, self.due_ns, self.scheduled_ns,
             self.sampled_ns, self.flushed_ns)
        return {name: s[i + 1] - s[i] for i, name in enumerate(PARTS)} if self.flushed_ns else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, as tokens. `n` samples of it are `n` sequences in the engine."""

    id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    bad_word_ids: Sequence[Sequence[int]] = ()  # params.bad_words, tokenised by whoever owns the tokenizer
    priority: int = _bounded(0, -MAX_COUNT, MAX_COUNT)  # lower runs first
    stamps: Stamps = Stamps()  # as far as the engine
    start_by_s: float | None = None  # monotonic clock; a request that has not run by then ends with reason "deadline"
    deadline_s: float | None = None  # monotonic clock; after it the request ends with reason "deadline"
    cache_salt: str = _bounded("", 0, MAX_SALT_CHARS, kind=str)  # prefixes are shared only among equal salts
    pooling: Pooling | None = None  # an embedding is wanted, no tokens are sampled

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural logarithm of a token's probability and its rank (1 = most probable)."""

    logprob: float
    rank: int


Logprobs = dict[int, Logprob]  # token id -> Logprob: the token that came and the most probable ones


@dataclass(slots=True)
class Scores:
    """A sequence of the Logprobs of a prompt's tokens, None of the first. As numbers of 4 bytes: for 20 alternatives a
    token's dict takes twenty times as much, and prompts are long. Grows with the chunks of a prompt."""

    width: int = 0  # of a token: itself and the most probable ones
    ids: bytearray = field(default_factory=bytearray)  # (tokens, width) int32
    values: bytearray = field(default_factory=bytearray)  # likewise, float32
    ranks: bytearray = field(default_factory=bytearray)  # int32, of the token itself

    def add(self, token: int, logprob: float, rank: int, top: Sequence[int], values: Sequence[float]) -> None:
        """The next token's, `top` being the most probable ones in their order."""
        self.width = 1 + len(top)
        self.ids += array("i", (token, *top)).tobytes()
        self.values += array("f", (logprob, *values)).tobytes()
        self.ranks += array("i", (rank,)).tobytes()

    def put(self, start: int, later: "Scores") -> None:
        """What follows the first `start` + 1 tokens: a prompt that begins anew after a preemption replaces its own."""
        self.width = later.width or self.width
        del self.ids[4 * start * self.width :], self.values[4 * start * self.width :], self.ranks[4 * start :]
        self.ids += later.ids
        self.values += later.values
        self.ranks += later.ranks

    def __len__(self) -> int:
        return 1 + len(self.ranks) // 4

    def __getitem__(self, i: int | slice) -> Any:
        found = range(len(self))[i]  # raises IndexError
        return [self._at(k) for k in found] if isinstance(found, range) else self._at(found)

    def __iter__(self) -> Iterator[Logprobs | None]:
        return map(self._at, range(len(self)))

    def _at(self, i: int) -> Logprobs | None:
        if i == 0:
            return None
        row = slice((i - 1) * self.width, i * self.width)
        token, *top = memoryview(self.ids).cast("i")[row]
        own, *values = memoryview(self.values).cast("f")[row]
        out = {token: Logprob(own, memoryview(self.ranks).cast("i")[i - 1])}
        for rank, (other, value) in enumerate(zip(top, values), 1):
            out.setdefault(other, Logprob(value, rank))
        return out


Sequence.register(Scores)


class Spent(NamedTuple):
    """Seconds of machine and the tokens that they ran, by why. Cached tokens were not run: no seconds."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    recomputed_s: float = 0.0
    rejected_s: float = 0.0
    joules: float = 0.0  # where the power is known
    prefill_tokens: int = 0
    decode_tokens: int = 0
    recomputed_tokens: int = 0  # run again after a preemption
    rejected_tokens: int = 0  # guesses that came to nothing: drafts, and steps that ran ahead of an end
    cached_tokens: int = 0  # found in the prefix cache

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s + self.recomputed_s + self.rejected_s

    def __add__(self, other: "Spent") -> "Spent":  # type: ignore[override]
        """Field by field, not as tuples are joined. One is made for each row of each step, and tuples are quick."""
        return Spent(*map(add, self, other))


NOTHING = Spent()


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one step brought to sample `index` of request `id`. Tokens only; text is made by `text`."""

    id: str
    index: int = 0
    token_ids: Sequence[int] = ()
    logprobs: Sequence[Logprobs] | None = None  # one for each of token_ids
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id (not eos) or the stop string
    prompt_logprobs: Scores | None = None  # with the first tokens
    embedding: Sequence[float] | None = None
    error: str | None = None  # with finish_reason "error"
    error_param: str | None = None  # the field, when the request is at fault
    cached_tokens: int = 0  # prompt tokens that were not computed
    stamps: Stamps | None = None  # the request's and the engine's, with the sample's first tokens, or its end without
    mask_ns: int = 0  # what the grammar's masks have taken so far, within prefill and decoding
    spent: Spent | None = None  # by this sample, so far


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """Of a request with several samples, the way of the one that had a token first."""

    stamps: Stamps
    newest_ns: int = 0  # when the newest token came to whoever owns the text; the stamps' clock
    cached_tokens: int = 0  # prompt tokens that were not computed
    mask_ns: int = 0  # what the grammar's mask for the first token took, within prefill
    spent: Spent = NOTHING  # by all samples, so far


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None = None
    logprobs: Sequence[Logprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: Sequence[CompletionOutput]
    finished: bool
    prompt_logprobs: Scores | None = None
    metrics: RequestMetrics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOutput:
    request_id: str
    prompt_token_ids: Sequence[int]
    embedding: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters since start and gauges of now. Tokens and pages are counts, times are seconds."""

    running: int = 0
    waiting: int = 0
    prefilling: int = 0  # of the running ones: those that have no token yet
    prefilling_tokens: int = 0  # of their prompts
    prefilled_tokens: int = 0  # of these: computed, or found in the cache
    pages_used: int = 0
    pages_cached: int = 0  # known prefixes, used or not
    pages_total: int = 0
    rows: int = 0  # of the last step
    steps: int = 0
    step_s: float = 0.0
    cpu_s: float = 0.0  # of this process's cores, in steps
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    prefill_chunks: int = 0  # rows that ended before their prompt did
    rows_ahead: int = 0  # planned before their token was known
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of the drafted ones
    captured: int = 0  # shapes of steps that were recorded
    replayed: int = 0  # steps that ran from a record
    halved: int = 0  # steps for which memory did not suffice
    spent: Spent = NOTHING  # by all requests; together with the next two: the time since the engine was ready
    other_s: float = 0.0  # there was work, and no row ran
    idle_s: float = 0.0
    watts: float | None = None
    power_source: str = "unknown"
    grammar_masks: int = 0
    grammar_mask_s: float = 0.0
    grammar_compile_s: float = 0.0
