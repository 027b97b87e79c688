from __future__ import annotations

import pytest
import torch

from mmssl.data.text import masking

BATCH, LENGTH, SHARE = 400, 100, 0.15


@pytest.fixture(scope="module")
def texts():
    """draw, maskable (two tokens at the ends and one within are not), begins_word (words of one to several tokens)."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(1 << 32, (BATCH,), generator=generator)
    maskable = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    maskable[:, [0, 40, -1]] = False
    begins = torch.rand(BATCH, LENGTH, generator=generator) < 0.6
    begins[:, [0, 1, 40, 41, -1]] = True
    return draw, maskable, begins


@pytest.mark.parametrize("unit", masking.UNITS)
def test_the_share_is_kept_in_each_sequence_and_nothing_else_is_hidden(texts, unit):
    chosen = masking.choose(*texts, SHARE, unit)
    assert not (chosen & ~texts[1]).any()
    hidden = chosen.sum(1)
    assert (hidden >= 15).all() and hidden.float().mean() < 17
    assert unit != "tokens" or (hidden == 15).all()


@pytest.mark.parametrize("unit", masking.UNITS)
def test_every_place_is_hidden_equally_often(texts, unit):
    draw, maskable, begins = texts
    draws = torch.cat([draw + 12345 * i for i in range(20)])
    chosen = masking.choose(draws, maskable.repeat(20, 1), begins.repeat(20, 1), SHARE, unit)
    inner = chosen.float().mean(0)[50:90]  # away from what cannot be hidden
    assert (inner - inner.mean()).abs().max() < 5 * (0.15 * 0.85 / len(draws)) ** 0.5 * (2 if unit == "spans" else 1)


@pytest.mark.parametrize("unit", ["words", "spans"])
def test_a_word_is_hidden_as_a_whole(texts, unit):
    draw, maskable, begins = texts
    chosen = masking.choose(draw, maskable, begins, SHARE, unit)
    inside = ~begins[:, 1:]  # with the token before, one word
    assert (chosen[:, 1:] == chosen[:, :-1])[inside].all()


def test_spans_hide_neighbouring_words(texts):
    draw, maskable, begins = texts
    runs = {u: (c[:, 1:] & ~c[:, :-1]).sum(1).float().mean() for u in masking.UNITS
            for c in [masking.choose(draw, maskable, begins, SHARE, u)]}  # fmt: skip
    assert runs["spans"] < 0.5 * runs["words"] < 0.5 * runs["tokens"]


def test_a_span_begins_as_long_as_the_geometric_distribution_has_it():
    """With one span to a sequence: lengths 1 + Geo(0.2), at most 10: their mean is (1 - 0.8**10) / 0.2."""
    n, length = 4000, 60
    draw = torch.randint(1 << 32, (n,), generator=torch.Generator().manual_seed(1))
    word = torch.arange(1, length + 1).expand(n, length)
    score = masking._span_scores(draw, word)
    best = score.argmin(1)
    inner = (best > 15) & (best < 45)
    lengths = (score == score.min(1, keepdim=True)[0]).sum(1)[inner].float()
    assert lengths.max() <= 10 and abs(lengths.mean() - (1 - 0.8**10) / 0.2) < 0.2


def test_hidden_tokens_are_80_mask_10_random_10_the_same(texts):
    draw, maskable, begins = texts
    chosen = masking.choose(draw, maskable, begins, SHARE)
    ids = torch.randint(5, 1000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))
    seen = masking.corrupt(draw, ids, chosen, mask_token=4, vocab_size=1000)
    assert torch.equal(seen[~chosen], ids[~chosen])
    masked, same = (seen[chosen] == 4).float().mean(), (seen[chosen] == ids[chosen]).float().mean()
    assert abs(masked - 0.8) < 0.02 and abs(same - 0.1) < 0.02
    other = seen[chosen & (seen != ids) & (seen != 4)]
    assert other.float().mean() == pytest.approx(500, abs=40) and other.unique().numel() > 250


def test_masks_follow_from_the_draw_alone_and_differ_between_draws(texts):
    draw, maskable, begins = texts
    whole = masking.choose(draw, maskable, begins, SHARE, "words")
    part = masking.choose(draw[7:9], maskable[7:9], begins[7:9], SHARE, "words")
    assert torch.equal(whole[7:9], part)
    assert not torch.equal(masking.choose(draw + 1, maskable, begins, SHARE, "words"), whole)


def test_a_sequence_with_too_few_tokens_hides_them_all():
    maskable = torch.zeros(2, 20, dtype=torch.bool)
    maskable[0, 5] = True
    chosen = masking.choose(torch.arange(2), maskable, torch.ones_like(maskable), SHARE)
    assert torch.equal(chosen, maskable)


def test_places_are_those_of_the_mask_and_their_number_can_be_known_beforehand(texts):
    draw, maskable, begins = texts
    chosen = masking.choose(draw, maskable, begins, SHARE)
    exact, known = masking.places(chosen), masking.places(chosen, masking.most(LENGTH, SHARE))
    assert torch.equal(exact, chosen.flatten().nonzero()[:, 0]) and torch.equal(known, exact)
    chosen[3] = False  # a sequence with fewer
    exact, known = masking.places(chosen), masking.places(chosen, masking.most(LENGTH, SHARE))
    assert len(known) == len(chosen) * round(SHARE * LENGTH) and torch.equal(known[chosen.flatten()[known]], exact)
    assert masking.most(LENGTH, SHARE, "words") is None and masking.most(3, 0.01) == 1


def test_a_padded_sequence_has_the_fraction_of_its_own_length_masked(texts):
    draw, maskable, begins = (x[:50] for x in texts)
    short = maskable & (torch.arange(LENGTH) < 40)
    chosen = masking.choose(draw, short, begins, SHARE, lengths=torch.full((50,), 40))
    assert (chosen.sum(1) == 6).all()
    cut = masking.choose(draw, short[:, :40], begins[:, :40], SHARE, lengths=torch.full((50,), 40))
    assert torch.equal(chosen[:, :40], cut)


@pytest.mark.parametrize("unit", ["tokens", "words"])
def test_a_token_of_three_times_the_weight_comes_first_three_times_as_often(unit):
    draw, ones = torch.arange(20_000) * 7919, torch.ones(20_000, 4, dtype=torch.bool)
    weight = torch.tensor([3.0, 1.0, 1.0, 1.0]).expand(20_000, -1)
    first = masking.choose(draw, ones, ones, 0.25, unit, weight=weight).float().mean(0)
    assert first[0] == pytest.approx(0.5, abs=0.02) and first[1:].tolist() == pytest.approx([1 / 6] * 3, abs=0.02)


def test_equal_weights_choose_as_none_do(texts):
    draw, maskable, begins = texts
    weight = torch.full(maskable.shape, 2.0, dtype=torch.double)
    for unit in ("tokens", "words"):
        chosen = masking.choose(draw, maskable, begins, SHARE, unit, weight=weight)
        assert torch.equal(chosen, masking.choose(draw, maskable, begins, SHARE, unit))
