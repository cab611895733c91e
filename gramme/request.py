"""What a caller asks of the engine and what the engine answers, as frozen records.

Every bound that does not need a model is checked here, at construction, so that the Python API, the command line and
HTTP share them. Knows no tokenizer and no model: what depends on the vocabulary is checked by `SamplingParams.check`.
Field names are vLLM's, so that scripts and people move over.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

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


class RequestError(ValueError):
    """The request is at fault, not the engine; `param` names the field."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"{name} must be an integer from {low} to {high}, not {value!r:.40}", name)


def _number(name: str, value: Any, low: float, high: float, above: bool = False) -> None:
    if type(value) not in (int, float) or not isfinite(value) or not low <= value <= high or (above and value == low):
        span = f"above {low:g}, up to {high:g}" if above else f"from {low:g} to {high:g}"
        raise RequestError(f"{name} must be a number {span}, not {value!r:.40}", name)


def _listed(name: str, value: Any, kind: type, most: int) -> None:
    if not isinstance(value, tuple) or len(value) > most or not all(type(x) is kind for x in value):
        raise RequestError(f"{name} must be a list of at most {most} values of type {kind.__name__}", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens. Lists are given as any sequence and kept as tuples.

    The order in which they act is vLLM's: allowed tokens, bad words, min_tokens, logit bias, then repetition, frequency
    and presence penalties; then greedy (temperature 0), or temperature, min_p, top_k, top_p.

    Raises RequestError, naming the field, when a value is out of bounds.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: off
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = None  # None: the rest of the context
    min_tokens: int = 0
    logprobs: int | None = None  # None: none; 0: the chosen token only
    prompt_logprobs: int | None = None
    logprobs_mode: Literal["raw", "processed"] = "raw"
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()))
        for name in ("stop_token_ids", "bad_words", "allowed_token_ids"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise RequestError(f"{name} must be a list, not a string", name)
            set_(self, name, None if value is None else tuple(value))
        set_(self, "logit_bias", dict(self.logit_bias or {}))
        self._check_counts()
        self._check_numbers()
        self._check_lists()

    def _check_counts(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _integer("top_k", self.top_k, -1, MAX_COUNT)
        _integer("min_tokens", self.min_tokens, 0, MAX_COUNT)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 0, MAX_COUNT)
            if self.min_tokens > self.max_tokens:
                raise RequestError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}", "min_tokens")
        if self.seed is not None:
            _integer("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0, MAX_LOGPROBS)
        if self.logprobs_mode not in ("raw", "processed"):
            raise RequestError("logprobs_mode must be 'raw' or 'processed'", "logprobs_mode")

    def _check_numbers(self) -> None:
        _number("temperature", self.temperature, 0, 2)
        _number("top_p", self.top_p, 0, 1, above=True)
        _number("min_p", self.min_p, 0, 1)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _number("repetition_penalty", self.repetition_penalty, 0, 10, above=True)

    def _check_lists(self) -> None:
        _listed("stop", self.stop, str, MAX_STOP_STRINGS)
        if not all(0 < len(s) <= MAX_STOP_CHARS for s in self.stop):
            raise RequestError(f"each stop string must have 1 to {MAX_STOP_CHARS} characters", "stop")
        _listed("stop_token_ids", self.stop_token_ids, int, MAX_STOP_TOKEN_IDS)
        _listed("bad_words", self.bad_words, str, MAX_BAD_WORDS)
        if not all(0 < len(s) <= MAX_STOP_CHARS for s in self.bad_words):
            raise RequestError(f"each bad word must have 1 to {MAX_STOP_CHARS} characters", "bad_words")
        if self.allowed_token_ids is not None:
            _listed("allowed_token_ids", self.allowed_token_ids, int, MAX_ALLOWED_TOKENS)
            if not self.allowed_token_ids:
                raise RequestError("allowed_token_ids must not be empty", "allowed_token_ids")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(f"logit_bias must have at most {MAX_LOGIT_BIAS} entries", "logit_bias")
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, MAX_COUNT)
            _number("logit_bias", bias, -100, 100)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, as tokens. `n` samples of it are `n` sequences in the engine."""

    id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    bad_word_ids: Sequence[Sequence[int]] = ()  # params.bad_words, tokenised by whoever owns the tokenizer
    priority: int = 0  # lower runs first
    arrival_s: float = 0.0  # monotonic clock
    deadline_s: float | None = None  # monotonic clock; after it the request ends with reason "deadline"
    cache_salt: str = ""  # prefixes are shared only among equal salts
    pooling: Pooling | None = None  # an embedding is wanted, no tokens are sampled


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural logarithm of a token's probability and its rank (1 = most probable)."""

    logprob: float
    rank: int


Logprobs = dict[int, Logprob]  # token id -> Logprob: the token that came and the most probable ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one step brought to sample `index` of request `id`. Tokens only; text is made by `text`."""

    id: str
    index: int = 0
    token_ids: Sequence[int] = ()
    logprobs: Sequence[Logprobs] | None = None  # one for each of token_ids
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id (not eos) or the stop string
    prompt_logprobs: Sequence[Logprobs | None] | None = None  # with the first tokens; None for the first prompt token
    embedding: Sequence[float] | None = None
    error: str | None = None  # with finish_reason "error"
    cached_tokens: int = 0  # prompt tokens that were not computed
    scheduled_s: float | None = None  # monotonic clock, when its first row was planned


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """Times in seconds on one monotonic clock. TTFT is first_token_s - arrival_s."""

    arrival_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    cached_tokens: int = 0


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
    prompt_logprobs: Sequence[Logprobs | None] | None = None
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
    pages_used: int = 0
    pages_total: int = 0
    steps: int = 0
    step_s: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
