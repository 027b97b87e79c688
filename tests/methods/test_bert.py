from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from gensim.models import KeyedVectors
from tiny import bert as tiny
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mmssl.data.text import masking
from mmssl.data.text.tokens import train_bpe
from mmssl.errors import BadInput
from mmssl.methods import bert
from mmssl.models import pretrained, text_encoders

OTHERS = {
    "roberta": lambda: RobertaForMaskedLM(
        RobertaConfig(vocab_size=29, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=32, max_position_embeddings=tiny.LENGTH + 2, pad_token_id=1)
    ),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=29, dim=32, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=16)
    ),
    "bert": tiny.model,
    "modernbert": lambda: tiny.model("modernbert"),
}  # fmt: skip


def batch() -> dict[str, torch.Tensor]:
    drawn = tiny.packed().__getitems__([0, 1, 2, 3])
    drawn.pop("index")
    return drawn


@pytest.mark.parametrize("name", OTHERS)
def test_logits_at_hidden_tokens_are_those_of_the_whole_model(name):
    model, ids = OTHERS[name]().eval(), batch()["input_ids"]
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        logits, features = bert.logits_at(model, masking.places(chosen), input_ids=ids)
        whole = model(input_ids=ids, output_hidden_states=True)  # and the hook is gone again
    torch.testing.assert_close(logits, whole.logits[chosen], rtol=1e-5, atol=1e-5)
    assert features.shape == (int(chosen.sum()), model.config.hidden_size)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_the_gradient_is_that_of_the_whole_model(architecture):
    method = bert.BERT(tiny.model(architecture), tiny.tokenizer())
    given = batch()
    method(**given).loss.backward()
    mine = {name: p.grad.clone() for name, p in method.model.named_parameters() if p.grad is not None}
    method.zero_grad()
    chosen = method.choose(**given)
    seen = masking.corrupt(given["draw"], given["input_ids"], chosen, 4, len(tiny.VOCABULARY))
    labels = given["input_ids"].masked_fill(~chosen, -100)
    method.model(input_ids=seen, labels=labels).loss.backward()  # equally many are hidden in each: the plain mean
    for name, parameter in method.model.named_parameters():
        if name in mine:
            torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_each_sequence_counts_alike_in_the_loss():
    chosen = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    expected = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, 0, 0], [0, 0, 0]]) / 3
    torch.testing.assert_close(bert.sequence_mean(chosen), expected)


def test_the_loss_is_of_the_masked_tokens_alone_where_a_sequence_has_fewer_than_usual():
    method, given = bert.BERT(tiny.model("bert"), tiny.tokenizer(), share=0.5), batch()
    given["input_ids"][1, :-2] = 0  # padding cannot be masked
    chosen = method.choose(**given)
    at = method.places(chosen)
    assert len(at) == 4 * round(0.5 * chosen.shape[1]) > chosen.sum()
    for places in (at, masking.places(chosen)):
        logits, _ = method.guess(given["input_ids"], chosen, places, given["draw"])
        loss, accuracy = method.masked_loss(given["input_ids"], chosen, places, logits.float())
        mine = [torch.autograd.grad(loss, method.model.parameters(), allow_unused=True), loss.detach(), accuracy]
        expected = mine if places is at else expected  # noqa: F821
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_documents_kept_apart_do_not_see_each_other(architecture):
    model = tiny.model(architecture).eval()
    ids = torch.tensor([[2, 5, 6, 7, 3, 8, 9, 10, 11, 3, 5, 6, 7, 8, 9, 3]])
    changed = ids.clone()
    changed[0, 2] = 12
    with torch.no_grad():
        alone, other = (
            model.base_model(input_ids=i, attention_mask=bert.apart(i, 3, model.config)).last_hidden_state
            for i in (ids, changed)
        )
        mixed = model.base_model(input_ids=changed).last_hidden_state
    moved = (alone - other).abs().amax(-1)[0] > 1e-6
    assert moved[:5].all() and not moved[5:].any()
    assert ((mixed - alone).abs().amax(-1)[0] > 1e-6)[5:].any()


def test_documents_kept_apart_are_what_modernbert_gives_where_there_is_one():
    """Its windows included: 16 tokens, a window of 8."""
    model, ids = tiny.model("modernbert").eval(), batch()["input_ids"].clamp(min=5)
    with torch.no_grad():
        masked = model(input_ids=ids, attention_mask=bert.apart(ids, 3, model.config)).logits
        torch.testing.assert_close(masked, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_there_is_no_dropout_unless_asked_and_the_exported_config_keeps_it(tmp_path):
    method = bert.BERT(tiny.model(), tiny.tokenizer()).train()
    assert torch.equal(method(**batch()).loss, method(**batch()).loss)
    assert method.model.config.hidden_dropout_prob == 0.1
    method = bert.BERT(tiny.model(), tiny.tokenizer(), dropout=0.5).train()
    assert not torch.equal(method(**batch()).loss, method(**batch()).loss)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    method = bert.BERT(tiny.model(), tiny.tokenizer())
    method.save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return method.model.eval(), directory


def test_the_exported_encoder_gives_the_same_features_without_its_head(exported):
    model, directory = exported
    ids = batch()["input_ids"]
    with torch.no_grad():
        found = AutoModel.from_pretrained(directory).eval()(ids).last_hidden_state
        torch.testing.assert_close(found, model.base_model(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_the_export_fine_tunes_with_dropout(exported):
    classifier = AutoModelForSequenceClassification.from_pretrained(exported[1], num_labels=2).train()
    loss = classifier(input_ids=batch()["input_ids"], labels=torch.tensor([0, 1, 0, 1])).loss
    loss.backward()
    assert all(p.grad is not None for p in classifier.parameters())
    assert any(m.p == 0.1 for m in classifier.modules() if isinstance(m, torch.nn.Dropout))


FILL = """
import sys
sys.modules["mmssl"] = None
from transformers import pipeline
guesses = pipeline("fill-mask", model=sys.argv[1], top_k=3)("the cat [MASK] on a mat")
print([g["token_str"] for g in guesses])
"""


@pytest.mark.slow
def test_the_fill_mask_pipeline_of_the_export_gives_our_guesses(exported):
    model, directory = exported
    encoded = tiny.tokenizer()("the cat [MASK] on a mat", return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[encoded["input_ids"] == 4][0]
    expected = [tiny.tokenizer().decode(i) for i in logits.topk(3)[1]]
    done = subprocess.run([sys.executable, "-c", FILL, directory], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == str(expected), done.stderr


def test_the_export_is_a_sentence_transformer_that_takes_the_mean(exported):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model, directory = exported
    texts = ["the cat sat on a mat and then it slept the dog ran and ran and ran", "a dog"]  # one of them too long
    vectors = sentence_transformers.SentenceTransformer(str(directory), device="cpu").encode(texts)
    encoded = tiny.tokenizer()(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.base_model(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None]
    expected = (hidden * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(torch.from_numpy(vectors), expected, rtol=1e-5, atol=1e-5)


def test_training_goes_on_from_the_export(exported):
    model, tokenizer = text_encoders.from_pretrained(str(exported[1]), tiny.LENGTH)
    before = exported[0].state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


# bad input


def test_a_sequence_longer_than_the_model_takes_is_refused(exported):
    with pytest.raises(BadInput, match="--max_seq_length 64: .* takes 16 tokens at most"):
        text_encoders.from_pretrained(str(exported[1]), 64)


def test_a_tokenizer_learns_from_the_model_how_long_a_text_may_be(exported, tmp_path):
    exported[0].save_pretrained(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = int(1e30)  # what transformers takes where nothing is said
    tokenizer.save_pretrained(tmp_path)
    assert text_encoders.from_pretrained(str(tmp_path), 8)[1].model_max_length == tiny.LENGTH


def test_roberta_has_two_positions_fewer():
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 512
    assert pretrained.longest(OTHERS["roberta"](), tokenizer) == tiny.LENGTH
    assert pretrained.longest(tiny.model(), tokenizer) == tiny.LENGTH


def test_a_vocabulary_that_does_not_fit_is_refused(exported, tmp_path):
    exported[0].save_pretrained(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["new", "words"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        BadInput, match="a tokenizer of 31 tokens for a model of 29; they are not from the same checkpoint"
    ):
        text_encoders.from_pretrained(str(tmp_path), tiny.LENGTH)


@pytest.mark.parametrize("lacks", ["mask", "cls", "sep", "pad"])
def test_a_tokenizer_without_a_token_that_training_or_export_needs_is_refused(lacks, tmp_path):
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("mask", "cls", "sep", "pad") if name != lacks}
    PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer, **tokens).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=f"--tokenizer_name .* has no {lacks} token.*leave out the flag"):
        text_encoders.load_tokenizer(str(tmp_path), 16)


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match="--tokenizer_name .*none"):
        text_encoders.load_tokenizer(str(tmp_path / "none"), 16)


def test_a_model_of_another_kind_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=29, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="--model_name_or_path .*GPT2"):
        text_encoders.from_pretrained(str(tmp_path), 16)


@pytest.mark.parametrize("architecture", text_encoders.ARCHITECTURES)
def test_whole_words_begin_with_their_vectors_and_pieces_with_noise_of_the_same_size(architecture):
    model, tokenizer, vectors = tiny.model(architecture), tiny.tokenizer(), KeyedVectors(32)
    values = np.random.default_rng(0).normal(0, 3, (len(tiny.WORDS), 32)).astype(np.float32)
    vectors.add_vectors([*tiny.WORDS[:-1], "unheard"], values)
    assert text_encoders.begin_with(model, tokenizer, vectors) == len(tiny.WORDS) - 1
    table = model.get_input_embeddings().weight
    rows = tokenizer.convert_tokens_to_ids(tiny.WORDS)
    np.testing.assert_array_equal(table[rows[:-1]].detach().cpu().numpy(), values[:-1])
    rest = table[[i for i in range(1, len(table)) if i not in rows[:-1]]]  # without padding
    assert rest.std().item() == pytest.approx(3, rel=0.1)
    assert model.get_output_embeddings().weight is table  # tied, as it was


def test_which_tokens_are_whole_words():
    assert text_encoders.whole_words(tiny.tokenizer()) == [""] * 5 + tiny.WORDS + [""] * len(tiny.WORDS)
    tokenizer = train_bpe(["The Café sat, the Café ran"] * 9, 290, 16)
    words = dict(
        zip(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), text_encoders.whole_words(tokenizer), strict=True)
    )
    assert words["ĠCafÃ©"] == "Café" and words["at"] == words["[CLS]"] == words["Ġ"] == ""


@pytest.mark.parametrize("architecture", text_encoders.ARCHITECTURES)
def test_named_sizes_are_what_they_say(architecture):
    model = text_encoders.from_scratch(tiny.tokenizer(), architecture, "tiny")
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_attention_heads) == (2, 128, 2)
    assert model.config.max_position_embeddings == tiny.LENGTH


def test_evaluation_asks_the_same_of_every_model_and_knows_its_baseline():
    from mmssl.evaluation import masked_lm

    method, held_out = bert.BERT(tiny.model(), tiny.tokenizer(), share=0.5, unit="spans").eval(), tiny.packed()
    counts = torch.bincount(torch.from_numpy(held_out.tokens).long(), minlength=29).cpu().numpy()
    evaluation = masked_lm.MaskedTokens(held_out, counts, batch_size=5)
    assert evaluation(method) == pytest.approx(masked_lm.MaskedTokens(held_out, counts, batch_size=24)(method))
    baseline = evaluation.baselines(method)["unigram"]
    assert baseline["loss"] == pytest.approx(evaluation.entropy(method), abs=0.2)
    assert 0 < baseline["accuracy"] < 15


def test_examples_hide_one_word_of_a_sentence_each():
    from mmssl.evaluation import masked_lm

    method, sentence = bert.BERT(tiny.model(), tiny.tokenizer()).eval(), "the cat sat and then it slept on a mat."
    texts = Dataset.from_dict({"text": [f"{sentence} {sentence}"]})["text"]
    [asked] = masked_lm.questions(tiny.tokenizer(), texts, tiny.LENGTH)
    assert asked.word in ("then", "slept") and asked.text.replace("[MASK]", asked.word) == sentence
    guesses = masked_lm.guesses(method.model, tiny.tokenizer(), asked.text)
    assert len(set(guesses)) == 5
    evaluation = masked_lm.MaskedTokens(tiny.packed(), np.ones(29), 8, tiny.tokenizer(), [asked])
    assert evaluation.text(method).endswith(f"- {asked.text} (*{asked.word}*): {', '.join(guesses)}")


def test_a_sentence_too_long_for_the_model_is_not_asked():
    from mmssl.evaluation import masked_lm

    text = "the cat sat and then it slept on a mat. the cat sat and then it slept on a mat."
    assert not masked_lm.questions(tiny.tokenizer(), [text], 8)
