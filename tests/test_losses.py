"""The shared losses: ignored pixels do not count, and a batch of them changes nothing."""

import pytest
import torch
import torch.nn.functional as F

from hierlab.losses import FlatLoss, cross_entropy
from hierlab.tree import ClassTree


def test_cross_entropy_is_the_mean_over_known_pixels():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 3, 4), torch.randint(0, 5, (2, 3, 4))
    target[0, 0], target[1, 2, 1] = 255, 255
    known = target != 255
    by_hand = -logits.log_softmax(1).movedim(1, -1)[known].gather(1, target[known][:, None]).mean()
    assert cross_entropy(logits, target).item() == pytest.approx(by_hand.item())


def test_all_ignored_is_zero_with_zero_gradient():
    logits = torch.randn(1, 5, 3, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 3, 4), 255))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_flat_loss_learns_leaves_only():
    tree = ClassTree.load("nlcd")
    torch.manual_seed(0)
    logits, label = torch.randn(2, 16, 3, 4), torch.randint(0, 16, (2, 3, 4))
    label[0] = tree.label_of("forest")  # an inner node: no leaf is known
    loss, parts = FlatLoss(tree)({"logits": [logits]}, {"label": label})
    assert loss.item() == pytest.approx(F.cross_entropy(logits[1:], label[1:]).item())
    assert parts["cross_entropy"].item() == pytest.approx(loss.item())
