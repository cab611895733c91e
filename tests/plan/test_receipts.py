"""A step's time goes to those who caused it, all of it; and what time costs."""
import random
from dataclasses import replace

import pytest

from gramme.config import ConfigError, EngineConfig, ModelConfig, Price
from gramme.plan import cost, roofline
from gramme.plan.gpus import gpu
from gramme.plan.hardware import Hardware, card
from gramme.plan.planner import plan
from gramme.plan.receipts import Piece, Power, per_million, receipt, said, share, tariff
from gramme.plan.roofline import Setup
from gramme.request import Spent

MODEL = ModelConfig(family="llama", vocab_size=999, width=96, layers=3, heads=6, kv_heads=2, head_dim=16, ff_width=200,
                    norm_eps=1e-5, max_positions=4096, windows=(None, 24, 100))
MACHINE = Hardware(cores=2, free_bytes=1 << 33, backends=("cpu", "reference"))


def rows(r, count):
    """Random pieces, each beginning anywhere: chunks, decode rows, guesses, scored prompts."""
    out = []
    for _ in range(count):
        guesses, chunk = r.choice((0, 0, 3)), r.choice((1, 1, 40))
        piece = Piece(r.randrange(2000), r.choice((0, 1 + guesses, chunk + guesses)), prefill=r.choice((0, chunk)),
                      decode=1, recomputed=r.choice((0, 0, 7)), rejected=r.randint(0, guesses))
        out.append(piece)
    return out


def the_tariff(dtype="int4", hardware=MACHINE, backend="cpu"):
    w = cost.weights(MODEL, dtype)
    return w, Setup(hardware=hardware, backend=backend, dtype=dtype, layers=MODEL.layers)


@pytest.mark.parametrize("dtype", ["int4", "float32"])
@pytest.mark.parametrize("seed", range(20))
def test_the_parts_of_the_tariff_are_those_of_the_prediction(dtype, seed):
    r = random.Random(seed)
    w, setup = the_tariff(dtype)
    t, pieces = tariff(MODEL, w, "float16", setup), rows(r, r.randint(1, 9))
    work = cost.step(MODEL, w, "float16", [(p.start, p.tokens) for p in pieces], sum(p.outputs for p in pieces))
    whole = roofline.seconds(work, setup, "decode").seconds - roofline.host_s(setup, "decode", work) \
        + roofline.host_s(setup, "decode", cost.Work(tokens=1))
    parts = share(t, 1.0, pieces)
    assert sum(s.seconds for s in parts) == pytest.approx(1.0)
    # with no step and no head to share, the rows' own seconds are what is left of the prediction
    shared = t.step_s + t.head_s * any(p.outputs for p in pieces)
    own = sum(_own(t, p) for p in pieces)
    assert own + shared == pytest.approx(whole, rel=2e-3)  # embedding rows are counted in whole bytes there


def _own(t, piece):
    """What the row is charged alone, less what the step takes whoever is in it."""
    alone, twice = share(t, 1.0, [piece]), share(t, 1.0, [piece, piece])
    assert alone[0].seconds == pytest.approx(1.0) and twice[0].seconds == pytest.approx(0.5)
    none = replace(t, step_s=0.0, head_s=0.0)
    unit = Piece(0, 0, prefill=1, decode=0, recomputed=0, rejected=0)
    mine, its = share(none, 1.0, [piece, unit])
    own_unit = t.token_s + sum(n for _, n in t.windows) * (t.pair_s + t.key_s)
    return own_unit * mine.seconds / its.seconds


@pytest.mark.parametrize("seed", range(20))
def test_all_of_a_step_is_shared_out_and_every_token_stands_in_one_place(seed):
    r = random.Random(seed)
    w, setup = the_tariff()
    pieces, seconds = rows(r, r.randint(1, 30)), r.random()
    parts = share(tariff(MODEL, w, "int8", setup), seconds, pieces)
    assert sum(s.seconds for s in parts) == pytest.approx(seconds)
    for p, s in zip(pieces, parts, strict=True):
        assert (s.prefill_tokens, s.decode_tokens, s.recomputed_tokens, s.rejected_tokens) == p[2:]
        for kind, n in zip(("prefill_s", "decode_s", "recomputed_s", "rejected_s"), p[2:], strict=True):
            assert (getattr(s, kind) > 0) == (n > 0)


def test_equals_pay_alike_and_nobody_pays_for_others():
    w, setup = the_tariff()
    t = tariff(MODEL, w, "float16", setup)
    decode, prompt = Piece(500, 1, 0, 1, 0, 0), Piece(0, 0, 400, 0, 0, 0)
    alone = share(t, 1.0, [decode, decode])
    assert alone[0] == alone[1]
    # a step that a prompt makes longer by what the tariff says costs its neighbour no more than the shared part before
    longer = (t.step_s + t.head_s + _own(t, decode) + _own(t, prompt))
    before = share(t, t.step_s + t.head_s + _own(t, decode), [decode])[0].seconds
    assert share(t, longer, [decode, prompt])[0].seconds < before
    guess = share(t, 1.0, [Piece(500, 4, 0, 1, 0, 3)])[0]
    assert guess.rejected_s < 3 * guess.decode_s, "a guess pays only for what it adds"
    assert share(t, 1.0, []) == []


@pytest.mark.parametrize("hardware", [card(gpu("rtx4090")), replace(card(gpu("rtx4090")), rates={}, source="assumed")])
def test_a_card_whose_rates_are_not_known_has_proportions_all_the_same(hardware):
    w, setup = the_tariff("int4", hardware, "cuda")
    t = tariff(MODEL, w, "float16", setup)
    assert min(t.step_s, t.head_s, t.token_s, t.output_s, t.pair_s, t.key_s) > 0


KWH, HOUR = Price(amount=0.25, unit="kWh"), Price(amount=2, unit="h")


@pytest.mark.parametrize("power, price, joules, money", [
    (Power(), None, None, None), (Power(watts=65.0, source="declared"), None, 234e3, None),
    (Power(watts=65.0), KWH, 234e3, 0.065 * 0.25), (Power(), HOUR, None, 2), (Power(), KWH, None, None)])
def test_a_receipt_says_what_is_known_and_its_lines_add_up(power, price, joules, money):
    spent = Spent(1800, 900, 600, 300, joules=3600 * (power.watts or 0), prefill_tokens=9, decode_tokens=4,
                  recomputed_tokens=3, rejected_tokens=2, cached_tokens=70)
    *lines, total = receipt(spent, power, price)
    assert [e.kind for e in lines] == ["prefill", "decode", "cached", "recomputed", "rejected"]
    assert lines[2].tokens == 70 and lines[2].seconds == 0 and total.seconds == 3600 and total.tokens == 88
    for name, want in (("joules", joules), ("money", money)):
        assert getattr(total, name) == pytest.approx(want)
        if want is not None:
            assert sum(getattr(e, name) for e in lines) == pytest.approx(want)
            assert getattr(lines[0], name) == pytest.approx(want / 2)


def test_a_million_tokens():
    e = per_million(0.0036, Power(watts=100.0, source="declared"), Price(amount=0.2, unit="kWh"))
    assert said(e) == "1 h of machine, 0.1 kWh, 0.02 of money"


@pytest.mark.parametrize("wish", [{"power": "65"}, {"power": "0W"}, {"price": "0.25"}, {"price": "0.25 kWh"},
                                  {"price": "-1/h"}, {"price": "0.2/MWh"}, {"price": "1/2/h"}])
def test_a_wrong_power_or_price_is_one_line(wish):
    with pytest.raises(ConfigError, match="needs a number above 0 and a unit"):
        plan(MODEL, EngineConfig(**wish), MACHINE)


def test_a_plan_keeps_what_was_declared():
    decided = plan(MODEL, EngineConfig(power="0.065 kW", price="0.25 / kWh"), MACHINE)
    assert decided.watts == pytest.approx(65) and decided.price == Price(amount=0.25, unit="kWh")
