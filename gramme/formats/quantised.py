"""Quantised safetensors checkpoints: what `quantization_config` says, and each packed matrix under its plain name.

Reads GPTQ (AutoGPTQ, GPTQModel), AWQ "gemm" and compressed-tensors. Every field is checked. Knows no model.
"""
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gramme.formats.checkpoint import Checkpoint
from gramme.formats.fields import Fields
from gramme.formats.grouped import Form
from gramme.formats.quantization import quantization_config
from gramme.formats.schemes import AWQ, GPTQ, LEAST_GROUP, Float, Int, Matrix, Packed, Parts, Scheme

MAX_PATTERN_CHARS, MAX_NAME_CHARS, MAX_REPEATS = 500, 200, 4


class Recipe(NamedTuple):
    """What a quantization_config says of the modules of a checkpoint."""

    scheme_of: Callable[[str], Scheme | None]  # by a module's name; None: it should not be packed
    markers: frozenset[str]
    ignored: tuple[str, ...] = ()  # parts that say nothing of weights
    head: bool = False  # whether heads are packed like other modules
    table: Callable[[str], bool] = lambda module: False  # whether a table of embeddings is packed


def open_checkpoint(directory: Path) -> "Checkpoint | Quantised":
    """Raises ModelError naming the file and the field."""
    checkpoint = Checkpoint(directory)
    found = quantization_config(directory)
    return checkpoint if found is None else Quantised(checkpoint, _recipe(found))


class Quantised:
    """A checkpoint whose packed matrices appear as NAME.weight."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe):
        self._checkpoint = checkpoint
        split = [name.rpartition(".") for name in checkpoint.names]
        self._schemes = {module: _scheme(recipe, checkpoint, module) for module, _, part in split
                         if part in recipe.markers}
        taken = {f"{module}.{part}" for module, s in self._schemes.items() for part in (*s.parts, "weight")}
        plain = [n for n in checkpoint.names if n not in taken and n.rpartition(".")[2] not in recipe.ignored]
        self.notes = tuple(sorted({s.note for s in self._schemes.values()}))
        self.names = plain + [f"{module}.weight" for module in self._schemes]

    def form(self, name: str, columns: int) -> Form | None:
        """None for floats, and where there is no such tensor."""
        scheme = self._schemes.get(name.removesuffix(".weight"))
        return None if scheme is None else scheme.form(columns)

    def home(self, name: str) -> str:
        return self._checkpoint.home(name)

    def tensor(self, name: str) -> Matrix:
        module, _, part = name.rpartition(".")
        if part != "weight" or module not in self._schemes:
            return self._checkpoint.tensor(name)
        return self._schemes[module].read(Parts(self._checkpoint, module))


class Foretold:
    """The same before any tensor is here: what quantization_config alone says of the modules of a checkpoint."""

    def __init__(self, found: Fields):
        self._recipe, self._schemes = _recipe(found), dict[str, Scheme]()
        self.head, self.table = self._recipe.head, self._recipe.table

    def form(self, name: str, columns: int) -> Form | None:
        module = name.removesuffix(".weight")
        scheme = self._recipe.scheme_of(module)
        if scheme is None:
            return None
        self._schemes[module] = scheme
        return scheme.form(columns)

    @property
    def notes(self) -> tuple[str, ...]:
        """Of what was asked about so far."""
        return tuple(sorted({s.note for s in self._schemes.values()}))


def _scheme(recipe: Recipe, checkpoint: Checkpoint, module: str) -> Scheme:
    scheme = recipe.scheme_of(module)
    if scheme is None:
        part = next(p for p in recipe.markers if f"{module}.{p}" in checkpoint.names)
        raise Parts(checkpoint, module).error(part, "is packed, but quantization_config leaves this module out")
    return scheme


def _recipe(c: Fields) -> Recipe:
    recipes = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}
    method = c.raw.get("quant_method")
    if not isinstance(method, str) or method not in recipes:
        raise c.error("quant_method", method, f"one of {', '.join(recipes)}")
    return recipes[method](c)


def _gptq(c: Fields) -> Recipe:
    form = c.raw.get("checkpoint_format") or c.raw.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise c.error("checkpoint_format", form, "gptq or gptq_v2")
    symmetric = c.flag("sym", True)

    def scheme(f: Fields) -> Scheme:
        return GPTQ(_bits(f, "bits"), _group_size(f), f.flag("sym", symmetric), 1 if form == "gptq" else 0)

    base = scheme(c)
    rules: list[tuple[re.Pattern[str], Scheme | None]] = []
    dynamic = c.raw.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise c.error("dynamic", dynamic, "an object")
    for key, values in dynamic.items():
        pattern = _pattern(c, "dynamic", key.removeprefix("+:").removeprefix("-:"))
        own = Fields(f"{c.file}: dynamic {key!r:.60}", dict(c.raw) | (values if isinstance(values, dict) else {}))
        rules.append((pattern, None if key.startswith("-:") else scheme(own)))
    found = lambda module: next((s for p, s in rules if p.match(module[:MAX_NAME_CHARS])), base)
    return Recipe(found, frozenset({"qweight"}), head=c.flag("lm_head"))


def _awq(c: Fields) -> Recipe:
    if (version := str(c.raw.get("version") or c.raw.get("format") or "gemm").lower()) != "gemm":
        raise c.error("version", version, "gemm")
    bits = c.integer("bits", c.raw.get("w_bit"), low=0)
    if bits != 4:
        raise c.error("bits", bits, "4")
    if not c.flag("zero_point", True):
        raise c.error("zero_point", False, "true")
    group = _group_size(c, "group_size" if "group_size" in c.raw else "q_group_size")
    left_out = _strings(c, "modules_to_not_convert")
    scheme: Scheme = AWQ(group)
    return Recipe(lambda module: None if any(name in module for name in left_out) else scheme, frozenset({"qweight"}))


def _compressed(c: Fields) -> Recipe:
    if (status := c.raw.get("quantization_status", "compressed")) != "compressed":
        raise c.error("quantization_status", status, "compressed")
    sparse = c.raw.get("sparsity_config")
    if sparse and (not isinstance(sparse, dict) or sparse.get("format", "dense") != "dense"):
        raise c.error("sparsity_config", sparse, "dense")
    groups = c.raw.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise c.error("config_groups", groups, "an object of groups")
    targets: list[tuple[str, Scheme]] = []
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise c.error(f"config_groups.{name}", group, "an object")
        f = Fields(f"{c.file}: config_groups.{name!s:.40}", group)
        scheme = _compressed_scheme(f, group.get("format") or c.raw.get("format"))
        targets += [(target, scheme) for target in _strings(f, "targets")]
    left_out = _matcher(c, "ignore", [(name, True) for name in _strings(c, "ignore")])
    found, named = (_matcher(c, "targets", some) for some in (targets, [t for t in targets if t[0] != "Linear"]))
    return Recipe(lambda module: None if left_out(module) else found(module),
                  frozenset(s.marker for _, s in targets), ("k_scale", "v_scale", "q_scale", "output_scale"), head=True,
                  table=lambda module: not left_out(module) and named(module) is not None)


def _compressed_scheme(c: Fields, form: Any) -> Scheme:
    weights = c.raw.get("weights")
    if not isinstance(weights, dict):
        raise c.error("weights", weights, "an object")
    w = Fields(f"{c.file}.weights", weights)
    strategy = weights.get("strategy", "tensor" if weights.get("group_size") is None else "group")
    kind = weights.get("type", "int")
    if kind == "float" and form in ("float-quantized", "naive-quantized"):
        if (bits := w.integer("num_bits")) != 8:
            raise w.error("num_bits", bits, "8")
        return Float(_block(w) if strategy == "block" else None)
    if kind != "int" or form not in ("pack-quantized", "int-quantized", "naive-quantized"):
        raise c.error("format", form, f"pack-quantized, int-quantized or float-quantized, with weights of its type, "
                                      f"which is {kind!r:.20}")
    if strategy not in ("tensor", "channel", "group"):
        raise w.error("strategy", strategy, "tensor, channel or group")
    group = _group_size(w) if strategy == "group" else -1
    make = Packed if form == "pack-quantized" else Int
    return make(_bits(w, "num_bits"), group, w.flag("symmetric", True))


def _block(w: Fields) -> tuple[int, int]:
    block = w.raw.get("block_structure")
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and 0 < n <= 1 << 16 for n in block):
        raise w.error("block_structure", block, "[rows, columns]")
    return block[0], block[1]


def _bits(c: Fields, key: str) -> int:
    bits = c.integer(key, low=0)
    if bits not in (4, 8):
        raise c.error(key, bits, "4 or 8")
    return int(bits)


def _group_size(c: Fields, key: str = "group_size") -> int:
    size = c.integer(key, low=-1)
    if size != -1 and (size < LEAST_GROUP or size % LEAST_GROUP):
        raise c.error(key, size, f"-1 or a multiple of {LEAST_GROUP}")
    return int(size)


def _strings(c: Fields, key: str) -> list[str]:
    value = c.raw.get(key) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise c.error(key, value, "a list of strings")
    return value


def _matcher(c: Fields, key: str, rules: Sequence[tuple[str, Any]]) -> Callable[[str], Any]:
    """The first rule for a module's name: a whole name before an expression (re:...) before the class, Linear."""
    exact = dict(reversed([(t, v) for t, v in rules if not t.startswith("re:")]))
    patterns = [(_pattern(c, key, t[3:]), v) for t, v in rules if t.startswith("re:")]

    def find(module: str) -> Any:
        if module in exact:
            return exact[module]
        return next((v for p, v in patterns if p.match(module[:MAX_NAME_CHARS])), exact.get("Linear"))

    return find


def _pattern(c: Fields, key: str, text: str) -> re.Pattern[str]:
    """An expression that cannot take long: short, few repeats, none of them of a group."""
    bare = text.replace("(?:", "(")
    repeats = len(re.findall(r"(?<!\\)[*+?{]", bare))
    if len(text) > MAX_PATTERN_CHARS or repeats > MAX_REPEATS or re.search(r"\)[*+?{]", bare):
        raise c.error(key, text, f"a name or an expression with at most {MAX_REPEATS} repeats, none of them of a group")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError):
        raise c.error(key, text, "a regular expression") from None

