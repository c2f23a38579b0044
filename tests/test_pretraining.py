"""Pre-training: InfoNCE against a loop, eq. 11, the order of the queue, no gradient in the keys, no leak through batch
statistics, no collapse on a toy set; runs on the loop, and checkpoints that load into a segmenter."""

import json
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch import nn

from hierlab.data.augment import Augment
from hierlab.hiresnet import build
from hierlab.networks import load_weights
from hierlab.pretraining import (
    ENCODER,
    MOCO,
    SUPERVISED,
    InfoNCE,
    MoCo,
    Views,
    moco,
    pooled,
    probe,
    save_encoder,
    supervised,
    view,
)
from hierlab.recipes import parameter_groups
from hierlab.tree import ClassTree
from hierlab.twin import dataset

STILL = Views(Augment(0, 0, False, None, max_share=None), grey=0, blur=0)  # views that change nothing
LOVEDA = ClassTree.load("loveda")


def network(name="hiresnet", classes=7, **options):
    torch.manual_seed(0)
    return build(name, 3, classes, width=0.125, depth=0.1, **options)


def small(**options):
    return MoCo(network(), **({"dim": 8, "queue": 12, "groups": 2} | options))


class Toy(torch.utils.data.Dataset):
    """Images of three textures in colours of their own; ``scene`` is the texture."""

    def __init__(self, count=24, seed=0):
        random = torch.Generator().manual_seed(seed)
        i = torch.arange(32)
        waves = [
            torch.sin(i / 2)[:, None].expand(32, 32),
            ((i[:, None] // 8 + i // 8) % 2) * 2.0 - 1,
            torch.zeros(32, 32),
        ]
        self.scene = torch.arange(count) % 3
        color = torch.randn(count, 3, 1, 1, generator=random)
        noise = torch.randn(count, 3, 32, 32, generator=random)
        self.image = torch.stack([waves[s] for s in self.scene])[:, None] * color + 0.3 * noise

    def __len__(self):
        return len(self.image)

    def __getitem__(self, index):
        return {"image": self.image[index], "scene": self.scene[index]}


# ------------------------------------------------------------------------------------------------ the loss, the views


def test_info_nce_against_a_loop():
    torch.manual_seed(0)
    query, key, queue = (F.normalize(torch.randn(n, 6), dim=1) for n in (5, 5, 9))
    key[0], queue[0] = query[0], query[1]  # one surely right, one surely wrong
    total, right = 0.0, 0
    for q, k in zip(query, key, strict=True):
        own = math.exp((q @ k).item() / 0.3)
        others = [math.exp((q @ negative).item() / 0.3) for negative in queue]
        total -= math.log(own / (own + sum(others)))
        right += own > max(others)
    loss, parts = InfoNCE(0.3)({"query": query, "key": key, "queue": queue}, {})
    assert loss.item() == pytest.approx(total / 5, rel=1e-5)
    assert parts["top1"].item() == pytest.approx(right / 5) and 0 < right < 5
    assert InfoNCE(0.3)({"query": query[:1].expand(5, 6), "key": key, "queue": queue}, {})[1]["spread"] < 1e-6
    axes = torch.cat([torch.eye(6), -torch.eye(6)])
    spread = InfoNCE()({"query": axes, "key": axes, "queue": queue}, {})[1]["spread"]
    assert spread.item() == pytest.approx(1)
    with pytest.raises(ValueError, match="above 0"):
        InfoNCE(0.0)


def test_views_of_any_bands():
    image = torch.randn(6, 5, 24, 24)
    random = torch.Generator().manual_seed(1)
    assert torch.equal(view(image, STILL, random), image)
    first, second = view(image, Views(), random), view(image, Views(), random)
    assert first.shape == image.shape and first.isfinite().all() and not torch.allclose(first, second)
    grey = view(image, Views(STILL.geometry, grey=1, blur=0), random)
    torch.testing.assert_close(grey, image.mean(1, keepdim=True).expand_as(image))
    soft = view(image, Views(STILL.geometry, grey=0, blur=1, sigma=(1.5, 1.5)), random)
    expected = gaussian_filter(image.numpy(), 1.5, axes=(2, 3), mode="nearest", radius=4)
    torch.testing.assert_close(soft, torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    again = view(image, Views(), torch.Generator().manual_seed(2))
    assert torch.equal(again, view(image, Views(), torch.Generator().manual_seed(2)))


# ----------------------------------------------------------------------------------------------------------- MoCo


def test_the_key_encoder_starts_as_the_query_encoder_and_gets_no_gradient():
    model = small()
    for key, query in zip(model.key.parameters(), model.query.parameters(), strict=True):
        assert torch.equal(key, query) and key.data_ptr() != query.data_ptr()
    outputs = model({"image": torch.randn(4, 3, 32, 32)})
    InfoNCE()(outputs, {})[0].backward()
    assert not outputs["key"].requires_grad and not outputs["queue"].requires_grad
    assert all(p.grad is None and not p.requires_grad for p in model.key.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.query.project.parameters())
    trained = {id(p) for group in parameter_groups(model, MOCO) for p in group["params"]}
    assert trained == {id(p) for p in model.query.parameters()}
    for vectors in (outputs["query"], outputs["key"], outputs["queue"]):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_equation_11():
    model = small(momentum=0.9)
    before = [p.clone() for p in model.key.parameters()]
    with torch.no_grad():
        for p in model.query.parameters():
            p.add_(torch.randn_like(p))
    expected = [0.9 * k + 0.1 * q for k, q in zip(before, model.query.parameters(), strict=True)]
    model.train()({"image": torch.randn(4, 3, 32, 32)})
    for key, value in zip(model.key.parameters(), expected, strict=True):
        torch.testing.assert_close(key, value)
    moved = [p.clone() for p in model.key.parameters()]
    model.eval()({"image": torch.randn(4, 3, 32, 32)})
    assert all(torch.equal(a, b) for a, b in zip(moved, model.key.parameters(), strict=True))


def test_the_queue_is_first_in_first_out():
    model = small(dim=2, queue=7)
    history = [tuple(row) for row in model.queue.tolist()]
    number = 0
    for count in (3, 3, 2, 5, 7, 9):
        keys = torch.arange(number, number + count).float()[:, None].expand(count, 2)
        number += count
        model.enqueue(keys)
        history = (history + [tuple(row) for row in keys.tolist()])[-7:]
        place = int(model.oldest)
        order = model.queue.roll(-place, 0)  # from the oldest on
        assert [tuple(row) for row in order.tolist()] == history


def test_keys_enter_the_queue_after_the_loss_has_seen_it():
    model = small().train()
    start = model.queue.clone()
    outputs = model({"image": torch.randn(4, 3, 32, 32)})
    assert torch.equal(outputs["queue"], start)
    assert torch.equal(model.queue[:4], outputs["key"]) and torch.equal(model.queue[4:], start[4:])
    InfoNCE()(outputs, {})[0].backward()  # though the queue has changed in place


def test_no_key_is_computed_among_the_companions_of_its_query():
    model = small(groups=4, views=STILL).train()
    groups = {"query": [], "key": []}
    for name in groups:
        embed = getattr(model, name)
        embed.register_forward_pre_hook(lambda _m, inputs, name=name: groups[name].append(inputs[0]))
    image = torch.randn(16, 3, 32, 32)
    outputs = model({"image": image})
    members = {
        name: [frozenset(int(torch.where((image == x).all((1, 2, 3)))[0]) for x in group) for group in found]
        for name, found in groups.items()
    }
    for found in members.values():  # four groups of four that hold every image once
        assert sorted(map(len, found)) == [4] * 4 and frozenset.union(*found) == set(range(16))
    assert not set(members["query"]) & set(members["key"])
    for group in list(groups["key"]):  # and every key is that of its own image, in the batch's order
        rows = [int(torch.where((image == x).all((1, 2, 3)))[0]) for x in group]
        alone = model.key(group).detach()
        torch.testing.assert_close(outputs["key"][rows], alone, rtol=1e-3, atol=1e-4)


def test_batch_statistics_do_not_tell_the_pair():
    """An embedding that sees nothing but its group's statistics finds every pair without shuffling, few with it."""
    model = small(groups=4)

    class Cheat(nn.Module):
        def forward(self, image):
            return F.normalize(image.mean(0).flatten()[:8], dim=0).expand(len(image), 8)

    image, cheat, straight = torch.randn(32, 3, 32, 32), Cheat(), torch.arange(32)

    def found(order):
        query, key = model.in_groups(cheat, image, straight), model.in_groups(cheat, image, order)
        return ((query @ key.T).argmax(1, keepdim=True) // 8 == straight[:, None] // 8).float().mean().item()

    assert found(straight) == 1
    shuffled = [found(torch.randperm(32)) for _ in range(40)]
    assert sum(shuffled) / 40 < 0.5


def descend(positives_only, steps=36):
    """The loss and the spread of the queries by step, on the toy set."""
    views = Views(Augment(scale=(1.0, 1.5), max_share=None), grey=0, blur=0.3)
    model, data, history = small(queue=48, dim=16, momentum=0.9, views=views).train(), Toy(), []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.3, momentum=0.9)
    for step in range(steps):
        torch.manual_seed(step)
        outputs = model({"image": data.image[torch.randperm(len(data))[:16]]})
        loss, parts = InfoNCE(0.2)(outputs, {})
        history.append((loss.item(), parts["spread"].item()))
        if positives_only:
            loss = -(outputs["query"] * outputs["key"]).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return history


def test_features_do_not_collapse_on_a_toy_set():
    history, control = descend(positives_only=False), descend(positives_only=True, steps=20)
    loss, spread = history[-1]
    assert loss < 0.9 * math.log(1 + 48)  # of guessing among the key and the queue, which holds real keys by now
    assert spread > history[9][1] and spread > 0.35
    assert control[-1][1] < 0.3 * spread  # without negatives nothing keeps the features apart


@pytest.mark.parametrize(
    ("options", "said"),
    [({"groups": 1}, "at least 2 groups"), ({"momentum": 1.0}, "eq. 11"), ({"queue": 0}, "queue=0")],
)
def test_moco_says_what_is_wrong(options, said):
    with pytest.raises(ValueError, match=said):
        small(**options)


def test_batches_that_do_not_fit():
    with pytest.raises(ValueError, match="too small for 2 groups"):
        small()({"image": torch.randn(3, 3, 32, 32)})
    with pytest.raises(ValueError, match="multiples of 16"):
        small()({"image": torch.randn(4, 3, 40, 40)})
    with pytest.raises(ValueError, match="augment=None"):
        moco(network(), Toy(), "unused", MOCO.replace(augment=Augment()))


# ------------------------------------------------------------------------------------------ on the loop, and loaded

SHORT = MOCO.replace(steps=6, batch_size=8)
SETTINGS = {"dim": 8, "queue": 16, "groups": 2}


def states_agree(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_recipes_of_table_iii():
    assert (MOCO.lr, MOCO.batch_size, MOCO.patch, MOCO.steps) == (0.015, 64, 400, 3_125_000)
    assert (SUPERVISED.lr, SUPERVISED.batch_size, SUPERVISED.patch, SUPERVISED.steps) == (5e-5, 80, 256, 3_125_000)
    assert SUPERVISED.warmup_steps == 3 * 400_000 // 80


def test_moco_runs_on_the_loop_resumes_and_loads_into_a_segmenter(tmp_path, caplog):
    whole = network()
    options = {"settings": SETTINGS, "device": "cpu", "progress": False, "mean": [0.0] * 3, "std": [2.0] * 3}
    result = moco(whole, Toy(), tmp_path / "whole", SHORT, every=3, **options)
    assert {"loss", "top1", "spread"} <= set(result["history"][-1]) and result["steps"] == 6

    halted = network()  # the same in two halves
    try:
        moco(halted, _Stops(Toy(), 8 * 4), tmp_path / "halves", SHORT, every=3, **options)
        pytest.fail("it was not stopped")
    except RuntimeError as error:
        assert "stopped" in str(error)
    halted = network()
    moco(halted, Toy(), tmp_path / "halves", SHORT, every=3, resume=True, **options)
    assert states_agree(whole.state_dict(), halted.state_dict())

    file = tmp_path / "whole" / ENCODER
    stored = load_file(file)
    assert all(key.startswith("encoder.") for key in stored)
    with caplog.at_level(logging.INFO, logger="hierlab"):
        segmenter = network(classes=5, weights=file)
    loaded = segmenter.state_dict()
    assert all(
        torch.equal(loaded[key], value) for key, value in whole.state_dict().items() if key.startswith("encoder.")
    )
    assert f"{len(stored)} of {len(loaded)} tensors" in caplog.text
    report = load_weights(segmenter, file)
    assert set(report["matched"]) == set(stored) and not report["mismatched"] and not report["unused"]
    assert not [key for key in report["missing"] if key.startswith("encoder.")]
    with pytest.raises(ValueError, match="width"):
        build("hiresnet", 3, 5, file, width=0.25, depth=0.1)
    with pytest.raises(ValueError, match=r"holds no weights|another encoder"):
        network("hiresnet-base", weights=file)


class _Stops(Toy):
    """Fails after so many images were read, as a machine that is switched off."""

    def __init__(self, data, after):
        super().__init__()
        self.left = after

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("stopped")
        return super().__getitem__(index)


def test_supervised_on_other_classes_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("HIERLAB_CACHE", str(tmp_path / "cache"))
    data = torch.utils.data.Subset(dataset("mapillary", "train", profile="smoke"), [0, 1])
    tree = ClassTree.load("mapillary")
    first = network(classes=tree.num_leaves)
    before = {key: value.clone() for key, value in first.state_dict().items()}
    recipe = SUPERVISED.replace(steps=2, warmup_steps=0, batch_size=2)
    result = supervised(first, data, tree, tmp_path / "run", recipe, device="cpu", progress=False)
    assert "refined_edge_aware" in result["history"][0]
    assert not states_agree(before, first.state_dict())
    second = network(classes=7)
    report = load_weights(second, tmp_path / "run" / ENCODER)
    assert torch.equal(second.encoder.model.funnel[0][1].weight, first.encoder.model.funnel[0][1].weight)
    assert len(report["matched"]) == sum(key.startswith("encoder.") for key in before)
    whole = load_weights(network(classes=7), tmp_path / "run" / "model.safetensors")
    assert whole["mismatched"] == ["classifier.weight"]  # the decoder and OCR came along
    assert not whole["missing"]
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["step"] == 1


def test_save_encoder_keeps_an_older_file_until_the_new_one_is_whole(tmp_path):
    save_encoder(network(), tmp_path / ENCODER)
    assert [path.name for path in tmp_path.iterdir()] == [ENCODER]


def test_the_probe_reads_frozen_features():
    model = network()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    train, test = Toy(48), Toy(24, seed=1)
    for data in (train, test):
        data.image += 2 * data.scene.view(-1, 1, 1, 1)  # brightness by texture
    found = probe(model, train, test)
    assert model.training and states_agree(state, model.state_dict())
    assert found["majority"] == pytest.approx(1 / 3) and found["accuracy"] > 0.6
    torch.testing.assert_close(pooled(model, torch.zeros(2, 3, 32, 32))[0], pooled(model, torch.zeros(1, 3, 32, 32))[0])
