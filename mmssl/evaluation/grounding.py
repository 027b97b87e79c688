"""How much a model of texts with pictures takes from the picture: masked words with the right picture, without one and
with a wrong one; which picture belongs to a text; and retrieval by that score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mmssl import figures
from mmssl.data.image_text.pairs import Pairs
from mmssl.evaluation.finite import finite
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.evaluation.retrieval import chance, of_scores
from mmssl.methods.lxmert import LXMERT
from mmssl.plain_text import markdown

TEXTS = 1000  # at most
GALLERY = 100  # pictures, at most: every text is scored with every picture
BATCH = 100
RIGHT, BLANK, WRONG = "right picture", "blank picture", "wrong picture"
PICTURES = {RIGHT: "word_accuracy", BLANK: "word_accuracy_blank_picture", WRONG: "word_accuracy_wrong_picture"}


class Grounding(Evaluation):
    """held_out: tokenised pairs; of their captions at most TEXTS are used, from all over the data. tokenizer: to show
    words."""

    def __init__(self, held_out: Pairs, tokenizer) -> None:
        self.pairs, self.tokenizer = held_out, tokenizer
        owner = torch.repeat_interleave(torch.arange(len(held_out)), held_out.first.diff())
        self.texts = torch.linspace(0, len(owner) - 1, min(TEXTS, len(owner))).long()
        self.owner = owner[self.texts]
        self.gallery = self.spread(GALLERY)
        self.units = (
            f"In per cent. Words are masked as in training, in {len(self.texts):,} held-out captions, with their own "
            "picture, with one of the mean colour and with another's. Matching: own and another's picture, half each. "
            f"Retrieval: by the score of every pair of {len(self.gallery)} pictures and their first captions."
        )

    @torch.no_grad()
    def __call__(self, method: LXMERT) -> dict[str, float]:
        values = {}
        for picture, name in PICTURES.items():
            right = [
                method.model.mlm_score(method.encode(seen, batch["attention_mask"], pixels)[0][chosen]).argmax(1)
                == batch["input_ids"][chosen]
                for batch, chosen, seen, pixels in self.masked(method, picture)
            ]
            values[name] = 100 * torch.cat(right).float().mean().item()
        scores = [
            self.scores(method, batch, self.pictures(method, owner, picture)) * sign
            for batch, owner in self.batches(method)
            for picture, sign in ((RIGHT, 1), (WRONG, -1))
        ]
        values["matching_accuracy"] = 100 * torch.cat(scores).sign().add(1).mean().item() / 2  # a score of 0 is half
        return values | of_scores(self.of_gallery(method), torch.arange(len(self.gallery)))

    def baselines(self, method: LXMERT) -> Columns:
        """Always the word that is masked most often, by the counts of the training data; and chance."""
        likeliest = method.unigram.argmin()
        targets = torch.cat([batch["input_ids"][chosen] for batch, chosen, _, _ in self.masked(method, BLANK)])
        unigram = 100 * (targets == likeliest).float().mean().item()
        owner = torch.arange(len(self.gallery))
        return {
            "unigram": dict.fromkeys(PICTURES.values(), unigram),
            "chance": {"matching_accuracy": 50.0} | chance(len(self.gallery), owner),
        }

    def batches(self, method: LXMERT) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """(input_ids and attention_mask, the picture of each text)."""
        for texts, owner in zip(self.texts.split(BATCH), self.owner.split(BATCH), strict=True):
            yield {name: value.to(method.model.device) for name, value in self.pairs.tokens[texts].items()}, owner

    def masked(self, method: LXMERT, picture: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor, Tensor]]:
        """(input_ids and attention_mask, chosen (batch, length) bool, input_ids with the chosen ones masked, pixels);
        always the same words."""
        for (batch, owner), texts in zip(self.batches(method), self.texts.split(BATCH), strict=True):
            chosen = method.choose(texts.to(method.model.device), **batch)
            seen = batch["input_ids"].masked_fill(chosen, method.mask_token)
            yield batch, chosen, seen, self.pictures(method, owner, picture)

    def pictures(self, method: LXMERT, owner: Tensor, picture: str) -> Tensor:
        """(batch, 3, height, width), normalised. owner: (batch,), held-out pictures."""
        n = len(self.pairs)
        owner = (owner + max(1, n // 2)) % n if picture == WRONG else owner
        pixels = method.views.whole(self.pairs.pixels[self.pairs.rows[owner]].to(method.model.device))
        return torch.zeros_like(pixels) if picture == BLANK else pixels

    def scores(self, method: LXMERT, batch: dict[str, Tensor], pixels: Tensor) -> Tensor:
        """(batch,) on the CPU: how well each text fits its picture."""
        pooled = method.encode(batch["input_ids"], batch["attention_mask"], pixels)[2]
        with torch.autocast(pooled.device.type, enabled=False):  # as in the loss: rounded scores tie
            score = method.match(pooled.float())[:, 0]
        return finite(score.cpu(), "scores of texts and pictures")

    @torch.no_grad()
    def of_gallery(self, method: LXMERT) -> Tensor:
        """(texts, pictures): the scores of all pairs."""
        pixels = self.pictures(method, self.gallery, RIGHT)
        rows = []
        for text in self.pairs.first[self.gallery]:
            tokens = self.pairs.tokens[text.expand(len(pixels))]
            rows.append(self.scores(method, {k: v.to(pixels.device) for k, v in tokens.items()}, pixels))
        return torch.stack(rows)

    @torch.no_grad()
    def guesses(self, method: LXMERT, image: int, n: int = 3) -> tuple[str, str, dict[str, list[str]]]:
        """(first caption with one masked word, that word, {picture: the n likeliest words}). The rarest of the words
        that would be masked is."""
        text = self.pairs.first[image]
        batch = {name: value.to(method.model.device) for name, value in self.pairs.tokens[text[None]].items()}
        words = method.begins[batch["input_ids"]] & method.begins[batch["input_ids"]].roll(-1, 1)  # of one token
        chosen = words & method.choose(text[None].to(method.model.device), **batch)
        chosen = chosen if chosen.any() else method.choose(text[None].to(method.model.device), **batch)
        place = method.weight[batch["input_ids"]].masked_fill(~chosen, -1.0).argmax(1)
        word = self.tokenizer.decode(batch["input_ids"][0, place]).strip()
        seen = batch["input_ids"].clone()
        seen[0, place] = method.mask_token
        caption = self.tokenizer.decode(seen[0]).replace(self.tokenizer.cls_token, "")
        caption = caption.replace(self.tokenizer.sep_token, "").strip()
        found = {}
        for picture in PICTURES:
            pixels = self.pictures(method, torch.tensor([image]), picture)
            text_features = method.encode(seen, batch["attention_mask"], pixels)[0]
            likely = method.model.mlm_score(text_features[0, place]).topk(n)[1][0]
            found[picture] = [self.tokenizer.decode(token).strip() for token in likely]
        return caption, word, found

    def draw(self, method: LXMERT, directory: Path, results: Columns) -> dict[str, str]:
        """Held-out pictures, a masked word of each caption, and the likeliest words. {file: caption}."""
        images, said = self.spread(8), []
        for image in images.tolist():
            caption, word, found = self.guesses(method, image)
            lines = [f"{caption}  ({word})", *(f"{picture}: {', '.join(words)}" for picture, words in found.items())]
            said.append(lines)
        file = directory / "words.png"
        figures.pictures_beside_lines(self.pairs.pixels[self.pairs.rows[images]], said, file)
        return {file.name: "Held-out pictures, captions with a masked word (in brackets), and the likeliest words."}

    def text(self, method: LXMERT) -> str:
        lines = []
        for image in self.spread(5).tolist():
            caption, word, found = self.guesses(method, image)
            words = "; ".join(f"{picture}: {', '.join(map(markdown, words))}" for picture, words in found.items())
            lines.append(f"- {markdown(caption)} (*{markdown(word)}*): {words}")
        return "Held-out captions, the masked word, and the most likely words:\n\n" + "\n".join(lines)

    def example(self) -> dict[str, Tensor | list[str]]:
        """A few pairs as inputs for the processor, the first with a masked word."""
        rows = self.spread(3)
        texts = [self.pairs.captions[row][0][:60] for row in rows]
        first = texts[0].split()
        texts[0] = " ".join([*first[:-1], self.tokenizer.mask_token])
        return {"text": texts, "images": self.pairs.pixels[self.pairs.rows[rows]]}

    def spread(self, n: int) -> Tensor:
        """(n,) int64: images evenly spaced over the data, because neighbours in a data set are often similar."""
        return torch.linspace(0, len(self.pairs) - 1, min(n, len(self.pairs))).long()
