import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from device import accelerator
from gensim.models import KeyedVectors
from processes import Processes
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from mmssl.arguments import TrainArgs
from mmssl.data.loader import Loader
from mmssl.data.text.skip_grams import Pieces
from mmssl.distributed import world_size
from mmssl.errors import BadInput
from mmssl.hub import export
from mmssl.kernels import SENTENCE_END
from mmssl.kernels.simd import LANES
from mmssl.kernels.word2vec_torch import loss, update_batch, update_window
from mmssl.methods import word2vec
from mmssl.methods.word2vec import Word2Vec
from mmssl.models import word_vectors
from mmssl.training import steps
from mmssl.training.loop import train
from mmssl.training.start import start

GROUPS, SIZE = 6, 5  # words of one group stand together; vectors should find the groups
WORDS = [f"{chr(97 + i // SIZE)}{i % SIZE}" for i in range(GROUPS * SIZE)]
COUNTS = np.full(len(WORDS), 100)


def text(tokens=40_000, seed=0):
    rng = np.random.default_rng(seed)
    sentences = rng.integers(0, GROUPS, (tokens // 10, 1)) * SIZE + rng.integers(0, SIZE, (tokens // 10, 9))
    return np.pad(sentences, ((0, 0), (0, 1)), constant_values=SENTENCE_END).ravel().astype(np.int32)


def trained(directory, ids=None, *, max_steps=20, learning_rate=0.1, resume=None, save_steps=0, **options):
    args = TrainArgs(
        output_dir=str(directory), max_steps=max_steps, per_device_train_batch_size=10, learning_rate=learning_rate,
        lr_scheduler_type="linear", save_steps=save_steps, resume_from_checkpoint=resume, use_cpu=True, bf16="no",
    )  # fmt: skip
    method = Word2Vec(WORDS, COUNTS, 12, sample=0, **options)
    loader = Loader(Pieces(text() if ids is None else ids), 10, lambda batch: batch)
    optimizer = torch.optim.SGD(method.parameters(), lr=learning_rate)
    return method, train(method, loader, args, [optimizer], steps.in_place)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_begin_on_the_border_of_cache_lines_and_registers(threads):
    method = Word2Vec(WORDS, COUNTS, 12, threads=threads)
    for table in (method._whole(method.inputs), method._whole(method.outputs)):
        assert table.ctypes.data % 64 == 0
        assert table.strides == (4 * LANES, 4)


def found_groups(method):
    """Share of words whose nearest word is of their own group."""
    unit = F.normalize(method.inputs.detach(), dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return (nearest // SIZE == torch.arange(len(WORDS)) // SIZE).float().mean().item()


def test_update_window_is_one_step_down_the_gradient_of_the_loss():
    torch.manual_seed(0)
    inputs, outputs = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    contexts, centre, noise = [1, 2, 5], 3, [0, 4, 4]
    value = loss(inputs[contexts] @ outputs[[centre, *noise]].T).sum()
    value.backward()
    after_inputs, after_outputs = inputs.detach().clone(), outputs.detach().clone()
    assert update_window(after_inputs, after_outputs, contexts, centre, noise, 0.1) == pytest.approx(value.item())
    torch.testing.assert_close(after_inputs, (inputs - 0.1 * inputs.grad).detach())
    torch.testing.assert_close(after_outputs, (outputs - 0.1 * outputs.grad).detach())


def test_a_batch_has_the_gradient_of_its_windows_together():
    torch.manual_seed(0)
    inputs, outputs = torch.randn(8, 4), torch.randn(8, 4)
    contexts, targets = torch.tensor([[1, 2, -1], [5, 1, 1]]), torch.tensor([[3, 0, 3], [4, 6, 6]])
    a, b = inputs.clone().requires_grad_(), outputs.clone().requires_grad_()
    value = loss(a[[1, 2]] @ b[[3, 0]].T).sum() + loss(a[[5, 1, 1]] @ b[[4, 6, 6]].T).sum()  # 3 is no noise for 3
    value.backward()
    seen = torch.zeros(8), torch.zeros(8)
    total, pairs = update_batch((inputs, outputs), seen, contexts, targets, 0.1)
    torch.testing.assert_close(seen[0], a.grad.square().mean(1))
    torch.testing.assert_close(inputs, (a - 0.1 * a.grad / (seen[0].sqrt() + 1e-8)[:, None]).detach())
    torch.testing.assert_close(outputs, (b - 0.1 * b.grad / (seen[1].sqrt() + 1e-8)[:, None]).detach())
    assert pairs == 5 and total.item() == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3}, {"batched": True}], ids=str)
def test_words_that_stand_together_become_neighbours(tmp_path, options, monkeypatch):
    monkeypatch.setattr(word2vec, "TURN", 500)  # of so few words each is met 300 times in a turn of the usual size
    method, summary = trained(tmp_path, **options)
    assert found_groups(method) == 1
    assert summary.loss < 0.9 * summary.trivial_loss


def test_the_batched_form_does_not_diverge_with_all_windows_in_one_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(word2vec, "IN_FLIGHT", 1_000_000)
    method, summary = trained(tmp_path, batched=True, learning_rate=1.0)
    assert summary.loss < summary.trivial_loss and method.inputs.abs().max() < 20


def test_all_forms_report_the_same_loss_for_the_same_tables():
    ids = torch.from_numpy(text(1000))[None]
    method = Word2Vec(WORDS, COUNTS, 12, sample=0)
    with torch.no_grad():
        method.outputs.normal_(generator=torch.Generator().manual_seed(0))
        method.inputs.normal_(generator=torch.Generator().manual_seed(1))
    measured = method(ids)
    assert method.train_on(ids, learning_rate=0.0).loss.item() == pytest.approx(measured.loss.item(), rel=0.02)
    batched = Word2Vec(WORDS, COUNTS, 12, sample=0, batched=True)
    batched.load_state_dict(method.state_dict(), strict=False)
    assert batched.train_on(ids, learning_rate=0.0).loss.item() == pytest.approx(measured.loss.item(), rel=0.02)


@pytest.mark.parametrize("options", [{"threads": 1}, {"batched": True}], ids=str)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, options):
    whole, _ = trained(tmp_path / "whole", max_steps=8, **options)
    trained(tmp_path / "half", max_steps=8, save_steps=3, **options)
    checkpoint = str(tmp_path / "half/checkpoints/step_00000006")
    resumed, summary = trained(tmp_path / "again", max_steps=8, resume=checkpoint, **options)
    assert summary.step == 8
    assert torch.equal(whole.inputs, resumed.inputs) and torch.equal(whole.outputs, resumed.outputs)


@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"batched": True}])
def test_a_vocabulary_of_one_word_can_be_trained_on(options):
    method = Word2Vec(["only"], np.array([7]), 4, window=20, **options)
    output = method.train_on(torch.zeros(1, 7, dtype=torch.int32), 0.1)
    assert output.loss.isfinite() and method.inputs.isfinite().all()


def test_two_runs_on_one_thread_are_equal_and_another_seed_is_not(tmp_path):
    one, two, other = (trained(tmp_path / str(i), max_steps=3, seed=s)[0] for i, s in enumerate((0, 0, 1)))
    assert torch.equal(one.inputs, two.inputs) and not torch.equal(one.inputs, other.inputs)


def test_the_padding_of_the_kernels_tables_stays_zero(tmp_path):
    method, _ = trained(tmp_path, max_steps=3, threads=2)
    assert (method._whole(method.inputs)[:, 12:] == 0).all() and (method._whole(method.outputs)[:, 12:] == 0).all()


def test_a_table_that_a_move_has_packed_is_laid_out_anew():
    ids = torch.from_numpy(text(2000))[None]
    moved, stayed = Word2Vec(WORDS, COUNTS, 12), Word2Vec(WORDS, COUNTS, 12)
    moved.inputs = torch.nn.Parameter(moved.inputs.detach().clone().contiguous())
    for method in (moved, stayed):
        method.train_on(ids, 0.1)
    assert torch.equal(moved.inputs, stayed.inputs)
    assert moved.inputs.untyped_storage().nbytes() >= 4 * len(WORDS) * LANES


def test_one_directory_serves_transformers_and_gensim(tmp_path):
    method = Word2Vec(WORDS, COUNTS, 12)
    export.write(method, word_vectors.tokenizer(WORDS, plain=True), tmp_path)
    script = """
import sys
sys.modules["mmssl"] = None
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(model(**tokenizer(["A0, unknown b1!", "a0"], padding=True, return_tensors="pt")).pooler_output.tolist())
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    both, one = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    rows = [WORDS.index("a0"), WORDS.index("b1")]
    torch.testing.assert_close(both, method.inputs[rows].mean(0))  # the unknown word counts for nothing
    torch.testing.assert_close(one, method.inputs[rows[0]])
    for file, binary in (("vectors.bin", True), ("vectors.txt", False)):
        kv = KeyedVectors.load_word2vec_format(tmp_path / file, binary=binary)
        assert kv.index_to_key == WORDS
        np.testing.assert_allclose(kv.vectors, method.inputs.detach().cpu().numpy(), atol=1e-6)
    assert set(load_file(tmp_path / "model.safetensors")) == {"embedding.weight"}
    assert not list(tmp_path.rglob("*.pkl")) and not list(tmp_path.rglob("*.npy"))


def test_the_directory_loads_without_remote_code_where_our_architectures_are_registered(tmp_path):
    import mmssl.models.own  # noqa: F401

    Word2Vec(WORDS, COUNTS, 12).save_pretrained(tmp_path)
    word_vectors.tokenizer(WORDS, plain=False).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "Word2VecModel"
    assert AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)("a0 zzz")["input_ids"] == [0, len(WORDS)]


def test_the_directory_is_a_sentence_transformer(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    method = Word2Vec(WORDS, COUNTS, 12)
    method.save_pretrained(tmp_path)
    word_vectors.tokenizer(WORDS, plain=False).save_pretrained(tmp_path)
    encoded = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(["a0", "a0 b1"])
    np.testing.assert_allclose(encoded[0], method.inputs[0].detach().cpu().numpy(), atol=1e-6)


def test_training_goes_on_from_our_own_export_and_from_gensim(tmp_path):
    first, _ = trained(tmp_path / "run", max_steps=3)
    first.save_pretrained(tmp_path / "export")
    vectors, outputs = word_vectors.load(tmp_path / "export")
    again = Word2Vec(WORDS, COUNTS, 12)
    assert again.start_from(vectors, outputs) == len(WORDS)
    torch.testing.assert_close(again.inputs, first.inputs)
    assert torch.equal(again.outputs, first.outputs)
    vectors.save_word2vec_format(str(tmp_path / "v.txt.gz"))
    vectors, outputs = word_vectors.load(tmp_path / "v.txt.gz")
    assert outputs is None and Word2Vec(WORDS, COUNTS, 12).start_from(vectors) == len(WORDS)
    with pytest.raises(BadInput, match="12 dimensions"):
        Word2Vec(WORDS, COUNTS, 10).start_from(vectors)


def test_words_that_the_new_text_lacks_keep_their_vectors():
    words, counts = word_vectors.with_words(WORDS, COUNTS, ["old", "a0"])
    assert words[-1] == "old" and len(words) == len(WORDS) + 1 and counts[-1] == 0
    old = KeyedVectors(12)
    old.add_vectors(["old", "a0"], np.ones((2, 12), np.float32))
    method = Word2Vec(words, counts, 12)
    method.start_from(old)
    method.train_on(torch.from_numpy(text(1000))[None], 0.1)
    assert (method.inputs[-1] == 1).all() and not (method.inputs[0] == 1).all()


def test_what_is_not_a_vector_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("hello world, not vectors\n")
    with pytest.raises(BadInput, match=r"a\.txt is not in word2vec format"):
        word_vectors.load(tmp_path / "a.txt")
    with pytest.raises(BadInput, match="no word vectors here"):
        word_vectors.load(tmp_path)


def test_processes_keep_all_that_they_learned_of_rare_words_and_the_mean_of_frequent_ones():
    counts = np.array([10**8, 10**5, 1])
    method = Word2Vec(["often", "sometimes", "once"], counts, 4, sample=0)
    text = [{"ids": torch.zeros(1, 10**6 // 2)}] * 2
    often, sometimes, once = method.share(4, text).squeeze(1).tolist()
    assert often == pytest.approx(1 / 4, rel=1e-3) and once == pytest.approx(1, rel=1e-3)
    a = 1 - np.exp(-(10**6) * counts[1] / counts.sum() / word2vec.SETTLED)
    assert 1 / 4 < sometimes < 1 and sometimes == pytest.approx(sum(a * (1 - a) ** i for i in range(4)) / (4 * a))
    assert torch.equal(method.share(1, text), torch.ones(3, 1))


@pytest.mark.parametrize("batched", [False, True])
def test_micro_batches_are_trained_on_one_after_the_other(batched):
    one, other = (Word2Vec(WORDS, COUNTS, 12, sample=0, batched=batched) for _ in range(2))
    parts = [{"ids": torch.from_numpy(part)[None]} for part in np.split(text(4_000), 4)]
    steps.in_place(one, parts, [torch.optim.SGD(one.parameters(), lr=0.1)], accelerator(), 0.0)
    for part in parts:
        other.train_on(**part, learning_rate=0.1)
    assert torch.equal(one.inputs, other.inputs) and torch.equal(one.outputs, other.outputs)


def train_and_compare(directory, batched):
    """In each of several processes."""
    start(TrainArgs(output_dir=str(directory), use_cpu=True))
    method, _ = trained(directory, max_steps=15, batched=batched)
    mine = method.inputs.detach().contiguous()
    tables = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(tables, mine)
    print(f"RESULT {len(tables)} {all(torch.equal(mine, table) for table in tables)} {found_groups(method)}")


@pytest.mark.parametrize("batched", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_end_with_one_table_that_has_learned(tmp_path, batched):
    job = Processes(train_and_compare, tmp_path / "run", batched, log=tmp_path / "log.txt", world=2)
    assert job.succeed().count("RESULT 2 True 1.0") == 2


def test_the_text_file_holds_the_numbers_that_gensim_would_write(tmp_path):
    words = ["a", '"', "日本", "\x00"]
    table = np.array([[0, -1.5, 1e-30], [1 / 3, 3e38, -1e-45], [123456789, 1e16, 0.1], [-0.0, 1e-5, 65504]], np.float32)
    word_vectors.write_text(tmp_path / "ours.txt", words, table)
    read = KeyedVectors.load_word2vec_format(tmp_path / "ours.txt")
    assert read.index_to_key == words and (read.vectors == table).all()
