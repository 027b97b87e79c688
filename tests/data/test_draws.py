import pytest
import torch

from mmssl.data import draws


@pytest.mark.parametrize("seed", [0, ~0, 123_456, 2**32 - 1, ~(2**32 - 1), 1 << 60])
def test_any_seed_gives_even_draws_of_its_own(seed):
    drawn = draws.share(torch.arange(10_000), seed, epoch=3)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.02 and abs(drawn.std() - 12**-0.5) < 0.02
    for other in (draws.share(torch.arange(10_000), seed + 1, 3), draws.share(torch.arange(10_000), seed, 4)):
        assert abs(torch.corrcoef(torch.stack([drawn, other]))[0, 1]) < 0.05
