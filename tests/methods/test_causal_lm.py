from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import Processes, recipe
from tiny.causal_lm import LENGTH, TEXTS, VARIANTS, model, tokenizer, tokens
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, Gemma2Config, Gemma2ForCausalLM

from mmssl.data.text import packed
from mmssl.errors import BadInput
from mmssl.evaluation.language_model import n_gram
from mmssl.evaluation.perplexity import Perplexity
from mmssl.kernels import cross_entropy
from mmssl.methods import causal_lm

END = 0  # <|endoftext|>
ARCHITECTURES = pytest.mark.parametrize("architecture", causal_lm.ARCHITECTURES)


def batch(n: int = 4) -> dict[str, torch.Tensor]:
    drawn = packed.NextTokens(tokens(), LENGTH).__getitems__(list(range(n)))
    drawn.pop("index")
    return drawn


# packing


def test_every_token_is_a_target_once_in_an_epoch_after_the_token_before_it():
    stream = np.arange(103, dtype=np.int32)
    data = packed.NextTokens(stream, 10, seed=3)
    cuts = []
    for epoch in range(3):
        data.set_epoch(epoch)
        drawn = data.__getitems__(list(range(len(data))))
        targets = drawn["targets"].flatten()
        assert len(targets.unique()) == len(targets) == 100
        assert torch.equal(drawn["input_ids"].flatten(), (targets - 1) % 103)
        cuts.append(targets[0].item())
    assert len(set(cuts)) == 3


def test_documents_end_with_the_token_that_begins_the_next():
    words = tokenizer()(TEXTS)["input_ids"]
    assert tokens().tolist() == [token for text in words for token in [*text, END]]


def test_where_beginning_and_end_differ_a_document_has_both_and_its_beginning_is_not_predicted():
    llama = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, bos_token="Ann", eos_token="Bo")
    begin, end = causal_lm.first_and_last(llama)
    assert begin != end and causal_lm.around(llama) == ([begin], [end])
    method = causal_lm.CausalLM(model("llama"), llama)
    targets = torch.tensor([[begin, 7, 8, end, begin, 9]])
    assert method.scored(targets).tolist() == [[False, True, True, True, False, True]]


def test_positions_count_from_the_beginning_of_each_document():
    ids = torch.tensor([[5, 6, END, 7, 8, 9], [END, 5, END, END, 6, 7]])
    assert causal_lm.positions(ids, END).tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 0, 0, 1, 2]]


@ARCHITECTURES
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_document_has_the_features_that_it_has_alone(architecture, attention):
    network = model(architecture).eval()
    network.set_attn_implementation(attention)
    method = causal_lm.CausalLM(network, tokenizer())
    ids = torch.tensor([[5, 6, 7, END, 8, 9, 10, 11, END, 5, 6, 7, 8, 9, 10, 11]])
    whole = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 5, 6, 7, 8, 9, 10, 11, 12, 13]])  # a row that is one document
    with torch.no_grad():
        found = method.features(torch.cat([ids, whole]))
        for start, end in ((0, 3), (3, 8), (8, 16)):
            alone = network.base_model(ids[:, start:end]).last_hidden_state
            torch.testing.assert_close(found[:1, start:end], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[1:], network.base_model(whole).last_hidden_state, rtol=1e-5, atol=1e-5)
        method.cross_documents = True
        torch.testing.assert_close(method.features(ids), network.base_model(ids).last_hidden_state)


# loss


@ARCHITECTURES
def test_the_loss_and_its_gradient_are_those_of_transformers(architecture, monkeypatch):
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", 1000)  # three tokens at a time
    method, given = causal_lm.CausalLM(model(architecture), tokenizer()), batch()
    loss = method(**given).loss
    loss.backward()
    mine = {name: p.grad.clone() for name, p in method.model.named_parameters()}
    method.zero_grad()
    ids = given["input_ids"]
    logits = method.model(ids, position_ids=causal_lm.positions(ids, END), use_cache=False).logits
    expected = F.cross_entropy(logits.flatten(0, 1), given["targets"].flatten())
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for name, parameter in method.model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_new_model_guesses():
    output = VARIANTS["gpt2"]().method(**batch())
    assert output.loss.item() == pytest.approx(math.log(len(tokenizer())), abs=0.2)
    assert output.features.shape == (8, 32)


def test_logits_of_the_whole_batch_are_never_held(monkeypatch):
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", 4 * len(tokenizer()))
    seen, overwrite = [], cross_entropy._overwrite
    monkeypatch.setattr(cross_entropy, "_overwrite", lambda z, *given: (seen.append(len(z)), overwrite(z, *given))[1])
    VARIANTS["llama"]().method(**batch())
    assert seen == [4] * LENGTH


# evaluation


def evaluation(held_out: np.ndarray, length: int = LENGTH) -> Perplexity:
    return Perplexity(tokens(), held_out, size=100, length=length, vocabulary=len(tokenizer()), batch_size=3)


@pytest.mark.parametrize("n", [5, 16, 17, 100])
def test_every_held_out_token_is_scored_once(n):
    method = VARIANTS["gpt2"]().method.eval()
    torch.nn.init.zeros_(method.model.get_output_embeddings().weight)  # tied: every token is equally likely
    results = evaluation(tokens()[:n])(method)
    assert results["perplexity"] == pytest.approx(len(tokenizer()), rel=1e-4)
    assert results["bits_per_byte"] == pytest.approx(n * math.log2(len(tokenizer())) / 100, rel=1e-4)


def test_the_perplexity_of_one_document_is_that_of_transformers():
    method, text = VARIANTS["llama"]().method.eval(), tokens()[:8]
    ids = torch.tensor([[END, *text.tolist()]])[:, :9]
    ids[0, -1] = int(text[-1])
    held_out = np.append(text[text != END], END).astype(np.int32)
    ids = torch.tensor([[END, *held_out.tolist()]])
    expected = method.model(ids, labels=ids).loss.exp().item()
    assert evaluation(held_out)(method)["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_baselines_are_n_grams_of_the_tokens():
    found = evaluation(tokens()[:200]).baselines(VARIANTS["gpt2"]().method)
    expected = math.exp(n_gram(tokens(), tokens()[:200], len(tokenizer()), 5))
    assert found["5-gram"]["perplexity"] == pytest.approx(expected, rel=0.05)
    assert found["5-gram"]["perplexity"] < found["unigram"]["perplexity"] / 3


# checkpoints


def saved(network, place: Path) -> str:
    network.save_pretrained(place)
    tokenizer().save_pretrained(place)
    return str(place)


@ARCHITECTURES
def test_a_checkpoint_is_continued(architecture, tmp_path):
    network = model(architecture)
    loaded, found = causal_lm.from_pretrained(saved(network, tmp_path), LENGTH)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert found.get_vocab() == tokenizer().get_vocab() and found.model_max_length == LENGTH
    with pytest.raises(BadInput, match="--max_seq_length 17: .* takes 16 tokens at most"):
        causal_lm.from_pretrained(str(tmp_path), 17)


def test_a_class_that_ignores_positions_is_trained_across_documents_or_refused(tmp_path):
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=280, hidden_size=32, n_layer=1, n_head=2, initializer_range=0.2))
    place = saved(bloom, tmp_path)
    with pytest.raises(BadInput, match="BloomForCausalLM does not keep the documents .* apart; add --cross_documents"):
        causal_lm.from_pretrained(place, LENGTH)
    network, _ = causal_lm.from_pretrained(place, LENGTH, cross_documents=True)
    assert causal_lm.CausalLM(network, tokenizer(), cross_documents=True)(**batch()).loss.isfinite()


def test_a_head_that_is_not_linear_is_refused(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 280, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.5}
    gemma = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, final_logit_softcapping=0.5))
    with pytest.raises(BadInput, match="the logits of a Gemma2ForCausalLM are more than a linear layer"):
        causal_lm.from_pretrained(saved(gemma, tmp_path), LENGTH)


def test_named_sizes_are_what_they_say():
    for architecture in causal_lm.ARCHITECTURES:
        config = causal_lm.from_scratch(tokenizer(), architecture, "tiny").config
        assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 128, 2)
        assert config.max_position_embeddings == LENGTH and config.eos_token_id == config.bos_token_id == END


@ARCHITECTURES
def test_generation_stays_within_the_positions_unless_told_otherwise(architecture, tmp_path):
    place = saved(causal_lm.from_scratch(tokenizer(), architecture, "tiny"), tmp_path)
    written = AutoModelForCausalLM.from_pretrained(place).generate(torch.tensor([[5, 6, 7]]), eos_token_id=-1)
    assert written.shape == (1, 3 + LENGTH // 2)


def test_the_tokenizer_keeps_every_byte_adds_nothing_and_pads_on_the_left():
    encoded = tokenizer()(["Añ \t\n€", "Ann"], padding=True)
    assert tokenizer().decode(encoded["input_ids"][0]) == "Añ \t\n€"
    assert encoded["attention_mask"][1][0] == 0 and encoded["attention_mask"][1][-1] == 1
    assert END not in encoded["input_ids"][0] + encoded["input_ids"][1]


# the recipe

TINY = ["--max_steps=4", "--max_seq_length=32", "--per_device_train_batch_size=4", "--save_steps=0", "--use_cpu"]
SIZE = ["--size=tiny", "--vocab_size=300"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("causal_lm")
    (place / "text.txt").write_text("\n\n".join(TEXTS * 2))
    return place


def run(place: Path, *flags: str) -> Processes:
    os.environ["MMSSL_HOME"] = str(place / "home")
    return Processes(recipe, "causal_lm", *TINY, *flags, log=place / f"log_{len(list(place.glob('log_*')))}.txt")


@pytest.fixture(scope="module")
def trained(place) -> Path:
    run(place, *SIZE, f"--dataset={place / 'text.txt'}", f"--output_dir={place / 'run'}").succeed()
    return place / "run"


def test_a_run_leaves_results_beside_their_baselines_and_samples_in_the_card(trained):
    results = json.loads((trained / "metrics.json").read_text())["results"]
    assert list(results) == ["trained", "untrained", "unigram", "5-gram"]
    assert all(column.keys() >= {"perplexity", "bits_per_byte"} for column in results.values())
    card = (trained / "README.md").read_text()
    assert all(f"Temperature {temperature}:" in card for temperature in ("0.5", "0.8", "1.0"))


WITHOUT_MMSSL = """
import re, sys
sys.modules["mmssl"] = None
from transformers import pipeline
write = pipeline("text-generation", model=sys.argv[1])
print([one[0]["generated_text"] for one in write(["Ann has", "Bo"], max_new_tokens=5, do_sample=False, batch_size=2)])
for snippet in re.findall(r"```python\\n(.*?)```", open(sys.argv[1] + "/README.md").read(), re.DOTALL):
    exec(snippet, {})
"""


@pytest.mark.slow
def test_the_text_generation_pipeline_and_the_card_s_snippets_work_without_mmssl(trained):
    done = subprocess.run([sys.executable, "-c", WITHOUT_MMSSL, trained], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = AutoModelForCausalLM.from_pretrained(trained).generate(
        **tokenizer_of(trained)("Ann has", return_tensors="pt"), max_new_tokens=5, do_sample=False
    )
    written = eval(done.stdout.splitlines()[0])
    assert written[0] == tokenizer_of(trained).decode(alone[0], skip_special_tokens=True)


def tokenizer_of(place: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place)


@pytest.mark.slow
def test_a_run_continues_from_its_export(place, trained):
    flags = [f"--model_name_or_path={trained}", f"--dataset={place / 'text.txt'}", f"--output_dir={place / 'more'}"]
    run(place, *flags, "--gradient_checkpointing", "--blank_lines", "True").succeed()
    results = json.loads((place / "more" / "metrics.json").read_text())["results"]
    assert list(results) == ["trained", "before training", "unigram", "5-gram"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--max_seq_length=9999", "tokens of text do not fill one sequence of 9999; lower --max_seq_length"),
        ("--vocab_size=100", "--vocab_size is 100; it must be 258 or more"),
        ("--model_name_or_path=a --size=tiny", "--size has no effect with --model_name_or_path"),
    ],
)
def test_bad_input_is_named_in_one_sentence(flags, said, place):
    job = run(place, f"--dataset={place / 'text.txt'}", *flags.split(), f"--output_dir={place / 'refused'}")
    assert job.wait() == [2]
    assert said in job.output and "Traceback" not in job.output, job.output
