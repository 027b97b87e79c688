import json

from transformers import AutoTokenizer

from mmssl.data.text.tokens import train_clip_tokenizer

TEXTS = ["a red square", "a blue circle", "two green triangles", "three grey hexagons"]


def test_equal_texts_give_equal_tokens_merges_and_ids():
    """Or a resumed run, and the second process, would read other words than the first."""
    models = [json.loads(train_clip_tokenizer(TEXTS, 600).backend_tokenizer.to_str())["model"] for _ in range(4)]
    assert all(model["vocab"] == models[0]["vocab"] for model in models)
    assert all(model["merges"] == models[0]["merges"] for model in models)


def test_the_end_of_text_stands_once_and_last_whatever_the_text():
    tokenizer = train_clip_tokenizer(TEXTS, 600)
    ids = tokenizer("zebra-crossing, 家 piñata 7!")["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "zebra-crossing,家piñata7!"


def test_only_the_two_marks_are_special_and_no_id_is_left_out(tmp_path):
    tokenizer = train_clip_tokenizer(TEXTS, 600, max_length=20)
    assert set(tokenizer.all_special_tokens) == {"<|startoftext|>", "<|endoftext|>"}
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"] and again.model_max_length == 20
