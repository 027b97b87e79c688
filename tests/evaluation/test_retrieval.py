import random

import pytest
import torch
import torch.nn.functional as F

from mmssl.evaluation.retrieval import KS, chance, of_scores, retrieval


def brute_force(image, text, owner) -> dict[str, float]:
    """In plain Python, from sorted lists: of tied competitors half stand before."""
    image, text = F.normalize(image, dim=-1).tolist(), F.normalize(text, dim=-1).tolist()

    def similarity(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def before(own, others):
        others = [round(o - own, 6) for o in others]
        return sum(o > 0 for o in others) + sum(o == 0 for o in others) / 2

    to_image = [
        before(similarity(image[o], t), [similarity(image[i], t) for i in range(len(image)) if i != o])
        for t, o in zip(text, owner.tolist(), strict=True)
    ]
    to_text = []
    for i, v in enumerate(image):
        own = max(similarity(v, t) for t, o in zip(text, owner.tolist(), strict=True) if o == i)
        to_text.append(before(own, [similarity(v, t) for t, o in zip(text, owner.tolist(), strict=True) if o != i]))
    values = {}
    for way, ranks in (("image_to_text", to_text), ("text_to_image", to_image)):
        values |= {f"{way}_R@{k}": 100 * sum(r < k for r in ranks) / len(ranks) for k in KS}
        values[f"{way}_median_rank"] = sorted(ranks)[(len(ranks) - 1) // 2] + 1
    return values


@pytest.mark.parametrize("captions", [(1, 1), (5, 5), (1, 4)], ids=["one", "five", "one to four"])
@pytest.mark.parametrize("ties", [False, True])
def test_retrieval_is_that_of_an_independent_count(captions, ties):
    generator, pick = torch.Generator().manual_seed(0), random.Random(0)
    owner = torch.tensor([i for i in range(30) for _ in range(pick.randint(*captions))])
    owner = owner[torch.randperm(len(owner), generator=generator)]
    image = torch.randn(30, 4, generator=generator)
    text = image[owner] + 1.5 * torch.randn(len(owner), 4, generator=generator)
    if ties:  # signs alone: many similarities are equal, and four of them make unit vectors without rounding
        image, text = image.sign(), text.sign()
    assert retrieval(image, text, owner) == pytest.approx(brute_force(image, text, owner), abs=1e-4)


def test_perfect_features_find_everything_at_rank_1():
    owner = torch.arange(20).repeat_interleave(2)
    values = retrieval(torch.eye(20), torch.eye(20)[owner], owner)
    assert all(value == (1 if "rank" in name else 100) for name, value in values.items())


def test_features_that_are_all_alike_find_nothing():
    features = torch.ones(50, 4)
    values = retrieval(features, features, torch.arange(50))
    assert all(value >= 25 if "rank" in name else value == 0 for name, value in values.items())


def test_chance_is_what_random_features_reach():
    owner = torch.tensor([i for i in range(40) for _ in range(1 + i % 4)])
    torch.manual_seed(0)
    runs = [retrieval(torch.randn(40, 64), torch.randn(len(owner), 64), owner) for _ in range(400)]
    expected = chance(40, owner)
    assert expected.keys() == runs[0].keys()
    for name, value in expected.items():
        mean = sum(run[name] for run in runs) / len(runs)
        assert mean == pytest.approx(value, abs=1.0), name


def test_chance_on_fewer_texts_than_k_is_certainty():
    assert chance(3, torch.arange(3))["image_to_text_R@5"] == chance(3, torch.arange(3))["text_to_image_R@5"] == 100


def test_retrieval_of_scores_is_that_of_the_features_they_are_products_of():
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(12, 5, generator=generator)), F.normalize(torch.randn(30, 5))
    owner = torch.arange(30) % 12
    assert of_scores(text @ image.T, owner) == retrieval(image, text, owner)
