"""Transfer: evaluates any checkpoint of images, video, text or audio on labelled data, with baselines.

python recipes/transfer.py --model_name_or_path runs/mae --dataset digits --mode knn linear
python recipes/transfer.py --model_name_or_path runs/mae --dataset my_folder --mode finetune --labels 1% 10% 100%
python recipes/transfer.py --model_name_or_path runs/bert --dataset sst2 --mode linear --layers all
python recipes/transfer.py --model_name_or_path runs/mae --dataset digits --mode few_shot --ways 5 --shots 1 5
python recipes/transfer.py --model_name_or_path runs/rotation --dataset digits --mode layer_transfer --labels 10%
python recipes/transfer.py --model_name_or_path runs/videomae --dataset my_videos --label_column which_video

Prints a table of accuracies, mean and standard deviation over seeds; each seed draws its own labels. Columns: this
checkpoint; the same architecture untrained (in fine-tuning: trained from scratch with the same steps); raw features
(pixels, tf-idf, log-mel) with the same probe (in fine-tuning: with the linear probe); chance. If the checkpoint is a
directory with a model card, the table and its figure are added to the card.

Layer transfer copies the lowest 1, 2, ... layers from this checkpoint, from the network trained on the same labels, and
from one before training; draws the others anew; and trains on the labels, with the copied layers frozen or fine-tuned
(AnB, BnB; AnB+, BnB+ of Yosinski et al. 2014). Its figure shows in which layers there is what was learned.

Fine-tuning initialises the head with the linear probe, because a new head is worse than the probe when labels are few:
word2vec on IMDb with 100 and 1,000 labels, three seeds: new head 68.2 and 66.9; head from the probe 76.2 and 83.0; the
probe alone 73.2 and 82.2. With 5,000 labels or more, a tenth of the labels is held out, and the best of 20 evaluations
on it is kept, the first of which is the probe. Of fewer labels, more are lost than gained: a ModernBERT
(recipes/bert.py, sequences of 256, a run of 25 minutes on a Zen 4) on SST-2 with 1,000 labels, 200 steps, three seeds:
74.7 ± 1.0, without holding out 78.4 ± 0.4. For several seeds, 95 % intervals of the means are printed and kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import command, flag
from mmssl.evaluation import features
from mmssl.evaluation.downstream import transfer

MODES = ("knn", "linear", "finetune", "few_shot", "layer_transfer")
OF_TRAINING = ("num_train_epochs", "max_steps", "learning_rate", "weight_decay", "augmentation", "early_stopping")
OF_FINE_TUNING = ("layer_decay", "freeze_layers")


@dataclass
class TransferArgs(features.CheckpointArgs):
    model_name_or_path: str = flag("runs/mae", "a directory or a Hub id; it decides the modality")
    dataset: str = flag("digits", "labelled data: a built-in name, file, folder or Hub id")
    output_dir: str = flag(
        "runs/transfer", "where the figures and the results go; those of other flags are not replaced"
    )
    mode: list[str] = flag(
        ["knn", "linear"],
        "evaluations, one or several; layer_transfer copies the lowest layers, one after another",
        MODES,
    )
    labels: list[str] = flag(
        ["1%", "10%", "100%"],
        "how many training labels are used, a row of the table for each: percentages of each class (10%; at least one "
        "label of each), or numbers per class (20)",
    )
    held_out: int = flag(1000, "rows to test on if the data has no test split (at most a tenth)", at_least=1)
    max_samples: int = flag(
        0,
        "at most so many training rows and as many test rows, drawn at random, always the same ones; 0: all",
        at_least=0,
    )
    batch_size: int = flag(64, "examples at a time; also the batch of a step of fine-tuning")
    seeds: int = flag(
        3, "number of seeds; each draws its own labels and, in fine-tuning, new weights", at_least=1, at_most=10**6
    )
    baselines: list[str] = flag(
        ["untrained", "raw", "chance"], "columns beside this checkpoint's; untrained and raw take most of the time",
        ("untrained", "raw", "chance", "none"),
    )  # fmt: skip
    layers: str = flag("last", "layers to probe: last or all", ("last", "all"))
    pooling: str = flag(
        "auto", "pooling of tokens; auto: the pooler for one tower of an image–text model, else the mean",
        ("auto", "mean", "first", "concat", "pooler"),
    )  # fmt: skip
    tower: str = flag("vision", "encoder to use of an image–text model", ("vision", "text"))
    input_column: str | None = flag(None, "column of inputs; default: the first column with a usual name")
    label_column: str | None = flag(None, "column of labels; default: the first column with a usual name")
    hold_out: str | None = flag(None, "test on exactly the rows with these values: speaker=theo,lucas")
    max_length: int = flag(256, "largest number of tokens of a text", at_least=1)
    max_seconds: float = flag(10.0, "largest length of a recording", above=0)
    ways: int = flag(5, "classes per few-shot episode", at_least=2)
    shots: list[int] = flag([1, 5], "labels per class in a few-shot episode", at_least=1)
    episodes: int = flag(600, "number of few-shot episodes", at_least=1)
    num_train_epochs: float = flag(
        10.0, "passes over the labels in fine-tuning, which has at least 300 steps", above=0, at_most=10**6
    )
    max_steps: int = flag(-1, "steps of fine-tuning; above 0 it overrides the passes and the 300 steps", at_least=-1)
    learning_rate: float = flag(1e-3, "learning rate of the head in fine-tuning", above=0, at_most=1e4)
    layer_decay: float = flag(
        0.75, "learning rate of each layer as a fraction of the layer above, in fine-tuning", above=0, at_most=1
    )
    freeze_layers: int = flag(
        0, "number of lowest layers that fine-tuning does not train; the embeddings count as one", at_least=0
    )
    weight_decay: float = flag(0.05, "weight decay in fine-tuning", at_least=0, at_most=100)
    early_stopping: bool = flag(
        True,
        "with 5,000 labels or more, 10 of each class: keep the weights that are best on a tenth that is not trained on",
    )
    augmentation: str = flag("crop", "augmentation of images in fine-tuning", tuple(transfer.AUGMENTATIONS))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mode, self.labels = [*dict.fromkeys(self.mode)], [*dict.fromkeys(self.labels)]
        modes = f"--mode {' '.join(self.mode)}"
        if "finetune" not in self.mode:
            self.refuse(OF_FINE_TUNING if "layer_transfer" in self.mode else OF_TRAINING + OF_FINE_TUNING, modes)
        if "few_shot" not in self.mode:
            self.refuse(("ways", "shots", "episodes"), modes)
        if set(self.mode) == {"few_shot"}:
            self.refuse(("labels", "seeds"), f"{modes}, which draws episodes of --shots labels")
        if {*self.mode} <= {"finetune", "layer_transfer"}:
            self.refuse(("layers",), modes)
        if self.hold_out:
            self.refuse(("held_out",), f"--hold_out {self.hold_out}")


main = transfer.main

if __name__ == "__main__":
    command(main, TransferArgs, __doc__)
