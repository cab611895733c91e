"""Laws of the rules: schedules rise, stay and fall as they say; Muon's update is nearly orthogonal, part by part."""
import pytest

torch = pytest.importorskip("torch")

from gramme.train.optimizer import Muon, optimizers, orthogonalise, schedule  # noqa: E402
from gramme.train.recipe import Recipe  # noqa: E402

pytestmark = pytest.mark.torch


def test_a_cosine_warms_up_and_falls_to_its_floor():
    r = Recipe(100, warmup_steps=10, floor=0.1, schedule="cosine")
    shares = [schedule(r, step) for step in range(101)]
    assert shares[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert shares[10:] == sorted(shares[10:], reverse=True) and shares[100] == pytest.approx(0.1)
    assert shares[55] == pytest.approx(0.55)


def test_wsd_is_level_until_the_decay():
    r = Recipe(100, warmup_steps=10, floor=0.0, decay_steps=20)
    shares = [schedule(r, step) for step in range(101)]
    assert shares[9:81] == [1.0] * 72 and shares[90] == pytest.approx(0.5) and shares[100] == 0
    assert schedule(Recipe(100, warmup_steps=10), 99) == 1  # no decay


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape):
    torch.manual_seed(0)
    g = torch.randn(shape)
    x = orthogonalise(g)
    values = torch.linalg.svdvals(x)
    assert x.shape == g.shape and values.min() > 0.4 and values.max() < 1.3
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(x.flatten(), (u @ v).flatten(), 0) > 0.95


def test_each_part_of_a_stacked_matrix_moves_as_if_it_stood_alone():
    torch.manual_seed(0)
    whole, gradient = torch.randn(48, 16), torch.randn(48, 16)
    parts = [a.clone() for a in whole.split([32, 16])]
    whole.grad = gradient
    Muon([whole], [(32, 16)], lr=0.1, weight_decay=0.01).step()
    for a, g in zip(parts, gradient.split([32, 16]), strict=True):
        a.grad = g.clone()
        Muon([a], [(len(a),)], lr=0.1, weight_decay=0.01).step()
    torch.testing.assert_close(whole, torch.cat(parts))


def test_every_weight_has_one_rule_and_only_matrices_decay():
    weights = {"embed": torch.zeros(9, 4), "m": torch.zeros(4, 4), "norm": torch.zeros(4)}
    for rate, kinds in ((0.0, 1), (0.01, 2)):
        found = optimizers(weights, {"m": (4,)}, Recipe(1, muon_rate=rate, weight_decay=0.5))
        groups = [g for o in found for g in o.param_groups]
        assert len(found) == kinds
        assert sorted(id(a) for g in groups for a in g["params"]) == sorted(map(id, weights.values()))
        assert all((g["weight_decay"] == 0.5) == (g["params"][0] is weights["m"]) for g in groups)
