"""LXMERT: words and image patches are masked together, and predicted from both; and which picture belongs to a text.

Tan & Bansal 2019, arXiv:1908.07490, over image patches instead of detected regions, in the one-stream encoder of ViLT
(Kim et al. 2021, arXiv:2102.03334): a ViltForMaskedLM of transformers. Differs: masked patches are predicted as
standardised pixels (MAE, arXiv:2111.06377); no question answering; more words are masked, rare ones more often. As in
ViLT, a pair is either masked, and then has its own picture, or shown whole to be compared: nothing is predicted from a
swapped picture except that it is swapped, and what tells that is not masked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data import draws
from mmssl.data.images.views import Views
from mmssl.data.text import masking
from mmssl.kernels.cross_entropy import cross_entropy_
from mmssl.method import Card, Method, Output
from mmssl.methods.bert import sequence_mean
from mmssl.methods.mae import patchify, standardise
from mmssl.models.dropout import set_dropout
from mmssl.models.vilt import longest
from mmssl.models.vit_tokens import at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ViltForMaskedLM


LOG_2 = math.log(2)
PATCHES = 1 << 16  # first stream of the draws of masked patches, far after those of the image's view
SNIPPETS = {
    "Fill in a word of a picture's caption": """
import torch
from PIL import Image
from transformers import AutoProcessor, ViltForMaskedLM
from transformers.utils import cached_file

name = "..."
model, processor = ViltForMaskedLM.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
picture = Image.open(cached_file(name, "figures/example.png")).convert("RGB")  # or one of your own
inputs = processor(text={text[0]!r}, images=picture, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[inputs["input_ids"] == processor.tokenizer.mask_token_id]
for token in logits[0].topk(5).indices:
    print(processor.tokenizer.decode([int(token)]))
""",
    "Does a text belong to a picture? Higher is likelier, 0 is even": """
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, ViltForImageAndTextRetrieval
from transformers.utils import cached_file

name = "..."
model, processor = ViltForImageAndTextRetrieval.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
heads = load_file(cached_file(name, "pretraining/heads.safetensors"))
model.rank_output.load_state_dict({{"weight": heads["match.weight"], "bias": heads["match.bias"]}})
picture = Image.open(cached_file(name, "figures/example.png")).convert("RGB")
for text in ("a text", "another one"):
    print(text, model(**processor(text=text, images=picture, return_tensors="pt")).logits.item())
""",
    "Features of text and picture. transformers returns the patches after the words, in random order": """
from PIL import Image
from transformers import AutoModel, AutoProcessor
from transformers.utils import cached_file

name = "..."
model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
picture = Image.open(cached_file(name, "figures/example.png")).convert("RGB")
output = model(**processor(text="a text", images=picture, return_tensors="pt"))
print(output.pooler_output.shape, output.last_hidden_state.shape)
""",
}


class LXMERT(Method):
    """
    model:       encoder and masked language model.
    tokenizer:   WordPiece, with a mask token.
    views:       one view of each image, in training.
    counts:      (vocabulary,), how often each token occurs in the training captions; None: all equally often.
    share:       fraction of the tokens that is masked, in whole words.
    rarity:      a word is masked in proportion to its count to the power of -rarity; 0: all words alike.
    patch_share: fraction of the patches that is masked.
    compared:    fraction of the training pairs that is shown whole, for matching, see data.image_text.swapped.
    dropout:     in training, for all dropout of the model; the exported config keeps its usual values.
    """

    unit = "pairs"

    def __init__(
        self,
        model: ViltForMaskedLM,
        tokenizer: PreTrainedTokenizerBase,
        views: Views,
        counts: Tensor | None = None,
        share: float = 0.4,
        rarity: float = 0.5,
        patch_share: float = 0.15,  # section 3.1.1 and 3.1.2: of words and of objects
        compared: float = 0.5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.views = model, views
        self.share, self.patch_share, self.compared = share, patch_share, compared
        self.mask_token, self.vocab_size, self.max_length = tokenizer.mask_token_id, len(tokenizer), longest(model)
        width, patch = model.config.hidden_size, model.config.patch_size
        self.patch_mask = nn.Parameter(0.02 * torch.randn(width))
        self.patch_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3 * patch**2))
        self.match = nn.Linear(width, 1)
        tokens, special = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), tokenizer.all_special_ids
        often = (torch.zeros(len(tokenizer)) if counts is None else counts.double()) + 1
        weight = often**-rarity
        expected = often * weight  # of masked tokens, up to a factor
        expected[special] = 0
        constants = {
            "begins": torch.tensor([not token.startswith("##") for token in tokens]),
            "special": torch.tensor([i in set(special) for i in range(len(tokens))]),
            "weight": weight.float(),
            "unigram": -(expected / expected.sum()).clamp(min=1e-12).log().float(),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        set_dropout(model, dropout)

    def forward(
        self,
        pixel_values: Tensor,
        key: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        compared: Tensor,
        matched: Tensor,
    ) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which views and masks are drawn.
        input_ids, attention_mask: (batch, length). compared: (batch,) bool, True = shown whole. matched: (batch,) bool,
        False where the picture is another's."""
        pixels = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        predicted, places = ~compared, self.hide(key)
        chosen = self.choose(key, input_ids, attention_mask) & predicted[:, None]
        hidden = torch.zeros(len(key), self.patches, dtype=torch.bool, device=key.device).scatter_(1, places, True)
        seen = masking.corrupt(key, input_ids, chosen, self.mask_token, self.vocab_size)
        text, patches, pooled = self.encode(seen, attention_mask, pixels, hidden & predicted[:, None])
        logits, restored = self.model.mlm_score(text[chosen]), self.patch_head(at(patches, places)[predicted])
        with torch.autocast(pixels.device.type, enabled=False):
            # divided by the expected number of such pairs, not by that in this batch: so the losses of micro-batches
            # and processes average to that of the whole batch
            each = 1 / (len(key) * (1 - self.compared))
            weight, targets = sequence_mean(chosen)[chosen] / (1 - self.compared), input_ids[chosen]
            of_words, right = cross_entropy_(logits.float(), targets, weight)
            target = at(standardise(patchify(pixels.float(), self.model.config.patch_size))[0], places)[predicted]
            of_patches = each * (restored.float() - target).square().mean((1, 2)).sum()
            score, share = self.match(pooled.float())[:, 0], compared / (len(key) * self.compared)
            of_matching = F.binary_cross_entropy_with_logits(score, matched.float(), share, reduction="sum")
            trivial = self.unigram[targets] @ weight + each * target.square().mean((1, 2)).sum() + share.sum() * LOG_2
            metrics = {
                "word_loss": of_words.detach(),
                "patch_loss": of_patches.detach(),
                "match_loss": of_matching.detach(),
                "word_accuracy": right.float() @ weight / weight.sum().clamp(min=1e-6),
                "match_accuracy": ((score > 0) == matched).float() @ share / share.sum().clamp(min=1e-6),
            }
        loss = of_words + of_patches + of_matching
        return Output(loss, metrics, pooled.detach().float(), trivial.detach())

    def choose(self, key: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, length) bool: the tokens to mask."""
        maskable = ~self.special[input_ids] & attention_mask.bool()
        begins, weight = self.begins[input_ids], self.weight[input_ids]
        return masking.choose(key, maskable, begins, self.share, "words", attention_mask.sum(1), weight)

    def hide(self, key: Tensor) -> Tensor:
        """(batch, masked) int64: the patches to mask."""
        drawn = draws.uniform(key[:, None], PATCHES + torch.arange(self.patches, device=key.device))
        return drawn.argsort(1)[:, : max(1, round(self.patch_share * self.patches))]

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(text (batch, length, width), patches (batch, patches, width), pooled (batch, width)).

        pixels: (batch, 3, height, width), normalised. hidden: (batch, patches) bool, True = masked. Not through the
        model's own embedding of pictures, which shuffles the patches and cannot mask them.
        """
        embeddings = self.model.vilt.embeddings
        patches = embeddings.patch_embeddings(pixels).flatten(2).mT
        if hidden is not None:
            patches = torch.where(hidden[..., None], self.patch_mask.to(patches.dtype), patches)
        patches = torch.cat([embeddings.cls_token.expand(len(patches), -1, -1), patches], 1)
        patches = patches + embeddings.position_embeddings
        output = self.model.vilt(
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_embeds=embeddings.dropout(patches),
            pixel_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device),
        )
        text, image = output.last_hidden_state.split([input_ids.shape[1], patches.shape[1]], dim=1)
        return text, image[:, 1:], output.pooler_output

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return self.model.vilt.embeddings.patch_embeddings.num_patches

    @property
    def card(self) -> Card:
        return Card(
            about="LXMERT over image patches: some words of a caption and some patches of its picture are masked and "
            "predicted from both, and the model tells whether a picture belongs to a text. A `ViltForMaskedLM`; the "
            "head that scores a text and a picture is in `pretraining/`.",
            task="fill-mask",
            limits="The model knows only what its training pairs show and name. It was not trained on texts of more "
            f"than {self.max_length} tokens.",
            trivial="token frequencies, mean patch, even odds",
            snippets=SNIPPETS,
            fill=True,
            tags=("lxmert", "vilt"),
            auto_class="ViltForMaskedLM",
        )
