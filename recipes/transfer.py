"""What an encoder is worth downstream: any checkpoint of images, text or audio, on labelled data, beside its baselines.

python recipes/transfer.py --model_name_or_path runs/mae --dataset digits --mode knn linear
python recipes/transfer.py --model_name_or_path runs/mae --dataset my_folder --mode finetune --labels 1% 10% 100%
python recipes/transfer.py --model_name_or_path runs/bert --dataset sst2.parquet --mode linear --layers all
python recipes/transfer.py --model_name_or_path runs/mae --dataset digits --mode few_shot --ways 5 --shots 1 5

Columns: this checkpoint; the same architecture untrained (fine-tuned: from scratch, as long and as hard); raw features
(pixels, tf-idf, log-mel) under the same probe (fine-tuned: the linear one); chance. Mean and standard deviation over
seeds, each with labels of its own. Where the checkpoint is a directory with a model card, the table and its figure are
added to the card.

Fine-tuning begins with the linear probe as its head. A new head loses to that probe where labels are few: word2vec on
IMDb, 100 and 1,000 labels, three seeds, 68.2 and 66.9; so 76.2 and 83.0; the probe alone 73.2 and 82.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import command, flag
from mmssl.evaluation import features
from mmssl.evaluation.downstream import transfer

MODES = ("knn", "linear", "finetune", "few_shot")
OF_FINE_TUNING = ("max_steps", "learning_rate", "layer_decay", "freeze_layers", "weight_decay", "augmentation")


@dataclass
class TransferArgs(features.CheckpointArgs):
    model_name_or_path: str = flag("runs/mae", "a directory or a Hub id; what it reads decides the modality")
    dataset: str = flag("digits", "labelled: a built-in name, file, folder or Hub id")
    output_dir: str = flag("runs/transfer", "where the figures and the results go")
    mode: list[str] = flag(["knn", "linear"], "how to judge; several may be given", MODES)
    labels: list[str] = flag(["1%", "10%", "100%"], "shares of the training labels, or a number for each class")
    seeds: int = flag(3, "draws of labels and of new weights", at_least=1, at_most=10**6)
    layers: str = flag("last", "all: a probe at each layer", ("last", "all"))
    pooling: str = flag(
        "auto", "of tokens; auto: pooler for a tower of two, else mean", ("auto", "mean", "first", "concat", "pooler")
    )
    tower: str = flag("vision", "of an image–text model", ("vision", "text"))
    input_column: str | None = flag(None, "default: the first column with a usual name")
    label_column: str | None = flag(None, "default: the first column with a usual name")
    hold_out: str | None = flag(None, "test on these rows, and on no others: speaker=theo,lucas")
    max_length: int = flag(256, "tokens of a text, at most", at_least=1)
    max_seconds: float = flag(10.0, "of a recording, at most", above=0)
    ways: int = flag(5, "classes of a few-shot episode", at_least=2)
    shots: list[int] = flag([1, 5], "labels of each class in an episode", at_least=1)
    episodes: int = flag(600, "few-shot tasks", at_least=1)
    max_steps: int = flag(300, "of fine-tuning, for any number of labels", at_least=1)
    learning_rate: float = flag(1e-3, "of fine-tuning, of the head", above=0, at_most=1e4)
    layer_decay: float = flag(0.75, "of fine-tuning: each layer's rate, in that of the one above", above=0, at_most=1)
    freeze_layers: int = flag(
        0, "of fine-tuning: the first n, of which the embeddings are one, stay as they are", at_least=0
    )
    weight_decay: float = flag(0.05, "of fine-tuning", at_least=0, at_most=100)
    augmentation: str = flag("crop", "of images, in fine-tuning", tuple(transfer.AUGMENTATIONS))

    def __post_init__(self) -> None:
        super().__post_init__()
        modes = f"--mode {' '.join(self.mode)}"
        if "finetune" not in self.mode:
            self.refuse(OF_FINE_TUNING, modes)
        if "few_shot" not in self.mode:
            self.refuse(("ways", "shots", "episodes"), modes)
        if set(self.mode) == {"few_shot"}:
            self.refuse(("labels", "seeds"), f"{modes}, which draws episodes of --shots labels")
        if set(self.mode) == {"finetune"}:
            self.refuse(("layers",), modes)
        if self.hold_out:
            self.refuse(("held_out",), f"--hold_out {self.hold_out}")


if __name__ == "__main__":
    command(transfer.main, TransferArgs, __doc__)
