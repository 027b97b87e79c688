"""Skip-gram with negative sampling in plain torch: one window, the reference, and thousands of windows at once.

Mikolov et al. 2013, arXiv:1310.4546; the context words of a window share their noise words (arXiv:1604.04661).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def loss(scores: Tensor) -> Tensor:
    """-log sigmoid(true) - sum of log sigmoid(-noise) (equation 4). scores: (..., 1 + negative), true word first."""
    return -F.logsigmoid(scores[..., 0]) - F.logsigmoid(-scores[..., 1:]).sum(-1)


@torch.no_grad()
def update_window(
    inputs: Tensor, outputs: Tensor, contexts: list[int], centre: int, noise: list[int], learning_rate: float
) -> float:
    """Update one window in place with the closed-form gradient of the summed `loss`. Returns that sum.

    inputs, outputs: (words, dim). Noise words that equal the centre word are left out. A context word that occurs twice
    is updated twice, the second time from its updated vector.
    """
    targets = [centre, *(word for word in noise if word != centre)]
    truth = torch.zeros(len(targets))
    truth[0] = 1
    before = outputs[targets]
    scores = inputs[contexts] @ before.T
    error = truth - torch.sigmoid(scores)  # (contexts, targets): minus the gradient with respect to the scores
    change = torch.zeros_like(before)
    for row, context in enumerate(contexts):
        change += torch.outer(error[row], inputs[context])
        inputs[context] += learning_rate * error[row] @ before
    outputs.index_add_(0, torch.tensor(targets), learning_rate * change)
    return loss(scores).sum().item()


@torch.no_grad()
def update_batch(
    tables: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor], contexts: Tensor, targets: Tensor, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """Update many windows at once in place. Returns (summed loss, pairs).

    tables: inputs and outputs, (words, dim). seen: (words,) each, the accumulated mean squared gradients of their rows.
    A frequent word gets thousands of gradients in one batch, and their plain sum would be far too large a step; Adagrad
    with one rate per row (Duchi et al. 2011) bounds the step for any batch. contexts, targets: see `windows`.
    """
    inputs, outputs = tables
    present = contexts >= 0
    mask = asked(contexts, targets)
    rows, columns = inputs[contexts.clamp(min=0)], outputs[targets]
    scores = rows @ columns.mT  # (windows, contexts, targets)
    truth = torch.zeros_like(scores)
    truth[..., 0] = 1
    error = (truth - torch.sigmoid(scores)) * mask
    for table, squares, index, gradient in (
        (inputs, seen[0], contexts[present], (error @ columns)[present]),
        (outputs, seen[1], targets.flatten(), (error.mT @ rows).flatten(0, 1)),
    ):
        words, place = index.unique(return_inverse=True)
        total = gradient.new_zeros(len(words), table.shape[1]).index_add_(0, place, gradient)
        squares[words] += total.square().mean(1)
        table[words] += learning_rate * total / (squares[words].sqrt() + 1e-8)[:, None]
    return masked_loss(scores, mask), present.sum()


def asked(contexts: Tensor, targets: Tensor) -> Tensor:
    """(windows, contexts, targets) bool: which scores count. A noise word that equals the centre word does not."""
    used = torch.cat([torch.ones_like(targets[:, :1], dtype=torch.bool), targets[:, 1:] != targets[:, :1]], 1)
    return (contexts >= 0)[:, :, None] & used[:, None]


def masked_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """`loss`, summed over all windows, where mask is True. scores, mask: (windows, contexts, targets)."""
    signed = torch.cat([scores[..., :1], -scores[..., 1:]], -1)
    return -(F.logsigmoid(signed) * mask).sum()
