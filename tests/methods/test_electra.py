from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import bert as tiny_bert
from tiny import electra as tiny
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from mmssl.data.text import masking
from mmssl.errors import BadInput
from mmssl.evaluation.masked_lm import MaskedTokens
from mmssl.evaluation.replaced_tokens import ReplacedTokens
from mmssl.methods import electra
from mmssl.models import pretrained, text_encoders

VOCABULARY = len(tiny_bert.VOCABULARY)


def batch(n: int = 4) -> dict[str, torch.Tensor]:
    drawn = tiny_bert.packed().__getitems__(list(range(n)))
    drawn.pop("index")
    return drawn


def method(**options) -> electra.ELECTRA:
    return electra.ELECTRA(tiny.model(), tiny_bert.tokenizer(), **options)


def test_samples_come_as_often_as_their_probabilities_say():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    drawn = electra.sample(probabilities.log().expand(20_000, -1), torch.arange(20_000) << 32)
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / 20_000, probabilities, atol=0.01, rtol=0)
    assert not (drawn == 1).any()


def test_a_sample_depends_on_its_own_row_and_key_only():
    logits, key = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), torch.arange(6) * 77
    whole = electra.sample(logits, key)
    assert torch.equal(whole, torch.cat([electra.sample(logits[i : i + 1], key[i : i + 1]) for i in range(6)]))


def test_the_loss_is_the_generator_s_plus_fifty_times_the_discriminator_s():
    """Against the stock classes, given the same replaced text."""
    model, given = method(), batch()
    chosen = model.choose(**given)
    with torch.no_grad():
        output = model(**given)
        masked = given["input_ids"].masked_fill(chosen, 4)
        labels = given["input_ids"].masked_fill(~chosen, -100)
        generated = model.model(input_ids=masked, labels=labels)
        at = masking.places(chosen)
        seen = model.replace(given["input_ids"], chosen, at, given["draw"], generated.logits.flatten(0, 1)[at])
        judged = model.discriminator(input_ids=seen, labels=(seen != given["input_ids"]).long())
    torch.testing.assert_close(output.loss, generated.loss + 50 * judged.loss, rtol=1e-5, atol=1e-5)
    assert torch.equal(seen[~chosen], given["input_ids"][~chosen]) and not torch.equal(seen, given["input_ids"])


def test_a_sample_equal_to_the_original_counts_as_original():
    model, given = method(unigram_loss=2.0), batch()
    perfect = 50 * F.one_hot(given["input_ids"], VOCABULARY).float()
    model.guess = lambda input_ids, chosen, at, draw: (perfect.flatten(0, 1)[at], None)
    output = model(**given)
    assert output.metrics["detected_replaced"] == 0 and output.trivial_loss == 2.0  # nothing is replaced
    judged = model.judge(given["input_ids"])[0]
    torch.testing.assert_close(output.metrics["detection_loss"], F.softplus(judged).mean().detach())


def test_the_trivial_loss_is_that_of_a_discriminator_that_knows_only_how_many_are_replaced():
    assert electra.entropy(torch.tensor(0.0)) == 0
    torch.testing.assert_close(electra.entropy(torch.tensor(0.5)), torch.tensor(math.log(2)))
    replaced = torch.arange(100) < 12
    constant = torch.full((100,), math.log(0.12 / 0.88))
    best = F.binary_cross_entropy_with_logits(constant, replaced.float())
    torch.testing.assert_close(electra.entropy(torch.tensor(0.12)), best)


def test_no_gradient_of_the_discriminator_reaches_the_generator():
    gradients = []
    for weight in (1.0, 100.0):
        model = method(weight=weight)
        model(**batch()).loss.backward()
        gradients.append({name: p.grad for name, p in model.model.named_parameters() if ".embeddings." not in name})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_generator_and_discriminator_have_the_same_embeddings_and_the_generator_is_smaller():
    model = method(generator_size=0.25)
    one, other = model.model.get_input_embeddings(), model.discriminator.get_input_embeddings()
    assert one is other and model.model.get_output_embeddings().weight is other.weight
    assert model.model.config.hidden_size == 8 and model.discriminator.config.hidden_size == 32
    assert model.model.electra.embeddings_project.weight.shape == (8, 32)


def test_every_masked_token_is_hidden_from_the_generator():
    model, given = method(), batch()
    chosen = model.choose(**given)
    changed = torch.where(chosen, 5, given["input_ids"])
    with torch.no_grad():
        at, texts = model.places(chosen), (given["input_ids"], changed)
        one, other = (model.guess(ids, chosen, at, given["draw"])[0] for ids in texts)
    assert torch.equal(one, other)
    assert torch.equal(chosen, masking.choose(given["draw"], given["input_ids"] >= 5, given["begins_word"], 0.15))


def test_documents_kept_apart_do_not_see_each_other():
    model = method(cross_documents=False).eval()
    ids = torch.tensor([[2, 5, 6, 7, 3, 8, 9, 10, 11, 3, 5, 6, 7, 8, 9, 3]])
    changed = ids.clone()
    changed[0, 2] = 12
    with torch.no_grad():
        moved = (model.judge(ids)[1] - model.judge(changed)[1]).abs().amax(-1)[0] > 1e-6
    assert moved[:5].all() and not moved[5:].any()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("electra")
    trained = method()
    trained.save_pretrained(directory)
    tiny_bert.tokenizer().save_pretrained(directory)
    return trained.eval(), directory


def test_the_export_is_the_discriminator_and_its_encoder_loads_alone(exported):
    trained, directory = exported
    ids = batch()["input_ids"]
    with torch.no_grad():
        logits, hidden = trained.judge(ids)
        torch.testing.assert_close(AutoModelForPreTraining.from_pretrained(directory)(ids).logits, logits)
        torch.testing.assert_close(AutoModel.from_pretrained(directory)(ids).last_hidden_state, hidden)
    classifier = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=2).train()
    assert any(m.p == 0.1 for m in classifier.modules() if isinstance(m, torch.nn.Dropout))  # as configured


def test_training_continues_with_the_generator_of_the_run(exported):
    trained, directory = exported
    discriminator, tokenizer = text_encoders.from_pretrained(str(directory), 16, auto_class="AutoModelForPreTraining")
    further = electra.ELECTRA(discriminator, tokenizer)
    further.continue_from(str(directory))
    before = trained.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in further.state_dict().items())


def test_a_modernbert_is_a_discriminator_with_a_head_of_its_own_and_a_generator_of_fewer_layers(tmp_path):
    discriminator = tiny_bert.model("modernbert").model
    model = electra.ELECTRA(discriminator, tiny_bert.tokenizer())
    assert (model.model.config.num_hidden_layers, discriminator.config.num_hidden_layers) == (1, 2)
    assert model.model.get_input_embeddings() is discriminator.get_input_embeddings()
    assert model.model.get_output_embeddings().weight is discriminator.get_input_embeddings().weight
    model(**batch()).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    tiny_bert.tokenizer().save_pretrained(tmp_path)
    assert electra.auto_class(pretrained.model_type(str(tmp_path))) == "AutoModel"
    further = electra.ELECTRA(*text_encoders.from_pretrained(str(tmp_path), 16, auto_class="AutoModel")).eval()
    further.continue_from(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(further(**batch()).loss, model(**batch()).loss)


def test_a_model_of_another_kind_is_refused(tmp_path):
    tiny_bert.model().save_pretrained(tmp_path)
    tiny_bert.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BadInput):
        electra.ELECTRA(*text_encoders.from_pretrained(str(tmp_path), 16, auto_class="AutoModelForPreTraining"))
    with pytest.raises(BadInput, match="a BertForMaskedLM, not an ELECTRA discriminator"):
        electra.ELECTRA(tiny_bert.model(), tiny_bert.tokenizer())


def test_evaluation_knows_its_baselines_and_shows_what_was_replaced():
    counts = torch.bincount(torch.from_numpy(tiny_bert.packed().tokens).long(), minlength=VOCABULARY).cpu().numpy()
    trained = method(share=0.3).eval()
    evaluation = ReplacedTokens(MaskedTokens(tiny_bert.packed(), counts, 5, tiny_bert.tokenizer()))
    results, baselines = evaluation(trained), evaluation.baselines(trained)
    assert results == pytest.approx(ReplacedTokens(MaskedTokens(tiny_bert.packed(), counts, 24))(trained), rel=1e-5)
    always = baselines['always "original"']
    assert always["accuracy"] == pytest.approx(100 - results["replaced"]) and 5 < results["replaced"] < 15
    assert baselines["unigram"]["generator_loss"] == pytest.approx(evaluation.masked.entropy(trained), abs=0.3)
    assert evaluation.text(trained).count("**") >= 6
    trained.discriminator.discriminator_predictions.dense_prediction.bias.data.fill_(-1e4)
    said = evaluation(trained)
    assert {name: said[name] for name in ("accuracy_at_replaced", "accuracy_at_original", "accuracy")} == {
        name: pytest.approx(always[name]) for name in ("accuracy_at_replaced", "accuracy_at_original", "accuracy")
    }
    assert np.isfinite(said["auc"])
