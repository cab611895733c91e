"""Judges a solved model beside its original, language by language, and says why it must not be saved."""
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch

from gramme.evals.scores import Scores, Window, compare, compared, windows
from gramme.evals.subject import Reference, Subject, advance, window_step
from gramme.evals.summary import Figure, Loss, loss
from gramme.formats.grouped import Grouped, dense
from gramme.kernels.load import backend
from gramme.kernels.ops import Array
from gramme.models.load import Source, as_floats, build
from gramme.quantize.layer import round_layer
from gramme.quantize.limits import Limits
from gramme.quantize.plan import HARM_TOKENS
from gramme.quantize.run import LayerSource, Progress, Task, as_float, read_layer
from gramme.quantize.solve import nearest
from gramme.quantize.work import Work
from gramme.text.tokenizer import load_tokenizer


def reference(task: Task) -> Reference:
    """The original in float32, its layers read one at a time."""
    kernels = backend("eager", torch_device=task.device)
    decoder = build(task.config, as_floats(LayerSource(task.model)), kernels, "float32", task.window, streamed=True)
    return Reference(task.opened.name, task.config, load_tokenizer(task.opened.text), decoder, kernels.device)


def candidate(task: Task, name: str, work: Work, original: Subject) -> Subject:
    """What recipe `name` made, from the work folder; it shares the original's arrays where they are the same."""
    source, kernels = as_floats(solved_source(task, name, work)), backend("eager", torch_device=task.device)
    if task.recipes[name].rounds_ends:
        decoder = build(task.config, source, kernels, "float32", task.window, streamed=True)
    else:
        layers = build(replace(task.config, tied_embeddings=True), source, kernels, "float32", task.window,
                       streamed=True).layers
        decoder = replace(original.decoder, layers=layers)
    return Subject(name, task.config, original.tokenizer, decoder, original.device)


def solved_source(task: Task, name: str, work: Work) -> Source:
    """The result's tensors under our names, as they will be written."""
    recipe, original, held = task.recipes[name], LayerSource(task.model), {}

    def source(ours: str) -> np.ndarray | Grouped:
        if not ours.startswith("layers."):
            a = original(ours)
            rounded = recipe.rounds_ends and ours in ("embed", "head")
            if not rounded:  # an embedding or a head that the source has in integers is not this format's
                return a if isinstance(a, np.ndarray) else dense(a)
            return nearest(torch.from_numpy(as_float(a)).to(task.device), recipe.grid(task.config, 8))
        _, layer, tensor = ours.split(".", 2)
        if layer not in held:
            held.clear()
            held[layer] = work.layer(name, int(layer))
        return held[layer][tensor]

    return source


def judge(original: Subject, model: Subject, texts: Mapping[str, str], window: int, progress: Progress
          ) -> dict[str, Loss]:
    """All languages together, so that layers are read once for as many tokens as a pass holds."""
    cuts = [windows(original.tokenizer.encode(text), window, window) for text in texts.values()]
    scores = compare(original, model, [w for cut in cuts for w in cut], progress)
    ends = np.cumsum([sum(len(w.tokens) - w.first for w in cut) for cut in cuts])[:-1]
    columns = [np.split(getattr(scores, f.name), ends) for f in fields(scores)]
    return {language: loss(Scores(*of)) for language, of in zip(texts, zip(*columns), strict=True)}


def failures(losses: Mapping[str, Loss], limits: Mapping[str, Limits]) -> list[str]:
    """One line for each language and figure that is above that language's limit."""
    out = []
    for language, x in losses.items():
        most = limits[language]
        if not x.kl.high <= most.max_kl:
            out.append(f"{language}: mean KL {_figure(x.kl)} nats, at most {most.max_kl:g} may be lost")
        if not x.perplexity_increase.high <= most.max_ppl_increase:
            out.append(f"{language}: perplexity rises by {_figure(x.perplexity_increase, 100)} %, "
                       f"at most {100 * most.max_ppl_increase:g} % are allowed")
    return out


def harms(original: Subject, model: Subject, cut: Sequence[Window], progress: Progress) -> list[float]:
    """By layer: mean KL, nats, of the model in which that layer alone is the solved one.

    All those models run together, so each layer is read once; their streams take L times the memory of one.
    """
    steps = [window_step(original.device, [w.tokens]) for w in cut]
    run = lambda s, layer, streams: [advance(s.decoder, layer, x, step) for x, step in zip(streams, steps, strict=True)]
    base: list[Array] = [original.decoder.embed.rows(step.tokens) for step in steps]
    altered: list[list[Array]] = []
    count = original.config.layers
    for i in range(count):
        layer = original.decoder.layers[i]
        altered = [run(original, layer, streams) for streams in altered] + [
            run(model, model.decoder.layers[i], base)]
        base = run(original, layer, base)
        progress(i + 1, count)
    return [_mean_kl(original, base, streams, cut) for streams in altered]


def keep_worst(task: Task, name: str, work: Work, original: Subject, cut: Sequence[Window], count: int,
               progress: Progress) -> list[int]:
    """Gives the `count` most harmful layers of a recipe 8 bits; their numbers, the worst first."""
    few = cut[: max(1, HARM_TOKENS // task.window)]
    found = harms(original, candidate(task, name, work, original), few, progress)
    worst = np.argsort(-np.array(found), kind="stable")[:count].tolist()
    source = LayerSource(task.model)
    for i in worst:
        layer = read_layer(task.config, source, i, task.device)
        work.keep(name, i, round_layer(layer, task.recipes[name], task.config))
    return worst


def _mean_kl(original: Subject, base: Sequence[Array], streams: Sequence[Array], cut: Sequence[Window]) -> float:
    kl = [compared(original.logits(a[:-1]), original.logits(b[:-1]), w)[2]
          for a, b, w in zip(base, streams, cut, strict=True)]
    return float(np.concatenate(kl).mean())


def _figure(f: Figure, times: float = 1) -> str:
    return f"{times * f.value:.3g} [{times * f.low:.3g}, {times * f.high:.3g}]"
