from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from tiny import bert as tiny_bert
from tiny import simcse as tiny
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaModel

from mmssl.data.text.sentences import Sentences, of_each
from mmssl.errors import BadInput
from mmssl.evaluation import sentence_similarity as similarity
from mmssl.hub import sentence_transformers
from mmssl.methods import simcse


def batch(n: int = 6) -> dict[str, torch.Tensor]:
    drawn = Sentences(tiny.sentences(), tiny_bert.tokenizer(), tiny_bert.LENGTH).__getitems__(list(range(n)))
    drawn.pop("index")
    return drawn


def method(architecture: str = "bert", **options) -> simcse.SimCSE:
    torch.manual_seed(0)
    return simcse.SimCSE(tiny.encoder(architecture), tiny_bert.LENGTH, **options)


def test_aligned_pairs_and_orthogonal_others_give_the_closed_form():
    loss, found = simcse.in_batch(torch.eye(5), torch.eye(5), 0.5)
    torch.testing.assert_close(loss.item(), math.log(1 + 4 * math.exp(-2)))
    assert found == 1
    same = F.normalize(torch.ones(5, 3), dim=1)
    assert simcse.in_batch(same, same, 0.05)[0].item() == pytest.approx(math.log(5))


def test_a_keyed_mask_drops_its_rate_and_keeps_the_mean():
    layer = simcse.KeyedDropout(3, 0.25, 0.0)
    layer.key = torch.arange(50)
    out = layer(torch.ones(50, 12, 40))
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])


def test_masks_differ_between_keys_layers_and_tokens_and_do_not_depend_on_padding():
    one, other = simcse.KeyedDropout(0, 0.5, 0.0), simcse.KeyedDropout(1, 0.5, 0.0)
    one.key = other.key = torch.arange(4)
    short, long, second = one(torch.ones(4, 5, 64)), one(torch.ones(4, 9, 64)), other(torch.ones(4, 5, 64))
    assert torch.equal(short, long[:, :5])
    agree = [(short == second), (short[0] == short[1]), (short[:, 0] == short[:, 1])]
    assert all(0.35 < same.float().mean() < 0.65 for same in agree)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_two_passes_of_a_sentence_differ_by_dropout_alone(architecture):
    trained, given = method(architecture, dropout=0.2).train(), batch()
    rows = trained.embed(**given)
    assert (rows["first"] - rows["second"]).norm(dim=1).min() > 0.01
    again = trained.embed(**given)
    assert all(torch.equal(rows[name], again[name]) for name in rows)
    other = trained.embed(**given | {"key": given["key"] + 1})
    assert (rows["first"] - other["first"]).norm(dim=1).min() > 0.01
    trained.eval()
    rows = trained.embed(**given)
    torch.testing.assert_close(rows["first"], rows["second"])


def test_a_row_is_a_function_of_its_own_sentence():
    trained, given = method(dropout=0.2).train(), batch()
    rows = trained.embed(**given)
    longest = int(given["attention_mask"][:1].sum())
    alone = trained.embed(*(given[n][:1, :longest] for n in ("input_ids", "attention_mask")), given["key"][:1])
    for name in rows:
        torch.testing.assert_close(alone[name], rows[name][:1], rtol=1e-4, atol=1e-5)


def test_attention_has_torch_s_dropout_only_if_asked():
    given = batch()
    for architecture, rate in product(("bert", "modernbert"), (0.0, 0.5)):
        trained = method(architecture, attention_dropout=rate).train()
        one, other = trained.embed(**given), trained.embed(**given)
        assert torch.equal(one["first"], other["first"]) == (rate == 0)


def test_an_encoder_without_dropout_layers_is_refused():
    config = LlamaConfig(
        vocab_size=29, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(BadInput, match="a LlamaModel has no dropout layer, without which the two passes are equal"):
        simcse.SimCSE(LlamaModel(config), 16)


@pytest.mark.parametrize("pooling", simcse.POOLING)
def test_the_export_is_a_sentence_transformer_with_the_pooling_of_the_training(pooling, tmp_path):
    package = pytest.importorskip("sentence_transformers")
    trained = method(pooling=pooling).eval()
    trained.save_pretrained(tmp_path)
    tiny_bert.tokenizer().save_pretrained(tmp_path)
    texts = ["the cat sat", "a dog"]
    vectors = package.SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    encoded = tiny_bert.tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = trained.represent(encoded["input_ids"], encoded["attention_mask"])
    torch.testing.assert_close(torch.from_numpy(vectors), expected, rtol=1e-5, atol=1e-5)
    assert pooling in sentence_transformers.write_pooling.__doc__


def test_a_checkpoint_keeps_its_pooler_as_it_is(tmp_path):
    config = BertConfig(vocab_size=29, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=16)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "before")
    tiny_bert.tokenizer().save_pretrained(tmp_path / "before")
    model, tokenizer = simcse.from_pretrained(str(tmp_path / "before"), 16)
    trained = simcse.SimCSE(model, 16)
    trained(**batch()).loss.backward()
    assert all((p.grad is None) == ("pooler" in name) for name, p in trained.named_parameters())
    trained.save_pretrained(tmp_path / "after")
    kept = AutoModel.from_pretrained(tmp_path / "after").pooler.dense.weight
    assert torch.equal(kept, model.pooler.dense.weight)
    with pytest.raises(BadInput, match="--max_seq_length 17: .* takes 16 tokens at most"):
        simcse.from_pretrained(str(tmp_path / "before"), 17)


def test_sentences_are_cut_from_texts_or_taken_whole():
    texts = ["The cat sat on it.  A dog\nran away then. No.", "One\ntext of words."]
    assert of_each(texts, 3) == [["The cat sat on it.", "ran away then."], ["text of words."]]
    assert of_each(texts, 3, whole=True)[1] == ["One text of words."]


# evaluation


def test_alignment_and_uniformity_have_their_closed_forms():
    axes = torch.eye(3)
    assert similarity.alignment(axes, axes) == 0 and similarity.alignment(axes, -axes) == pytest.approx(4)
    assert similarity.uniformity(axes) == pytest.approx(-4)  # every pair at squared distance 2
    assert similarity.uniformity(axes[[0, 0, 0]]) == 0


def test_spearman_ranks_and_equal_cosines_rank_nothing():
    import numpy as np

    score = np.array([1.0, 2, 3, 4])
    assert similarity.spearman(score**3, score) == pytest.approx(1)
    assert similarity.spearman(-score, score) == pytest.approx(-1)
    assert similarity.spearman(np.ones(4), score) == 0


def test_neighbours_are_of_one_document_and_the_others_of_different_ones():
    documents = [[f"{d} {i}" for i in range(4)] for d in range(5)] + [["alone"], []]
    pairs = similarity.neighbours(documents)
    assert len(pairs.first) == 30 and pairs.score.mean() == 0.5
    for one, other, score in zip(pairs.first, pairs.second, pairs.score, strict=True):
        assert (one.split()[0] == other.split()[0]) == bool(score)
        if score:
            assert int(other.split()[1]) == int(one.split()[1]) + 1
    with pytest.raises(BadInput, match="--sts_file"):
        similarity.neighbours([["one", "two"]])
    with pytest.raises(BadInput, match="--sts_file"):
        similarity.neighbours([["one"], ["two"]])  # a word has no halves


def test_where_each_text_is_one_sentence_its_halves_are_compared():
    pairs = similarity.neighbours([["a good film"], [], ["not a bad one"], ["word"]])
    found = {(a, b): score for a, b, score in zip(pairs.first, pairs.second, pairs.score, strict=True)}
    assert {halves for halves, score in found.items() if score} == {("a", "good film"), ("not a", "bad one")}
    assert len(pairs.first) == 4
    assert "2 pairs of halves of a sentence" in pairs.origin


ROWS = [("a cat", "a dog", 2.5), ('the "mat', "a mat", 5.0), ("on", "off", 0.0)]


def tables(folder):
    """The same pairs in the forms in which STS tasks are published."""
    from pandas import DataFrame

    frame = DataFrame(ROWS, columns=["sentence1", "sentence2", "score"])
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_parquet(folder / "a.parquet")
    sick = [
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score",
        *(f"{i}\t{a}\t{b}\t{s}" for i, (a, b, s) in enumerate(ROWS)),
    ]
    (folder / "SICK.txt").write_text("\n".join(sick))
    (folder / "sts-dev.csv").write_text(
        "\n".join(f"main\tnews\t2012\t{i}\t{s}\t{a}\t{b}" for i, (a, b, s) in enumerate(ROWS))
    )
    return [folder / name for name in ("a.csv", "a.parquet", "SICK.txt", "sts-dev.csv")]


def test_scored_pairs_are_read_from_the_tables_of_sts_b_and_sick(tmp_path):
    for file in tables(tmp_path):
        pairs = similarity.read_pairs(str(file))
        assert list(zip(pairs.first, pairs.second, pairs.score.tolist(), strict=True)) == ROWS, file
        assert pairs.alike.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b,c\n1,2,3\n", "none of its columns a, b, c is called sentence1 or"),
        ("sentence1,sentence2,score\na,b,3\nc,d,3\n", "all scores are 3.0: nothing to correlate with"),
        ("sentence1,sentence2,score\na,b,x\nc,d,\n", "2 pairs without two sentences and a finite score"),
        ("", "none of its columns"),
    ],
)  # fmt: skip
def test_a_table_that_is_of_no_use_is_refused(content, said, tmp_path):
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(BadInput, match=said):
        similarity.read_pairs(str(tmp_path / "pairs.csv"))
    with pytest.raises(BadInput, match="--sts_file .*none.csv: no such file"):
        similarity.read_pairs(str(tmp_path / "none.csv"))


def test_evaluation_does_not_depend_on_the_batch_and_knows_its_baselines():
    trained, documents = method().eval(), [tiny.sentences()[i : i + 4] for i in range(0, 24, 4)]
    pairs, every = similarity.neighbours(documents), tiny.sentences()
    one, other = (similarity.SentenceSimilarity(pairs, every, tiny_bert.tokenizer(), trained, n) for n in (5, 64))
    assert one(trained) == pytest.approx(other(trained), rel=1e-3, abs=1e-3)
    baselines = one.baselines(trained)
    assert list(baselines) == ["word embeddings before", "tf-idf"]
    assert baselines["word embeddings before"].keys() == one(trained).keys() == {"spearman", "alignment", "uniformity"}
    assert one.text(trained).count("→") == 5
