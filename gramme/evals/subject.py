"""A model that is to be judged: its tokenizer, and a decoder whose layers are read one at a time.

Whole windows run layer by layer, so memory is the embedding, one layer and the windows' activations, for any size of
model; logits exist for at most LOGIT_ROWS tokens at once.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gramme.config import ConfigError, EngineConfig, ModelConfig
from gramme.kernels.load import Backend, backend
from gramme.kernels.ops import Array, Device, Step
from gramme.kernels.present import available
from gramme.models.decoder import Decoder, Layer
from gramme.models.load import as_floats, build
from gramme.models.open import open_model
from gramme.plan.hardware import this_machine
from gramme.plan.planner import plan
from gramme.text.tokenizer import Tokenizer, load_tokenizer

LOGIT_ROWS = 128  # 128 x 152k float64 are 156 MB, and a few such arrays live at once
PASS_TOKENS = 16384  # a pass reads every layer once for so many tokens
KEPT_TOKENS = 2 * PASS_TOKENS  # whose states a reference keeps
Layers = Callable[[int], None]  # told how many layers were run


@dataclass(frozen=True)
class Subject:
    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    decoder: Decoder
    device: Device

    def states(self, windows: Sequence[np.ndarray], progress: Layers = lambda done: None) -> list[Array]:
        """The last layer's residual stream of each window, (n, D), before the last norm."""
        return run_layers(self.decoder, [window_step(self.device, [w]) for w in windows], progress)

    def logits(self, states: Array) -> Iterator[np.ndarray]:
        """(at most LOGIT_ROWS, V) at a time, for all tokens in order."""
        for i in range(0, len(states), LOGIT_ROWS):
            yield self.device.get(self.decoder.logits((states[i : i + LOGIT_ROWS], None), None))


@dataclass(frozen=True)
class Reference(Subject):
    """Keeps the states of the windows that it ran first: several models are compared with it on the same ones."""

    kept: dict[bytes, Array] = field(default_factory=dict, init=False)

    def states(self, windows: Sequence[np.ndarray], progress: Layers = lambda done: None) -> list[Array]:
        keys = [w.tobytes() for w in windows]
        if all(key in self.kept for key in keys):
            return [self.kept[key] for key in keys]
        states = super().states(windows, progress)
        if sum(map(len, self.kept.values())) + sum(map(len, states)) <= KEPT_TOKENS:
            self.kept.update(zip(keys, states, strict=True))
        return states


def load(engine: EngineConfig, window: int, exact: bool = False) -> Subject:
    """`exact`: every weight in float32, and no activation rounded, where the engine would multiply integers.

    Raises ModelError or ConfigError with one line that says what is wrong."""
    opened = open_model(engine)
    m, kernels, dtype = opened.config, *chosen(opened.config, engine)
    if not 2 <= window <= m.max_positions:
        raise ConfigError(f"a window must have from 2 to {m.max_positions} tokens, the model's context, not {window}")
    source, dtype = (as_floats(opened.source), "float32") if exact else (opened.source, dtype)
    opened.check_all_used()
    decoder = build(m, source, kernels, dtype, window, streamed=True)
    return Subject(opened.name, m, load_tokenizer(opened.text), decoder, kernels.device)


def chosen(m: ModelConfig, engine: EngineConfig) -> tuple[Backend, str]:
    """Kernels and storage, as the planner decides for a model of one layer: no more than that is ever in memory."""
    decided = plan(replace(m, layers=1, windows=m.windows[:1]), engine, replace(this_machine(), backends=available()))
    return backend(decided.backend, decided.threads), decided.dtype


def window_step(device: Device, windows: Sequence[np.ndarray]) -> Step:
    """Whole sequences as the rows of a step that has no KV pages."""
    lengths = np.array([len(w) for w in windows])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.concatenate([np.arange(n) for n in lengths])
    tokens, slots = np.concatenate(windows), np.arange(starts[-1])
    put = lambda a: device.put(np.asarray(a, np.int32))
    longest = int(lengths.max())
    return Step(put(tokens), put(positions), put(slots), put(starts), put(lengths), put(np.zeros((len(lengths), 1))),
                put([]), longest, longest)


def run_layers(decoder: Decoder, steps: Sequence[Step], progress: Layers = lambda done: None) -> list[Array]:
    streams = [decoder.embed.rows(step.tokens) for step in steps]
    for i, layer in enumerate(decoder.layers):
        streams = [advance(decoder, layer, x, step) for x, step in zip(streams, steps, strict=True)]
        progress(i + 1)
    return streams


def advance(decoder: Decoder, layer: Layer, x: Array, step: Step) -> Array:
    """The residual stream (T, D) after one more layer."""
    x, r = decoder.block(layer, x, None, step, None)
    return x + r
