import copy
import json
import math
import os
import signal
import time
import warnings

import pytest
import torch
from torch import nn

from hierlab import _training, checkpoints, networks, recipes, train
from hierlab.checkpoints import Normalize, Normalized
from hierlab.hierars import HSCLoss, hierarchical
from hierlab.losses import FlatLoss
from hierlab.recipes import CONVNEXT_DEIT, DEEPLAB, LAPTOP, RECIPES, SMOKE, SWIN, Recipe, learning_rate
from hierlab.tree import ClassTree

TREE = ClassTree.from_dict(
    {
        "name": "tiny",
        "levels": [
            {
                "name": "L1",
                "classes": [{"name": "land", "color": [0, 160, 0]}, {"name": "water", "color": [0, 0, 200]}],
            },
            {
                "name": "L2",
                "classes": [
                    {"name": name, "parent": parent, "color": [60 * i, 90, 90]}
                    for i, (name, parent) in enumerate(
                        [("grass", "land"), ("wood", "land"), ("lake", "water"), ("river", "water")]
                    )
                ],
            },
        ],
    }
)
MEAN, STD = [15.0, 500.0], [11.0, 500.0]
FAST = Recipe(steps=6, warmup_steps=2, batch_size=4, lr=0.01, augment=None, clip=1.0)


class Squares(torch.utils.data.Dataset):
    """Four 8×8 squares of random classes; band 1 is 10 times the class, band 2 is 1000 on water, plus noise."""

    def __init__(self, items=16, seed=0, broken=()):
        self.items, self.seed, self.broken = items, seed, broken

    def __len__(self):
        return self.items

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        label = torch.randint(0, 4, (2, 2), generator=generator).repeat_interleave(8, 0).repeat_interleave(8, 1)
        image = torch.stack([label * 10.0, (label > 1) * 1000.0]) + torch.randn(2, 16, 16, generator=generator)
        if index in self.broken:
            image[0, 0, 0] = math.nan
        return {"image": image, "label": label}


def flat_network(dropout=0.0):
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(dropout), nn.Conv2d(8, 4, 1)
    )


def make(head="bhccm", dropout=0.1, seed=0):
    torch.manual_seed(seed)
    network = flat_network(dropout)
    return Normalized(hierarchical(network, TREE) if head == "bhccm" else Flat(network), MEAN, STD)


class Flat(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, batch):
        return {"logits": [self.network(batch["image"])]}


def fit(model, recipe=FAST, train_set=None, val=None, loss=None, **options):
    options = {"device": "cpu", "progress": False, **options}
    loss, train_set = loss or HSCLoss(TREE), Squares() if train_set is None else train_set
    return train.fit(model, loss, train_set, val, TREE, recipe, **options)


def steps_of(history):
    """The lines of a log without what the clock says."""
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in history]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_survives_json(name):
    recipe = RECIPES[name]
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"lr": 0}, "Recipe.lr is 0; it must be a number above 0"),
        ({"lr": "fast"}, "Recipe.lr is 'fast'"),
        ({"lr": math.nan}, "Recipe.lr is nan"),
        ({"optimizer": "adam"}, "one of adamw, sgd"),
        ({"schedule": "step"}, "one of poly, cosine"),
        ({"precision": "16-mixed"}, "one of 32-true, bf16-mixed, bf16-true"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"warmup_steps": 600}, "from 0 to below steps"),
        ({"accumulate": 3}, "a divisor of batch_size"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"clip": 0}, "clip is 0"),
        ({"no_decay": ("bias",)}, "any of vectors, norms, positions"),
        ({"keep": "all"}, "one of best, last"),
        ({"augment": True}, "an Augment, or None"),
        ({"momentum": 1.0}, "momentum is 1.0"),
    ],
)
def test_a_wrong_recipe_says_what_it_takes(wrong, says):
    with pytest.raises(ValueError, match=says):
        Recipe(**wrong)


def test_replace_checks_names_and_values():
    assert LAPTOP.replace(steps=100).steps == 100
    with pytest.raises(ValueError, match="A recipe has no epochs"):
        LAPTOP.replace(epochs=3)
    with pytest.raises(ValueError, match="steps is -1"):
        LAPTOP.replace(steps=-1)


def test_scaled_never_grows_and_keeps_the_proportion_of_the_warm_up():
    assert CONVNEXT_DEIT.scaled("paper") == CONVNEXT_DEIT
    gpu = CONVNEXT_DEIT.scaled("gpu")
    assert gpu.warmup_steps / gpu.steps == pytest.approx(1500 / 80_000, rel=0.05)
    for profile in ("smoke", "laptop", "gpu"):
        for recipe in RECIPES.values():
            scaled = recipe.scaled(profile)
            assert scaled.steps <= recipe.steps and scaled.batch_size <= recipe.batch_size and scaled.lr == recipe.lr
    assert SMOKE.steps <= 5
    with pytest.raises(ValueError, match="No profile is called 'tiny'"):
        LAPTOP.scaled("tiny")


def test_the_papers_recipes_are_the_sheets():
    assert (CONVNEXT_DEIT.lr, CONVNEXT_DEIT.weight_decay, CONVNEXT_DEIT.layer_decay) == (1e-4, 0.05, 0.9)
    assert (SWIN.lr, SWIN.weight_decay, SWIN.layer_decay) == (6e-5, 0.01, 1.0)
    assert (DEEPLAB.optimizer, DEEPLAB.lr, DEEPLAB.min_lr, DEEPLAB.power) == ("sgd", 0.01, 1e-4, 0.9)
    assert RECIPES["translu"].steps == 20_000
    paraformer, release = RECIPES["paraformer"], RECIPES["paraformer_release"]
    assert (paraformer.optimizer, paraformer.lr, paraformer.batch_size, paraformer.patch) == ("adamw", 0.01, 8, 224)
    assert (release.optimizer, release.lr, release.momentum, release.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (release.schedule, release.power, release.batch_size) == ("poly", 0.9, 16)
    assert release.steps * release.batch_size == paraformer.steps * paraformer.batch_size == 20 * 732 * 50
    hiresnet = RECIPES["hiresnet"]
    assert (hiresnet.lr, hiresnet.weight_decay, hiresnet.batch_size, hiresnet.patch) == (1e-4, 1e-8, 16, 512)
    assert hiresnet.steps / hiresnet.warmup_steps == pytest.approx(400 / 3)
    assert hiresnet.augment.scale == (0.5, 1.5) and RECIPES["hiresnet_decay"].weight_decay == 1e-4


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("paraformer", "paraformer"),
        ("paraformer-cnn", "paraformer"),
        ("hiresnet", "hiresnet"),
        ("hrnet-w48", "hiresnet"),
        ("convnext_base-upernet", "convnext_deit"),
        ("swin_large-upernet", "swin"),
        ("resnet101c-deeplabv3plus", "deeplab"),
        ("resnet18-unet", None),
        ("stsnet", None),
    ],
)
def test_the_recipe_of_a_networks_paper(network, name):
    assert recipes.of_paper(network) is (RECIPES[name] if name else None)


# ---------------------------------------------------------------- schedule


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_the_schedule_at_its_ends_and_between(schedule):
    recipe = Recipe(schedule=schedule, lr=1e-2, min_lr=1e-4, warmup_lr=1e-6, warmup_steps=10, steps=110, power=0.9)
    assert learning_rate(0, recipe) == 1e-6
    assert learning_rate(5, recipe) == pytest.approx((1e-2 + 1e-6) / 2)
    assert learning_rate(10, recipe) == 1e-2
    assert learning_rate(110, recipe) == learning_rate(200, recipe) == pytest.approx(1e-4)
    half = 0.5**0.9 if schedule == "poly" else 0.5
    assert learning_rate(60, recipe) == pytest.approx(1e-4 + (1e-2 - 1e-4) * half)
    rates = [learning_rate(step, recipe) for step in range(111)]
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_convnext_has_no_rate_left_at_the_end_and_no_warm_up_is_possible():
    assert learning_rate(1500, CONVNEXT_DEIT) == 1e-4
    assert learning_rate(79_999, CONVNEXT_DEIT) == pytest.approx(1e-4 / 78_500)
    assert learning_rate(80_000, CONVNEXT_DEIT) == 0
    assert learning_rate(0, DEEPLAB) == 0.01


# ---------------------------------------------------------------- parameter groups


def scales(model, recipe):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: g["scale"] for g in recipes.parameter_groups(model, recipe) for p in g["params"]}


def decays(model, recipe):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: g["weight_decay"] for g in recipes.parameter_groups(model, recipe) for p in g["params"]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "convnext_atto-unet",
            {"stem": 13, "stages_0.blocks": 12, "stages_1.downsample": 13, "stages_1.blocks": 11, "stages_3.blocks": 9},
        ),
        ("resnet18-unet", {"model.conv1": 13, "layer1.0.": 12, "layer2.0.downsample": 11, "layer4.": 9}),
        ("deit_tiny_patch16_224-upernet", {"pos_embed": 13, "patch_embed": 13, "blocks.0.": 12, "blocks.11.": 1}),
    ],
)
def test_layer_decay_counts_the_encoder_in_stages(name, expected):
    network = networks.build(name, 3, 4, width=0.25)
    found = scales(Normalized(hierarchical(network, TREE), [0.0] * 3, [1.0] * 3), CONVNEXT_DEIT)
    assert len(found) == len(list(hierarchical(network, TREE).parameters()))  # each once
    for part, exponent in expected.items():
        matching = {round(value, 9) for key, value in found.items() if ".encoder." in key and f".{part}" in key}
        assert matching == {round(0.9**exponent, 9)}, part
    assert {value for key, value in found.items() if ".encoder." not in key} == {1.0}


class Blocks(nn.Module):
    """An encoder of n blocks, as a plain transformer names them."""

    def __init__(self, count):
        super().__init__()
        self.encoder = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(count))})
        self.encoder["norm"] = nn.LayerNorm(2)
        self.head = nn.Linear(2, 2)


def test_more_blocks_than_layers_share_them():
    found = scales(Blocks(24), CONVNEXT_DEIT)
    assert found["encoder.blocks.0.weight"] == found["encoder.blocks.1.weight"] == pytest.approx(0.9**12)
    assert found["encoder.blocks.23.weight"] == pytest.approx(0.9)
    assert found["encoder.norm.weight"] == found["head.weight"] == 1.0


def test_layer_decay_without_stages_says_what_to_do():
    with pytest.raises(ValueError, match=r"replace\(layer_decay=1.0\)"):
        recipes.parameter_groups(flat_network(), CONVNEXT_DEIT)
    with pytest.raises(ValueError, match=r"none \(stages.0, layer1"):
        recipes.parameter_groups(nn.ModuleDict({"encoder": flat_network()}), CONVNEXT_DEIT)


def test_weight_decay_spares_what_the_recipe_says():
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 8, 3), "norm": nn.LayerNorm(8), "body": nn.Linear(2, 2)})
    model["body"].relative_position_bias_table = nn.Parameter(torch.zeros(3, 3))
    assert set(decays(model, DEEPLAB).values()) == {5e-4}
    spared = {name for name, value in decays(model, CONVNEXT_DEIT.replace(layer_decay=1.0)).items() if value == 0}
    assert spared == {"conv.bias", "norm.weight", "norm.bias", "body.bias", "body.relative_position_bias_table"}
    spared = {name for name, value in decays(model, SWIN).items() if value == 0}
    assert spared == {"norm.weight", "norm.bias", "body.relative_position_bias_table"}


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error():
    model = flat_network()
    model[0].requires_grad_(False)
    assert not any(name.startswith("0.") for name in scales(model, LAPTOP))
    with pytest.raises(ValueError, match="nothing to train"):
        recipes.parameter_groups(model.requires_grad_(False), LAPTOP)


# ---------------------------------------------------------------- order of the data


def test_order_is_a_function_of_seed_and_step():
    recipe = FAST.replace(batch_size=8, steps=5, accumulate=2)
    whole = list(_training.Order(10, recipe, seed=3))
    assert len(whole) == 10 == len(_training.Order(10, recipe, seed=3)) and all(len(part) == 4 for part in whole)
    assert list(_training.Order(10, recipe, seed=3, start=3)) == whole[6:]
    assert list(_training.Order(10, recipe, seed=4)) != whole
    flat = [item for part in whole for item in part]
    assert all(sorted(flat[epoch * 10 : epoch * 10 + 10]) == list(range(10)) for epoch in range(4))


def test_processes_and_parts_cut_the_same_batch():
    order = _training.Order(10, FAST.replace(batch_size=8), seed=0)
    shared = [
        item
        for parts in zip(
            *(_training.Order(10, FAST.replace(batch_size=8, accumulate=2), 0, 0, rank, 2) for rank in (0, 1)),
            strict=True,
        )
        for part in parts
        for item in part
    ]
    assert shared == [item for part in order for item in part]


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize("head", ["flat", "bhccm"])
def test_a_run_learns_and_returns_what_happened(head, tmp_path):
    recipe = FAST.replace(steps=50, lr=0.05, augment=LAPTOP.augment)
    model = make(head)
    loss = FlatLoss(TREE) if head == "flat" else HSCLoss(TREE)
    lines = []
    result = fit(
        model, recipe, val=Squares(4, seed=1), loss=loss, out=tmp_path / "run", every=25, callback=lines.append
    )
    assert result["metrics"]["levels"][0]["mIoU"] > 0.8 and result["metrics"]["consistency"] == 1
    assert result["history"] == lines == [json.loads(line) for line in (tmp_path / "run/log.jsonl").open()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 51))
    assert [line["step"] for line in lines if "validation" in line] == [25, 50]
    assert training[0]["lr"] == pytest.approx(1e-6) and training[2]["lr"] == 0.05
    assert training[-1]["loss"] < training[0]["loss"]
    assert result["peak_memory"] > 10**7 and result["images_per_second"] > 0 and result["device"] == "cpu"
    assert not model.training and model.normalize.mean.tolist() == MEAN
    again = train.evaluate(model, Squares(4, seed=1), TREE, device="cpu")
    assert again["levels"][-1]["mIoU"] == pytest.approx(result["best"]["mIoU"])


def test_one_seed_one_run():
    a, b, c = make(), make(), make()
    one, two = fit(a, FAST.replace(augment=LAPTOP.augment)), fit(b, FAST.replace(augment=LAPTOP.augment))
    assert steps_of(one["history"]) == steps_of(two["history"]) and same(a.state_dict(), b.state_dict())
    fit(c, FAST.replace(augment=LAPTOP.augment), seed=1)
    assert not same(a.state_dict(), c.state_dict())


def test_workers_and_determinism_change_nothing():
    a, b = make(), make()
    fit(a)
    fit(b, workers=1, deterministic=True)
    assert same(a.state_dict(), b.state_dict())
    assert not torch.are_deterministic_algorithms_enabled()


def test_accumulated_parts_make_the_same_step():
    """Without batch statistics, and every pixel labelled, two halves have the gradient of the whole."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    a = Normalized(hierarchical(network, TREE), MEAN, STD)
    b = copy.deepcopy(a)
    one = fit(a, FAST)
    two = fit(b, FAST.replace(accumulate=2))
    for x, y in zip(one["history"], two["history"], strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4) and x["gradient_norm"] == pytest.approx(
            y["gradient_norm"], rel=1e-3
        )
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_clipping_bounds_the_step_of_sgd():
    recipe = FAST.replace(optimizer="sgd", momentum=0.0, weight_decay=0.0, steps=1, warmup_steps=0, lr=1.0, clip=1e-3)
    model = make()
    before = [p.detach().clone() for p in model.parameters()]
    result = fit(model, recipe)
    assert result["history"][0]["gradient_norm"] > 1e-3
    moved = sum(((p - q) ** 2).sum() for p, q in zip(before, model.parameters(), strict=True)).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_trains_from_raw_values_and_ends_in_float32(precision, tmp_path):
    recipe = FAST.replace(precision=precision, steps=20, lr=0.05, channels_last=True)
    model = make()
    result = fit(model, recipe, val=Squares(4, seed=1), out=tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert result["history"][-2]["loss"] < 0.8 * result["history"][0]["loss"]
    stored = checkpoints.read_weights(tmp_path)[0]["network.network.0.weight"]
    assert stored.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert stored.is_contiguous()


def test_keep_says_which_weights_a_run_ends_with(tmp_path, monkeypatch):
    """Validations at steps 2, 4 and 6 that score 0.1, 0.5 and 0.3."""
    for keep in ("last", "best"):
        scores, weights = iter([0.1, 0.5, 0.3]), []

        def validate(fabric, whole, *_, scores=scores, weights=weights):
            weights.append({name: tensor.clone() for name, tensor in whole.state_dict().items()})
            return {"levels": [{}, {"mIoU": next(scores)}]}

        monkeypatch.setattr(train, "_validate", validate)
        model, out = make(), tmp_path / keep
        result = fit(model, FAST.replace(keep=keep), val=Squares(4), out=out, every=2)
        assert result["best"] == {"step": 4, "mIoU": 0.5}
        assert same(model.state_dict(), weights[1 if keep == "best" else 2])
        assert same(checkpoints.read_weights(out)[0], model.state_dict())
        assert same(torch.load(out / "state.pt", weights_only=True)["model"], weights[2])


def test_no_validation_and_no_folder():
    result = fit(make())
    assert result["metrics"] is None and result["best"] is None and len(result["history"]) == 6


def test_a_label_without_a_known_leaf_gives_no_score():
    class Unknown(Squares):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "label": torch.full_like(item["label"], 255)}

    result = fit(make(), train_set=Unknown(), val=Unknown())
    assert result["best"] is None and result["metrics"]["levels"][-1]["mIoU"] is None
    assert {line["loss"] for line in result["history"] if "loss" in line} == {0.0}


def test_a_loop_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(make(), val=Squares(2), out=tmp_path, progress=True)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train_set": Squares(0)}, "training dataset is empty"),
        ({"val": Squares(0)}, "validation dataset is empty"),
        ({"recipe": FAST.replace(batch_size=3), "devices": 2}, "cannot be shared equally by 2 device"),
        ({"every": 0}, "at least 1"),
        ({"device": "cuda:99"}, "not available here"),
        ({"device": "tpu"}, "use auto, cpu"),
        ({"resume": True}, "give out="),
    ],
)
def test_bad_arguments(options, says):
    with pytest.raises(ValueError, match=says):
        fit(make(), **options)


def test_a_model_that_does_not_fit_the_tree():
    with pytest.raises(ValueError, match=r"\(2, 4\) channels.*it gave \(5,\)"):
        fit(Flat(nn.Conv2d(2, 5, 1)), loss=FlatLoss(TREE))
    with pytest.raises(ValueError, match="it gave a dict with image, label"):
        fit(Echo(), loss=FlatLoss(TREE))


class Echo(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return batch


def test_a_non_finite_loss_stops_before_the_weights(tmp_path):
    order = _training.Order(32, FAST, seed=0)
    victim = order.items(4)[0]
    assert not any(victim in order.items(step) for step in range(4))
    model = make()
    with pytest.raises(train.NonFiniteLoss, match=rf"Step 5: .*loss nan.*items .*{victim}.*1 of them not finite"):
        fit(model, train_set=Squares(32, broken=(victim,)), out=tmp_path, every=2)
    assert all(p.isfinite().all() for p in model.parameters())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 4 and all(t.isfinite().all() for t in state["model"].values())
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


def test_an_error_in_another_process_comes_back_in_a_file(tmp_path):
    from lightning.fabric import Fabric

    run = train._Run(None, 0, False, None, 3, False, None, 0, False, "sigmoid")
    others = (HSCLoss(TREE), Squares(broken=range(16)), None, TREE, FAST, run)
    train._in_process(tmp_path / "answer.pt", others, Fabric(accelerator="cpu", devices=1), make())
    assert isinstance(torch.load(tmp_path / "answer.pt", weights_only=False), train.NonFiniteLoss)


def test_a_run_folder_is_not_overwritten(tmp_path):
    fit(make(), out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"already holds a run .*--resume.*another folder"):
        fit(make(), out=tmp_path / "run")
    with pytest.raises(ValueError, match="nothing to resume"):
        fit(make(), out=tmp_path / "other", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        fit(make(), out=tmp_path / "file")


# ---------------------------------------------------------------- resuming


class Stop(Exception):
    pass


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    recipe = FAST.replace(augment=LAPTOP.augment, accumulate=2)
    whole, broken = make(), make()
    options = {"recipe": recipe, "val": Squares(4, seed=1), "every": 3}
    one = fit(whole, out=tmp_path / "one", **options)

    def fail(line):
        if line["step"] == 5:  # after the save at step 3, as a power cut would
            raise Stop

    with pytest.raises(Stop):
        fit(broken, out=tmp_path / "two", callback=fail, **options)
    with (tmp_path / "two/log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    resumed = make(seed=5)  # its first weights must not matter
    two = fit(resumed, out=tmp_path / "two", resume=True, **options)
    assert same(whole.state_dict(), resumed.state_dict())
    assert steps_of(one["history"]) == steps_of(two["history"])
    assert (one["best"], one["metrics"]) == (two["best"], two["metrics"])
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("one", "two")]
    assert same(states[0]["model"], states[1]["model"])
    assert same(*(checkpoints.read_weights(tmp_path / run)[0] for run in ("one", "two")))
    logs = [[json.loads(line) for line in (tmp_path / run / "log.jsonl").open()] for run in ("one", "two")]
    assert steps_of(logs[0]) == steps_of(logs[1])
    for a, b in zip(states[0]["optimizer"]["state"].values(), states[1]["optimizer"]["state"].values(), strict=True):
        assert same(a, b)


def test_ctrl_c_finishes_the_step_and_resumes_bit_for_bit(tmp_path):
    whole, stopped = make(), make()
    one = fit(whole, val=Squares(4, seed=1), every=3)
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(line):
        if line["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    with pytest.raises(train.Interrupted, match=r"(?s)Stopped after step [45] of 6.*resume=True"):
        fit(stopped, val=Squares(4, seed=1), every=3, out=tmp_path, callback=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    step = torch.load(tmp_path / "state.pt", weights_only=True)["step"]
    assert step in (4, 5) and json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == step
    two = fit(stopped, val=Squares(4, seed=1), every=3, out=tmp_path, resume=True)
    assert same(whole.state_dict(), stopped.state_dict())
    assert steps_of(one["history"]) == steps_of(two["history"])


def test_resuming_a_finished_run_returns_its_result(tmp_path):
    model, again = make(), make(seed=9)
    one = fit(model, val=Squares(4, seed=1), out=tmp_path)
    two = fit(again, val=Squares(4, seed=1), out=tmp_path, resume=True)
    assert same(model.state_dict(), again.state_dict())
    assert (one["history"], one["metrics"], one["best"]) == (two["history"], two["metrics"], two["best"])


def test_a_changed_run_cannot_be_resumed(tmp_path):
    fit(make(), out=tmp_path, every=3)
    with pytest.raises(ValueError, match=r"recipe.lr: 0.01 in the run, 0.02 now"):
        fit(make(), FAST.replace(lr=0.02), out=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"(?s)seed: 0 in the run, 1 now.*training items: 16 in the run, 12 now"):
        fit(make(), seed=1, train_set=Squares(12), out=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"(?s)tensor .* in the run, .* now"):
        fit(make("flat"), loss=FlatLoss(TREE), out=tmp_path, resume=True)
    (tmp_path / "state.pt").write_bytes(b"no state")
    with pytest.raises(ValueError, match="damaged"):
        fit(make(), out=tmp_path, resume=True)


# ---------------------------------------------------------------- prediction and evaluation


def test_rules_of_prediction():
    torch.manual_seed(0)
    levels = [torch.randn(2, size, 5, 6) * 3 for size in TREE.sizes]
    for rule in ("sigmoid", "log_softmax"):
        assert torch.equal(train.predict(levels, TREE, rule), TREE.decode(levels, rule))
    independent = train.predict(levels, TREE, "independent")
    assert torch.equal(independent[:, 0], levels[0].argmax(1)) and not TREE.consistent(independent).all()
    flat = train.predict(levels[1:], TREE)
    assert TREE.consistent(flat).all() and torch.equal(flat[:, 1], levels[1].argmax(1))
    summed = train.predict(levels[1:], TREE, aggregate=True)
    probability = levels[1].softmax(1)
    assert torch.equal(summed[:, 0], (probability[:, 2:].sum(1) > probability[:, :2].sum(1)).long())
    with pytest.raises(ValueError, match="flat model"):
        train.predict(levels, TREE, aggregate=True)
    with pytest.raises(ValueError, match="rule is one of"):
        train.predict(levels, TREE, "best")


def test_evaluate_does_not_depend_on_batches_and_leaves_the_model_as_it_was():
    model = make().train()
    model.network.network[1].eval()
    modes = [module.training for module in model.modules()]
    one, two = (train.evaluate(model, Squares(5), TREE, device="cpu", batch_size=size) for size in (1, 4))
    assert one["images"] == 5 and one["images_per_second"] > 0
    assert torch.equal(one["levels"][1]["confusion"], two["levels"][1]["confusion"])
    assert modes == [module.training for module in model.modules()]
    train.evaluate(model, Squares(2), TREE, device="cpu", precision="bf16-mixed", progress=True)
    with pytest.raises(ValueError, match="precision is 32-true or bf16-mixed"):
        train.evaluate(model, Squares(2), TREE, precision="bf16-true")


# ---------------------------------------------------------------- models on disk


def test_normalize_maps_invalid_pixels_to_the_mean():
    image = torch.full((1, 2, 2, 2), math.nan)
    image[0, :, 0, 0] = torch.tensor([26.0, 0.0])
    valid = torch.zeros(1, 2, 2, dtype=torch.bool)
    valid[0, 0, 0] = True
    out = Normalize(MEAN, STD)({"image": image, "valid": valid, "more": 1})
    assert out["image"][0, :, 0, 0].tolist() == [1.0, -1.0] and out["image"].sum() == 0 and out["more"] == 1
    with pytest.raises(ValueError, match=r"\(B, 2, H, W\)"):
        Normalize(MEAN, STD)({"image": torch.zeros(1, 3, 2, 2)})
    with pytest.raises(ValueError, match="std of 0"):
        Normalize([1.0, 2.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="one finite mean"):
        Normalize([1.0, math.nan], [1.0, 1.0])


def config(**changes):
    options = {"width": 0.125}
    return checkpoints.make_config("resnet18-unet", TREE, MEAN, STD, options=options, gsd=4.0, patch=32, **changes)


@pytest.mark.parametrize("head", [{"head": "flat"}, {"fusion": "coarse_to_fine", "residual": True}])
def test_a_trained_network_comes_back_from_its_folder(head, tmp_path):
    description = config(band_names=["red", "nir"], sensor="twin", **head)
    train.seed_everything(3)
    model = train.build_model(description)
    loss = FlatLoss(TREE) if "head" in head else HSCLoss(TREE)
    fit(model, FAST.replace(steps=2, warmup_steps=0), val=Squares(2), loss=loss, out=tmp_path, config=description)
    again, read = train.load(tmp_path)
    assert not again.training and same(model.state_dict(), again.state_dict())
    assert ClassTree.from_dict(read["tree"]) == TREE
    assert read["band_names"] == ["red", "nir"] and read["sensor"] == "twin" and read["gsd"] == 4.0
    assert read["training"]["recipe"]["steps"] == 2 and read["versions"]["torch"].startswith("2.")
    batch = {"image": Squares()[0]["image"][None]}
    for x, y in zip(model(batch)["logits"], again(batch)["logits"], strict=True):
        assert torch.equal(x, y)
    assert len(again(batch)["logits"]) == (1 if "head" in head else 2)
    changed = dict(description, normalisation={"mean": [0.0, 0.0], "std": STD})
    with pytest.raises(ValueError, match="normalisation:"):
        fit(model, FAST.replace(steps=2, warmup_steps=0), loss=loss, out=tmp_path, config=changed, resume=True)


def test_tied_and_overlapping_tensors_are_saved_once_and_come_back(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            base = torch.arange(10.0)
            self.register_buffer("part", base[2:5])
            self.register_buffer("other", base[4:])
            self.register_buffer("turned", torch.arange(6.0).view(2, 3).T)

    model, again = Tied(), Tied()
    checkpoints.save(tmp_path, model)
    assert not (tmp_path / "model.json").exists()
    assert (tmp_path / "model.safetensors").stat().st_size < 1000
    train.load_weights(again, tmp_path)
    assert same(model.state_dict(), again.state_dict()) and again.a.weight is again.b.weight
    with pytest.raises(FileNotFoundError, match="trained without a config"):
        train.load(tmp_path)


def test_bad_descriptions_and_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trained model"):
        train.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no trained model"):
        train.load_weights(make(), tmp_path)
    description = config()
    model = train.build_model(description)
    checkpoints.save(tmp_path, model, description)
    stored = json.loads((tmp_path / "model.json").read_text())

    def rewritten(**changes):
        (tmp_path / "model.json").write_text(json.dumps({**stored, **changes}))

    for changes, says in [
        ({"schema": 99}, "schema 99.*reads up to 1"),
        ({"head": "tree"}, "head 'tree'"),
        ({"bands": 3}, "3 bands, but has 2 entries"),
        ({"head": "flat", "head_options": {}}, "do not fit the model"),
    ]:
        rewritten(**changes)
        with pytest.raises(ValueError, match=says):
            train.load(tmp_path)
    (tmp_path / "model.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match="lacks network, bands, head, tree, normalisation"):
        train.load(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match="no valid description"):
        train.load(tmp_path)
    rewritten()
    (tmp_path / "model.safetensors").write_bytes(b"0123456789")
    with pytest.raises(ValueError, match="damaged"):
        train.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_full_disk_leaves_the_last_state(tmp_path, monkeypatch):
    fit(make(), out=tmp_path)
    before = (tmp_path / "state.pt").read_bytes()

    def full(_, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    model = make()
    optimizer = recipes.make_optimizer(model, FAST)
    with pytest.raises(OSError, match="Is the disk full"):
        checkpoints.write_state(tmp_path / "state.pt", model, optimizer, 1, {})
    assert (tmp_path / "state.pt").read_bytes() == before and len(list(tmp_path.iterdir())) == 3


def test_streams_are_independent():
    keys = [(0,), (1,), (0, 0), (0, 1), (0, 1, 5), (0, 5, 1)]
    assert len({_training.stream(*key) for key in keys}) == len(keys)
