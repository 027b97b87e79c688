import pytest
import torch
from tiny.char_rnn import TEXT, model

from mmssl.models.char_rnn import CharRNNForCausalLM

CELLS = pytest.mark.parametrize("cell", ["lstm", "gru"])
PROMPTS = ["Ann has 3", "Bo", "Cy has"]


def prompts(tokenizer) -> dict:
    return dict(tokenizer(PROMPTS, padding=True, return_tensors="pt"))


@CELLS
@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 0}], ids=["greedy", "beams", "sampled"]
)
def test_generation_is_the_same_with_and_without_the_cache_and_for_padded_batches(cell, how):
    network, tokenizer = model(cell=cell)
    network.eval()

    def write(**inputs) -> torch.Tensor:
        torch.manual_seed(0)
        return network.generate(**inputs, max_new_tokens=12, **how)

    with_cache = write(**prompts(tokenizer))
    assert torch.equal(with_cache, write(**prompts(tokenizer), use_cache=False))
    assert with_cache.shape[1] == 9 + 12
    if not how.get("do_sample"):  # one after another other numbers are drawn
        for prompt, together in zip(PROMPTS, with_cache, strict=True):
            alone = write(**tokenizer(prompt, return_tensors="pt"))[0]
            assert torch.equal(together[9 - len(prompt) :], alone)


@CELLS
def test_greedy_generation_takes_the_likeliest_symbol_each_time(cell):
    network, tokenizer = model(cell=cell)
    ids = tokenizer("Ann", return_tensors="pt")["input_ids"]
    written = network.eval().generate(ids, max_new_tokens=6)
    for _ in range(6):
        ids = torch.cat([ids, network(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, ids)


@CELLS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_neither_logits_nor_state(cell, side):
    network, tokenizer = model(cell=cell)
    tokenizer.padding_side = side
    padded = network.eval()(**prompts(tokenizer))
    for row, prompt in enumerate(PROMPTS):
        alone = network(**tokenizer(prompt, return_tensors="pt"))
        own = slice(9 - len(prompt), 9) if side == "left" else slice(0, len(prompt))
        torch.testing.assert_close(padded.logits[row, own], alone.logits[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(padded.state[row], alone.state[0], atol=1e-6, rtol=0)


@CELLS
def test_a_text_read_in_two_parts_is_read_as_in_one(cell):
    network, tokenizer = model(cell=cell)
    ids = tokenizer(TEXT[:40], return_tensors="pt")["input_ids"]
    whole = network.eval()(ids)
    first = network(ids[:, :17])
    second = network(ids[:, 17:], state=first.state)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(second.state, whole.state, atol=1e-6, rtol=0)


def test_a_row_of_padding_alone_leaves_its_state_as_it_was():
    network, _ = model()
    state = torch.randn(2, 2, 2, 24)
    after = network(torch.zeros(2, 3, dtype=torch.long), torch.tensor([[0, 0, 0], [0, 1, 1]]), state=state).state
    assert torch.equal(after[0], state[0]) and not torch.equal(after[1], state[1])


def test_an_lstm_begins_by_remembering_and_gates_keep_lengths():
    layer = model()[0].rnn.layers[1]
    assert torch.equal(layer.bias_ih_l0.view(4, 24)[1], torch.ones(24)) and not layer.bias_hh_l0.any()
    for gate in layer.weight_hh_l0.split(24):
        torch.testing.assert_close(gate @ gate.T, torch.eye(24), atol=1e-5, rtol=0)


def test_with_skip_connections_the_softmax_reads_all_layers_and_without_them_the_upper_one():
    skipping, tokenizer = model()
    plain, _ = model(skip_connections=False)
    ids = tokenizer("Bo has", return_tensors="pt")["input_ids"]
    plain.rnn.load_state_dict(skipping.rnn.state_dict())
    both, upper = skipping.rnn(ids).last_hidden_state, plain.rnn(ids).last_hidden_state
    assert both.shape == (1, 6, 48) and torch.equal(both[..., 24:], upper)
    assert skipping.head.in_features == 48 and plain.head.in_features == 24


@pytest.mark.parametrize("embedding_size", [24, 8])
def test_a_tied_table_is_one_parameter_here_and_in_the_checkpoint(embedding_size, tmp_path):
    network, _ = model(tie_word_embeddings=True, embedding_size=embedding_size, skip_connections=False)
    assert network.head.weight is network.rnn.embedding.weight
    loose = model(embedding_size=embedding_size, skip_connections=False)[0].num_parameters()
    projection = 24 * 8 if embedding_size == 8 else 0
    vocabulary = network.config.vocab_size
    assert loose - network.num_parameters() == 24 * vocabulary - projection
    network.save_pretrained(tmp_path)
    loaded, report = CharRNNForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and loaded.head.weight is loaded.rnn.embedding.weight
    assert torch.equal(loaded.head.weight, network.head.weight)


def test_labels_give_the_mean_loss_of_all_symbols_but_the_first():
    network, tokenizer = model()
    ids = tokenizer(TEXT[:60], return_tensors="pt")["input_ids"]
    output = network(ids, labels=ids)
    log_p = output.logits.log_softmax(-1)
    expected = -sum(log_p[0, i, ids[0, i + 1]] for i in range(59)) / 59
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
