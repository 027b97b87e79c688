"""DeepCluster: k-means and whitening against plain forms; labels; weights of clusters; collapse without the cures."""

from __future__ import annotations

import math
from pathlib import Path

import collapse
import pytest
import torch
import torch.nn.functional as F
from device import accelerator
from processes import Processes
from safetensors.torch import load_file, save_file
from small import adam, arguments
from tiny.deepcluster import Stored, method
from tiny.simclr import resnet
from torch import Tensor

from mmssl.data.images.numbered import Numbered
from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.methods.deepcluster import DeepCluster, kmeans, nearest, whitening
from mmssl.models import sobel
from mmssl.training.start import start


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def groups(sizes: list[int], dim: int = 4) -> Tensor:
    """Tight groups of points around far corners."""
    corners = 10 * torch.eye(len(sizes), dim).repeat_interleave(torch.tensor(sizes), dim=0)
    return corners + 0.1 * normal(len(corners), dim)


# clustering


def test_kmeans_finds_separate_groups_in_any_numbering():
    _, labels = kmeans(groups([40, 40, 40]), 3, seed=0)
    found = [labels[i : i + 40].unique() for i in (0, 40, 80)]
    assert all(len(group) == 1 for group in found) and len(torch.cat(found).unique()) == 3


def test_each_centroid_is_the_mean_of_its_cluster_and_each_point_is_with_its_nearest():
    points = groups([30, 50, 20])
    centroids, labels = kmeans(points, 3, seed=1)
    for i in range(3):
        torch.testing.assert_close(centroids[i], points[labels == i].mean(0))
    assert torch.equal(labels, torch.cdist(points, centroids).argmin(1))
    assert torch.equal(nearest(points, centroids), labels)


def test_an_empty_cluster_takes_points_of_another_one():
    points = torch.cat([torch.zeros(1, 2), 5 + normal(99, 2)]).repeat_interleave(2, dim=0)  # pairs of equal points
    seed = next(s for s in range(100) if len(kmeans(points, 20, s, split_empty=False)[1].unique()) < 20)
    assert len(kmeans(points, 20, seed)[1].unique()) == 20


def test_kmeans_of_one_seed_is_always_the_same():
    points = normal(200, 4)
    assert torch.equal(kmeans(points, 10, 3)[1], kmeans(points, 10, 3)[1])
    assert not torch.equal(kmeans(points, 10, 3)[1], kmeans(points, 10, 4)[1])


def test_whitened_features_have_unit_variance_and_no_covariance():
    features = 3 + normal(500, 6) @ normal(6, 6, seed=1)
    mean, projection = whitening(features, 4)
    white = (features - mean) @ projection
    torch.testing.assert_close(white.T @ white / 500, torch.eye(4), atol=1e-4, rtol=0)


def test_a_direction_without_variance_stays_near_zero_when_whitened():
    features = torch.cat([normal(100, 3), torch.full((100, 1), 7.0)], dim=1)
    mean, projection = whitening(features, 4)
    assert ((features - mean) @ projection)[:, 0].abs().max() < 1e-2


# labels


def test_the_label_of_a_training_image_is_its_cluster():
    one = method().train()
    given = one.images.__getitems__([5, 2, 9])
    rows = one.embed(given["pixel_values"], given["key"], given["row"])
    assert torch.equal(rows["label"], one.labels[[5, 2, 9]])
    one.eval()  # and that of an image without a row is the nearest cluster, for these images their own
    assert torch.equal(one.embed(given["pixel_values"], given["key"])["label"], one.labels[[5, 2, 9]])


def test_features_of_all_images_are_those_of_evaluation_mode_and_leave_the_mode_and_the_statistics():
    one = method(resnet).train()
    before = {name: value.clone() for name, value in one.named_buffers()}
    features = one.features_of_all()
    assert one.training and one.encoder.training
    assert all(torch.equal(value, before[name]) for name, value in one.named_buffers())
    assert features.shape == (24, 16) and torch.equal(features, one.eval().features_of_all())


def test_an_epoch_starts_with_new_labels_a_new_classifier_and_without_its_moments():
    one, one_process = method(every=2).train(), accelerator()
    optimizer = adam(one)
    given = one.images.__getitems__(list(range(24)))
    del given["index"]
    one(**given).loss.backward()
    optimizer.step()
    of_encoder = len([p for p in one.encoder.parameters() if p in optimizer.state])
    before = {name: value.clone() for name, value in one.state_dict().items()}
    one.start_epoch(1, one_process, [optimizer])  # not yet
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    one.start_epoch(2, one_process, [optimizer])
    assert not torch.equal(one.classifier.weight, before["classifier.weight"])
    assert not torch.equal(one.labels, before["labels"])
    assert not any(p in optimizer.state for p in one.classifier.parameters())
    assert of_encoder == len([p for p in one.encoder.parameters() if p in optimizer.state]) > 0


def cluster_in(place: Path) -> None:
    start(arguments(place))
    one = method(resnet)
    save_file({name: one.state_dict()[name] for name in ("labels", "centroids")}, place / f"{rank()}.safetensors")


def test_two_processes_have_the_labels_of_one_to_the_bit(tmp_path):
    Processes(cluster_in, tmp_path, log=tmp_path / "log.txt", world=2).succeed()
    whole = method(resnet)
    for i in (0, 1):
        found = load_file(tmp_path / f"{i}.safetensors")
        assert torch.equal(found["labels"], whole.labels) and torch.equal(found["centroids"], whole.centroids)


# loss


def test_the_loss_weighs_every_cluster_alike():
    one = method(clusters=3)
    label = torch.tensor([0] * 16 + [1] * 6 + [2] * 2)
    sizes = torch.tensor([16, 6, 2])
    one.weight_of_cluster.copy_(24 / (3 * sizes))
    features = normal(24, 32)
    logits = one.classifier(features).detach()
    total = 0.0
    for cluster in range(3):
        own = [i for i in range(24) if label[i] == cluster]
        total += sum(-math.log(torch.softmax(logits[i], 0)[cluster]) for i in own) / len(own)
    assert one.loss(features, label).loss.item() == pytest.approx(total / 3, rel=1e-5)


def test_weights_follow_from_the_sizes_and_are_1_on_average():
    one = method()
    sizes = torch.bincount(one.labels, minlength=6)
    torch.testing.assert_close(one.weight_of_cluster, 24 / (6.0 * sizes))
    assert one.weight_of_cluster[one.labels].mean().item() == pytest.approx(1)


def test_a_classifier_that_ignores_its_input_has_the_loss_of_chance():
    one = method()
    torch.nn.init.zeros_(one.classifier.weight)
    output = one.loss(normal(24, 32), one.labels)
    assert output.loss.item() == pytest.approx(math.log(6), rel=1e-5) == output.trivial_loss.item()
    some = one.labels == one.labels[0]  # of one cluster, whose weight is not 1
    output = one.loss(normal(int(some.sum()), 32), one.labels[some])
    assert output.loss.item() == pytest.approx(output.trivial_loss.item(), rel=1e-5) != pytest.approx(math.log(6))


def test_more_clusters_than_images_are_refused():
    with pytest.raises(BadInput, match="--clusters 30: more clusters than the 24 training images"):
        method(clusters=30)


def test_nothing_but_the_encoder_is_exported(tmp_path):
    one = method()
    one.save_pretrained(tmp_path)
    assert not (tmp_path / "pretraining").exists()
    method(clusters=4).continue_from(str(tmp_path))  # another number of clusters is no obstacle


# collapse


class Relabelled(DeepCluster):
    """Draws its batch itself, and clusters every tenth step."""

    step = 0

    def forward(self, pixel_values: Tensor, key: Tensor):
        if self.step % 10 == 0:
            self.cluster(self.features_of_all(), self.step)
        self.step += 1
        return super().forward(pixel_values=pixel_values, key=key, row=torch.arange(24))


class WithoutCures(Relabelled):
    """Empty clusters stay empty, and large clusters weigh most."""

    def clusters_of(self, points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        centroids = 100 * torch.ones(len(self.centroids), points.shape[1])  # far from all points, so that they are
        centroids[0] = 0  # empty: Lloyd's algorithm does not leave this solution
        return centroids, nearest(points, centroids)

    def cluster(self, features: Tensor, seed: int) -> None:
        super().cluster(features, seed)
        self.weight_of_cluster.fill_(1.0)


def test_with_both_cures_it_does_not_collapse_in_200_steps():
    assert collapse.said(method(collapse.encoder, kind=Relabelled)) is None


def test_without_cures_all_images_are_in_one_cluster_and_the_monitor_names_the_collapse():
    assert "collaps" in collapse.said(method(collapse.encoder, kind=WithoutCures))


# the Sobel filter


@pytest.mark.parametrize("side", [4, 7])
def test_restricted_kernels_are_kernels_on_the_sobel_derivatives_of_the_grey_image(side):
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 5, side, bias=False))
    std = torch.tensor([0.2, 0.3, 0.4])
    sobel.restrict(encoder, sobel.kernels(encoder, std))
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    grey = 0.299 * pixels[:, :1] + 0.587 * pixels[:, 1:2] + 0.114 * pixels[:, 2:]
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    derivatives = F.conv2d(grey, torch.stack([across, across.T])[:, None])
    patches = F.unfold(derivatives, side - 2).transpose(1, 2).flatten(0, 1).double()
    seen = encoder(pixels / std.view(3, 1, 1)).flatten(2).transpose(1, 2).flatten(0, 1).double().detach()
    error = patches @ torch.linalg.lstsq(patches, seen, driver="gelsd").solution - seen  # a kernel on the derivatives
    assert error.abs().max() < 1e-4 < seen.abs().max()


def test_a_restricted_encoder_is_still_restricted_after_training_and_blind_to_brightness():
    one = method(edges=True).train()
    given = one.images.__getitems__(list(range(24)))
    del given["index"]
    one(**given).loss.backward()
    adam(one).step()
    kernel = sobel.first(one.encoder).weight
    one.after_step()
    grey = torch.full((1, 3, 16, 16), 0.7) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    seen = F.conv2d(grey, kernel)
    assert seen.abs().max() < 1e-5 < kernel.abs().max()


def test_first_kernels_too_small_for_a_filter_are_refused():
    with pytest.raises(BadInput, match="--edges: a Sobel filter takes 3 x 3 pixels, the encoder's first kernels 2 x 2"):
        sobel.kernels(torch.nn.Conv2d(3, 4, 2), torch.ones(3))


# rows


def test_rows_count_the_images_of_the_data_set_or_of_a_part_of_it():
    everything, part = Numbered(Stored()), Numbered(Stored(), count=10, seed=3)
    assert len(everything) == 24 and len(part) == 10
    assert everything.__getitems__([7, 3])["row"].tolist() == [7, 3]
    given = part.__getitems__(list(range(10)))
    assert given["row"].tolist() == list(range(10)) and len(given["index"].unique()) == 10
    assert torch.equal(given["index"], Numbered(Stored(), count=10, seed=3).__getitems__(list(range(10)))["index"])
    assert not torch.equal(given["index"], Numbered(Stored(), count=10, seed=4).__getitems__(list(range(10)))["index"])


def test_features_that_are_not_finite_are_not_clustered():
    one = method()
    with torch.no_grad():
        next(one.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(
        BadInput, match="features of the training images are not finite before epoch 3: .* Lower --learni"
    ):
        one.start_epoch(3, accelerator(), [])
