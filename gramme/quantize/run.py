"""Calibrates and solves a model layer by layer, and goes on where an earlier run stopped."""
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gramme import __version__
from gramme.config import ConfigError, EngineConfig, ModelConfig, ModelError
from gramme.evals.scores import Window, windows
from gramme.evals.subject import window_step
from gramme.formats.grouped import dense
from gramme.kernels.load import backend
from gramme.models.load import Matrix, as_floats, build, shapes
from gramme.models.open import Opened, open_model
from gramme.plan.hardware import this_machine
from gramme.quantize.calibrate import Watch
from gramme.quantize.layer import solve_layer
from gramme.quantize.recipe import Recipe
from gramme.quantize.work import Work
from gramme.text.source import Metadata
from gramme.text.tokenizer import load_tokenizer

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Task:
    """What is to be quantised, how, and on which text."""

    model: str  # as the user names it
    opened: Opened
    recipes: Mapping[str, Recipe]  # by name
    calibration: Mapping[str, str]  # language -> text
    tokens: int = 16384  # of calibration text, shared by the languages
    window: int = 512  # tokens that are run together
    device: str = "cpu"  # torch's name of where layers run and are solved

    @property
    def config(self) -> ModelConfig:
        return self.opened.config

    def check(self) -> None:
        """Raises ConfigError naming the flag that is wrong, before any work."""
        if isinstance(self.opened.text, Metadata):
            raise ConfigError(f"{self.model}: a GGUF file is a result, not a source; name the model it was made from")
        if not 2 <= self.window <= self.config.max_positions:
            raise ConfigError(f"--window must be from 2 to {self.config.max_positions}, not {self.window}")
        if self.tokens < self.window:
            raise ConfigError(f"--tokens must be at least a window of {self.window}, not {self.tokens}")
        for recipe in self.recipes.values():
            recipe.check(self.config)
        self.opened.check_all_used()
        if not self.opened.name.startswith("dummy:") and self.config.stored.layers == (0, 0):
            for name, _ in shapes(self.config):  # whether it is there and its shape: floats are views of the file
                self.opened.source(name)

    def describe(self, cut: Sequence[Window]) -> dict[str, object]:
        """What makes two runs the same: one must not go on with another's layers."""
        sample = (np.ascontiguousarray(as_float(self.opened.source(name))[:64]) for name in ("embed", "norm"))
        return {"gramme": __version__, "model": self.model, "config": repr(self.config), "device": self.device,
                "tokens": _digest(w.tokens for w in cut), "weights": _digest(sample),
                "recipes": {k: asdict(r) for k, r in self.recipes.items()}}


def true_dtype(opened: Opened) -> ModelConfig:
    """The config with the dtype that the tensors have; a dummy, made on the spot, counts as bfloat16."""
    stored = opened.source("norm").dtype.name
    return replace(opened.config, dtype="bfloat16" if opened.name.startswith("dummy:") else stored)


def set_threads(count: int | None) -> None:
    torch.set_num_threads(count or this_machine().cores)


def calibration_windows(task: Task) -> list[Window]:
    """Windows of each language in turn, as many as the tokens allow."""
    tokenizer = load_tokenizer(task.opened.text)
    ids = {language: tokenizer.encode(text) for language, text in task.calibration.items()}
    if short := [language for language, tokens in ids.items() if len(tokens) < 2]:
        raise ConfigError(f"the calibration text {short[0]!r:.60} has {len(ids[short[0]])} tokens, nothing to predict")
    if (top := max((max(t, default=0) for t in ids.values()), default=0)) >= task.config.vocab_size:
        raise ConfigError(f"the tokenizer gives the id {top}, the model has {task.config.vocab_size}")
    by_language = [windows(t, task.window, task.window) for t in ids.values()]
    turns = [w for turn in zip(*by_language) for w in turn]
    return turns[: max(1, task.tokens // task.window)]


def solve(task: Task, work: Work, cut: Sequence[Window], layers: int, progress: Progress) -> None:
    """Goes on where `work` stands, up to `layers`."""
    watch = Watch(backend("eager", torch_device=task.device))
    source = LayerSource(task.model)
    # The head is not needed here; a tied one costs no memory.
    decoder = build(replace(task.config, tied_embeddings=True), as_floats(source), watch.kernels, "float32",
                    task.window, True)
    steps = [window_step(watch.kernels.device, [w.tokens]) for w in cut]
    at = work.layers_done
    if at == 0 and work.streams(0) is None:
        for name in ("embed", "norm", *([] if task.config.tied_embeddings else ["head"])):
            _finite(source, name)
        work.save_streams(0, [decoder.embed.rows(s.tokens).numpy(force=True) for s in steps])
    streams = [watch.kernels.device.put(a) for a in work.streams(at)] if at < layers else []
    progress(at, layers)
    for i in range(at, layers):
        streams, moments = watch.layer(decoder, i, streams, steps)
        tensors = read_layer(task.config, source, i, task.device)
        solved = {name: solve_layer(tensors, moments, recipe, task.config) for name, recipe in task.recipes.items()}
        work.save_layer(i, {name: s for name, (s, _) in solved.items()}, {name: x for name, (_, x) in solved.items()},
                        [a.numpy(force=True) for a in streams])
        progress(i + 1, layers)


def read_layer(m: ModelConfig, source: "LayerSource", i: int, device: str) -> dict[str, Tensor]:
    """Float32 tensors on the device by our names without the prefix."""
    prefix = f"layers.{i}."
    return {name.removeprefix(prefix): torch.from_numpy(_finite(source, name)).to(device)
            for name, _ in shapes(m) if name.startswith(prefix)}


def _finite(source: "LayerSource", name: str) -> np.ndarray:
    a = as_float(source(name))
    if not np.isfinite(a).all():
        raise ModelError(f"{source.name}: {name} is not finite everywhere")
    return a


def as_float(a: Matrix) -> np.ndarray:
    """A copy."""
    return a.astype(np.float32) if isinstance(a, np.ndarray) else dense(a)


class LayerSource:
    """A model's tensors, with the files opened anew for each layer: what was read leaves memory with the map."""

    def __init__(self, model: str):
        self._model, self._at, self._opened = model, "", open_model(EngineConfig(model=model))
        self.name = self._opened.name

    def __call__(self, name: str) -> Matrix:
        layer = ".".join(name.split(".")[:2]) if name.startswith("layers.") else ""
        if layer != self._at:
            self._at, self._opened = layer, open_model(EngineConfig(model=self._model))
        return self._opened.source(name)


def _digest(arrays: Iterable[np.ndarray]) -> str:
    return hashlib.blake2b(b"".join(a.tobytes() for a in arrays), digest_size=16).hexdigest()
