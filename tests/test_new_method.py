"""A method that is added needs a file of its own, a recipe, a tiny form and a test: here the first two, outside of the
package, go from the command line to a proved export."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from processes import Processes
from transformers import AutoModel, AutoModelForImageClassification

METHOD = '''
"""Brightness: say how bright each of two views of an image is."""

import torch.nn.functional as F
from torch import nn

from mmssl.method import Card, Method, Output
from mmssl.models import image_encoders


class Brightness(Method):
    unit = "images"
    card = Card(about="Brightness: say how bright each view is.", snippets=image_encoders.SNIPPETS, tags=("toy",))

    def __init__(self, encoder, views):
        super().__init__()
        self.encoder, self.views, self.head = encoder, views, nn.Linear(image_encoders.width(encoder), 1)

    def forward(self, pixel_values, key):
        (view,) = self.views(pixel_values, key)
        features = image_encoders.features(self.encoder, view)
        bright = view.mean((1, 2, 3))
        loss = F.mse_loss(self.head(features)[:, 0].float(), bright)
        return Output(loss, {}, features.detach().float(), trivial_loss=bright.var(unbiased=False))

    def exported(self):
        return self.encoder
'''

RECIPE = '''
"""Brightness on images."""

from __future__ import annotations

from dataclasses import dataclass

from brightness import Brightness

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class BrightnessArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/brightness", "where the encoder goes")


def main(args: BrightnessArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    method = Brightness(encoder, views.Views([views.SIMCLR], processor.image_mean, processor.image_std))
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, 64)
    pretrain(args, method, processor, train, [optimizer], evaluation, **pictures.described(train, held_out))


if __name__ == "__main__":
    command(main, BrightnessArgs, __doc__)
'''


def run(place: Path, *flags: str) -> None:
    sys.path.insert(0, str(place))
    sys.argv = [str(place / "recipe.py"), *flags]
    exec(
        compile((place / "recipe.py").read_text(), place / "recipe.py", "exec"), {"__name__": "__main__", "__doc__": ""}
    )


def test_a_toy_method_goes_from_its_recipe_to_a_proved_export(tmp_path):
    (tmp_path / "brightness.py").write_text(METHOD)
    (tmp_path / "recipe.py").write_text(RECIPE)
    flags = f"--output_dir {tmp_path}/run --max_steps 60 --per_device_train_batch_size 64 --use_cpu"
    said = Processes(run, tmp_path, *flags.split(), log=tmp_path / "log.txt").succeed()
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
    assert results["trained"]["loss"] < results["untrained"]["loss"]
    assert {"knn_accuracy", "loss"} <= results["trained"].keys() and "raw pixels" in results and "loss" in said
    assert type(AutoModel.from_pretrained(tmp_path / "run")).__name__ == "ResNetModel"
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run", num_labels=3)
    assert model.config.num_labels == 3 and (tmp_path / "run" / "figures" / "neighbours.png").exists()
