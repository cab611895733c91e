"""GPTQ, AWQ and compressed-tensors: words made by hand become the codes that they hold; what cannot be is one line."""
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gramme.config import ModelError
from gramme.formats.grouped import Grouped, Reordered, dense
from gramme.formats.packed import codes_of
from gramme.formats.quantised import open_checkpoint
from gramme.formats.safetensors import SafetensorsFile, write_safetensors

GPTQ = dict(quant_method="gptq", bits=4, group_size=32, desc_act=False, sym=False)
AWQ = dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm")
WEIGHTS = dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
CT = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
      "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}}, "ignore": ["lm_head"]}
INT8 = CT | {"format": "int-quantized", "config_groups": {"group_0": {
    "targets": ["Linear"], "weights": dict(num_bits=8, type="int", symmetric=True, strategy="channel"),
    "input_activations": dict(num_bits=8, type="int", strategy="token", dynamic=True)}}}
FP8 = CT | {"format": "float-quantized", "config_groups": {"group_0": {
    "targets": ["Linear"], "weights": dict(num_bits=8, type="float", symmetric=True, strategy="channel")}}}
K, N, G = 64, 16, 2  # columns, rows, groups


def words(text):
    return np.array([[int(w, 16) for w in row.split()] for row in text.split("/")], np.uint32).view(np.int32)


def full(word, *shape):
    return np.full(shape, word, np.uint32).view(np.int32)


ONES = np.ones((G, N), np.float16)
GPTQ_PARTS = dict(qweight=full(0x76543210, K // 8, N), qzeros=full(0x77777777, G, N // 8), scales=ONES,
                  g_idx=(np.arange(K) // 32).astype(np.int32))
AWQ_PARTS = dict(qweight=full(0x76543210, K, N // 8), qzeros=full(0x88888888, G, N // 8), scales=ONES)
CT_PARTS = dict(weight_packed=full(0xFEDCBA98, N, K // 8), weight_scale=ONES.T.copy(),
                weight_shape=np.array([N, K], np.int64))
INT8_PARTS = dict(weight=np.tile(np.arange(-32, 32, dtype=np.int8), (N, 1)), weight_scale=np.ones((N, 1), np.float16))
FP8_PARTS = dict(weight=np.full((N, K), 1.5, ml_dtypes.float8_e4m3fn), weight_scale=np.full((N, 1), 0.5, np.float16))


@pytest.fixture
def opens(tmp_path):
    def open_(config, parts, module="a.b", **more):
        tensors = {f"{module}.{p}": t for p, t in parts.items() if t is not None} | more
        write_safetensors(tmp_path / "model.safetensors", tensors)
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
        return open_checkpoint(tmp_path)

    return open_


@pytest.fixture
def refuses(opens):
    def refuse(config, parts, match, **more):
        with pytest.raises(ModelError, match=match) as caught:
            opens(config, parts, **more).tensor("a.b.weight")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400

    return refuse


def test_the_first_code_is_in_the_lowest_bits():
    assert codes_of(words("76543210 FEDCBA98"), 4).tolist() == [list(range(16))]
    assert codes_of(words("03020100 FF800504"), 8).tolist() == [[0, 1, 2, 3, 4, 5, 128, 255]]


def test_gptq_is_packed_along_the_columns(opens):
    w = opens(GPTQ, GPTQ_PARTS).tensor("a.b.weight")
    assert isinstance(w, Grouped) and (w.shape, w.group, w.bits) == ((N, K), 32, 4)
    np.testing.assert_array_equal(w.codes, np.tile(np.arange(8), (N, K // 8)))
    np.testing.assert_array_equal(dense(w), np.tile(np.arange(-8, 0), (N, K // 8)))  # 7 + 1 = 8 is zero


@pytest.mark.parametrize("bits, form, word, zero", [
    (4, "gptq", 0x77777777, 8), (4, "gptq_v2", 0x88888888, 8), (8, "gptq", 0x7F7F7F7F, 128),
    (8, "gptq_v2", 0x80808080, 128), (4, None, 0x77777777, 8), (4, "gptq", 0xFFFFFFFF, 0), (4, "gptq_v2", 0, 0)])
def test_golden_zero_points(opens, bits, form, word, zero):
    config = GPTQ | dict(bits=bits, checkpoint_format=form)
    parts = GPTQ_PARTS | dict(qweight=full(0, K * bits // 32, N), qzeros=full(word, G, N * bits // 32))
    w = opens(config, parts).tensor("a.b.weight")
    assert (w.offsets == zero).all() and w.bits == bits


def test_a_symmetric_gptq_file_is_read_whatever_its_zero_points_say(opens):
    for form in ("gptq", "gptq_v2"):
        for word in (0x77777777, 0x88888888):
            parts = GPTQ_PARTS | dict(qzeros=full(word, G, N // 8))
            w = opens(GPTQ | dict(sym=True, checkpoint_format=form), parts).tensor("a.b.weight")
            assert (w.offsets == 8).all()
    opens(GPTQ | dict(sym=True), GPTQ_PARTS | dict(qzeros=None, g_idx=None)).tensor("a.b.weight")


def test_act_order_gathers_the_columns_of_a_group(opens):
    rng = np.random.default_rng(0)
    g_idx = rng.permutation(np.arange(K) // 32).astype(np.int32)
    scales = np.array([[1], [100]], np.float16) * np.ones(N, np.float16)
    w = opens(GPTQ | dict(desc_act=True), GPTQ_PARTS | dict(g_idx=g_idx, scales=scales)).tensor("a.b.weight")
    assert isinstance(w, Reordered) and w.shape == (N, K)
    want = (np.tile(np.arange(8), K // 8) - 8) * scales[g_idx, 0].astype(float)
    np.testing.assert_array_equal(dense(w), np.tile(want, (N, 1)))
    np.testing.assert_array_equal(w.stored.codes[0], np.tile(np.arange(8), K // 8)[w.order])


def test_awq_interleaves_eight_rows_in_a_word(opens):
    w = opens(AWQ, AWQ_PARTS).tensor("a.b.weight")
    assert (w.shape, w.group, w.bits) == ((N, K), 32, 4)
    np.testing.assert_array_equal(w.codes[:, 5], [0, 4, 1, 5, 2, 6, 3, 7] * 2)
    np.testing.assert_array_equal(w.offsets, 8)  # no 1 is missing
    zeros = opens(AWQ, AWQ_PARTS | dict(qzeros=full(0x76543210, G, N // 8))).tensor("a.b.weight").offsets
    np.testing.assert_array_equal(zeros[:, 1], [0, 4, 1, 5, 2, 6, 3, 7] * 2)


def test_compressed_tensors_are_rows_of_words(opens):
    w = opens(CT, CT_PARTS).tensor("a.b.weight")
    np.testing.assert_array_equal(dense(w), np.tile(np.arange(8), (N, K // 8)))  # codes 8 to 15, zero at 8
    zeros = np.array([[0x76543210, 0x0FEDCBA9]] * 2, np.uint32).view(np.int32)  # (N / 8, G): along the rows
    asymmetric = CT | {"config_groups": {"g": {"targets": ["Linear"], "weights": WEIGHTS | {"symmetric": False}}}}
    w = opens(asymmetric, CT_PARTS | dict(weight_zero_point=zeros)).tensor("a.b.weight")
    assert w.offsets[:8, 0].tolist() == list(range(8)) and w.offsets[8:, 1].tolist() == [*range(9, 16), 0]
    signed = (w.offsets - 8).astype(np.int8)
    again = opens(asymmetric, CT_PARTS | dict(weight_zero_point=signed)).tensor("a.b.weight")
    np.testing.assert_array_equal(again.offsets, w.offsets)


def test_int8_and_float8(opens):
    w = opens(INT8, INT8_PARTS).tensor("a.b.weight")
    assert (w.bits, w.group) == (8, K)
    np.testing.assert_array_equal(dense(w), INT8_PARTS["weight"])
    one = opens(INT8, INT8_PARTS | dict(weight_scale=np.full(1, 2, np.float32))).tensor("a.b.weight")
    np.testing.assert_array_equal(dense(one), 2.0 * INT8_PARTS["weight"])
    f = opens(FP8, FP8_PARTS).tensor("a.b.weight")
    assert f.dtype == np.float32 and (f == 0.75).all()
    block = {"config_groups": {"g": {"targets": ["Linear"], "weights": dict(
        num_bits=8, type="float", strategy="block", block_structure=[16, 32])}}}
    scale = np.array([[1, 2]], ml_dtypes.bfloat16)
    f = opens(FP8 | block, FP8_PARTS | dict(weight_scale=scale)).tensor("a.b.weight")
    assert (f[:, :32] == 1.5).all() and (f[:, 32:] == 3).all()


def test_plain_tensors_and_biases_stay_and_packed_ones_have_one_name(opens):
    plain = np.ones((4, 4), np.float16)
    c = opens(GPTQ, GPTQ_PARTS, **{"a.b.bias": plain[0], "lm_head.weight": plain, "x.scales": plain})
    assert sorted(c.names) == ["a.b.bias", "a.b.weight", "lm_head.weight", "x.scales"]
    np.testing.assert_array_equal(c.tensor("lm_head.weight"), plain)
    c = opens(CT | {"kv_cache_scheme": {}}, CT_PARTS, **{"a.k_scale": np.ones(1, np.float32)})
    assert c.names == ["a.b.weight"]


def test_modules_differ_by_name_expression_and_class(opens):
    eight = WEIGHTS | dict(num_bits=8, group_size=64)
    config = CT | {"config_groups": {"x": {"targets": [r"re:.*\.b$"], "weights": eight},
                                     "y": {"targets": ["Linear"], "weights": WEIGHTS},
                                     "z": {"targets": ["c.b"], "weights": WEIGHTS}}}
    parts = CT_PARTS | dict(weight_packed=full(0x80808080, N, K // 4), weight_scale=ONES.T[:, :1].copy())
    assert opens(config, parts).tensor("a.b.weight").bits == 8
    assert opens(config, CT_PARTS, module="c.b").tensor("c.b.weight").bits == 4
    assert opens(config, CT_PARTS, module="a.c").tensor("a.c.weight").bits == 4
    dynamic = {"+:.*b$": {"bits": 8, "group_size": 64}, "-:.*d$": {}}
    parts = GPTQ_PARTS | dict(qweight=full(0, K // 4, N), qzeros=full(0, 1, N // 4), scales=ONES[:1], g_idx=None)
    assert opens(GPTQ | dict(dynamic=dynamic), parts).tensor("a.b.weight").bits == 8
    assert opens(GPTQ | dict(dynamic=dynamic), GPTQ_PARTS, module="a.c").tensor("a.c.weight").bits == 4


def test_old_files_keep_the_config_beside(tmp_path, opens):
    opens(GPTQ, GPTQ_PARTS)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "quantize_config.json").write_text(json.dumps({k: v for k, v in GPTQ.items() if k != "quant_method"}))
    assert open_checkpoint(tmp_path).tensor("a.b.weight").bits == 4
    opens(AWQ, AWQ_PARTS)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "quantize_config.json").unlink()
    (tmp_path / "quant_config.json").write_text(json.dumps(dict(w_bit=4, q_group_size=32, zero_point=True)))
    assert open_checkpoint(tmp_path).tensor("a.b.weight").bits == 4


def weights(**more):
    return {"config_groups": {"g": {"targets": ["Linear"], "weights": WEIGHTS | more}}}


@pytest.mark.parametrize("config, parts, match", [
    ("fp8", GPTQ_PARTS, "config.json: quantization_config must be an object, not 'fp8'"),
    ({"quant_method": "bitnet"}, GPTQ_PARTS, "quant_method must be one of gptq, awq, comp"),
    *[(GPTQ | dict(bits=b), GPTQ_PARTS, f"quantization_config: bits must be .*, not {b}") for b in (0, 3, 5, 64, -4)],
    (GPTQ | dict(bits="4"), GPTQ_PARTS, "bits must be an integer"),
    (GPTQ | dict(bits=None), GPTQ_PARTS, "bits is missing"),
    *[(GPTQ | dict(group_size=g), GPTQ_PARTS, "group_size must be") for g in (0, -2, 1, 33, 1.5)],
    (GPTQ | dict(group_size=48), GPTQ_PARTS, "'a.b.qweight': 64 columns are not whole groups of 48"),
    (GPTQ | dict(group_size=16), GPTQ_PARTS, r"'a.b.scales': has shape \[2, 16\], not \[4, 16\]"),
    (GPTQ | dict(checkpoint_format="marlin"), GPTQ_PARTS, "checkpoint_format must be gptq or gptq_v2, not 'marlin'"),
    (GPTQ | dict(sym="yes"), GPTQ_PARTS, "sym must be true or false"),
    (GPTQ | dict(dynamic=[]), GPTQ_PARTS, None),
    (GPTQ | dict(dynamic=[3]), GPTQ_PARTS, "dynamic must be an object"),
    (GPTQ | dict(dynamic={"+:(a+)+$": {}}), GPTQ_PARTS, "dynamic must be a name or an expression with"),
    (GPTQ | dict(dynamic={"-:.*b": {}}), GPTQ_PARTS, "'a.b.qweight': is packed, but quantization_conf"),
    *[(AWQ | dict(bits=b), AWQ_PARTS, "bits must be") for b in (0, 5, 8, 64)],
    (AWQ | dict(version="gemv"), AWQ_PARTS, "version must be gemm, not 'gemv'"),
    (AWQ | dict(zero_point=False), AWQ_PARTS, "zero_point must be true"),
    (AWQ | dict(modules_to_not_convert=["b"]), AWQ_PARTS, "'a.b.qweight': is packed, but"),
    (AWQ | dict(modules_to_not_convert="b"), AWQ_PARTS, "modules_to_not_convert must be a list of strings"),
    (CT | {"quantization_status": "frozen"}, CT_PARTS, "quantization_status must be compressed, not 'frozen'"),
    (CT | {"sparsity_config": {"format": "sparse-24"}}, CT_PARTS, "sparsity_config must be dense"),
    (CT | {"config_groups": {}}, CT_PARTS, "config_groups must be an object of groups"),
    (CT | {"config_groups": {"g": 3}}, CT_PARTS, "config_groups.g must be an object, not 3"),
    (CT | {"config_groups": {"g": {"targets": ["Linear"]}}}, CT_PARTS, "config_groups.g: weights must be an object"),
    (CT | {"format": "marlin-24"}, CT_PARTS, "config_groups.g.*: format must be pack-quantized"),
    *[(CT | weights(num_bits=b), CT_PARTS, "weights: num_bits must be") for b in (0, 5, 64)],
    (CT | weights(strategy="tensor_group"), CT_PARTS, "weights: strategy must be tensor, channel or group"),
    (CT | weights(group_size=0), CT_PARTS, "weights: group_size must be"),
    (CT | {"ignore": ["a.b"]}, CT_PARTS, "'a.b.weight_packed': is packed, but quantization"),
    (CT | {"ignore": ["re:["]}, CT_PARTS, "ignore must be a regular expression, not '\\['"),
    (CT | {"ignore": ["re:" + ".*" * 5]}, CT_PARTS, "ignore must be a name or an expression"),
    (FP8 | weights(type="float", num_bits=4), FP8_PARTS, "num_bits must be 8"),
    (FP8 | weights(type="float", num_bits=8, strategy="block"), FP8_PARTS, r"block_structure must be \[rows, col"),
])
def test_configs_that_cannot_be(refuses, opens, config, parts, match):
    if match is None:
        assert opens(config, parts).tensor("a.b.weight").bits == 4
    else:
        refuses(config, parts, match)


NAN, INF = np.full((G, N), np.nan, np.float16), np.full((G, N), np.inf, ml_dtypes.bfloat16)


@pytest.mark.parametrize("config, parts, change, match", [
    (GPTQ, GPTQ_PARTS, dict(scales=None), "'a.b.scales': is missing"),
    (GPTQ, GPTQ_PARTS, dict(qzeros=None), "'a.b.qzeros': is missing"),
    (GPTQ, GPTQ_PARTS, dict(scales=NAN), "'a.b.scales': is not finite everywhere"),
    (GPTQ, GPTQ_PARTS, dict(scales=INF), "'a.b.scales': is not finite everywhere"),
    (GPTQ, GPTQ_PARTS, dict(scales=ONES.astype(np.int32)), "'a.b.scales': is int32, not float16 or bfloat16"),
    (GPTQ, GPTQ_PARTS, dict(scales=ONES[:1]), r"'a.b.scales': has shape \[1, 16\], not \[2, 16\]"),
    (GPTQ, GPTQ_PARTS, dict(qzeros=full(0, N // 8, G)[:1]), r"'a.b.qzeros': has shape \[1, 2\], not \[2, 2\]"),
    (GPTQ, GPTQ_PARTS, dict(qweight=full(0, K // 8, N).view(np.float32)), "'a.b.qweight': is float32, not int32"),
    (GPTQ, GPTQ_PARTS, dict(qweight=full(0, N)), r"'a.b.qweight': has shape \[16\], not \[any, any\]"),
    (GPTQ, GPTQ_PARTS, dict(qweight=full(0, 0, N)), "'a.b.qweight': 0 columns are not whole groups"),
    (GPTQ, GPTQ_PARTS, dict(g_idx=np.full(K, 2, np.int32)), "'a.b.g_idx': holds groups from 2 to 2, there are 2"),
    (GPTQ, GPTQ_PARTS, dict(g_idx=np.full(K, -1, np.int32)), "'a.b.g_idx': holds groups from -1 to -1"),
    (GPTQ, GPTQ_PARTS, dict(g_idx=np.zeros(K, np.int32)), "'a.b.g_idx': its groups are not 2 of 32 columns each"),
    (GPTQ, GPTQ_PARTS, dict(g_idx=np.zeros(K - 1, np.int32)), r"'a.b.g_idx': has shape \[63\], not \[64\]"),
    (AWQ, AWQ_PARTS, dict(scales=None), "'a.b.scales': is missing"),
    (AWQ, AWQ_PARTS, dict(scales=ONES[:, :8].copy()), r"'a.b.scales': has shape \[2, 8\], not \[2, 16\]"),
    (AWQ, AWQ_PARTS, dict(qzeros=full(0, G, 1)), r"'a.b.qzeros': has shape \[2, 1\], not \[2, 2\]"),
    (CT, CT_PARTS, dict(weight_scale=NAN.T.copy()), "'a.b.weight_scale': is not finite"),
    (CT, CT_PARTS, dict(weight_scale=ONES), r"'a.b.weight_scale': has shape \[2, 16\], not \[16, 2\]"),
    (CT, CT_PARTS, dict(weight_shape=None), "'a.b.weight_shape': is missing"),
    *[(CT, CT_PARTS, dict(weight_shape=np.array(s, np.int64)), "weight_shape': is .*, weight_packed holds 16 rows")
      for s in ([N, 1 << 62], [N, -64], [N, 56], [N, 65], [17, K])],
    (INT8, INT8_PARTS, dict(weight=np.ones((N, K), np.uint8)), "'a.b.weight': is uint8, not int8"),
    (INT8, INT8_PARTS, dict(weight=None), "'a.b.weight': is missing"),
    (FP8, FP8_PARTS, dict(weight=np.ones((N, K), np.float16)), "'a.b.weight': is float16, not float8_e4m3fn"),
    (FP8, FP8_PARTS, dict(weight_scale=np.ones((2, 1), np.float16)), r"has shape \[2, 1\], not \[16, 1\] or \[1\]"),
])
def test_tensors_that_cannot_be(refuses, config, parts, change, match):
    refuses(config, parts | change, f"^model.safetensors: tensor .*{match}|^.*: tensor .*is missing")


def test_four_bits_in_bytes_stay_in_range(refuses, opens):
    config = INT8 | weights(num_bits=4)
    codes = INT8_PARTS["weight"] % 16 - 8
    parts = dict(weight=codes.astype(np.int8), weight_scale=ONES.T.copy())
    np.testing.assert_array_equal(dense(opens(config, parts).tensor("a.b.weight")), codes)
    refuses(config, parts | dict(weight=INT8_PARTS["weight"]), "holds values from -32 to 31, 4 bits reach from -8 to 7")


GOLDEN = Path(__file__).parent / "golden" / "packed.safetensors"
EIGHT = dict(num_bits=8, strategy="channel", group_size=None)
KINDS = {
    "gptq4": GPTQ | {"checkpoint_format": "gptq_v2"}, "gptq4_act_order": GPTQ | {"checkpoint_format": "gptq_v2"},
    "gptq8": GPTQ | {"checkpoint_format": "gptq_v2", "bits": 8},
    "gptq8_act_order": GPTQ | {"checkpoint_format": "gptq_v2", "bits": 8}, "awq": AWQ, "pack4": CT,
    "pack4_asymmetric": CT | weights(symmetric=False), "pack8": CT | weights(**EIGHT), "int8": INT8, "fp8": FP8,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_values_are_those_of_the_tools_that_packed_them(opens, kind):
    """GPTQModel, AutoAWQ and compressed-tensors, see golden/make_packed.py: the same float32 values, bit for bit."""
    golden = SafetensorsFile(GOLDEN)
    parts = {n.partition(".")[2]: golden.tensor(n) for n in golden.names if n.startswith(f"{kind}.")}
    want = parts.pop("values")
    w = opens(KINDS[kind], parts).tensor("a.b.weight")
    values = w if isinstance(w, np.ndarray) else dense(w)
    np.testing.assert_array_equal(values, want)


def test_a_cut_at_any_4_kib_is_refused(tmp_path):
    whole = GOLDEN.read_bytes()
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": GPTQ}))
    for at in range(0, len(whole), 4096):
        (tmp_path / "model.safetensors").write_bytes(whole[:at])
        with pytest.raises(ModelError, match=r"^model.safetensors: "):
            open_checkpoint(tmp_path)


def test_version_1_is_version_2_with_every_field_one_less(opens):
    golden = SafetensorsFile(GOLDEN)
    parts = {p: golden.tensor(f"gptq4.{p}") for p in ("qweight", "qzeros", "scales", "g_idx")}
    fields = codes_of(parts["qzeros"], 4)
    less = ((fields - np.uint8(1)) & 15).reshape(2, -1, 8).astype(np.uint32)
    v1 = (less << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32).view(np.int32)
    one = opens(GPTQ, parts | {"qzeros": v1}).tensor("a.b.weight")
    two = opens(GPTQ | {"checkpoint_format": "gptq_v2"}, parts).tensor("a.b.weight")
    np.testing.assert_array_equal(dense(one), dense(two))
