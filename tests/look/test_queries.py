"""What the page answers, against plain computations."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModel, AutoModelForMaskedLM, AutoProcessor, AutoTokenizer

from mmssl.errors import BadInput
from mmssl.look import (
    curves,
    examples,
    feature_map,
    fill_mask,
    generation,
    images,
    page,
    reconstruction,
    sounds,
    texts,
    words,
    zero_shot,
)
from mmssl.look.examples import examples_of
from mmssl.look.run import Run


def titles(run: Run) -> list[str]:
    return [tab.TITLE for tab in page.TABS if tab.fits(run)]


def test_the_tabs_follow_from_what_was_exported(clip_run, vit_run, mae_run, audio_run, bert_run, gpt_run, words_run):
    assert titles(clip_run) == [images.TITLE, zero_shot.TITLE, feature_map.TITLE]
    assert titles(vit_run) == [images.TITLE, feature_map.TITLE]
    assert titles(mae_run) == [images.TITLE, reconstruction.TITLE, feature_map.TITLE]
    assert titles(audio_run) == [sounds.TITLE, feature_map.TITLE]
    assert titles(bert_run) == [fill_mask.TITLE, texts.TITLE, feature_map.TITLE]
    assert titles(gpt_run) == [generation.TITLE]
    assert titles(words_run) == [words.TITLE]


def test_a_text_finds_the_images_that_transformers_finds(clip_run):
    model, processor = AutoModel.from_pretrained(clip_run.folder), AutoProcessor.from_pretrained(clip_run.folder)
    pictures = [examples_of(clip_run).image(row) for row in range(40)]
    with torch.no_grad():
        image = model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
        text = model.get_text_features(**processor(text=["a red square"], return_tensors="pt")).pooler_output
    cosine = F.cosine_similarity(image, text)
    found = images.by_text(clip_run, "a red square")
    values, rows = cosine.topk(images.FOUND)
    assert [value for _, value in found] == pytest.approx(values.tolist(), abs=1e-4)
    assert {row for row, _ in found[:3]} == set(rows[:3].tolist())


def test_an_image_finds_itself_and_a_row_does_not(clip_run):
    row, value = images.by_image(clip_run, examples_of(clip_run).image(7))[0]
    assert (row, round(value, 3)) == (7, 1.0)
    assert 7 not in [row for row, _ in examples_of(clip_run).nearest(7, 12)]


def test_an_image_finds_each_caption_once(clip_run):
    found = images.captions_of(clip_run, examples_of(clip_run).image(0))
    captions = [caption for caption, _ in found]
    assert len(captions) == len(set(captions)) and "a blue circle" in captions


def test_zero_shot_gives_the_softmax_of_the_scaled_cosines(clip_run):
    image = examples_of(clip_run).image(5)
    found = zero_shot.probabilities(clip_run, image, "red square\nblue circle, car", "a {}")
    model, processor = AutoModel.from_pretrained(clip_run.folder), AutoProcessor.from_pretrained(clip_run.folder)
    wanted = processor(text=["a red square", "a blue circle", "a car"], images=image, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**wanted).logits_per_image[0]
    assert list(found) == ["red square", "blue circle", "car"]
    assert list(found.values()) == pytest.approx(logits.softmax(0).tolist(), abs=1e-4)


def test_a_nearest_neighbour_of_a_red_image_is_a_red_one(vit_run):
    assert len(examples_of(vit_run)) == 20  # the test part
    colours = examples_of(vit_run).colours["label"]
    found = examples_of(vit_run).nearest(0, 5)
    assert [colours[row] for row, _ in found[:3]] == [colours[0]] * 3


def test_nearest_agrees_with_sorting_all_similarities():
    features = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    order = (features @ features[3]).argsort(descending=True).tolist()
    assert [i for i, _ in examples.nearest(features[3], features, 5)] == order[:5]
    assert [i for i, _ in examples.nearest(features[3], features, 5, leave_out=3)] == order[1:6]
    assert len(examples.nearest(features[3], features, 99, leave_out=3)) == 49


def test_the_hidden_part_of_an_image_is_as_large_as_asked(mae_run):
    image = examples_of(mae_run).image(0)
    for hidden, patches in ((0.5, 8), (0.75, 12), (0.0, 1), (1.0, 15)):
        found = reconstruction.versions(*mae_run.autoencoder, image, hidden, 0)
        whole, visible = (np.asarray(found[name]).astype(int) for name in ("image", "visible"))
        changed = (whole != visible).any(2).reshape(4, 4, 4, 4).any((1, 3))
        assert changed.sum() == patches
        same = ~np.kron(changed, np.ones((4, 4))).astype(bool)
        assert (np.asarray(found["reconstructed"])[same] == whole[same]).all()


def test_the_same_draw_hides_the_same_patches(mae_run):
    image = examples_of(mae_run).image(0)
    first, again, other = (
        np.asarray(reconstruction.versions(*mae_run.autoencoder, image, 0.5, seed)["visible"]) for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()


def test_the_words_at_a_mask_are_those_of_the_pipeline(bert_run):
    model, tokenizer = bert_run.masked_lm
    found = fill_mask.words_at_mask(model, tokenizer, "cat [MASK] bird")
    plain, tokens = (
        AutoModelForMaskedLM.from_pretrained(bert_run.folder),
        AutoTokenizer.from_pretrained(bert_run.folder),
    )
    ids = tokens("cat [MASK] bird", return_tensors="pt")
    with torch.no_grad():
        share = plain(**ids).logits[0][ids["input_ids"][0] == tokens.mask_token_id][0].softmax(0)
    assert list(found.values())[0] == pytest.approx(share.max().item(), abs=1e-5)
    assert list(found)[0] == tokens.decode(share.argmax()).strip()
    for wrong in ("no mask", "[MASK] [MASK]"):
        with pytest.raises(BadInput, match="once"):
            fill_mask.words_at_mask(model, tokenizer, wrong)
    with pytest.raises(BadInput, match="at most 64"):
        fill_mask.words_at_mask(model, tokenizer, "cat " * 100 + "[MASK]")


def test_a_text_goes_on_and_repeats_with_its_draw(gpt_run):
    first, again = (generation.continued(*gpt_run.causal_lm, "cat dog", 10, 1.0, 3) for _ in range(2))
    assert first == again and first.startswith("cat dog") and len(first) > len("cat dog")
    long = "cat dog horse " * 50  # longer than the 32 positions of the model
    assert generation.continued(*gpt_run.causal_lm, long, 500, 0, 0).startswith(long)


def test_similar_texts_are_about_the_same(bert_run):
    row, value = texts.similar(bert_run, examples_of(bert_run).text(3))[0]
    assert examples_of(bert_run).text(row).split() == examples_of(bert_run).text(3).split() and value > 0.999


def test_the_answer_to_an_analogy(words_run):
    assert words.analogy(words_run.vectors, "man", "King", " woman ")[0][0] == "queen"
    near = words.neighbours(words_run.vectors, "king")
    assert near[0][0] == "king's"
    with pytest.raises(BadInput, match="'kingg' is not in the vocabulary; similar: king"):
        words.neighbours(words_run.vectors, "kingg")


def test_a_recording_finds_itself(audio_run, tmp_path):
    rate, wave = sounds.played(audio_run, examples_of(audio_run).sounds[4])
    soundfile.write(tmp_path / "own.wav", wave, rate)
    row, value = examples_of(audio_run).nearest(sounds.read(audio_run, str(tmp_path / "own.wav")), 4)[0]
    assert row == 4 and value > 0.999
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(BadInput, match="cannot be read"):
        sounds.read(audio_run, str(tmp_path / "broken.wav"))


def test_the_map_is_the_plane_of_the_first_principal_components():
    table = np.random.default_rng(0).normal(size=(30, 5)) * (20, 3, 1, 0.1, 0.1)
    places = feature_map.plane(table, feature_map.PCA)
    assert abs(np.corrcoef(places[:, 0], table[:, 0])[0, 1]) > 0.95
    assert places.min() >= 0 and places.max() <= 1


def test_a_click_on_the_map_finds_its_point():
    places = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]])
    picture = np.asarray(feature_map.drawn(places, None)).astype(int)
    blue = np.argwhere(picture[..., 2] - picture[..., 0] > 100)  # (y, x) of the pixels of the three points
    found = {feature_map.point_at(places, x, y) for y, x in blue}
    assert found == {0, 1, 2}
    lowest_left = min(blue.tolist(), key=lambda at: at[1] - at[0])
    assert feature_map.point_at(places, lowest_left[1], lowest_left[0]) == 0


def test_a_map_is_drawn_for_labels_numbers_and_none():
    places = np.random.default_rng(0).random((30, 2))
    for values in (None, ["$a$ <b>"] * 30, [str(i) for i in range(30)], [float(i) for i in range(30)]):
        assert feature_map.drawn(places, values).size == (900, 600)


def test_the_curves_of_two_runs_lie_over_each_other(clip_run, vit_run):
    found = curves.logged([clip_run, vit_run])
    assert list(found) == ["loss", "trivial_loss"] and list(found["loss"]) == ["clip", "vit"]
    assert found["loss"]["vit"][:2] == [(1, 4.0), (2, 2.0)]
    assert curves.drawn(found, "loss", 3, True).size == (900, 480)
    assert curves.smoothed(np.array([2.0, 4.0, 6.0, 8.0]), 2).tolist() == [2.0, 3.0, 5.0, 7.0]
    headers, rows = curves.results([clip_run, vit_run])
    assert headers == ["run", "measure", "trained", "untrained"]
    assert rows[0] == ["clip", "Loss", "1.00", "2.00"] and rows[1] == ["clip", "R@1", "50.0", ""]


def test_files_outside_of_the_data_are_not_shown(vit_run, tmp_path, capsys):
    secret, inside = tmp_path / "secret.png", tmp_path / "data" / "own.png"
    inside.parent.mkdir()
    Image.new("RGB", (16, 16), "red").save(secret)
    Image.new("RGB", (16, 16), "blue").save(inside)
    paths = [str(inside), str(secret), f"{inside.parent}/../secret.png", "/etc/hostname.png", str(inside)]
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": path} for path in paths]})
    rows.to_parquet(inside.parent / "rows.parquet")
    run = Run(str(vit_run.folder), str(inside.parent / "rows.parquet"), use_cpu=True)
    assert len(examples_of(run)) == 2
    assert examples_of(run).image(1).getpixel((0, 0)) == (0, 0, 255)
    assert "3 of 5 rows" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such directory"):
        Run(str(tmp_path / "missing"))
    with pytest.raises(BadInput, match=r"no config\.json"):
        Run(str(tmp_path))
