"""BiGAN: trains on unlabelled images, leaves an encoder that inverts a generator (ResNetModel or ViTModel).

accelerate launch recipes/bigan.py                                        # scikit-learn's digits, built in
accelerate launch recipes/bigan.py --dataset my_folder --image_size 64 --flip 0.5

The first command with --max_steps 930 (10 more), seed 0, three and a half minutes of one core of an EPYC (Zen 5) in
bf16; held-out digits, after training, before, real images: cosine of a code and of what the encoder makes of its image
.34, .00; Frechet distance .58, 14.4, .11; confidence of a classifier of real digits of 32 pixels 56.9 %, 5.6, 88.5; 9
of 10 classes covered. With encoder and generator at 1e-3 and the discriminator at 1e-4 the encoder outruns what the
discriminator knows of codes: on CIFAR-10 the cosine was .00 after 936 steps, and the reconstructions of all images were
alike.

20,000 images of CIFAR-10, 4,000 test images, recipes/transfer.py --mode knn linear --labels 100%, per cent:

                                                            steps   linear   k-NN   code recovered   Frechet distance
    before training                                             0     42.8   40.1              .00               10.1
    --flip 0.5, codes of 16                                 3,744     42.1   34.8              .16               1.08
    --flip 0.5 --noise_dim 64                               3,744     41.8   35.6              .01                .77
    --flip 0.5 --noise_dim 64 --learning_rate 5e-4
    --code_error 1 --image_error 1                          1,899     43.3   42.0              .41               7.37

Without the errors of codes and images, the encoder is not better than before training in so few steps; the paper's has
about 100,000. With them it is, and inverts the generator better, but the discriminator wins and the generated images
are bad, probably because a code that tells more of its image is less like noise. On a validation part, 1,590 steps with
the error of codes alone gave 41.7 and 38.7 (before 42.2 and 38.2); with that of images alone, from which the generator
learned, too, 42.1 and 39.3. The rows of 3,744 steps are of an EPYC (Zen 5), 14 minutes of one core; the last one is of
a Xeon, 35 minutes beside other work. Real training images have a Frechet distance of .28.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import decoding, pictures, views
from mmssl.evaluation.generated import Generated, GeneratedArgs
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.bigan import BiGAN
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim, steps

DISCRIMINATOR = "bit-micro"
SHOWN = (
    "Held-out images, what the generator makes of their codes, and images generated from the same noise in every run."
)


@dataclass
class BiganArgs(GeneratedArgs, image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/bigan", "where the encoder, log, figures and checkpoints go")
    noise_dim: int = flag(16, "numbers in a code", at_least=1, at_most=16384)
    hidden_dim: int = flag(512, "width of the discriminator's last layers", at_least=1, at_most=16384)
    generator_width: int = flag(32, "channels of the generator at half the side", at_least=1, at_most=1024)
    translation: float = flag(0.04, "largest shift of what the discriminator sees", at_least=0, below=1)
    code_error: float = flag(0.0, "weight of the error of generated images' codes", at_least=0, at_most=10**4)
    image_error: float = flag(0.0, "weight of the error of images made of codes", at_least=0, at_most=10**4)
    flip: float = flag(0.0, "probability of a horizontal flip; 0 for digits and letters", at_least=0, at_most=1)

    per_device_train_batch_size: int = flag(64, "images per process in one micro-batch")
    num_train_epochs: float = flag(40, "passes over the data")
    learning_rate: float = flag(2e-4, "peak learning rate of the encoder")
    generator_learning_rate: float = flag(1e-3, "peak learning rate of the generator", above=0, at_most=1e4)
    discriminator_learning_rate: float = flag(2e-4, "peak learning rate of the discriminator", above=0, at_most=1e4)
    adam_beta1: float = flag(0.5, "AdamW's beta1")  # appendix C.1
    lr_scheduler_type: str = flag("constant", "schedule after the warm-up", ("cosine", "linear", "constant"))


def main(args: BiganArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    shape, view = decoding.shape(processor), views.made_for(processor, [views.whole(args.flip)])
    trunk, _ = image_encoders.from_scratch(DISCRIMINATOR, max(shape))
    sizes = args.noise_dim, args.generator_width, args.hidden_dim, args.translation
    errors = args.code_error, args.image_error
    method = BiGAN(encoder, trunk, view, shape, *sizes, *errors)
    discriminator, others = method.players()
    optimizers = [
        optim.from_args(discriminator, args, rates={discriminator: args.discriminator_learning_rate}),
        optim.from_args(others, args, rates={method.generator: args.generator_learning_rate}),
    ]
    batch, unused = args.per_device_train_batch_size, {"code_recovered": 0.0}
    own = Neighbours(held_out, processor, batch, task=SHOWN, chance=unused)
    evaluation = Generated(own, args, train, held_out, processor)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, optimizers, evaluation, step=steps.alternating, **data)


if __name__ == "__main__":
    command(main, BiganArgs, __doc__)
