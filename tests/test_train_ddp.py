"""Two processes on the CPU: data-parallel training gives what one process gives. Starting them takes some seconds."""

import json

import pytest
import torch
from test_train import FAST, MEAN, STD, TREE, Squares, same
from torch import nn

from hierlab import checkpoints, train
from hierlab.checkpoints import Normalized
from hierlab.hierars import HSCLoss, hierarchical

OPTIONS = {"device": "cpu", "progress": False, "every": 3}
RECIPE = FAST.replace(accumulate=2)


def make():
    """Without batch statistics, which every process takes from its own half of the batch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return Normalized(hierarchical(network, TREE), MEAN, STD)


def test_two_processes_train_the_same_model(tmp_path):
    one, two = make(), make()
    val = Squares(5, seed=1)  # shared unequally
    alone = train.fit(one, HSCLoss(TREE), Squares(), val, TREE, RECIPE, **OPTIONS)
    shared = train.fit(two, HSCLoss(TREE), Squares(), val, TREE, RECIPE, out=tmp_path, devices=2, **OPTIONS)
    assert not two.training
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    assert len(alone["history"]) == len(shared["history"])
    for a, b in zip(alone["history"], shared["history"], strict=True):
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-3) and b["lr"] == a["lr"]
    assert shared["metrics"]["pixels"] == alone["metrics"]["pixels"] == 5 * 16 * 16
    assert shared["metrics"]["hF"] == pytest.approx(alone["metrics"]["hF"], abs=0.01)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "model.safetensors", "state.pt"]
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").open()] == shared["history"]
    assert same(checkpoints.read_weights(tmp_path)[0], two.state_dict())
    again = make()
    train.fit(again, HSCLoss(TREE), Squares(), val, TREE, RECIPE, out=tmp_path, resume=True, **OPTIONS)
    assert same(again.state_dict(), two.state_dict())  # the state of two processes, read by one
