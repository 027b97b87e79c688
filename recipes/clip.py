"""CLIP: trains on image-text pairs, leaves a CLIPModel for zero-shot classification and retrieval.

accelerate launch recipes/clip.py                                  # 1,689 captioned emoji, built in
accelerate launch recipes/clip.py --dataset my_folder              # your own pairs; README.md lists the formats
accelerate launch recipes/clip.py --model_name_or_path openai/clip-vit-base-patch32 --dataset my_folder   # continue

The first command takes 2,184 steps, nine minutes on one core or half of that on two. On 200 held-out emoji, in per
cent, on an EPYC (Zen 4) in bf16 and on a Xeon in fp32:

                                 Zen 4, bf16                  Xeon, fp32           untrained
    seed                       0     1     2  median     0     1     2  median      (seed 0)   chance
    R@1, mean of both ways  17.8  17.0  17.0    17.0  16.5  18.0  15.5    16.5           0.3      0.5
    R@10                    41.5  39.8  40.3    40.3  39.0  41.5  39.5    39.5           4.3      5.0
    zero-shot, 9 categories 54.0  55.5  53.5    54.0  57.5  53.5  53.5    53.5          12.5     11.1

The largest category holds 17.5 % of the images. What helped: two captions and two image views per step, all compared
with each other, and garbled words in long runs. What did not: a second text layer, patches of 8 pixels, mixup, SLIP's
image term, the sigmoid loss, stronger colour changes. recipes/README.md has these experiments and a run on Flickr8k.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.built_in import emoji
from mmssl.data.image_text import pairs
from mmssl.data.images import decoding, on_demand, views
from mmssl.errors import BadInput
from mmssl.evaluation import zero_shot
from mmssl.evaluation.image_text import Classes, ImageTextEvaluation
from mmssl.methods import clip
from mmssl.models import towers
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

AUGMENTATIONS = {
    "emoji": views.EMOJI,
    "photo": views.PHOTO,  # CLIP's augmentation, section 2.5
    "none": views.WHOLE,
}


@dataclass
class ClipArgs(towers.TowerArgs, TrainArgs):
    output_dir: str = flag("runs/clip", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("emoji", "emoji (built in), a Parquet file, a folder of images with captions, or a Hub id")
    image_column: str | None = flag(None, "column of images; default: the first column with a usual name")
    caption_column: str | None = flag(
        None, "column of captions, a string or a list of strings; default: the first column with a usual name"
    )
    label_column: str | None = flag(None, "column of classes of the held-out images, for zero-shot classification")
    held_out: int = flag(1000, "pairs held out if the data has no test split (at most a tenth)", at_least=1)
    streaming: bool = flag(False, "read and decode pairs where they lie, during training, for data beyond the disk")
    crop_from: str = flag(
        on_demand.DECODED,
        "what crops are cut from, with --streaming: images resized to --image_size, or the stored ones in full size",
        on_demand.CROP_FROM,
    )
    model_name_or_path: str | None = flag(None, "a CLIP to continue from; default: from scratch")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    vision_model_name_or_path: str | None = flag(None, "a pretrained image encoder, to pair with a text encoder")
    text_model_name_or_path: str | None = flag(None, "a pretrained text encoder, to pair with an image encoder")
    freeze: str = flag("none", "tower that is not trained (LiT, arXiv:2111.07991)", ("none", "vision", "text"))
    loss: str = flag("info_nce", "softmax over the batch, or SigLIP's pairwise sigmoid", ("info_nce", "sigmoid"))
    temperature: float | None = flag(
        None, "initial temperature; default: 0.07 (info_nce), 0.1 (sigmoid), or the checkpoint's", at_least=0.01,
        at_most=100,
    )  # fmt: skip
    augmentation: str = flag(
        "emoji", "training images: moved and recoloured drawings (emoji), crops and flips (photo), or whole (none)",
        AUGMENTATIONS,
    )  # fmt: skip
    image_views: int | None = flag(
        None, "augmented views of each image in a step; default: 2 from scratch, else 1", at_least=1, at_most=64
    )
    patch_dropout: float | None = flag(
        None,
        "fraction of patches dropped from each view (FLIP); default: .75 from scratch, else 0",
        at_least=0,
        below=1,
    )
    captions_per_image: int | None = flag(
        None, "captions drawn for each image in a step; default: 2 from scratch, else 1", at_least=1, at_most=64
    )
    first_caption: float = flag(0.5, "probability of the first caption, otherwise any of them", at_least=0, at_most=1)
    word_dropout: float = flag(0.15, "fraction of a training caption's words left out", at_least=0, below=1)
    word_noise: float | None = flag(
        None,
        "fraction of words replaced by random word pieces; default: .15 from scratch, else 0",
        at_least=0,
        at_most=1,
    )
    max_length: int = flag(77, "largest number of tokens of a caption", at_least=3, at_most=8192)

    per_device_train_batch_size: int = flag(64, "pairs per process in one micro-batch")
    num_train_epochs: float = flag(84, "passes over the data")
    weight_decay: float = flag(0.2, "weight decay of matrices; biases and norms have none")
    adam_beta2: float = flag(0.98, "AdamW's beta2")
    warmup_steps: float = flag(0.1, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.vision_model_name_or_path) != bool(self.text_model_name_or_path):
            raise BadInput("--vision_model_name_or_path and --text_model_name_or_path must be given together")
        if self.base_model:
            self.refuse(towers.SIZES, f"{self.base_model}: the checkpoint decides them")
            self.refuse(("word_noise",), f"{self.base_model}, whose tokenizer knows more words than your captions have")
        else:
            self.patch_dropout = 0.75 if self.patch_dropout is None else self.patch_dropout
            self.word_noise = 0.15 if self.word_noise is None else self.word_noise
            self.captions_per_image, self.image_views = self.captions_per_image or 2, self.image_views or 2


def main(args: ClipArgs) -> None:
    start(args)
    label = args.label_column or "category"
    source = pairs.find(
        args.dataset, args.image_column, args.caption_column, args.held_out, args.streaming, label
    )  # fmt: skip
    task = classes(args, source.held_out)
    model, processor = towers.build(args, source.captions)
    if args.freeze != "none":
        towers.freeze(model, args.freeze)
    max_length = towers.max_length(model, args.max_length)

    held_out = pairs.Pairs(source.held_out, processor, max_length, *source.columns, what="held-out images")
    captions = {
        "seed": args.seed, "first_caption": args.first_caption, "word_dropout": args.word_dropout,
        "word_noise": args.word_noise or 0.0, "captions_per_image": args.captions_per_image or 1,
    }  # fmt: skip
    training = source.training(processor, max_length, args.dataloader_num_workers, args.crop_from, **captions)

    image_processor = processor.image_processor
    view = views.sized(AUGMENTATIONS[args.augmentation], image_processor)
    all_views = views.Views([view] * (args.image_views or 1), *decoding.normalisation(image_processor))
    method = clip.CLIP(model, all_views, args.loss, args.temperature, args.patch_dropout or 0.0)
    evaluation = ImageTextEvaluation(held_out, processor.tokenizer, max_length, task)
    optimizer = optim.from_args(method, args)
    pretrain(
        args, method, processor, training, [optimizer], evaluation,
        trained_on=f"{len(training):,} pairs", held_out=f"{len(held_out):,} images",
        example=evaluation.example(),
    )  # fmt: skip


def classes(args: ClipArgs, rows) -> Classes | None:
    """The zero-shot task of the held-out images, or None if they have no labels."""
    is_emoji = args.dataset == "emoji"
    if not (is_emoji or args.label_column):
        return None
    names, label = zero_shot.labels(rows, args.label_column or "category")
    words = {name: emoji.CATEGORY_NAMES[name] if is_emoji else [name.replace("_", " ")] for name in names}
    return Classes(label, words, ["{}"] if is_emoji else zero_shot.TEMPLATES)


if __name__ == "__main__":
    command(main, ClipArgs, __doc__)
