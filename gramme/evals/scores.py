"""What a model says of each token of a text, alone and beside a reference. Knows no statistics and no command line."""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gramme.config import ConfigError, ModelError
from gramme.evals.subject import PASS_TOKENS, Subject, run_layers, window_step
from gramme.kernels.ops import Array

Progress = Callable[[int, int], None]  # layers run for all tokens of a pass, and logits made of them; of all


@dataclass(frozen=True)
class Window:
    """Tokens that are run together; those from `first` on are scored, the ones before only give context."""

    tokens: np.ndarray  # (n,) int32
    first: int


@dataclass(frozen=True)
class Scores:
    """One number a scored token, float64; the last three beside a reference only."""

    nats: np.ndarray  # -ln p(token)
    nbytes: np.ndarray  # that the token adds to the text
    reference_nats: np.ndarray | None = None
    kl: np.ndarray | None = None  # KL(reference || model), nats
    agrees: np.ndarray | None = None  # 1 where both find the same token most probable


def windows(tokens: Sequence[int], window: int, stride: int) -> list[Window]:
    """Whole windows only, unless the text is shorter than one.

    With stride = window this is the convention of the GPTQ and AWQ papers (arXiv 2210.17323, 2306.00978): pieces of
    `window` tokens that know nothing of each other, the last incomplete one left out. With a smaller stride each piece
    scores its last `stride` tokens, and the first all of them.
    """
    if not 1 <= stride <= window:
        raise ConfigError(f"a stride must be from 1 to the window of {window} tokens, not {stride}")
    if len(tokens) < 2:
        raise ConfigError(f"a text of {len(tokens)} tokens has nothing to predict")
    ids = np.asarray(tokens, np.int32)
    starts = range(0, max(1, len(ids) - window + 1), stride)
    return [Window(ids[i : i + window], 1 if i == 0 or stride == window else window - stride) for i in starts]


def score(model: Subject, cut: Sequence[Window], progress: Progress = lambda done, total: None) -> Scores:
    parts = []
    for some, (states,) in passes(cut, (model,), progress):
        for w, x in zip(some, states, strict=True):
            logits = model.logits(x[w.first - 1 : -1])
            nats = np.concatenate([-_of(log_probabilities(a), t) for a, t in _beside(logits, w)])
            parts.append((nats, _nbytes(model, w)))
    return Scores(*map(np.concatenate, zip(*parts)))


def compare(reference: Subject, model: Subject, cut: Sequence[Window],
            progress: Progress = lambda done, total: None) -> Scores:
    """Both models on the same tokens; each pass runs one model after the other, so only activations of both exist."""
    parts = []
    for some, states in passes(cut, (reference, model), progress):
        for w, a, b in zip(some, *states, strict=True):
            parts.append((*compared(reference.logits(a[w.first - 1 : -1]), model.logits(b[w.first - 1 : -1]), w),
                          _nbytes(reference, w)))
    nats, reference_nats, kl, agrees, nbytes = map(np.concatenate, zip(*parts))
    return Scores(nats, nbytes, reference_nats, kl, agrees)


def compared(reference: Iterator[np.ndarray], model: Iterator[np.ndarray], w: Window) -> tuple[np.ndarray, ...]:
    """(nats, reference's nats, KL, agreement) of a window's scored tokens, from both models' logits in chunks."""
    rows = []
    for (a, targets), b in zip(_beside(reference, w), model, strict=True):
        p, q = log_probabilities(a), log_probabilities(b)
        kl = (np.exp(p) * (p - q)).sum(-1)
        rows.append((-_of(q, targets), -_of(p, targets), kl, (a.argmax(-1) == b.argmax(-1)).astype(np.float64)))
    return tuple(map(np.concatenate, zip(*rows)))


def noise_floor(reference: Subject, cut: Sequence[Window]) -> float:
    """Mean KL, nats, of the reference to itself when four windows run as one step: what rounding alone does."""
    some = [Window(w.tokens, 1) for w in cut[:4]]
    apart = reference.states([w.tokens for w in some])
    together, = run_layers(reference.decoder, [window_step(reference.device, [w.tokens for w in some])])
    ends = np.cumsum([len(w.tokens) for w in some]).tolist()
    kl = [compared(reference.logits(x[:-1]), reference.logits(together[end - len(x) : end - 1]), w)[2]
          for w, x, end in zip(some, apart, ends, strict=True)]
    return float(np.concatenate(kl).mean())


def passes(cut: Sequence[Window], models: Sequence[Subject], progress: Progress
           ) -> Iterator[tuple[Sequence[Window], list[list[Array]]]]:
    """(windows, their states by model) of one pass after the other."""
    n, layers = max(1, PASS_TOKENS // max(len(w.tokens) for w in cut)), [len(m.decoder.layers) for m in models]
    done, total = 0, -(-len(cut) // n) * (sum(layers) + 1)
    progress(done, total)
    for i in range(0, len(cut), n):
        some, states = cut[i : i + n], []
        for model, count in zip(models, layers, strict=True):
            ran = lambda n, before=done: progress(before + n, total)
            states.append(model.states([w.tokens for w in some], ran))
            done += count
        yield some, states
        progress(done := done + 1, total)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """(N, V) float64: a KL of 1e-6 is a difference of numbers near 10."""
    if not np.isfinite(logits).all():
        raise ModelError("the model's logits are not finite")
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _beside(logits: Iterator[np.ndarray], w: Window) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    at = w.first
    for a in logits:
        yield a, w.tokens[at : at + len(a)]
        at += len(a)


def _of(log_p: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.take_along_axis(log_p, targets[:, None].astype(np.int64), 1)[:, 0]


def _nbytes(model: Subject, w: Window) -> np.ndarray:
    return np.array([len(model.tokenizer.token_bytes(t)) for t in w.tokens[w.first :].tolist()], np.float64)
