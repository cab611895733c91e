"""`gramme run`: one prompt, its answer as it comes, and what it took."""
import argparse
import json
import os
import sys
from dataclasses import asdict, replace

from gramme.bench.ceilings import read_bandwidth
from gramme.cli import cost, ledger, verdict
from gramme.cli.flags import settle
from gramme.cli.options import RunOptions, SamplingOptions
from gramme.cli.progress import Bar
from gramme.config import ConfigError, EngineConfig
from gramme.llm.engine import Engine
from gramme.llm.llm import LLM, Prompt
from gramme.llm.report import Facts, report, text
from gramme.plan.limits import last_level_cache_bytes
from gramme.plan.others import Others
from gramme.request import RequestError, RequestOutput, SamplingParams

EXAMPLES = ("Translate to French: My brother doesn't like the new teacher.",
            "Traduis en anglais : Pourquoi n'as-tu pas répondu à mon message hier ?",
            "Continue : Le capitaine regarda la mer.")
TEMPLATE_TOKENS = 2048  # more than any template that we know puts around a message


def main(args: argparse.Namespace) -> None:
    config, asked, sampling = settle(args, EngineConfig), settle(args, RunOptions), settle(args, SamplingOptions)
    prompts = _prompts(asked.prompt, config.model)
    one = replace(config, max_num_seqs=1)  # at a time: memory for more need not be taken, nor touched
    llm = LLM(**asdict(one), progress=Bar("loading"), most_tokens=_most_tokens(prompts, sampling.max_tokens))
    try:
        params = llm.default_params(**sampling.given())
        for prompt in prompts:
            if len(prompts) > 1 and not asked.json:
                print(f"> {prompt}", flush=True)
            _answer(llm, prompt, params, asked)
        if asked.verbose:
            e = llm.engine
            print(*text(report(Facts(config, e.model, e.plan, e.loaded, e.stats()))), sep="\n", file=sys.stderr)
    finally:
        llm.close()


def _prompts(given: str | None, model: str) -> list[str]:
    if given is not None:
        return [given]
    if not sys.stdin.isatty() and (text := sys.stdin.read()):
        return [text]
    if not model:
        return list(EXAMPLES)
    raise RequestError("there is no prompt: give one with -p or on standard input")


def _most_tokens(prompts: list[str], answer: int | None) -> int | None:
    """Of context. Tokens are rarely more than bytes; TEMPLATE_TOKENS is for what a template puts around them."""
    if answer is None:
        return None
    return 2 * max(len(p.encode("utf-8", "surrogatepass")) for p in prompts) + TEMPLATE_TOKENS + max(0, answer)


def _answer(llm: LLM, text: str, params: SamplingParams, asked: RunOptions) -> None:
    prompt: Prompt = text
    if llm.chat_form is not None and llm.chat_form.template is not None and not asked.raw:
        prompt = {"messages": [{"role": "user", "content": text}]}
    others = Others()
    for _, delta, so_far in llm.stream(prompt, params):
        output = so_far
        if not asked.json:
            print(delta, end="", flush=True)
    if asked.json:
        print(json.dumps(_record(output), ensure_ascii=False), flush=True)
    else:
        print("\n", flush=True)
        print(_summary(llm, output), file=sys.stderr)
    if asked.verbose:
        print(_ledger(output), cost.line(output.metrics.spent, llm.engine.meter.power, llm.engine.plan.price),
              *_verdict(llm.engine, output, asked), sep="\n", file=sys.stderr)
    if asked.calibration and not others.disturb(llm.engine.plan.threads):
        verdict.learn(llm.engine, output)
    elif asked.calibration and asked.verbose:
        print(f"nothing learnt: others took {others.cores():.1f} cores meanwhile", file=sys.stderr)


def _record(output: RequestOutput) -> dict[str, object]:
    o, m = output.outputs[0], output.metrics
    seconds = (m.newest_ns - m.stamps.flushed_ns) / 1e9
    rate = (len(o.token_ids) - 1) / seconds if len(o.token_ids) > 1 and seconds > 0 else 0.0
    return {"text": o.text, "prompt_tokens": len(output.prompt_token_ids), "completion_tokens": len(o.token_ids),
            "ttft_ms": round(m.stamps.ttft_ns / 1e6, 3), "decode_tok_s": round(rate, 2),
            "finish_reason": o.finish_reason}


def _ledger(output: RequestOutput) -> str:
    m, prompt = output.metrics, len(output.prompt_token_ids)
    columns = os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else None
    return ledger.line(m.stamps, m.cached_tokens, prompt - m.cached_tokens, columns)


def _verdict(engine: Engine, output: RequestOutput, asked: RunOptions) -> list[str]:
    try:
        return list(verdict.lines(engine, list(verdict.checks(engine, output, asked.calibration))))
    except ConfigError as error:
        return [f"times were not predicted: {error}"]


def _summary(llm: LLM, output: RequestOutput) -> str:
    r = _record(output)
    line = (f"[{r['prompt_tokens']} tokens in, {r['completion_tokens']} out; first token after {r['ttft_ms']:.1f} ms, "
            f"then {r['decode_tok_s']:.1f} tokens/s")
    p = llm.engine.plan
    if p.ledger.weights > 4 * last_level_cache_bytes():
        rate = p.ledger.weights * r["decode_tok_s"] / 1e9
        line += f"; weights read at {rate:.1f} GB/s, memory allows {read_bandwidth(p.threads) / 1e9:.1f} GB/s"
    return line + "]"
