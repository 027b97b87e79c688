"""VQ-VAE: nearest codes, straight-through gradients, the moving codebook, and one that collapses."""

from __future__ import annotations

import pytest
import torch
from tiny.simclr import batch
from tiny.vqvae import method

from mmssl.methods.vqvae import DECAY, VQVAE, nearest, perplexity
from mmssl.models import image_encoders
from mmssl.training.monitor import FailureWatch


def test_the_nearest_entry_has_the_smallest_distance():
    vectors, codebook = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (50, 7))
    assert torch.equal(nearest(vectors, codebook), torch.cdist(vectors, codebook).argmin(1))


def test_perplexity_is_the_number_of_entries_used_alike():
    assert perplexity(torch.tensor([5.0, 0, 0])).item() == pytest.approx(1)
    assert perplexity(torch.tensor([2.0, 2, 2, 0])).item() == pytest.approx(3)


def test_the_gradient_passes_straight_through_the_codes():
    one = method(commitment=0.0)
    seen = {}
    one.decoder.register_full_backward_hook(lambda module, into, out: seen.update(decoder=into[0]))
    one.code.register_full_backward_hook(lambda module, into, out: seen.update(code=out[0]))
    one(**batch(4)).loss.backward()
    torch.testing.assert_close(seen["code"], seen["decoder"])
    assert seen["code"].abs().sum() > 0


def test_the_decoder_sees_the_codebook_alone_and_the_commitment_is_the_distance_to_it():
    one, given = method().eval(), batch(4)
    seen = []
    one.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        output = one(**given)
        code = one.code(image_encoders.maps(one.encoder, one.views.whole(given["pixel_values"])))
    vectors = seen[0].permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.cdist(vectors, one.codebook).min(1)[0].max() < 1e-2
    commitment = (code - seen[0]).square().mean()
    torch.testing.assert_close(output.loss, output.metrics["squared_error"] + 0.25 * commitment)


def test_an_entry_moves_to_the_mean_of_what_it_encodes():
    one = method(entries=2, restart=0.0)
    one.codebook.copy_(torch.tensor([[0.0] * 4, [9.0] * 4]))
    one.total.copy_(one.codebook)
    vectors = torch.tensor([[1.0] * 4, [3.0] * 4])
    for _ in range(400):  # both vectors are nearest to the first entry
        one.collect(vectors, nearest(vectors, one.codebook), torch.arange(1))
        one.after_step()
    torch.testing.assert_close(one.codebook, torch.tensor([[2.0] * 4, [9.0] * 4]), atol=0.03, rtol=0)
    assert one.count[0].item() == pytest.approx(2, rel=0.02) and one.count[1] < 0.02 and one.new_count.sum() == 0


def test_one_step_is_equations_6_to_8():
    one = method(entries=3, restart=0.0)
    before, vectors = one.codebook.clone(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    entry = nearest(vectors, before)
    for part in (slice(0, 2), slice(2, 5)):  # in micro-batches
        one.collect(vectors[part], entry[part], torch.arange(1))
    one.after_step()
    for k in range(3):
        own = vectors[entry == k]
        count = DECAY + (1 - DECAY) * len(own)
        expected = (DECAY * before[k] + (1 - DECAY) * own.sum(0)) / count
        torch.testing.assert_close(one.codebook[k], expected, atol=1e-4, rtol=1e-4)


def test_sums_of_what_an_entry_encodes_are_in_full_precision(monkeypatch):
    one, seen, collect = method().train(), [], VQVAE.collect
    monkeypatch.setattr(VQVAE, "collect", lambda self, *given: (seen.append(given), collect(self, *given)))
    with torch.autocast("cpu", torch.bfloat16):
        one(**batch(6))
    [(vectors, entry, _)] = seen
    torch.testing.assert_close(one.new_total, torch.zeros_like(one.new_total).index_add(0, entry, vectors))


def test_an_entry_that_is_not_used_is_moved_to_an_encoded_vector():
    one = method(entries=4, restart=0.5)
    one.codebook[3] = one.total[3] = 1000.0
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        one.collect(vectors, nearest(vectors, one.codebook), torch.arange(1))
        one.after_step()
    assert one.codebook.abs().max() < 10


def test_after_one_step_entries_are_encoded_vectors():
    one, vectors = method(entries=4, restart=0.5), 50 + torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    one.collect(vectors, nearest(vectors, one.codebook), torch.arange(1))
    one.after_step()
    assert torch.cdist(one.codebook, vectors).min(1)[0].max() < 0.1


def test_the_vectors_that_entries_are_moved_to_do_not_depend_on_micro_batches():
    whole, parts = method(), method()
    vectors, key = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    entry = torch.zeros(24, dtype=torch.long)
    whole.collect(vectors, entry, key)
    for part in (slice(0, 2), slice(2, 6)):
        rows = slice(4 * part.start, 4 * part.stop)
        parts.collect(vectors[rows], entry[rows], key[part])
    assert torch.equal(whole.candidates, parts.candidates) and torch.equal(whole.lots, parts.lots)
    assert (whole.lots < 1).all() and len({tuple(row) for row in whole.candidates.tolist()}) == 16


def failures(one, steps: int = 300) -> list[str]:
    optimizer, watch, said = torch.optim.Adam(one.parameters(), 1e-3), FailureWatch(), []
    one.train()
    for step in range(steps):
        output = one(**batch(6))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        one.after_step()
        said += watch.look([{name: value.item() for name, value in output.metrics.items()}], step / steps)
    return said


def far_away(restart: float):
    one = method(restart=restart)
    one.codebook[1:] = one.total[1:] = 1000.0  # nearest to nothing
    return one


def test_a_codebook_far_away_collapses_and_the_monitor_says_so():
    (sentence,) = failures(far_away(restart=0.0))
    assert "codebook collapse" in sentence and "--restart" in sentence


def test_with_entries_that_are_moved_it_does_not_collapse():
    assert not failures(far_away(restart=0.1))


def test_the_figure_shows_equal_codes_in_equal_colours():
    one, given = method().eval(), batch(3)
    with torch.no_grad():
        columns = one.shown(given["pixel_values"], given["key"])
    assert list(columns) == ["image", "reconstructed", "codes"]
    codes = columns["codes"]
    assert codes.shape == (3, 3, 16, 16) and torch.equal(codes[..., ::4, ::4], codes[..., 3::4, 3::4])
