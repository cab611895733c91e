"""Three frozen configs: what a checkpoint is, what the user asked, what was decided; and the bytes that follow.

Knows no file format and no hardware. `EngineConfig` is the only one that may say "auto"; `plan.planner.plan` turns it
into a `Plan` and nobody changes either afterwards. Command-line flags are made from EngineConfig's fields.
"""
from dataclasses import dataclass, field, fields
from typing import Any, Literal

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1, "int32": 4}

INTEGER_BITS = {"int4": 4, "int8": 8}  # stored as codes with one scale for each group, see `matrix_bytes`
INTEGER_GROUP = 32
LOSS = "not as stored: "  # begins the notes on a model that are said whenever it is loaded
ROW_TILE = 16  # integer matrices are laid out in blocks of so many rows

RopeKind = Literal["default", "linear", "llama3", "yarn"]
PriceUnit = Literal["kWh", "h"]


class ModelError(ValueError):
    """A model's files are missing, contradictory, or of a kind that gramme does not run. The message names them."""


class ConfigError(ValueError):
    """What the user asked for cannot be done. The message says what could."""


def matrix_bytes(rows: int, columns: int, dtype: str, group: int = INTEGER_GROUP, offsets: bool = False) -> int:
    """Bytes of a matrix as it lies in memory. Integer forms: codes, a float16 scale for each group of a row and, unless
    the zero point is the middle one, a float16 zero point; rows are padded to ROW_TILE, columns to whole groups."""
    if dtype not in INTEGER_BITS:
        return rows * columns * DTYPE_BYTES[dtype]
    groups = -(-columns // group) * -(-rows // ROW_TILE) * ROW_TILE
    return groups * (group * INTEGER_BITS[dtype] // 8 + (4 if offsets else 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864) and how its frequencies were stretched after training.

    `llama3` is the Llama 3.1 rule, `yarn` arXiv 2309.00071, `linear` position interpolation (arXiv 2306.15595).
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_positions: int = 0  # tokens, before stretching
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    factors: tuple[float, ...] = ()  # (Dh / 2,) by which each frequency is divided besides; GGUF's way to say llama3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a file keeps as integers, whatever --dtype says: (elements, bytes once laid out), by how steps read them."""

    layers: tuple[int, int] = (0, 0)
    embed: tuple[int, int] = (0, 0)
    head: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the checkpoint is: the Llama, Mistral, Qwen2 and Qwen3 family tree."""

    family: str
    vocab_size: int
    width: int  # D
    layers: int  # L
    heads: int  # H
    kv_heads: int  # Hk
    head_dim: int  # Dh
    ff_width: int  # F
    norm_eps: float
    max_positions: int  # tokens
    rope: Rope = field(default_factory=Rope)
    tied_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()  # one for each layer; None or missing: full attention
    dtype: str = "bfloat16"  # of the stored weights
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    stored: Stored = field(default_factory=Stored)
    notes: tuple[str, ...] = ()  # how the weights are stored, and what reading them costs

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if layer < len(self.windows) else None

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = self.width * (qkv + self.heads * self.head_dim + 3 * self.ff_width + 2)
        layer += qkv * self.qkv_bias + self.width * self.o_bias + (2 * self.ff_width + self.width) * self.mlp_bias
        layer += 2 * self.head_dim * self.qk_norm
        return self.layers * layer + self.vocab_size * self.width * (1 if self.tied_embeddings else 2) + self.width

    def matrices(self) -> list[tuple[int, int, int]]:
        """(rows, columns, how many) of every matrix as it is multiplied: q, k, v are one, gate and up are one."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            (self.vocab_size, self.width, 1 if self.tied_embeddings else 2), (q + 2 * kv, self.width, self.layers),
            (self.width, q, self.layers), (2 * self.ff_width, self.width, self.layers),
            (self.width, self.ff_width, self.layers),
        ]

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all parameters with the matrices stored as `dtype`; norm gains and biases are float32."""
        vectors = self.parameters - sum(rows * columns * count for rows, columns, count in self.matrices())
        return 4 * vectors + sum(matrix_bytes(rows, columns, dtype) * n for rows, columns, n in self.matrices())

    def kv_token_bytes(self, dtype: str) -> int:
        """Bytes of keys and values that one token holds in all layers; int8 carries one float16 scale a head."""
        per_head = self.head_dim * DTYPE_BYTES[dtype] + (2 if dtype == "int8" else 0)
        return 2 * self.layers * self.kv_heads * per_head


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """From generation_config.json: the sampling values that the model's authors recommend; None: not said."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] = ()


def option(default: Any, help: str, choices: tuple[str, ...] = (), short: str = "") -> Any:
    """A field that becomes a command-line flag, an environment variable and a configuration key."""
    return field(default=default, metadata={"help": help, "choices": choices, "short": short})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the user asked. `auto`, 0 and None leave the choice to the plan."""

    model: str = ""  # path, hub id, dummy:SHAPE; empty: the embedded model
    revision: str | None = option(None, "branch, tag or commit on the hub")
    tokenizer: str | None = option(None, "path or hub id of the tokenizer, when it is not beside the model")
    skip_tokenizer_init: bool = option(False, "no tokenizer: prompts are token ids")
    backend: str = option("auto", "which kernels run the model", ("auto", "reference", "cpu", "eager", "cuda"))
    dtype: str = option("auto", "storage of unquantised weights; integers: rounded to the nearest",
                        ("auto", "float32", "bfloat16", "float16", "int8", "int4"))
    kv_cache_dtype: str = option("auto", "storage of keys and values",
                                 ("auto", "float32", "bfloat16", "float16", "int8", "float8_e4m3fn"))
    max_model_len: int | None = option(None, "longest prompt plus answer, in tokens")
    max_num_seqs: int = option(64, "sequences in one step")
    max_num_batched_tokens: int | None = option(None, "tokens in one step: longer prompts run in chunks")
    kv_tokens: int | None = option(None, "tokens that the KV cache holds; default: from --memory")
    page_size: int = option(16, "tokens of a KV page, a power of two")
    memory: str | None = option(None, "memory to use, such as 24GB; default: half of what is free for the KV cache")
    layout_cache: bool = option(True, "keep laid-out weights on disk, so that the next start maps them")
    prefix_caching: bool = option(True, "reuse the keys and values of equal prefixes")
    run_ahead: bool | None = option(None, "plan a step while the last one runs; default: where steps are asynchronous")
    threads: int | None = option(None, "CPU threads; default: the cores that this process may use")
    deterministic: bool = option(False, "on a GPU too the same bits for a request in any batch, at some cost in speed")
    accumulate: str = option("float32", "sums in products of many tokens on a GPU: float16 is faster on GeForce cards",
                             ("float32", "float16"))
    seed: int = option(0, "from which requests that bring no seed get theirs, each its own")
    chat_template: str | None = option(None, "file with a Jinja chat template, in place of the model's own")
    generation_config: str = option("auto", "sampling defaults: auto (the model's), none, or a path")
    power: str | None = option(None, "what the machine draws at work, such as 65W; default: its energy counter, if any")
    price: str | None = option(None, "what it costs, such as 0.25/kWh or 1.20/h, in any currency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Bytes that a plan takes, line by line, of its `budget`."""

    weights: int
    kv: int
    tables: int  # cosines and sines of rope
    activations: int  # arrays between the operations of the largest step
    attention: int  # what attention needs besides
    logits: int
    records: int  # tokens and pages as the scheduler knows them
    graphs: int
    driver: int
    budget: int

    @property
    def total(self) -> int:
        total: int = sum(getattr(self, f.name) for f in fields(self)) - self.budget
        return total

    @property
    def left(self) -> int:
        return self.budget - self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Money in the user's own currency, for energy or for time."""

    amount: float
    unit: PriceUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """Seconds that each part of a step is predicted to take: by their proportions its real time is shared out."""

    step_s: float  # a step, whatever it runs: its weights are read, its calls are made
    head_s: float  # a step that wants logits, besides
    token_s: float
    output_s: float  # a row of logits
    pair_s: float  # a query and a key that it sees, in one layer
    key_s: float  # a token's keys and values read, in one layer
    windows: tuple[tuple[int | None, int], ...]  # (tokens that a query sees, None: all; layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was decided. Complete: the runtime looks nowhere else."""

    backend: str
    dtype: str
    kv_dtype: str
    page_size: int
    pages: int  # page 0, the scratch page, included
    max_model_len: int
    max_rows: int
    max_batch_tokens: int
    prefix_caching: bool
    run_ahead: bool
    threads: int
    seed: int
    logit_rows: int  # rows of logits held at once
    captured_bytes: int  # of the arrays inside captured steps, on a CPU
    ledger: Ledger
    tariff: Tariff
    watts: float | None = None  # declared
    price: Price | None = None
    deterministic: bool = False
    half: bool = False  # float16 sums in products of many tokens
    notes: tuple[str, ...] = ()  # one sentence for each choice, with its number
