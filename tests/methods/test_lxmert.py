from __future__ import annotations

import datasets
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tiny import bert as texts
from tiny import lxmert as tiny
from torch.utils.data import default_collate
from transformers import AutoModel, AutoProcessor, ViltForImageAndTextRetrieval

from mmssl.data.image_text.pairs import Pairs, find
from mmssl.data.image_text.swapped import Swapped
from mmssl.data.images import views
from mmssl.data.text.tokens import train_wordpiece
from mmssl.errors import BadInput
from mmssl.evaluation.grounding import RIGHT, Grounding
from mmssl.method import HEADS
from mmssl.methods import lxmert
from mmssl.methods.mae import patchify, standardise
from mmssl.models import vilt

COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@pytest.fixture
def method() -> lxmert.LXMERT:
    return tiny.method()[0].eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    found = default_collate([tiny.Pairs()[i] for i in range(8)])
    found.pop("index")
    return found


def test_its_own_encoding_is_that_of_the_exported_model(method, batch):
    pixels = method.views.whole(batch["pixel_values"])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        ours = method.encode(**inputs, pixels=pixels)
        stock = method.model(**inputs, pixel_values=pixels).logits
        pooled = method.model.vilt(**inputs, pixel_values=pixels).pooler_output
    torch.testing.assert_close(method.model.mlm_score(ours[0]), stock)
    torch.testing.assert_close(ours[2], pooled)


def test_loss_is_the_sum_of_the_three_written_out(method, batch):
    compared, matched, pixels = batch["compared"], batch["matched"], method.views.whole(batch["pixel_values"])
    chosen, places = method.choose(batch["key"], batch["input_ids"], batch["attention_mask"]), method.hide(batch["key"])
    seen = lxmert.masking.corrupt(batch["key"], batch["input_ids"], chosen, 4, len(texts.VOCABULARY))
    hidden = torch.zeros(8, 16, dtype=torch.bool).scatter(1, places, True)
    with torch.no_grad():
        output = method(**batch)
        text, patches, _ = method.encode(seen, batch["attention_mask"], pixels, hidden)
        target, words, regression = standardise(patchify(pixels, 4))[0], [], []
        for i in (~compared).nonzero()[:, 0].tolist():
            logits = method.model.mlm_score(text[i, chosen[i]])
            words.append(F.cross_entropy(logits, batch["input_ids"][i, chosen[i]]))
            regression.append(F.mse_loss(method.patch_head(patches[i, places[i]]), target[i, places[i]]))
        pooled = method.encode(batch["input_ids"], batch["attention_mask"], pixels)[2]  # whole
        match = F.binary_cross_entropy_with_logits(method.match(pooled[compared])[:, 0], matched[compared].float())
    assert compared.sum() == 4  # as many as expected: means over them
    expected = torch.stack(words).mean(), torch.stack(regression).mean(), match
    found = [output.metrics[name] for name in ("word_loss", "patch_loss", "match_loss")]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    torch.testing.assert_close(output.loss, sum(expected))


def test_from_pairs_that_are_compared_nothing_else_is_predicted(method, batch):
    output = method(**batch | {"compared": torch.ones(8, dtype=torch.bool)})
    assert output.metrics["word_loss"] == output.metrics["patch_loss"] == 0 < output.metrics["match_loss"]
    output = method(**batch | {"compared": torch.zeros(8, dtype=torch.bool)})
    assert output.metrics["match_loss"] == 0 < output.metrics["word_loss"]


def test_metrics_are_in_full_precision(method, batch):
    torch.nn.init.zeros_(method.match.weight)
    torch.nn.init.ones_(method.match.bias)  # every pair is said to match
    some = {name: rows[:7] for name, rows in batch.items()} | {"matched": torch.ones(7, dtype=torch.bool)}
    some["compared"] = torch.arange(7) < 5
    with torch.autocast("cpu", torch.bfloat16):
        assert method(**some).metrics["match_accuracy"].item() == pytest.approx(1, abs=1e-6)


def test_padding_is_never_masked_and_changes_nothing(method, batch):
    longer = {name: F.pad(batch[name], (0, 3)) for name in ("input_ids", "attention_mask")}
    chosen = method.choose(batch["key"], **longer)
    assert not chosen[longer["attention_mask"] == 0].any() and not chosen[:, 9:].any()
    torch.testing.assert_close(method(**batch | longer).loss, method(**batch).loss)


def test_rare_words_are_masked_more_often_in_proportion_to_the_root_of_their_count():
    words = texts.tokenizer()
    model, _ = vilt.from_scratch(words, 16, 4, 32, 1)
    counts = torch.zeros(len(texts.VOCABULARY))
    counts[5], counts[6] = 1599, 99  # and one is added
    one = views.Views([views.WHOLE], [0.5] * 3, [0.5] * 3)
    method = lxmert.LXMERT(model, words, one, counts, share=0.25, rarity=0.5)
    ids = torch.tensor([2, 5, 6, 3]).repeat(20_000, 1)
    first = method.choose(torch.arange(20_000) * 7919, ids, torch.ones_like(ids)).float().mean(0)
    assert first[1] + first[2] == 1 and first[2] / first[1] == pytest.approx(4, abs=0.2)


def test_what_lies_under_a_masked_patch_is_not_seen(method, batch):
    hidden = torch.zeros(8, 16, dtype=torch.bool)
    hidden[:, [0, 5]] = True  # of 4 x 4 patches
    pixels = method.views.whole(batch["pixel_values"])
    changed = pixels.clone()
    changed[:, :, :4, :4] += 1
    changed[:, :, 4:8, 4:8] += 1
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "hidden": hidden}
    with torch.no_grad():
        before, after = method.encode(pixels=pixels, **inputs), method.encode(pixels=changed, **inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_trivial_loss_is_that_of_token_counts_mean_patches_and_even_odds(method, batch):
    method.unigram.zero_()
    output = method(**batch)
    assert 0.9 < output.trivial_loss - torch.log(torch.tensor(2.0)) < 1  # of 48 values, with a variance of 1


def test_a_directory_loads_as_an_encoder_and_with_the_head_that_scores_pairs(method, batch, tmp_path):
    method.save_pretrained(tmp_path)
    tiny.method()[1].save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "ViltModel"
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "ViltProcessor"
    model, heads = ViltForImageAndTextRetrieval.from_pretrained(tmp_path).eval(), load_file(tmp_path / HEADS)
    model.rank_output.load_state_dict({"weight": heads["match.weight"], "bias": heads["match.bias"]})
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    pixels = method.views.whole(batch["pixel_values"])
    with torch.no_grad():
        ours = method.match(method.encode(**inputs, pixels=pixels)[2])
        torch.testing.assert_close(model(**inputs, pixel_values=pixels).logits, ours)


# pairs whose picture tells the word


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    found = [{"image": Image.new("RGB", (16, 16), c), "captions": [f"a {c} wall", f"the wall is {c}"]} for c in COLOURS]
    features = {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    return datasets.Dataset.from_list(found * 7, features=datasets.Features(features))


@pytest.fixture
def walls(rows, tmp_path, monkeypatch) -> tuple[lxmert.LXMERT, Pairs, object]:
    monkeypatch.setenv("MMSSL_HOME", str(tmp_path))
    torch.manual_seed(0)
    words = train_wordpiece([text for texts in rows["captions"] for text in texts], 120, 12)
    model, processor = vilt.from_scratch(words, 16, 8, 32, 2)  # with one layer, matching is a matter of luck
    pairs = Pairs(rows, processor, 12, "image", "captions")
    counts = torch.bincount(pairs.tokens.ids.long(), minlength=len(words))
    one = views.Views([views.WHOLE], [0.5] * 3, [0.5] * 3)
    return lxmert.LXMERT(model, words, one, counts, rarity=1.0), pairs, words


@torch.no_grad()
def test_scores_of_texts_and_pictures_are_in_full_precision(walls):
    method, pairs, words = walls
    evaluation = Grounding(pairs, words)
    batch, owner = next(evaluation.batches(method.eval()))
    pixels = evaluation.pictures(method, owner, RIGHT)
    with torch.autocast("cpu", torch.bfloat16):
        scores, (_, _, pooled) = evaluation.scores(method, batch, pixels), method.encode(**batch, pixels=pixels)
    torch.testing.assert_close(scores, method.match(pooled.float())[:, 0])


def test_half_of_the_pairs_are_compared_and_half_of_these_have_any_other_picture(walls):
    _, pairs, _ = walls
    swapped, everything, drawn = Swapped(pairs, seed=3), list(range(42)), []
    for epoch in range(20):
        swapped.set_epoch(epoch)
        drawn.append(swapped.__getitems__(everything))
    compared, matched = (torch.stack([batch[name] for batch in drawn]) for name in ("compared", "matched"))
    assert compared.float().mean() == pytest.approx(0.5, abs=0.07) and matched[~compared].all()
    assert matched[compared].float().mean() == pytest.approx(0.5, abs=0.1) and not compared[0].equal(compared[1])
    own = torch.stack([(batch["pixel_values"] == pairs.pixels[pairs.rows]).flatten(1).all(1) for batch in drawn])
    assert own[matched].all() and own[~matched].float().mean() == pytest.approx(6 / 41, abs=0.1)  # 7 are of its colour
    some = swapped.__getitems__([5, 40])  # not a matter of the batch
    assert torch.equal(some["pixel_values"], drawn[-1]["pixel_values"][[5, 40]])
    with pytest.raises(BadInput, match="one training pair"):
        pairs.captions = pairs.captions[:1]
        Swapped(pairs, seed=0)


@pytest.mark.parametrize("rows_of_a_block", [1, 7])
def test_of_data_read_in_blocks_another_picture_is_of_the_same_block(rows_of_a_block, tmp_path):
    colours = [(4 * i, 255 - 4 * i, 99) for i in range(56)]
    rows = {"image": [Image.new("RGB", (16, 16), c) for c in colours], "caption": [f"picture {i}" for i in range(56)]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet", batch_size=rows_of_a_block)
    _, processor = vilt.from_scratch(train_wordpiece(rows["caption"], 60, 12), 16, 8, 32, 1)
    found = find(str(tmp_path / "a.parquet"), None, None, held_out=4, streaming=True)
    swapped = Swapped(found.training(processor, 12, 0), seed=3)
    batch = swapped.__getitems__(list(range(len(swapped))))
    shown = torch.tensor([colours.index(tuple(image[:, 0, 0].tolist())) for image in batch["pixel_values"]])
    matched, own = batch["matched"], batch["index"]
    assert torch.equal(shown[matched], own[matched]) and (shown != own)[~matched].all()
    assert 5 < (~matched).sum() < 25
    if rows_of_a_block > 1:
        assert torch.equal(shown // rows_of_a_block, own // rows_of_a_block)
    some = swapped.__getitems__([5, 40])  # not a matter of the batch
    assert torch.equal(some["pixel_values"], batch["pixel_values"][[5, 40]])
    assert len(swapped.order(0)) == len(swapped)


def test_it_learns_words_that_only_the_picture_tells_and_which_picture_belongs_to_a_text(walls, tmp_path):
    method, pairs, words = walls
    evaluation, data = Grounding(pairs, words), Swapped(pairs, seed=0)
    untrained = evaluation(method.eval())
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    method.train()
    for epoch in range(400):
        data.set_epoch(epoch)
        batch = data.__getitems__(list(range(42)))
        batch.pop("index")
        method(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = evaluation(method.eval())
    assert found["word_accuracy"] > 85 > 70 > found["word_accuracy_wrong_picture"]
    assert found["word_accuracy_blank_picture"] < 70 and found["word_accuracy"] > untrained["word_accuracy"] + 30
    assert found["matching_accuracy"] > 90 and untrained["matching_accuracy"] == pytest.approx(50, abs=15)
    columns = evaluation.baselines(method)
    assert columns["unigram"]["word_accuracy"] < 60 and columns["chance"]["text_to_image_R@1"] == pytest.approx(
        100 / 42
    )
    assert evaluation.draw(method, tmp_path, {}).keys() == {"words.png"} and (tmp_path / "words.png").exists()
    assert "right picture" in evaluation.text(method) and words.mask_token in evaluation.example()["text"][0]
