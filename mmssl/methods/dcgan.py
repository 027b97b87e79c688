"""DCGAN: a generator makes images from noise, and a discriminator learns to tell them from real ones.

Goodfellow et al. 2014, arXiv:1406.2661: the players take turns (algorithm 1, with one step of each), and the generator
maximises log D(G(z)) (section 3, "non-saturating"). Radford et al. 2015, arXiv:1511.06434: convolutions, and the
discriminator's features as a representation (section 5). Differs: the discriminator's trunk is a standard encoder;
group norms by default, so that an image does not depend on the others of its batch; noise from N(0, I), a function of
seed, epoch and image; the discriminator sees all images shifted at random (Zhao et al. 2020, arXiv:2006.10738), and the
generator enlarges its maps before each convolution: with neither, the discriminator won within 50 steps on digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from mmssl.data.images.views import Views
from mmssl.method import Card, Method, Output
from mmssl.models import image_encoders
from mmssl.models.adversarial import (
    SHIFT,
    Discriminator,
    discriminator_loss,
    generator_loss,
    spread,
    translated,
    undecided,
)  # fmt: skip
from mmssl.models.decoder import Generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DCGAN(Method):
    """Trained by `steps.alternating`: phase 0 is the discriminator's, phase 1 the generator's.

    encoder:         the discriminator's trunk, an image encoder, see models.image_encoders.
    views:           one view of each image.
    size:            (height, width) of the images.
    noise_dim:       numbers that an image is generated from; 100 in section 4 of 1511.06434.
    generator_width: channels of the generator at half the image's side.
    translation:     largest shift of the images that the discriminator sees, as a fraction of the side; 1/8 in section
                     4.1 of 2006.10738.
    """

    unit = "images"
    card = Card(
        about="DCGAN: a generator makes images from noise, and a discriminator learns to tell them from real ones. The "
        "discriminator's trunk is exported; the generator and the discriminator's last layer are in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained to tell real images from generated ones, and may look at little else: evaluate "
        "it on your task before you rely on it.",
        trivial="a discriminator that always says 1/2: log 4",
        snippets=image_encoders.SNIPPETS,
        tags=("dcgan", "gan"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        views: Views,
        size: tuple[int, int],
        noise_dim: int = 100,
        generator_width: int = 32,
        translation: float = 0.125,
    ) -> None:
        super().__init__()
        self.discriminator, self.views, self.translation = Discriminator(encoder), views, translation
        self.generator = Generator(noise_dim, size, generator_width)

    def players(self) -> list[nn.Module]:
        """The discriminator and the generator: each needs an optimizer, in this order."""
        return [self.discriminator, self.generator]

    def forward(self, pixel_values: Tensor, key: Tensor, phase: int = 0) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which the view of each image, and
        the noise of a generated one, are drawn; each phase has its own noise."""
        fake = self.views.normalised(self.generator(self.generator.noise(key, phase)))
        if phase == 1:
            loss = generator_loss(self.discriminator(self.shifted(fake, key, SHIFT)))
            return Output(loss, {"generator_loss": loss.detach()})
        fake = fake.detach()
        real = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        of_real = self.discriminator(self.shifted(real, key, SHIFT + 2))
        of_fake = self.discriminator(self.shifted(fake, key, SHIFT + 4))
        loss = discriminator_loss(of_real, of_fake)
        metrics = {
            "discriminator_loss": loss,
            "real_probability": of_real.sigmoid().mean(),
            "fake_probability": of_fake.sigmoid().mean(),
            "sample_spread": spread(fake) / spread(real).clamp(min=1e-6),
        }
        # the monitor watches the generated images: they are what collapses
        metrics = {name: value.detach() for name, value in metrics.items()}
        return Output(loss, metrics, fake.flatten(1), undecided(self.training))

    def shifted(self, images: Tensor, key: Tensor, stream: int) -> Tensor:
        return translated(images, key, stream, self.translation) if self.training and self.translation else images

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        real = self.views.to_unit_range(self.views.whole(pixel_values))
        return {"real": real} | self.generator.shown(len(real))

    def sampled(self, count: int) -> Tensor:
        """(count, 3, height, width) in [0, 1]: images from the same noise in every run."""
        return self.generator.sampled(count)

    def exported(self) -> PreTrainedModel:
        return self.discriminator.encoder
