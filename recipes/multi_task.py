"""Multi-task: several self-supervised methods train one image encoder, each with its own data and head.

accelerate launch recipes/multi_task.py                              # rotation and SimCLR on scikit-learn's digits
accelerate launch recipes/multi_task.py --dataset my_folder --tasks rotation colorization simclr --order turns
accelerate launch recipes/multi_task.py --dataset my_folder --tasks simclr colorization=my_coloured_folder

A task may have data of its own, NAME=DATA. With colorization among the tasks, all of them see grey images. Alone
(--tasks rotation), a task is the method of its own recipe.

Several tasks against each alone, at equal cost: 20,000 images of CIFAR-10, as many views in each run (rotation 6
passes of one view, SimCLR 3 of two, both summed 2 of three, by turns 4), resnet-micro in bf16, seed 0; then
recipes/transfer.py --labels 10% with three draws of the labels, k-NN / linear probe, accuracy in per cent:

                        CIFAR-10       Fashion-MNIST   MNIST (5,000)
    untrained           32.1 / 37.6     71.6 / 76.7     84.0 / 87.8
    rotation            43.8 / 48.4     73.3 / 80.0     85.7 / 92.2
    SimCLR              43.8 / 47.4     73.8 / 79.7     78.4 / 90.2
    mean of these two   43.8 / 47.9     73.6 / 79.9     82.1 / 91.2
    both, summed        43.5 / 46.4     73.0 / 78.5     83.3 / 91.4
    both, by turns      46.0 / 47.5     73.9 / 79.4     83.1 / 92.1

By turns, k-NN is above the mean of the two in all three, and above both in two; the linear probe only in one. The sum
is above their mean in one. In so short a run, two tasks are no better than the better one with twice the steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.data.joined import Joined
from mmssl.errors import BadInput
from mmssl.evaluation.held_out import HeldOut
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods import colorization, multi_task, rotation, simclr, vicreg
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

PLAIN = views.View(scale=(0.5, 1.0), jitter=0.0, grey=0.0)
TASKS = {  # name -> number of views of an image; the method, of the encoder, its views and its training images
    "rotation": (1, lambda encoder, shown, images: rotation.Rotation(encoder, shown)),
    "colorization": (1, lambda encoder, shown, images: colorization.Colorization(
        encoder, shown, colorization.count_colours(images, shown))),
    "simclr": (2, lambda encoder, shown, images: simclr.SimCLR(encoder, shown)),
    "vicreg": (2, lambda encoder, shown, images: vicreg.VICReg(encoder, shown, 1024)),
}  # fmt: skip


@dataclass
class MultiTaskArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/multi_task", "where the encoder, log, figures and checkpoints go")
    tasks: list[str] = flag(["rotation", "simclr"], f"of {', '.join(TASKS)}; NAME=DATA for data of its own")
    order: str = flag("sum", "sum the losses of all tasks, or train one task at each step", multi_task.ORDERS)

    num_train_epochs: float = flag(20, "passes over the larger of the data sets")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-3, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [each.partition("=")[0] for each in self.tasks]
        if wrong := [name for name in names if name not in TASKS or names.count(name) > 1]:
            raise BadInput(f"--tasks {wrong[0]}: give each task once; there are {', '.join(TASKS)}")


def main(args: MultiTaskArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    tasks, training, held_out = {}, {}, {}
    shared = source.decoded(processor, args) if any("=" not in each for each in args.tasks) else None
    for name, _, data in (each.partition("=") for each in args.tasks):
        own = replace(args, dataset=data, model_name_or_path=None) if data else args
        training[name], held_out[name] = pictures.find(own).decoded(processor, own) if data else shared
        number, build = TASKS[name]
        view = PLAIN if number == 1 else views.simclr(source.side, (0.2, 1.0))
        tasks[name] = build(encoder, views.made_for(processor, [view] * number), training[name])
    method, first = multi_task.MultiTask(tasks, args.order), next(iter(tasks))
    evaluation = Neighbours(held_out[first], processor, args.per_device_train_batch_size, Joined(held_out))
    evaluation.units = HeldOut.units
    data = pictures.described(training[first], held_out[first])
    if others := [each for each in args.tasks if "=" in each]:
        data["trained_on"] += f" ({', '.join(others)})"
    optimizer = optim.from_args(method, args)
    joined = Joined(training, args.seed)
    pretrain(args, method, processor, joined, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, MultiTaskArgs, __doc__)
