"""What the user may set about a verb's work, beside the engine and the server. Fields become flags, see `flags`."""
from dataclasses import asdict, dataclass

from gramme.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """None: the model's recommendation, else SamplingParams' default."""

    max_tokens: int | None = option(None, "most tokens to generate; default: the rest of the context", short="n")
    temperature: float | None = option(None, "0: always the most probable token")
    top_p: float | None = option(None, "keep the most probable tokens that have this much probability together")
    top_k: int | None = option(None, "keep so many of the most probable tokens")
    min_p: float | None = option(None, "keep tokens this probable, as a share of the most probable one's")
    ignore_eos: bool | None = option(None, "go on after the end of the answer")

    def given(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    prompt: str | None = option(None, "the prompt; default: standard input, or examples for the embedded model",
                                short="p")
    raw: bool = option(False, "continue the prompt as it stands, without the chat template")
    json: bool = option(False, "no streaming; end with one line of JSON")
    verbose: bool = option(False, "say where the time to the first token went, how far the predictions were "
                                   "off, what the answer cost, and which optimisations act")
    calibration: bool = option(True, "learn from the errors of predictions, and use what was learnt")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    gpu: str | None = option(None, "plan for a graphics card, such as rtx4090, that need not be here")
    cpu: bool = option(False, "plan for this machine's processor, which is the default")
    ttft: str | None = option(None, "target for the time to the first token, such as 100ms")
    tpot: str | None = option(None, "target for the time per output token, such as 20ms")
    context: int | None = option(None, "tokens of prompt and answer; default: 8192 or the model's limit")
    prompt_tokens: int | None = option(None, "tokens of the prompt; default: 1024, at most half of the context")
    concurrency: int = option(1, "requests at once")
    quant: str = option("auto", "form of the weights", ("auto", "w4", "w8", "bf16"))
    why: bool = option(False, "a sentence with its number for each choice")
    calibration: bool = option(True, "correct predictions by what earlier runs on this machine have taught")
    json: bool = option(False, "one line of JSON")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    repeats: int = option(3, "passes of each test; the median counts")
    calibration: bool = option(True, "learn from the errors of predictions, and use what was learnt")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Which server is asked what."""

    url: str | None = option(None, "an OpenAI-compatible server, such as http://127.0.0.1:8000; default: gramme's own, "
                                   "started with MODEL")
    api_key: str | None = option(None, "key for that server")
    endpoint: str = option("completions", "which form of OpenAI's API is asked", ("completions", "chat"))
    extra_body: str | None = option(None, "JSON object that is added to every request; null takes a field away")
    trace: str | None = option(None, "CSV file of arrival times and lengths, such as the Azure 2023 trace of "
                                     "conversations; default: Poisson arrivals")
    requests: int | None = option(None, "send so many at most")
    duration: str | None = option(None, "send for so long, such as 60s; default: 30s, or all of the trace")
    prompt_tokens: int | None = option(None, "length of each prompt; with --trace the longest; default: 256")
    output_tokens: int | None = option(None, "length of each answer; with --trace the longest; default: 64")
    length_scale: float = option(1.0, "lengths of the trace are multiplied by it")
    load_seed: int = option(0, "of the arrivals and the prompts")
    slo: str | None = option(None, "longest times for goodput in ms, of ttft, tpot and e2el, such as ttft:100,tpot:20")
    timeout: str = option("600s", "longest wait for an answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeBenchOptions:
    rate: float | None = option(None, "requests a second, also inf; default: 1, or the trace's own")
    time_scale: float | None = option(None, "arrival times of the trace are multiplied by it: 0.5 is twice the rate")
    out: str | None = option(None, "file for the record, which is printed as the last line in any case")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    rates: str = option("auto", "requests a second, such as 1,2,4,8; auto looks for the knee")
    out: str = option("sweep", "writes OUT.json, OUT.md and OUT.png; rates that OUT.json has are not measured again")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    measure: bool = option(False, "measure memory, arithmetic, disk and the way to a GPU, and keep the result for "
                                  "plans: 10 seconds")
    json: bool = option(False, "one line of JSON")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    reference: str | None = option(None, "the model that is right, in float32; default: MODEL itself in float32")
    text: tuple[str, ...] = option((), "[NAME:]FILE, a text to measure on, as often as wanted; default: French and "
                                       "English novels and sentences")
    pairs: str | None = option(None, "translate: lines of English, a tab and French; default: 1,000 held out of the "
                                     "embedded model's training. bias: a CrowS-Pairs file")
    window: int | None = option(None, "tokens that are run together; default: 2048 or the model's context")
    stride: int | None = option(None, "tokens between windows; default: the window, as in the GPTQ paper")
    json: bool = option(False, "one line of JSON")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    method: str = option("gptq", "round to nearest, GPTQ or AWQ", ("rtn", "gptq", "awq"))
    bits: int = option(4, "4 or 8")
    group: int | None = option(None, "weights that share a scale; default: 128, for gguf 32")
    embedding_bits: int = option(16, "16: the embedding and the head stay as they are; 8: they are rounded, in "
                                     "compressed-tensors; in gguf always")
    format: str = option("compressed-tensors",
                         "compressed-tensors, gptq, awq, gguf, or several with commas, from one calibration")
    calibration_text: tuple[str, ...] = option((), "[NAME:]FILE, a text to calibrate on, as often as wanted; default: "
                                                   "what comes with gramme")
    check_text: tuple[str, ...] = option((), "[LANGUAGE:]FILE, a text to judge by, as often as wanted; default: what "
                                             "comes with gramme")
    languages: str = option("fr,en", "of gramme's own texts")
    tokens: int = option(16384, "of calibration text at most")
    window: int | None = option(None, "tokens that are run together; default: 512 or the model's context")
    max_kl: str = option("0.05", "nats of mean KL divergence that each language may lose, upper end of its interval; "
                                 "fr:0.03,en:0.05 gives each its own")
    max_ppl_increase: str = option("0.04", "rise of perplexity that each language may suffer, 0.04 for 4 %; "
                                           "fr:0.02,en:0.04 gives each its own")
    keep_worst: int = option(0, "leave so many of the most harmful layers at 8 bits")
    layers: int | None = option(None, "solve so many layers only, to measure memory and time; nothing is saved")
    device: str = option("auto", "where layers are solved and judged; auto: the GPU, where PyTorch sees one",
                         ("auto", "cpu", "cuda"))
    threads: int | None = option(None, "CPU threads; default: the cores that this process may use")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The other tables of the file are the recipe, see `train/recipe.py`."""

    data: str = option(".", "the folder that the recipe's files are in")
    run: str | None = option(None, "the run's folder, which is gone on with when it exists; default: runs/RECIPE")


RECIPE = ("files", "mix", "model", "recipe", "language_weights")  # tables of a `train` file


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    json: bool = option(False, "one line of JSON")
