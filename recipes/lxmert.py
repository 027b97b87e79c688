"""LXMERT over image patches: masked words, masked patches and matching of image–text pairs, leaves a ViltForMaskedLM.

accelerate launch recipes/lxmert.py                                   # 1,689 captioned emoji, built in
accelerate launch recipes/lxmert.py --dataset my_folder --augmentation photo --image_size 112 --patch_size 16
accelerate launch recipes/lxmert.py --dataset my_folder --vision_model_name_or_path runs/clip     # from its layers
accelerate launch recipes/lxmert.py --dataset my_folder --model_name_or_path dandelin/vilt-b32-mlm        # continue

6,000 photographs of Flickr8k with five captions each (--dataset flickr8k --augmentation photo --mlm_probability 0.5
--rarity 1 --compared 0.25 --max_steps 4500), seed 0, 30 minutes of one core of a Xeon (AMX) in bf16, beside other work;
and as much started from the image encoder of a CLIP trained on the same pairs (the run on Flickr8k in
recipes/README.md, ten minutes of both cores; --vision_model_name_or_path). 1,000 held-out photographs, in per cent:

                                                  new    from CLIP   untrained   most frequent word or chance
    masked words, the caption's own picture      18.1         17.9         0.0                            0.0
    masked words, one of the mean colour         14.2         13.9         0.0
    masked words, another caption's picture      14.0         13.3         0.0
    whether picture and caption belong together  69.1         72.0        50.7                           50.0
    R@10 of 100, image to text                   34.0         38.0        14.0                           10.0
    R@10 of 100, text to image                   30.0         34.0         9.0                           10.0

The right picture helps by 3.9 and 4.0 points, and a wrong one is 4.1 and 4.6 below it: no better than none. A second
seed of the new model (--seed 1): 17.8, 13.5 and 14.1, matching 70.4. With fewer rare words among the masked ones
(--rarity 0.5), images of 96 pixels and patches of 16 the differences were smaller: the three were 20.8, 18.1 and 18.1
(--mlm_probability 0.4 --compared 0.5, 37 minutes of an EPYC (Zen 4)), with --mlm_probability 0.6 --compared 0.25 20.4,
17.4 and 17.5, and with 0.8 22.2, 19.1 and 20.0. Training pictures are described no better than held-out ones: the model
is limited by what it sees of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.image_text import pairs
from mmssl.data.image_text.swapped import Swapped
from mmssl.data.images import decoding, views
from mmssl.data.text.tokens import Tokens
from mmssl.evaluation.grounding import Grounding
from mmssl.methods import lxmert
from mmssl.models import vilt
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

AUGMENTATIONS = {"emoji": views.EMOJI, "photo": views.PHOTO, "none": views.WHOLE}


@dataclass
class LxmertArgs(TrainArgs):
    output_dir: str = flag("runs/lxmert", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("emoji", "emoji (built in), a Parquet file, a folder of images with captions, or a Hub id")
    image_column: str | None = flag(None, "column of images; default: the first column with a usual name")
    caption_column: str | None = flag(
        None, "column of captions, each a string or a list of them; default: the first with a usual name"
    )
    held_out: int = flag(1000, "pairs held out if the data has no test split (at most a tenth)", at_least=1)
    model_name_or_path: str | None = flag(None, "a ViLT to continue from; default: from scratch")
    vision_model_name_or_path: str | None = flag(
        None,
        "an image encoder (ViT or CLIP) whose sizes, patches, positions and layers a new model starts from",
        of_new_model=True,
    )
    image_size: int = flag(72, "side of images in pixels", at_least=1, at_most=2048, of_new_model=True)
    patch_size: int = flag(12, "side of patches in pixels", at_least=1, at_most=2048, of_new_model=True)
    width: int = flag(192, "width, a multiple of 32", at_least=32, at_most=16384, of_new_model=True)
    layers: int = flag(4, "number of layers", at_least=1, at_most=200, of_new_model=True)
    vocab_size: int = flag(
        4000, "size of a new tokenizer, trained on the captions", at_least=16, at_most=10**6, of_new_model=True
    )
    max_length: int = flag(40, "largest number of tokens of a caption", at_least=3, at_most=8192)
    mlm_probability: float = flag(0.4, "fraction of the tokens that is masked, in whole words", above=0, below=1)
    rarity: float = flag(
        0.5,
        "how strongly rare words are preferred in masking: a word's chance is in proportion to 1 / its count to this "
        "power; 0: all words alike",
        at_least=0,
        at_most=1,
    )
    masked_patches: float = flag(0.15, "fraction of the patches that is masked; 1: no picture", above=0, at_most=1)
    compared: float = flag(
        0.5, "fraction of the pairs shown whole for matching, half of them with another's picture", above=0, below=1
    )
    augmentation: str = flag(
        "emoji", "training images: moved and recoloured drawings (emoji), crops and flips (photo), or whole (none)",
        AUGMENTATIONS,
    )  # fmt: skip
    streaming: bool = flag(False, "read and decode pairs where they lie, during training, for data beyond the disk")

    num_train_epochs: float = flag(60, "passes over the data")
    per_device_train_batch_size: int = flag(64, "pairs per process in one micro-batch")
    weight_decay: float = flag(0.01, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.1, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if name := self.vision_model_name_or_path:
            self.refuse(vilt.SIZES, f"--vision_model_name_or_path {name}: the encoder decides them")


def main(args: LxmertArgs) -> None:
    start(args)
    source = pairs.find(args.dataset, args.image_column, args.caption_column, args.held_out, args.streaming)
    captions = source.captions()
    model, processor = vilt.build(args, captions)
    length = min(args.max_length, processor.tokenizer.model_max_length)
    held_out = pairs.Pairs(source.held_out, processor, length, *source.columns, what="held-out images")
    known = source.training(processor, length, args.dataloader_num_workers, seed=args.seed)
    tokens = Tokens(captions, processor.tokenizer, length)

    view = views.sized(AUGMENTATIONS[args.augmentation], processor.image_processor)
    method = lxmert.LXMERT(
        model,
        processor.tokenizer,
        views.Views([view], *decoding.normalisation(processor.image_processor)),
        torch.bincount(tokens.ids.long(), minlength=len(processor.tokenizer)),
        args.mlm_probability,
        args.rarity,
        args.masked_patches,
        args.compared,
    )
    evaluation = Grounding(held_out, processor.tokenizer)
    optimizer = optim.from_args(method, args)
    pretrain(
        args, method, processor, Swapped(known, args.seed, args.compared), [optimizer], evaluation,
        trained_on=f"{len(known):,} pairs", held_out=f"{len(held_out):,} images", example=evaluation.example(),
    )  # fmt: skip


if __name__ == "__main__":
    command(main, LxmertArgs, __doc__)
