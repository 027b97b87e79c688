"""DeepCluster: trains on unlabelled images by clustering them, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/deepcluster.py                                 # scikit-learn's digits, built in
accelerate launch recipes/deepcluster.py --dataset my_folder --encoder resnet18 --image_size 96 --clusters 1000
accelerate launch recipes/deepcluster.py --dataset my_folder --edges     # without colours, as in the paper

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seed 0, 21 minutes of one core of an EPYC (Zen 5) in bf16,
with other work beside it; recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear
56.7, k-NN 50.8. Before training 42.8, 40.1; raw pixels 41.0, 33.9; SimCLR 62.0, 60.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import numbered, pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.deepcluster import DeepCluster
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class DeepclusterArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/deepcluster", "where the encoder, log, figures and checkpoints go")
    clusters: int = flag(100, "number of clusters, about 10 times that of the classes", at_least=2, at_most=10**6)
    pca_dim: int = flag(64, "dimensions that features are reduced to for clustering", at_least=1, at_most=16384)
    cluster_every: int = flag(4, "epochs between two clusterings", at_least=1)
    edges: bool = flag(False, "the encoder sees only the edges of the grey image (Sobel filter)")
    smallest_crop: float = flag(0.2, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(95, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-4, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: DeepclusterArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    images = numbered.Numbered(train)
    view = views.made_for(processor, [views.simclr(source.side, (args.smallest_crop, 1.0))])
    method = DeepCluster(encoder, view, images, args.clusters, args.pca_dim, args.cluster_every, args.edges)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, images, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, DeepclusterArgs, __doc__)
