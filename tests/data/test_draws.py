import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mmssl.data import draws


@pytest.mark.parametrize("seed", [0, ~0, 123_456, 2**32 - 1, ~(2**32 - 1), 1 << 60])
def test_any_seed_gives_even_draws_of_its_own(seed):
    drawn = draws.share(torch.arange(10_000), seed, epoch=3)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.02 and abs(drawn.std() - 12**-0.5) < 0.02
    for other in (draws.share(torch.arange(10_000), seed + 1, 3), draws.share(torch.arange(10_000), seed, 4)):
        assert abs(torch.corrcoef(torch.stack([drawn, other]))[0, 1]) < 0.05


def test_the_draws_of_each_seed_and_epoch_are_those_of_every_earlier_version():
    assert draws.draw(torch.arange(4), 7, 3).tolist() == [2317476988, 4266758358, 2765222137, 728439671]
    assert draws.draw(torch.tensor([2**40, -1]), ~5, 1).tolist() == [2575913863, 1047789803]


def test_each_key_and_stream_has_an_even_draw_of_its_own():
    key = torch.cat([torch.arange(1000), torch.arange(1000) << 32, -1 - torch.arange(1000)])
    drawn = draws.uniform(key[:, None], torch.arange(20))
    assert drawn.dtype == torch.float32 and drawn.min() >= 0 and drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.01 and abs(drawn.std() - 12**-0.5) < 0.01
    assert (torch.corrcoef(drawn.T) - torch.eye(20)).abs().max() < 0.08
    assert len(drawn.flatten().unique()) > 0.99 * drawn.numel()


def test_normal_draws_are_normal_and_finite():
    drawn = draws.normal(torch.arange(20_000)[:, None], torch.arange(20))
    assert drawn.isfinite().all() and abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    assert (drawn.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.005)
    assert (torch.corrcoef(drawn.T) - torch.eye(20)).abs().max() < 0.04


def test_normal_draws_of_the_smallest_and_largest_uniform_are_finite(monkeypatch):
    monkeypatch.setattr(draws, "uniform", lambda key, stream: torch.tensor([0.0, 0.5, 1 - 2.0**-24]))
    low, middle, high = draws.normal(torch.tensor(0), torch.tensor(0)).tolist()
    assert low == -high and 5 < high < 6 and abs(middle) < 1e-6


def test_no_constant_is_beyond_int32():
    # torch.compile writes constants into a GPU's kernel as literals of 32 bits
    def all_draws(x):
        return draws.share(x, 2**60, 3), draws.uniform(x[:, None], torch.arange(3))

    graph = make_fx(all_draws)(torch.arange(5)).graph
    constants = [value for node in graph.nodes for value in node.args if isinstance(value, int)]
    assert len(constants) > 10 and all(-(2**31) <= value < 2**31 for value in constants)


def test_keys_of_one_key_differ_and_their_draws_are_independent():
    keys = draws.keys(torch.arange(5000)[:, None], torch.arange(4))
    assert keys.shape == (5000, 4) and len(keys.unique()) > 19_990
    assert torch.equal(keys[7], draws.keys(torch.tensor(7), torch.arange(4)))
    drawn = draws.uniform(keys, torch.tensor(0)).double()
    assert (torch.corrcoef(drawn.T) - torch.eye(4)).abs().max() < 0.06
