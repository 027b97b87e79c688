"""BiGAN: a GAN whose discriminator sees an image together with its code, so that an encoder learns the inverse of the
generator.

Donahue et al. 2016, arXiv:1605.09782, and ALI (Dumoulin et al. 2016, arXiv:1606.00704): a discriminator tells the pair
(x, E(x)) from (G(z), z); encoder and generator learn as one to make the pairs alike (equation 3), with the labels
exchanged (section 3.4). At the optimum E inverts G (theorem 2). Long before, two errors can tell the encoder how far it
is from that: of codes, E(G(z)) against z (the paper's joint latent regressor), and of images, G(E(x)) against x (ALICE,
Li et al. 2017, arXiv:1709.01215); the generator does not learn from them. Differs: generator, trunk of the
discriminator and shifts are those of methods/dcgan.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.images.views import Views
from mmssl.method import Card, Method, Output
from mmssl.models import heads, image_encoders
from mmssl.models.adversarial import SHIFT, discriminator_loss, spread, translated, undecided
from mmssl.models.decoder import Generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def places(trunk: PreTrainedModel, images: Tensor) -> Tensor:
    """(batch, numbers): the trunk's last map."""
    return image_encoders.maps(trunk, images).flatten(1)


class BiGAN(Method):
    """Trained by `steps.alternating`: phase 0 is the discriminator's, phase 1 that of generator and encoder.

    encoder:         an image encoder, see models.image_encoders.
    trunk:           another one, of the discriminator; not exported.
    views:           one view of each image.
    size:            (height, width) of the images.
    noise_dim:       numbers in a code; 200 in appendix C.1.
    generator_width: channels of the generator at half the image's side.
    hidden_dim:      of the discriminator's layers that join image and code; 1024 in appendix C.1.
    translation:     largest shift of the images that the discriminator sees, as a fraction of the side.
    code_error, image_error: weights of the encoder's two errors; 0: without.
    """

    unit = "images"
    card = Card(
        about="BiGAN: a GAN whose discriminator sees an image together with its code, so that an encoder learns the "
        "inverse of the generator. The encoder is exported; the rest, to continue from, is in `pretraining/`.",
        task="image-feature-extraction",
        limits="The model was trained without labels: evaluate it on your task before you rely on it.",
        trivial="a discriminator that always says 1/2: log 4",
        snippets=image_encoders.SNIPPETS,
        tags=("bigan", "gan"),
    )

    def __init__(
        self,
        encoder: PreTrainedModel,
        trunk: PreTrainedModel,
        views: Views,
        size: tuple[int, int],
        noise_dim: int = 100,
        generator_width: int = 32,
        hidden_dim: int = 512,
        translation: float = 0.125,
        code_error: float = 0.0,
        image_error: float = 0.0,
    ) -> None:
        super().__init__()
        self.code_error, self.image_error = code_error, image_error
        self.encoder, self.trunk, self.views, self.translation = encoder, trunk, views, translation
        self.code = nn.Linear(image_encoders.width(encoder), noise_dim)
        self.generator = Generator(noise_dim, size, generator_width)
        # not of the mean over places: whether image and code belong together is told by what lies where
        _, numbers = image_encoders.on_one(places, trunk, size).shape
        self.of_image = nn.Linear(numbers, hidden_dim)
        self.of_code = heads.mlp([noise_dim, hidden_dim, hidden_dim], "layer")
        self.head = heads.mlp([2 * hidden_dim, hidden_dim, 1], "layer")

    def players(self) -> list[nn.Module]:
        """The discriminator, and generator and encoder: each needs an optimizer, in this order."""
        discriminator = nn.ModuleList([self.trunk, self.of_image, self.of_code, self.head])
        return [discriminator, nn.ModuleList([self.encoder, self.code, self.generator])]

    def forward(self, pixel_values: Tensor, key: Tensor, phase: int = 0) -> Output:
        """pixel_values: (batch, 3, height, width) uint8. key: (batch,) int64, from which the view of each image, and
        the code of a generated one, are drawn; each phase has its own codes."""
        real = self.views(pixel_values, key)[0] if self.training else self.views.whole(pixel_values)
        noise = self.generator.noise(key, phase)
        fake = self.views.normalised(self.generator(noise))
        code, features = self.encode(real)
        if phase == 0:
            fake, code = fake.detach(), code.detach()
        of_real = self.judge(self.shifted(real, key, SHIFT + 4 * phase), code)
        of_fake = self.judge(self.shifted(fake, key, SHIFT + 4 * phase + 2), noise)
        if phase == 1:
            loss = discriminator_loss(of_fake, of_real)  # labels exchanged
            metrics = {"generator_loss": loss}
            if self.code_error:
                metrics["code_error"] = F.mse_loss(self.encode(fake.detach())[0], noise)
                loss = loss + self.code_error * metrics["code_error"]
            if self.image_error:
                metrics["image_error"] = F.mse_loss(self.views.normalised(self.generator.fixed(code)), real)
                loss = loss + self.image_error * metrics["image_error"]
            return Output(loss, {name: value.detach() for name, value in metrics.items()})
        loss = discriminator_loss(of_real, of_fake)
        metrics = {
            "discriminator_loss": loss,
            "real_probability": of_real.sigmoid().mean(),
            "fake_probability": of_fake.sigmoid().mean(),
            "sample_spread": spread(fake) / spread(real).clamp(min=1e-6),
        }
        if not self.training:  # 1: E inverts G; chance: 0
            metrics["code_recovered"] = F.cosine_similarity(self.encode(fake)[0], noise).mean()
        metrics = {name: value.detach() for name, value in metrics.items()}
        return Output(loss, metrics, features.detach().float(), undecided(self.training))

    def shifted(self, images: Tensor, key: Tensor, stream: int) -> Tensor:
        return translated(images, key, stream, self.translation) if self.training and self.translation else images

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(code (batch, noise_dim), features (batch, width)). images: (batch, 3, height, width), normalised."""
        features = image_encoders.features(self.encoder, images)
        return self.code(features).float(), features

    def judge(self, images: Tensor, codes: Tensor) -> Tensor:
        """(batch,) logits: how much a pair looks like an image and what the encoder makes of it."""
        of_image = self.of_image(places(self.trunk, images))
        return self.head(torch.cat([of_image, self.of_code(codes)], 1)).float()[:, 0]

    def shown(self, pixel_values: Tensor, key: Tensor) -> dict[str, Tensor]:
        pixels = self.views.whole(pixel_values)
        code, _ = self.encode(pixels)
        columns = {"real": self.views.to_unit_range(pixels), "G(E(x))": self.generator(code)}
        return columns | self.generator.shown(len(pixels))

    def sampled(self, count: int) -> Tensor:
        """(count, 3, height, width) in [0, 1]: images from the same noise in every run."""
        return self.generator.sampled(count)

    def exported(self) -> PreTrainedModel:
        return self.encoder
