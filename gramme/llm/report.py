"""The truth report: of each thing asked for or done by itself, whether it acts, why not, and what it brought.

Every effect is computed from a counter. Printing, JSON and the page are views of these lines. Knows no engine: what it
is given are records, so that any process can make the lines.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gramme.config import EngineConfig, ModelConfig, Plan
from gramme.kernels.load import Backend
from gramme.plan.cost import layer_elements
from gramme.plan.hardware import Hardware
from gramme.plan.units import gb, ms
from gramme.request import EngineStats

OFF_BY_ITSELF = ("speculation", "deterministic", "float16 sums")  # these need to be asked for
State = Literal["engaged", "waiting", "no effect", "fell back", "off"]


@dataclass(frozen=True, slots=True)
class Line:
    """engaged: it acts. waiting: it could, nothing came yet that would use it. no effect: it was tried in vain.
    fell back: something else is done in its place. off: not wanted, or not to be had here."""

    name: str
    asked: str
    state: State
    why: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What loading found."""

    level: str = ""
    records: bool = False
    asynchronous: bool = False
    hardware: Hardware | None = None
    seconds: float = 0.0
    without_bytes: int = 0  # of memory that the process had, tokenizer and libraries included, before the model came
    layout: str = "none"  # "mapped", "written" or "none"
    layout_why: str = ""


class Facts(NamedTuple):
    config: EngineConfig
    model: ModelConfig
    plan: Plan
    loaded: Loaded
    stats: EngineStats


def found(kernels: Backend, hardware: Hardware | None = None, seconds: float = 0.0, without_bytes: int = 0,
          layout: str = "none", layout_why: str = "") -> Loaded:
    return Loaded(level=kernels.level, records=kernels.records, asynchronous=kernels.asynchronous, hardware=hardware,
                  seconds=seconds, without_bytes=without_bytes, layout=layout, layout_why=layout_why)


def report(f: Facts) -> list[Line]:
    return [line(f) for line in LINES]


def surprising(lines: list[Line]) -> list[Line]:
    """What was asked for, or tried, and does not act; and what the user has switched off."""
    off = lambda e: e.state == "off" and e.asked != "auto" and e.name not in OFF_BY_ITSELF
    return [e for e in lines if e.state in ("fell back", "no effect") or off(e)]


def text(lines: list[Line]) -> list[str]:
    """The lines as people read them."""
    wide = max((len(line.name) for line in lines), default=0)
    return [f"{e.name:{wide}}  {e.state:9}  " + "; ".join(filter(None, (f"asked: {e.asked}", e.why, e.effect)))
            for e in lines]


def _kernels(f: Facts) -> Line:
    backend, asked, s = f.plan.backend, f.config.backend, f.stats
    effect = f"{s.steps} steps of {ms(s.step_s / s.steps)}" if s.steps else ""
    if asked == "auto" and backend == "reference":
        return Line("kernels", asked, "fell back", effect=effect,
                    why="numpy alone: no compiled kernels are here, or GRAMME_CPU_LEVEL is off")
    return Line("kernels", asked, "engaged", backend, effect=effect)


def _level(f: Facts) -> Line:
    if not f.loaded.level:
        return Line("CPU level", "auto", "off", f"the {f.plan.backend} kernels have no levels")
    forced = "forced" in f.loaded.level
    return Line("CPU level", "GRAMME_CPU_LEVEL" if forced else "auto", "engaged", f.loaded.level)


def _threads(f: Facts) -> Line:
    asked, s = str(f.config.threads or "auto"), f.stats
    effect = f"{s.cpu_s / s.step_s:.1f} cores at work in the mean" if s.step_s else ""
    if f.plan.backend == "cpu":
        return Line("threads", asked, "engaged", f"{f.plan.threads} threads", effect=effect)
    whose = "a GPU's steps take one" if f.plan.backend == "cuda" else "numpy's or PyTorch's own number is used"
    return Line("threads", asked, "off" if asked == "auto" else "fell back", why=whose, effect=effect)


def _weights(f: Facts) -> Line:
    m, p, asked = f.model, f.plan, f.config.dtype
    effect = f"{gb(p.ledger.weights)}, {8 * p.ledger.weights / m.parameters:.1f} bits a parameter"
    kept = m.stored.layers[0] / layer_elements(m)
    if kept:
        own = f"{kept:.0%} of the layers' weights are the file's integers, run as they are; " + "; ".join(m.notes)
        state: State = "engaged" if asked == "auto" or kept < 0.5 else "fell back"
        return Line("weights", asked, state, own + ("" if asked == "auto" else f"; {asked} is for the others"), effect)
    how = "as stored" if p.dtype == m.dtype else f"made of the file's {m.dtype}"
    return Line("weights", asked, "engaged", f"{p.dtype}, {how}", effect=effect)


def _layout(f: Facts) -> Line:
    asked = "auto" if f.config.layout_cache else "off"
    took = f"loading took {ms(f.loaded.seconds)}" if f.loaded.seconds else ""
    if f.loaded.layout == "none":
        return Line("layout cache", asked, "off", f.loaded.layout_why, effect=took)
    if f.loaded.layout == "mapped":
        return Line("layout cache", asked, "engaged", "mapped as an earlier start laid them out", took)
    return Line("layout cache", asked, "waiting", "laid out and kept: the next start maps them", took)


def _kv(f: Facts) -> Line:
    m, p, s = f.model, f.plan, f.stats
    share = m.kv_token_bytes(p.kv_dtype) / m.kv_token_bytes("float16")
    effect = f"{gb(m.kv_token_bytes(p.kv_dtype))} a token, {share:.0%} of float16"
    if s.steps:
        effect += f"; {s.pages_used} of {s.pages_total} pages in use"
    return Line("KV form", f.config.kv_cache_dtype, "engaged", p.kv_dtype, effect=effect)


def _prefix(f: Facts) -> Line:
    s, size = f.stats, f.plan.page_size
    if not f.plan.prefix_caching:
        return Line("prefix cache", "off", "off", "--no-prefix-caching")
    if not s.prefix_queried_tokens:
        return Line("prefix cache", "on", "waiting", "no prompt came yet that may share pages")
    share = s.prefix_hit_tokens / s.prefix_queried_tokens
    effect = f"{s.prefix_hit_tokens} of {s.prefix_queried_tokens} prompt tokens found, {share:.1%}"
    if not s.prefix_hit_tokens:
        return Line("prefix cache", "on", "no effect", effect=effect,
                    why=f"no prompt began as an earlier one did, for a page of {size} tokens and one more")
    if s.spent.prefill_tokens:
        effect += f", about {ms(s.prefix_hit_tokens * s.spent.prefill_s / s.spent.prefill_tokens)} saved"
    return Line("prefix cache", "on", "engaged", effect=effect)


def _chunks(f: Facts) -> Line:
    asked, n = str(f.config.max_num_batched_tokens or "auto"), f.stats.prefill_chunks
    why = f"steps of at most {f.plan.max_batch_tokens} tokens"
    if not n:
        return Line("chunked prefill", asked, "waiting", f"{why}; no prompt was longer than what a step had left")
    return Line("chunked prefill", asked, "engaged", why, f"{n} parts of prompts ran before their last part")


def _preemption(f: Facts) -> Line:
    s = f.stats
    if not s.preemptions:
        return Line("preemption", "auto", "waiting", "the pages sufficed")
    again, ran = s.spent.recomputed_tokens, s.spent.prefill_tokens + s.spent.decode_tokens + s.spent.recomputed_tokens
    return Line("preemption", "auto", "engaged", f"{s.pages_total} pages did not suffice", effect=(
        f"{s.preemptions} preemptions, {again} tokens run again, {again / max(1, ran):.1%} of all, "
        f"{ms(s.spent.recomputed_s)}"))


def _recorded(f: Facts) -> Line:
    s = f.stats
    if not f.loaded.records:
        return Line("recorded steps", "auto", "off",
                    why=f"the {f.plan.backend} kernels run operation by operation")
    if not s.steps:
        return Line("recorded steps", "auto", "waiting", "no step was run yet")
    unseen = "no step of few tokens came a third time in the same shape"
    if f.plan.backend == "cuda":
        unseen = "sizes are captured while the engine is idle, and no step has met one"
    return Line("recorded steps", "auto", "engaged" if s.replayed else "waiting", why="" if s.replayed else unseen,
                effect=f"{s.replayed} of {s.steps} steps replayed, {s.replayed / s.steps:.0%}; recorded: {s.captured}")


def _ahead(f: Facts) -> Line:
    s, asked = f.stats, {None: "auto", True: "on", False: "off"}[f.config.run_ahead]
    if not f.plan.run_ahead:
        why = "--no-run-ahead" if asked == "off" else "steps are done when their call returns: nothing would overlap"
        return Line("run-ahead", asked, "off", why)
    effect = f"{s.rows_ahead} rows planned before their token was known" if s.steps else ""
    if s.rows_ahead and not f.loaded.asynchronous:
        return Line("run-ahead", asked, "no effect", effect=effect,
                    why="steps are done when their call returns: nothing overlaps")
    if s.rows_ahead:
        return Line("run-ahead", asked, "engaged", "", effect)
    if s.spent.decode_tokens:
        return Line("run-ahead", asked, "no effect", "every row needed its newest token on the host", effect)
    return Line("run-ahead", asked, "waiting", "nothing was decoded yet")


def _speculation(f: Facts) -> Line:
    s = f.stats
    if not s.drafted_tokens:
        return Line("speculation", "off", "off", "nothing guesses tokens in this version")
    worth_s = s.accepted_tokens * s.spent.decode_s / max(1, s.spent.decode_tokens)
    effect = (f"{s.accepted_tokens} of {s.drafted_tokens} guesses right, {s.accepted_tokens / s.drafted_tokens:.0%}, "
              f"worth {ms(worth_s)}; wrong ones took {ms(s.spent.rejected_s)}")
    gains = worth_s > s.spent.rejected_s
    return Line("speculation", "on", "engaged" if gains else "no effect", "a gain" if gains else "a loss", effect)


def _deterministic(f: Facts) -> Line:
    asked, backend = "on" if f.config.deterministic else "off", f.plan.backend
    if backend == "cpu":
        return Line("deterministic", asked, "engaged", "always so: a row's bits are its own")
    if backend == "cuda" and f.plan.deterministic:
        return Line("deterministic", asked, "engaged", "one way to cut each product")
    return Line("deterministic", asked, "fell back" if f.config.deterministic else "off", (
        "not asked for" if not f.config.deterministic else f"the {backend} kernels' sums may depend on the batch"))


def _accumulate(f: Facts) -> Line:
    asked = f.config.accumulate
    if asked == "float32":
        return Line("float16 sums", asked, "off", "not asked for")
    gpu = f.plan.backend == "cuda"
    return Line("float16 sums", asked, "engaged" if gpu else "fell back",
                why="in products of many tokens" if gpu else f"for GPUs: the {f.plan.backend} kernels add in float32")


def _grammars(f: Facts) -> Line:
    s = f.stats
    if f.config.skip_tokenizer_init:
        return Line("grammars", "auto", "off", "--skip-tokenizer-init: they need the vocabulary")
    if not s.grammar_masks:
        return Line("grammars", "auto", "waiting", "no request asked for a form")
    return Line("grammars", "auto", "engaged", effect=(
        f"{s.grammar_masks} masks of {ms(s.grammar_mask_s / s.grammar_masks)}, compiled in {ms(s.grammar_compile_s)}"))


def _halves(f: Facts) -> Line:
    n = f.stats.halved
    return Line("steps in halves", "auto", "engaged" if n else "waiting",
                why="memory did not suffice for a step" if n else "memory sufficed", effect=f"{n} steps" if n else "")


def _energy(f: Facts) -> Line:
    s, asked = f.stats, f.config.power or "auto"
    if s.power_source == "unknown":
        return Line("energy", asked, "off", "no counter can be read; --power declares a figure")
    watts = "" if s.watts is None else f"{s.watts:.1f} W at work, {s.spent.joules:.3g} J for requests"
    return Line("energy", asked, "engaged" if s.watts else "waiting", s.power_source, effect=watts)


LINES: tuple[Callable[[Facts], Line], ...] = (
    _kernels, _level, _threads, _weights, _layout, _kv, _prefix, _chunks, _preemption, _recorded, _ahead, _speculation,
    _deterministic, _accumulate, _grammars, _halves, _energy)
