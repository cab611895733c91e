"""A quantisation from the first check to the saved directory, or to the reason why there is none."""
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gramme.config import ConfigError
from gramme.evals.subject import Subject
from gramme.evals.summary import Loss
from gramme.formats.store import resolve
from gramme.models.open import EMBEDDED
from gramme.plan.hardware import this_machine
from gramme.plan.units import gb, minutes
from gramme.quantize import device, gguf
from gramme.quantize.card import card, lost_shares, table
from gramme.quantize.export import eight_bit_layers, save
from gramme.quantize.gate import candidate, failures, judge, keep_worst, reference, solved_source
from gramme.quantize.hf import hf_config
from gramme.quantize.limits import Limits
from gramme.quantize.plan import Need, need, speed
from gramme.quantize.run import Progress, Task, calibration_windows, solve
from gramme.quantize.work import Work
from gramme.text.tokenizer import load_tokenizer

REFUSED = 3  # exit code: a language lost too much


@dataclass(frozen=True)
class Wish:
    """What happens to the solved layers."""

    outs: Mapping[str, Path]  # by recipe
    work: Path
    texts: Mapping[str, str]  # language -> text to judge by
    limits: Mapping[str, Limits]  # by language
    keep_worst: int = 0
    layers: int | None = None  # solve so many, measure memory and time, save nothing


def quantise(task: Task, wish: Wish, say: Callable[[str], None], bar: Callable[[str], Progress]) -> int:
    """0: saved; 3: refused. Raises ConfigError or ModelError with one line when it cannot be done."""
    try:
        return _quantise(task, wish, say, bar)
    except torch.OutOfMemoryError:
        raise ConfigError("the GPU's memory did not suffice; fewer --tokens take less, --device cpu none of it; "
                          f"the layers that were solved stay in {wish.work}") from None
    except OSError as error:
        place = "standard output" if isinstance(error, BrokenPipeError) else error.filename or wish.work
        raise ConfigError(f"{place}: {error.strerror}; once that is put right, the same command goes on from the last "
                          "layer that was solved") from None


def _quantise(task: Task, wish: Wish, say: Callable[[str], None], bar: Callable[[str], Progress]) -> int:
    _check(task, wish)
    device.begin(task.device)
    cut = calibration_windows(task)
    predicted = _plan(task, wish, sum(len(w.tokens) for w in cut), say)
    work = Work(wish.work, task.describe(cut))
    count = task.config.layers if wish.layers is None else wish.layers
    if done := work.layers_done:
        say(f"{done} of {count} layers were solved before")
    solve(task, work, cut, count, bar("layers"))
    if wish.layers is not None:
        _checked(task, predicted, say)
        work.remove()
        say(f"{count} of {task.config.layers} layers were solved to measure; nothing is saved")
        return 0
    original, refused = reference(task), False
    work.forget_kept()
    for name, out in wish.outs.items():
        if not out.exists():  # an earlier run that was stopped had saved it
            refused |= not _finish(task, wish, name, work, original, say, bar)
    _checked(task, predicted, say)
    if not refused:
        work.remove()
    return REFUSED if refused else 0


def _checked(task: Task, predicted: Need, say: Callable[[str], None]) -> None:
    used = [("memory", device.host_peak_bytes(), predicted.memory_bytes)]
    if task.device != "cpu":
        used.insert(0, ("GPU memory", device.gpu_peak_bytes(task.device), predicted.gpu_bytes))
    for kind, peak, most in used:
        say(f"{kind}: {gb(peak)} at the peak, {gb(most)} predicted"
            + ("" if peak <= most else f"; {100 * (peak / most - 1):.0f} % more than predicted"))


def _check(task: Task, wish: Wish) -> None:
    task.check()
    count = wish.layers if wish.layers is not None else task.config.layers
    if not 1 <= count <= task.config.layers:
        raise ConfigError(f"--layers must be from 1 to {task.config.layers}, not {count}")
    if not 0 <= wish.keep_worst <= task.config.layers:
        raise ConfigError(f"--keep-worst must be from 0 to {task.config.layers} layers, not {wish.keep_worst}")
    if wish.keep_worst and any(r.format == "awq" or r.bits == 8 for r in task.recipes.values()):
        raise ConfigError("--keep-worst keeps layers at 8 bits: it needs --bits 4 and a format that mixes them, "
                          "compressed-tensors, gptq or gguf")
    _check_formats(task)
    for out in wish.outs.values():
        if out.exists() and not wish.work.exists():
            raise ConfigError(f"{out} exists; name another place or remove it")


def _check_formats(task: Task) -> None:
    """What a format has no words for is refused now, not when hours were spent."""
    formats, directory = {r.format for r in task.recipes.values()}, _directory(task.model)
    if "gguf" in formats:
        gguf.check(load_tokenizer(task.opened.text), task.config)
    if formats - {"gguf"} and (directory is None or not (directory / "config.json").exists()):
        hf_config(task.config)


def _plan(task: Task, wish: Wish, tokens: int, say: Callable[[str], None]) -> Need:
    """Raises ConfigError when the machine has less."""
    gpu = task.device != "cpu"
    per_s, free = speed(task.device), this_machine().free_bytes
    m, recipes, layers = task.config, list(task.recipes.values()), wish.layers
    whole = need(m, recipes, tokens, per_s, _tokens(task, wish), wish.keep_worst > 0, gpu)
    n = whole if layers is None else need(replace(m, layers=layers, windows=m.windows[:layers]), recipes, tokens, per_s,
                                          gpu=gpu)
    card = f"{gb(n.gpu_bytes)} of the GPU's {gb(gpu_free := device.free_bytes(task.device))} free, " if gpu else ""
    say(f"plan: {tokens} tokens of calibration, {card}memory {gb(n.memory_bytes)} of {gb(free)} free, disk "
        f"{gb(n.disk_bytes)}, {minutes(n.seconds)} at this {'GPU' if gpu else 'machine'}'s {per_s / 1e9:.0f} GFLOP/s"
        + (f" for {layers} layers; all {m.layers}, judged and saved: {gb(whole.gpu_bytes) + ' there, ' if gpu else ''}"
           f"{gb(whole.memory_bytes)}, {gb(whole.disk_bytes)}, {minutes(whole.seconds)}" if layers is not None else ""))
    if gpu and n.gpu_bytes > gpu_free:
        raise ConfigError(f"{gb(n.gpu_bytes)} of the GPU's memory are needed, {gb(gpu_free)} are free; fewer --tokens "
                          "take less, --device cpu none of it")
    if n.memory_bytes > free:
        raise ConfigError(f"{gb(n.memory_bytes)} of memory are needed, {gb(free)} are free; fewer --tokens take less")
    place = next(p for p in wish.work.absolute().parents if p.exists())
    if n.disk_bytes > (room := shutil.disk_usage(place).free):
        raise ConfigError(f"{gb(n.disk_bytes)} of disk are needed, {gb(room)} are free in {place}")
    return n


def _tokens(task: Task, wish: Wish) -> int:
    """Of the texts to judge by, about: cutting 60 MB for a plan would take a minute."""
    tokenizer, sample = load_tokenizer(task.opened.text), 20000
    counts = {name: len(tokenizer.encode(text[:sample])) for name, text in wish.texts.items()}
    if short := [name for name, count in counts.items() if count < 2]:
        raise ConfigError(f"the text {short[0]!r:.60} to judge by has {counts[short[0]]} tokens, nothing to predict")
    return sum(counts[name] * max(1, len(text) // sample) for name, text in wish.texts.items())


def _finish(task: Task, wish: Wish, name: str, work: Work, original: Subject, say: Callable[[str], None],
            bar: Callable[[str], Progress]) -> bool:
    """Judge one result and save it, unless it lost too much."""
    if wish.keep_worst:
        worst = keep_worst(task, name, work, original, calibration_windows(task), wish.keep_worst, bar("harm"))
        say(f"{name}: layers {', '.join(map(str, worst))} harm most and keep 8 bits")
    losses = judge(original, candidate(task, name, work, original), wish.texts, task.window, bar("judging"))
    say(f"{name}:\n{table(losses)}")
    if reasons := failures(losses, wish.limits):
        for reason in reasons:
            say(f"refused, {reason}")
        say(f"nothing was saved as {wish.outs[name]}. To try: {_advice(task, wish, name)}. "
            f"The solved layers stay in {wish.work} for --keep-worst and other limits; remove it before other options.")
        return False
    _save(task, wish, name, work, losses)
    say(f"saved {wish.outs[name]}")
    return True


def _advice(task: Task, wish: Wish, name: str) -> str:
    recipe, out = task.recipes[name], []
    if recipe.group > 32:
        out.append(f"--group {32 if recipe.group <= 64 else 64}")
    if recipe.method != "gptq":
        out.append("--method gptq")
    if recipe.format != "awq" and recipe.bits == 4:
        more = min(task.config.layers, max(1, 2 * wish.keep_worst))
        out += [f"--keep-worst {more}", "--bits 8"]
    return ", ".join(out) or "a larger model: this one does not bear the loss"


def _save(task: Task, wish: Wish, name: str, work: Work, losses: Mapping[str, Loss]) -> None:
    source, recipe, m = solved_source(task, name, work), task.recipes[name], task.config
    eights = eight_bit_layers(m, recipe, source)
    note = lost_shares([work.losses(i)[name] for i in range(m.layers)])
    out = wish.outs[name]
    save(out, _directory(task.model), task.opened, recipe, source,
         card(task, name, out.name, losses, wish.limits, eights, note))


def _directory(model: str) -> Path | None:
    if model.startswith("dummy:"):
        return None
    return resolve(model) if model else EMBEDDED
