"""/v1/score and /v1/rerank: how near texts are by the cosine of their mean embeddings. Knows no engine and no HTTP."""
import math
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import uuid4

from msgspec import Meta

from gramme.request import RequestError
from gramme.serve.openai import MAX_PROMPTS, Body, Text

Vector = Sequence[float]


class Score(Body, kw_only=True):
    text_1: Text | Annotated[list[Text], Meta(min_length=1, max_length=MAX_PROMPTS)]
    text_2: Text | Annotated[list[Text], Meta(min_length=1, max_length=MAX_PROMPTS)]

    def pairs(self) -> list[tuple[str, str]]:
        """One against each, or each against its fellow."""
        a, b = ([t] if isinstance(t, str) else t for t in (self.text_1, self.text_2))
        if len(a) not in (1, len(b)):
            raise RequestError(f"text_1 has {len(a)} texts and text_2 {len(b)}: give one or as many", "text_1")
        return list(zip(a * len(b) if len(a) == 1 else a, b))


class Rerank(Body, kw_only=True):
    query: Text
    documents: Annotated[list[Text], Meta(min_length=1, max_length=MAX_PROMPTS)]
    top_n: Annotated[int, Meta(ge=1, le=MAX_PROMPTS)] | None = None
    return_documents: bool = True


def cosine(a: Vector, b: Vector) -> float:
    norms = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b)) / norms if norms else 0.0


def score_list(scores: Sequence[float], model: str, created: int, tokens: int) -> dict[str, Any]:
    data = [{"index": i, "object": "score", "score": s} for i, s in enumerate(scores)]
    return {"id": "score-" + uuid4().hex, "object": "list", "created": created, "model": model, "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def ranking(body: Rerank, scores: Sequence[float], model: str, tokens: int) -> dict[str, Any]:
    """Best first; equal ones in the order in which they came."""
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n]
    shown = lambda i: {"document": {"text": body.documents[i]}} if body.return_documents else {}
    return {"id": "rerank-" + uuid4().hex, "model": model,
            "results": [{"index": i, "relevance_score": scores[i], **shown(i)} for i in best],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
