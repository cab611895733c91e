"""The README of a quantised model: what was made of what, on which text, and what it lost."""
from collections.abc import Mapping, Sequence

from gramme import __version__
from gramme.config import ModelConfig
from gramme.evals.summary import Figure, Loss
from gramme.quantize.limits import Limits, said
from gramme.quantize.recipe import Recipe
from gramme.quantize.run import Task
from gramme.quantize.solve import DAMP

METHODS = {
    "rtn": "rounding to the nearest value",
    "gptq": f"GPTQ (arXiv 2210.17323), columns by falling second moment, groups fixed before, damping {DAMP:g}",
    "awq": "AWQ (arXiv 2306.00978), scales folded into the operations before, clipped ranges",
}
USE = {"gguf": "gramme run {name}/model.gguf"}


def card(task: Task, name: str, out: str, losses: Mapping[str, Loss], limits: Mapping[str, Limits],
         eights: Sequence[int], shares: str) -> str:
    recipe, m = task.recipes[name], task.config
    return f"""# {task.opened.name}, {recipe.bits} bits, {recipe.format}

Made from `{task.opened.name}` ({m.family}, {m.parameters / 1e6:,.1f} M parameters) by gramme {__version__}. The
original's licence and limits hold for this copy too.

    {USE.get(recipe.format, "gramme run {name}").format(name=out)}

## Recipe

| | |
| --- | --- |
| method | {METHODS[recipe.method]} |
| bits, group | {recipe.bits}, {recipe.group} |
| layers with 8 bits | {", ".join(map(str, sorted(eights))) or "none"} |
| not quantised | {_kept(recipe, m)} |
| calibration | {_calibration(task)} |

## Lost against the original

In brackets 95 % intervals (block bootstrap), over held-out text in windows of {task.window} tokens. Weights as they are
in these files, everything else in float32; kernels that multiply 8-bit activations lose a little more. The gate was
{said(limits)}.

{table(losses)}
{shares}"""


def table(losses: Mapping[str, Loss]) -> str:
    head = "| text | tokens | perplexity | original's | increase, % | mean KL, nats | KL p99 | same first token, % |"
    rows = [head, "| --- |" + " --- |" * 7]
    for language, x in losses.items():
        cells = [language, str(x.tokens), f"{x.perplexity.value:.4g}", f"{x.reference_perplexity.value:.4g}",
                 _figure(x.perplexity_increase, 100), _figure(x.kl), _figure(x.kl_p99), _figure(x.top1_agreement, 100)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def lost_shares(layers: Sequence[Mapping[str, float]]) -> str:
    """By layer and matrix, before any layer was given 8 bits."""
    names = list(layers[0])
    rows = [f"| {i} | {' | '.join(f'{100 * layer[name]:.2g}' for name in names)} |" for i, layer in enumerate(layers)]
    return "\n".join([
        "Share of each matrix's output that its codes lose on the calibration text, %; where a layer was then given 8",
        "bits, what 4 bits lost:\n",
        f"| layer | {' | '.join(names)} |", "| --- |" + " --- |" * len(names), *rows, ""])


def _figure(f: Figure, times: float = 1) -> str:
    return f"{times * f.value:.3g} [{times * f.low:.3g}, {times * f.high:.3g}]"


def _kept(recipe: Recipe, m: ModelConfig) -> str:
    if recipe.rounds_ends:
        return "norms; the embedding and the head have 8 bits"
    return f"norms, the embedding and the head ({m.dtype})"


def _calibration(task: Task) -> str:
    if all(r.method == "rtn" for r in task.recipes.values()):
        return "none is needed"
    texts = ", ".join(f"{name} ({len(text.encode()) / 1000:.0f} kB)" for name, text in task.calibration.items())
    return f"{texts}; at most {task.tokens} tokens in windows of {task.window}, each language in turn"
