"""A request's updates put together: its text, tokens, scores and times so far. Knows no engine."""
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gramme.request import (
    CompletionOutput,
    FinishReason,
    Logprobs,
    Request,
    RequestError,
    RequestMetrics,
    RequestOutput,
    Scores,
    Spent,
    Update,
)
from gramme.text.detokenizer import Detokenizer
from gramme.text.tokenizer import Tokenizer


def assemble(request: Request, tokenizer: Tokenizer | None, prompt: str | None = None,
             shown: frozenset[int] = frozenset()) -> "Assembly":
    """At the request's beginning; without a tokenizer it stays tokens. `shown`: special tokens that are text."""
    p = request.params
    made = [Detokenizer(tokenizer, skip_special_tokens=p.skip_special_tokens, stop=p.stop,
                        include_stop=p.include_stop_str_in_output, shown=shown)
            if tokenizer is not None and p.detokenize else None for _ in range(p.n)]
    return Assembly(request, prompt, made, RequestMetrics(stamps=request.stamps))


@dataclass
class Assembly:
    """Turns a request's updates into RequestOutputs: one detokenizer for each sample."""

    request: Request
    prompt: str | None
    detokenizers: list[Detokenizer | None]
    metrics: RequestMetrics
    texts: list[str] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[Logprobs]] = field(default_factory=list)
    reasons: list[FinishReason | None] = field(default_factory=list)
    stops: list[int | str | None] = field(default_factory=list)
    prompt_logprobs: Scores | None = None
    embedding: Sequence[float] | None = None
    refused: RequestError | None = None
    spent: dict[int, Spent] = field(default_factory=dict)  # by sample

    def __post_init__(self) -> None:
        n = self.request.params.n
        self.texts, self.reasons, self.stops = [""] * n, [None] * n, [None] * n
        self.tokens, self.logprobs = [[] for _ in range(n)], [[] for _ in range(n)]

    def feed(self, u: Update) -> str:
        """Take an update; returns the new text of its sample. A stop string sets `stops` and ends the sample here."""
        if self.reasons[u.index] is not None:
            return ""
        self._stamp(u)
        if u.spent is not None:
            self.spent[u.index] = u.spent
            self.metrics = replace(self.metrics, spent=sum(self.spent.values(), Spent()))
        if u.error_param is not None:
            self.refused = RequestError(str(u.error), u.error_param)
        self.prompt_logprobs = u.prompt_logprobs or self.prompt_logprobs
        self.embedding = u.embedding or self.embedding
        self.tokens[u.index] += u.token_ids
        self.logprobs[u.index] += u.logprobs or ()
        text = self._text(u)
        self.texts[u.index] += text
        return text

    def check(self) -> None:
        """Raises RequestError when the engine found, later than at its start, that the request is at fault."""
        if self.refused is not None:
            raise self.refused

    def output(self, index: int | None = None) -> RequestOutput:
        chosen = range(self.request.params.n) if index is None else [index]
        return RequestOutput(
            request_id=self.request.id, prompt=self.prompt, prompt_token_ids=self.request.prompt_token_ids,
            outputs=tuple(self._completion(i) for i in chosen), finished=self.finished,
            prompt_logprobs=self.prompt_logprobs, metrics=self.metrics,
        )

    @property
    def finished(self) -> bool:
        return None not in self.reasons

    def _text(self, u: Update) -> str:
        d, i = self.detokenizers[u.index], u.index
        text = d.feed(u.token_ids) if d else ""
        self.reasons[i], self.stops[i] = u.finish_reason, u.stop_reason
        if d and d.stopped is not None:
            self.reasons[i], self.stops[i] = "stop", d.stopped
        elif d and u.finish_reason:
            text += d.finish()
            if d.stopped is not None:
                self.reasons[i], self.stops[i] = "stop", d.stopped
        return text

    def handed_over(self) -> None:
        """Call this each time when something of the answer has reached whoever asked: the first time counts."""
        stamps = self.metrics.stamps
        if not stamps.flushed_ns and stamps.sampled_ns:
            self.metrics = replace(self.metrics, stamps=replace(stamps, flushed_ns=time.monotonic_ns()))

    def _stamp(self, u: Update) -> None:
        self.metrics = replace(self.metrics, newest_ns=time.monotonic_ns())
        if u.stamps is not None and not self.metrics.stamps.sampled_ns:
            self.metrics = replace(self.metrics, stamps=u.stamps, cached_tokens=u.cached_tokens, mask_ns=u.mask_ns)

    def _completion(self, i: int) -> CompletionOutput:
        lp = self.logprobs[i] if self.request.params.logprobs is not None else None
        total = None if lp is None else sum(scores[t].logprob for scores, t in zip(lp, self.tokens[i]))
        return CompletionOutput(index=i, text=self.texts[i], token_ids=tuple(self.tokens[i]), cumulative_logprob=total,
                                logprobs=lp, finish_reason=self.reasons[i], stop_reason=self.stops[i])
