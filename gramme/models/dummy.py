"""Shapes of well-known models for `dummy:SHAPE`: random weights made on the spot, for benchmarks without a download."""
from gramme.config import ModelConfig, ModelError, Rope


def _shape(vocab: int, width: int, layers: int, heads: int, kv_heads: int, ff: int, positions: int,
           **more: object) -> ModelConfig:
    return ModelConfig(
        family="llama", vocab_size=vocab, width=width, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=width // heads, ff_width=ff, max_positions=positions, **{"norm_eps": 1e-5, **more},
    )


SHAPES = {
    "tiny": _shape(4096, 128, 4, 4, 2, 352, 4096),
    "100m": _shape(32000, 768, 12, 12, 4, 2048, 4096),
    "1b": _shape(32000, 2048, 22, 32, 4, 5632, 2048),  # TinyLlama-1.1B
    "mistral-7b": _shape(32000, 4096, 32, 32, 8, 14336, 32768),
    "llama3-8b": _shape(128256, 4096, 32, 32, 8, 14336, 8192, rope=Rope(theta=500000.0)),
    "qwen3-8b": _shape(151936, 4096, 36, 32, 8, 12288, 40960, norm_eps=1e-6, qk_norm=True, rope=Rope(theta=1000000.0)),
}


def dummy(name: str) -> ModelConfig:
    """Raises ModelError, with the names that there are, for an unknown shape."""
    if name not in SHAPES:
        raise ModelError(f"there is no shape dummy:{name:.40}; there are: {', '.join(SHAPES)}")
    return SHAPES[name]
