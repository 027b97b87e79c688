import copy
import math
from itertools import combinations
from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_clip import MEAN, STD
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    DistilBertConfig,
    DistilBertModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from mmssl.data.images import views
from mmssl.data.text.tokens import train_clip_tokenizer
from mmssl.errors import BadInput
from mmssl.evaluation import retrieval
from mmssl.methods.clip import CLIP, info_nce, sigmoid
from mmssl.models import towers

TEXTS = ["a red square", "a blue circle", "two green lines", "something else"] * 5
SIZE = 16
TOKENIZER = train_clip_tokenizer(TEXTS, 400)
TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def tiny(seed: int = 0, of_each: tuple[views.View, ...] = (views.WHOLE,), **kwargs) -> CLIP:
    torch.manual_seed(seed)
    model, _ = pair()
    return CLIP(model, views.Views(of_each, MEAN, STD), **kwargs)


def pair() -> tuple[CLIPModel, CLIPProcessor]:
    return towers.from_scratch(copy.deepcopy(TOKENIZER), SIZE, 8, 64, 1, 64, 1, 16)


def batch(n: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 30, (n, 7), generator=generator)
    ids[:, -1] = TOKENIZER.eos_token_id  # where CLIP looks
    pixels = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    key = torch.randint(2**32, (n,), generator=generator)
    return {"pixel_values": pixels, "key": key, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def unit(n: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def save_vit(directory: Path, **kwargs) -> Path:
    ViTModel(ViTConfig(**TOWER, image_size=SIZE, patch_size=8, **kwargs)).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(directory)
    return directory


def save_bert(directory: Path, dtype: torch.dtype = torch.float32, **kwargs) -> Path:
    tokenizer = BertTokenizer().train_new_from_iterator(TEXTS, 200)
    config = BertConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=64, **kwargs)
    BertModel(config).to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


# the losses


def test_info_nce_is_the_loss_of_transformers_clip():
    method = tiny().eval()
    inputs = batch()
    ours = method(**inputs)
    del inputs["key"]
    pixels = (inputs["pixel_values"] / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    theirs = method.model(**{**inputs, "pixel_values": pixels}, return_loss=True)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-6)


def test_info_nce_of_aligned_orthogonal_pairs_is_its_closed_form():
    x, scale = torch.eye(5), torch.tensor(3.0)
    loss = info_nce(x, x, x, x, scale, 0)
    assert loss.item() == pytest.approx(math.log(1 + 4 * math.exp(-3)), rel=1e-5)


def test_info_nce_of_equal_embeddings_is_its_trivial_loss():
    x = F.normalize(torch.ones(7, 4), dim=-1)
    output = tiny().loss(x, x)
    assert output.loss.item() == pytest.approx(math.log(7), rel=1e-5)
    assert output.trivial_loss == pytest.approx(math.log(7))


def test_info_nce_of_parts_against_all_averages_to_the_whole():
    image, text, scale = unit(8), unit(8, seed=1), torch.tensor(10.0)
    parts = [info_nce(image[i : i + 4], text[i : i + 4], image, text, scale, i) for i in (0, 4)]
    torch.testing.assert_close(sum(parts) / 2, info_nce(image, text, image, text, scale, 0))


def test_sigmoid_is_a_sum_over_pairs():
    image, text = unit(5), unit(5, seed=1)
    expected = 0.0
    for i in range(5):
        for j in range(5):
            logit = 7.0 * float(image[i] @ text[j]) - 3.0
            expected += math.log1p(math.exp(-logit if i == j else logit))
    got = sigmoid(image, text, torch.tensor(7.0), torch.tensor(-3.0), 0)
    assert got.item() == pytest.approx(expected / 5, rel=1e-5)


def test_sigmoid_of_parts_against_all_averages_to_the_whole():
    image, text, scale, bias = unit(8), unit(8, seed=1), torch.tensor(10.0), torch.tensor(-5.0)
    parts = [sigmoid(image[i : i + 4], text, scale, bias, i) for i in (0, 4)]
    torch.testing.assert_close(sum(parts) / 2, sigmoid(image, text, scale, bias, 0))


@pytest.mark.parametrize("n", [2, 8, 300])
def test_trivial_loss_of_sigmoid_is_the_least_that_one_logit_for_all_pairs_can_reach(n):
    biases = torch.linspace(-15, 15, 30_001, dtype=torch.float64)
    constant = -F.logsigmoid(biases) - (n - 1) * F.logsigmoid(-biases)
    trivial = tiny(loss="sigmoid").loss(unit(n), unit(n, seed=1)).trivial_loss
    assert trivial == pytest.approx(constant.min().item(), rel=1e-5)


def test_sigmoid_begins_as_if_nothing_matched():
    output = tiny(loss="sigmoid", temperature=0.1).loss(torch.zeros(4, 8), torch.zeros(4, 8))
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(10)) + 3 * math.log1p(math.exp(-10)), rel=1e-5)


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("of_images, of_texts", [(1, 2), (2, 1), (2, 2)])
def test_all_views_are_compared_two_by_two(loss, of_images, of_texts):
    method = tiny(loss=loss, temperature=0.07)
    drawn = [unit(6, seed=number) for number in range(of_images + of_texts)]
    output = method.loss(torch.stack(drawn[:of_images], 1), torch.stack(drawn[of_images:], 1))
    each = [method.loss(a, b).loss for a, b in combinations(drawn, 2)]
    torch.testing.assert_close(output.loss, sum(each) / len(each), rtol=1e-5, atol=1e-6)
    assert output.trivial_loss == method.loss(drawn[0], drawn[1]).trivial_loss


def test_one_view_is_that_of_the_plain_loss():
    method = tiny()
    plain, stacked = method.loss(unit(6), unit(6, seed=1)), method.loss(unit(6)[:, None], unit(6, seed=1)[:, None])
    assert plain.loss == stacked.loss


def test_views_of_an_image_are_augmented_each_for_itself_and_there_is_one_at_the_end():
    method, given = tiny(of_each=(views.PHOTO, views.PHOTO)).train(), batch()
    pixels, key = given["pixel_values"], given["key"]
    found = method.embed_image(pixels, key)
    assert found.shape[:2] == (len(pixels), 2) and not torch.allclose(found[:, 0], found[:, 1])
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(pixels), 2))
    method.progress = 0.9
    torch.testing.assert_close(method.embed_image(pixels, key), found[:, 0])
    method.progress = 0.0
    assert method.eval().embed_image(pixels, key).shape == (len(pixels), found.shape[2])


def test_each_of_several_texts_is_embedded_as_it_would_be_alone():
    method, given = tiny().eval(), batch()
    ids, mask = given["input_ids"], given["attention_mask"]
    together = method.embed_text(torch.stack([ids, ids.flip(0)], 1), torch.stack([mask, mask.flip(0)], 1))
    alone = method.embed_text(ids, mask)
    torch.testing.assert_close(together, torch.stack([alone, alone.flip(0)], 1), rtol=1e-5, atol=1e-6)


# the temperature


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_every_parameter_learns_the_temperature_too(loss):
    method = tiny(loss=loss)
    method(**batch()).loss.backward()
    without = {name for name, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # softmax does not see a shift of all keys by one vector: the gradient of their bias is zero but for rounding
    assert {name for name in without if not name.endswith("k_proj.bias")} == set()
    assert method.model.logit_scale.grad is not None


def test_temperature_is_the_one_asked_for():
    assert tiny(temperature=0.05).loss(unit(4), unit(4)).metrics["temperature"].item() == pytest.approx(0.05)
    assert tiny().loss(unit(4), unit(4)).metrics["temperature"].item() == pytest.approx(0.07, abs=1e-3)


def test_logits_are_never_scaled_by_more_than_100():
    method = tiny(temperature=0.0001)
    method.after_step()
    assert method.model.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)
    below = tiny(temperature=0.02)
    below.after_step()
    assert below.model.logit_scale.exp().item() == pytest.approx(50, rel=1e-5)


# augmentation


def test_images_are_augmented_in_training_alone():
    grey = views.View(scale=None, flip=0.0, jitter=0.0, grey=1.0)
    method, given = tiny(of_each=(grey,)), batch()
    pixels, key = given["pixel_values"], given["key"]
    without_colour = method.train().embed_image(pixels, key)
    seen = method.views(pixels, key)[0]
    assert torch.allclose(*method.views.to_unit_range(seen)[:, :2].unbind(1), atol=1e-5)
    whole = method.eval().embed_image(pixels, key)
    assert torch.equal(whole, method.embed_image(pixels)) and not torch.allclose(whole, without_colour, atol=1e-4)


# frozen towers (LiT)


def test_a_training_image_is_shown_without_half_of_its_patches_and_keeps_the_class_token():
    method = tiny(patch_dropout=0.5)
    embeddings, pixels = method.model.vision_model.embeddings, torch.rand(6, 3, SIZE, SIZE)
    whole = embeddings.eval()(pixels)
    assert whole.shape[1] == 1 + (SIZE // 8) ** 2
    part = embeddings.train()(pixels)
    assert part.shape[1] == 1 + (SIZE // 8) ** 2 // 2
    torch.testing.assert_close(part[:, 0], whole[:, 0])
    found = (part[:, 1:, None] - whole[:, None, 1:]).abs().sum(-1) < 1e-5  # (images, kept, patches)
    assert (found.sum(2) == 1).all() and (found.sum(1) <= 1).all()
    assert len({tuple(image) for image in found.any(1).tolist()}) > 1  # not the same ones of every image


def test_the_end_of_the_training_shows_whole_images():
    method, images = tiny(patch_dropout=0.5), torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    whole = method.eval().embed_image(images)
    method.train()
    for progress, same in ((0.0, False), (0.79, False), (0.8, True), (0.99, True)):
        method.progress = progress
        assert torch.allclose(method.embed_image(images), whole, atol=1e-5) == same


def test_patch_dropout_needs_an_encoder_of_patches(tmp_path):
    model, _ = towers.from_towers(str(save_vit(tmp_path / "vit")), str(save_bert(tmp_path / "bert")))
    with pytest.raises(BadInput, match="--patch_dropout is for a CLIPModel.*VisionTextDualEncoderModel"):
        CLIP(model, views.Views([views.WHOLE], MEAN, STD), patch_dropout=0.5)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_only_the_frozen_tower_stays_as_it_is(tower):
    method = tiny()
    towers.freeze(method.model, tower)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    method.train()
    for seed in range(2):
        method(**batch(seed=seed)).loss.backward()
        optimizer.step()
    same = {name for name, p in method.named_parameters() if torch.equal(p, before[name])}
    assert same == {name for name in before if name.startswith(f"model.{tower}_model.")}


def test_a_frozen_tower_keeps_its_dropout_off(tmp_path):
    model, _ = towers.from_towers(
        save_vit(tmp_path / "vit", hidden_dropout_prob=0.5), save_bert(tmp_path / "bert", hidden_dropout_prob=0.5)
    )
    towers.freeze(model, "vision")
    method = CLIP(model, views.Views([views.WHOLE], MEAN, STD)).train()
    inputs = batch()
    images, texts = ([embed() for _ in range(2)] for embed in (
        lambda: method.embed_image(inputs["pixel_values"]),
        lambda: method.embed_text(inputs["input_ids"], inputs["attention_mask"]),
    ))  # fmt: skip
    assert torch.equal(*images) and not torch.allclose(*texts)


def test_a_frozen_tower_keeps_its_batch_norm_statistics():
    method = tiny()
    method.model.vision_model.norm = nn.BatchNorm2d(3)
    towers.freeze(method.model, "vision")
    method.train()
    method.model.vision_model.norm(torch.rand(4, 3, 5, 5) + 3)
    assert (method.model.vision_model.norm.running_mean == 0).all()


def test_the_pooler_that_a_bare_encoder_comes_without_is_trained(tmp_path):
    model, _ = towers.from_towers(save_vit(tmp_path / "vit"), save_bert(tmp_path / "bert"))
    towers.freeze(model, "vision")
    trained = {name for name, p in model.vision_model.named_parameters() if p.requires_grad}
    assert trained == {"pooler.dense.weight", "pooler.dense.bias"}


# where it starts from


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("clip")
    model, processor = pair()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def test_a_clip_directory_is_continued_with_its_weights(saved):
    model, processor = towers.from_pretrained(str(saved))
    original = CLIPModel.from_pretrained(saved)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
    assert processor.tokenizer.pad_token_id is not None


def test_a_checkpoint_in_half_precision_is_trained_in_single(saved, tmp_path):
    model, processor = pair()
    model.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {p.dtype for p in towers.from_pretrained(str(tmp_path))[0].parameters()} == {torch.float32}


def test_two_encoders_are_paired_and_train(tmp_path):
    vit, bert = save_vit(tmp_path / "vit"), save_bert(tmp_path / "bert", dtype=torch.float16)
    model, processor = towers.from_towers(vit, bert)
    assert isinstance(model, VisionTextDualEncoderModel)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    images = processor.image_processor
    method = CLIP(model, views.Views([views.WHOLE], images.image_mean, images.image_std))
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    first = method(**batch()).loss
    for _ in range(30):
        optimizer.zero_grad()
        loss = method(**batch()).loss
        loss.backward()
        optimizer.step()
    assert loss < first - 0.5


def test_a_pair_of_encoders_is_evaluated_from_its_directory(tmp_path, capsys):
    model, processor = towers.from_towers(save_vit(tmp_path / "vit"), save_bert(tmp_path / "bert"))
    model.save_pretrained(tmp_path / "pair")
    processor.save_pretrained(tmp_path / "pair")
    rows = [{"image": Image.new("RGB", (9, 9), (i, 0, 0)), "captions": TEXTS[:3]} for i in range(20)]
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data.parquet")
    flags = {"model_name_or_path": str(tmp_path / "pair"), "dataset": str(tmp_path / "data.parquet"), "held_out": 0}
    retrieval.main(retrieval.RetrievalArgs(**flags, captions_per_image=2, use_cpu=True))
    printed = capsys.readouterr().out
    assert "on 20 images and 40 texts" in printed and printed.count("R@") == 6


def test_a_tokenizer_without_a_pad_token_gets_one(saved, tmp_path):
    model, processor = pair()
    processor.tokenizer.pad_token = None
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    _, loaded = towers.from_pretrained(str(tmp_path))
    ids = loaded.tokenizer(["a red square", "a"], padding=True)["input_ids"]
    assert len(ids[0]) == len(ids[1])


def bare_vit(directory: Path) -> None:
    save_vit(directory)


def siglip(directory: Path) -> None:
    text = TOWER | {"vocab_size": 400, "max_position_embeddings": 16}
    vision = TOWER | {"image_size": SIZE, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(directory)
    pair()[1].save_pretrained(directory)


def larger_images(directory: Path) -> None:
    model, processor = pair()
    model.save_pretrained(directory)
    side = {"height": 2 * SIZE, "width": 2 * SIZE}
    larger = CLIPImageProcessorPil(size={"shortest_edge": 2 * SIZE}, crop_size=side)
    CLIPProcessor(image_processor=larger, tokenizer=processor.tokenizer).save_pretrained(directory)


def more_tokens(directory: Path) -> None:
    model, processor = pair()
    model.save_pretrained(directory)
    processor.tokenizer.add_tokens(["<new>"])
    processor.save_pretrained(directory)


def nothing(directory: Path) -> None:
    directory.mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (bare_vit, "is a ViTModel, not an image–text model"),
        (siglip, "is a SiglipModel, which needs texts padded to full length"),
        (larger_images, r"Input image size \(32\*32\) doesn't match model \(16\*16\)"),
        (more_tokens, "a tokenizer of .* tokens for a model of"),
        (nothing, "nothing: "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_checkpoint_that_cannot_be_trained_is_refused_before_the_first_step(write, said, tmp_path):
    directory = tmp_path / write.__name__
    write(directory)
    with pytest.raises(BadInput, match=said):
        towers.from_pretrained(str(directory))


def test_encoders_without_one_vector_for_the_whole_are_refused(tmp_path):
    vit, bert = save_vit(tmp_path / "vit"), save_bert(tmp_path / "bert")
    config = DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64, vocab_size=200)
    DistilBertModel(config).save_pretrained(tmp_path / "distilbert")
    BertTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "distilbert")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(
        tmp_path / "resnet"
    )
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / "resnet")
    for vision, text in ((vit, tmp_path / "distilbert"), (tmp_path / "resnet", bert)):
        with pytest.raises(BadInput, match=f"encoders {vision} and {text}"):
            towers.from_towers(vision, text)
    with pytest.raises(BadInput, match="--text_model_name_or_path .*none"):
        towers.from_towers(vit, tmp_path / "none")


def test_towers_of_two_clips_make_a_pair_that_reloads(saved, tmp_path):
    model, processor = towers.from_towers(str(saved), save_bert(tmp_path / "bert"))
    other, _ = towers.from_towers(save_vit(tmp_path / "vit"), str(saved))
    of = CLIPModel.from_pretrained(saved).state_dict()
    for pair, tower in ((model, "vision_model"), (other, "text_model")):
        pair.save_pretrained(tmp_path / tower)
        processor.save_pretrained(tmp_path / tower)
        reloaded = getattr(towers.from_pretrained(str(tmp_path / tower))[0], tower).state_dict()
        assert all(torch.equal(value, of[f"{tower}.{name}"]) for name, value in reloaded.items())


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="--patch_size 7 does not divide --image_size 16; these would"):
        towers.from_scratch(TOKENIZER, 16, 7, 64, 1, 64, 1, 16)
    with pytest.raises(BadInput, match="--text_width 100 is not a multiple of 64"):
        towers.from_scratch(TOKENIZER, 16, 8, 64, 1, 100, 1, 16)


# texts


def test_padding_changes_no_text_embedding():
    method = tiny().eval()
    texts = ["a red square", "a blue circle a blue circle"]
    together = TOKENIZER(texts, padding=True, return_tensors="pt")
    together = method.embed_text(together["input_ids"], together["attention_mask"])
    for text, row in zip(texts, together, strict=True):
        alone = TOKENIZER([text], return_tensors="pt")
        alone = method.embed_text(alone["input_ids"], alone["attention_mask"])
        torch.testing.assert_close(alone[0], row, atol=1e-5, rtol=1e-5)
