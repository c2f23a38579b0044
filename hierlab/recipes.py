"""Recipes: how a network is trained, as data; the schedule and the parameter groups as functions of it.

A :class:`Recipe` is frozen and checked when it is made. The papers' own recipes are named instances below. The loop
that follows a recipe is :func:`hierlab.train.fit`.
"""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field

import torch
from torch import nn

from . import profiles
from .data.augment import Augment

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
NO_DECAY = ("vectors", "norms", "positions")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, apart from the network, the data and the seed.

    **Optimiser.** ``optimizer`` is ``"adamw"`` (betas 0.9, 0.999) or ``"sgd"`` (with ``momentum``); ``lr`` the peak
    learning rate; ``weight_decay`` acts on every parameter but those of the kinds in ``no_decay``: ``"vectors"``
    (at most one dimension: biases, norms, layer scales, scalars), ``"norms"`` (norm layers), ``"positions"``
    (position embeddings and relative-position tables, class tokens). ``layer_decay`` < 1 slows the early parts of
    the encoder, counted in ``decay_layers`` layers (see :func:`parameter_groups`). ``clip`` bounds the norm of the
    gradient, ``None`` leaves it.

    **Schedule.** Linear from ``warmup_lr`` to ``lr`` over ``warmup_steps``, then ``"poly"`` (with ``power``) or
    ``"cosine"`` to ``min_lr`` at ``steps`` (see :func:`learning_rate`). A step is one update of the weights.

    **Batch.** ``batch_size`` patches a step, over all processes together, in ``accumulate`` equal parts one after
    the other; so neither the number of devices nor ``accumulate`` changes what a step learns from. ``precision`` is
    Lightning's: ``"32-true"``, ``"bf16-mixed"`` (weights float32, most operations bfloat16) or ``"bf16-true"``
    (weights and optimiser in bfloat16 too; small updates may round to nothing). ``channels_last`` changes speed only.

    **Data.** ``patch`` is the side, in pixels, of the patches that data sets are to cut; ``balance`` the share of them
    drawn for a class, all classes equally often, instead of as the ground falls
    (:class:`hierlab.data.datasets.RasterDataset`); ``augment`` what is done to them on the device, after
    normalisation (:class:`hierlab.data.augment.Augment`), None for nothing.

    **Result.** ``keep`` says which weights a run ends with: ``"best"`` by validation mIoU of the leaves, or ``"last"``.

    Raises ValueError naming the field, what it holds and what it takes.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = ("vectors", "positions")
    momentum: float = 0.9
    layer_decay: float = 1.0
    decay_layers: int = 12
    clip: float | None = None
    schedule: str = "cosine"
    power: float = 1.0
    warmup_steps: int = 30
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    steps: int = 600
    batch_size: int = 8
    accumulate: int = 1
    precision: str = "32-true"
    channels_last: bool = False
    patch: int = 128
    balance: float = 0.0
    augment: Augment | None = field(default_factory=Augment)
    keep: str = "best"

    def __post_init__(self):
        object.__setattr__(self, "no_decay", tuple(self.no_decay))  # a list, when read from JSON
        if isinstance(self.augment, dict):
            scale = self.augment.get("scale")
            object.__setattr__(self, "augment", Augment(**{**self.augment, "scale": scale and tuple(scale)}))
        one_of = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("poly", "cosine"),
            "precision": PRECISIONS,
            "keep": ("best", "last"),
        }
        for name, choices in one_of.items():
            self._check(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        self._check("no_decay", set(self.no_decay) <= set(NO_DECAY), f"any of {', '.join(NO_DECAY)}")
        self._check("augment", self.augment is None or isinstance(self.augment, Augment), "an Augment, or None")
        for name in ("steps", "batch_size", "accumulate", "patch", "decay_layers"):
            self._check(name, _whole(getattr(self, name)) and getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("lr", "power"):
            self._check(name, _real(getattr(self, name)) and getattr(self, name) > 0, "a number above 0")
        for name in ("weight_decay", "warmup_lr", "min_lr"):
            self._check(name, _real(getattr(self, name)) and getattr(self, name) >= 0, "a number of at least 0")
        self._check("momentum", _real(self.momentum) and 0 <= self.momentum < 1, "a number from 0 to below 1")
        self._check("layer_decay", _real(self.layer_decay) and 0 < self.layer_decay <= 1, "a number above 0, up to 1")
        self._check("balance", _real(self.balance) and 0 <= self.balance <= 1, "a share from 0 to 1")
        self._check("clip", self.clip is None or (_real(self.clip) and self.clip > 0), "a number above 0, or None")
        fits = _whole(self.warmup_steps) and 0 <= self.warmup_steps < self.steps
        self._check("warmup_steps", fits, f"a whole number from 0 to below steps ({self.steps})")
        divides = self.batch_size % self.accumulate == 0
        self._check("accumulate", divides, f"a divisor of batch_size ({self.batch_size})")

    def _check(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise ValueError(f"Recipe.{name} is {getattr(self, name)!r}; it must be {expected}.")

    def replace(self, **changes) -> "Recipe":
        """The same recipe but for ``changes``, checked again."""
        known = {entry.name for entry in dataclasses.fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"A recipe has no {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
        return dataclasses.replace(self, **changes)

    def scaled(self, profile: str) -> "Recipe":
        """The recipe cut to a profile's means: fewer steps, smaller batches and patches; never more than it has.

        ``paper`` leaves it as it is. Warm-up shrinks with the steps. The learning rate stays. Raises ValueError for
        an unknown profile.
        """
        limits = {
            "smoke": {"steps": 4, "batch_size": 2, "patch": 64},
            "laptop": {"steps": 600, "batch_size": 8, "patch": 128},
            "gpu": {"steps": 6000, "batch_size": 16, "patch": 256},
            "paper": {},
        }
        changes = {name: min(limit, getattr(self, name)) for name, limit in limits[profiles.check(profile)].items()}
        changes["warmup_steps"] = self.warmup_steps * changes.get("steps", self.steps) // self.steps
        changes["accumulate"] = math.gcd(self.accumulate, changes.get("batch_size", self.batch_size))
        return self.replace(**changes)

    def to_dict(self) -> dict:
        """The fields as plain, JSON-able data; ``Recipe(**fields)`` reads them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---------------------------------------------------------------- named recipes

LAPTOP = Recipe(clip=1.0)
"""An analyst's own raster on two cores: a small network, from scratch or pretrained, in minutes."""

SMOKE = LAPTOP.scaled("smoke")
"""Seconds on a CPU, to see that everything fits together. Its numbers mean nothing."""

CONVNEXT_DEIT = Recipe(
    lr=1e-4,
    weight_decay=0.05,
    layer_decay=0.9,
    schedule="poly",
    warmup_steps=1500,
    steps=80_000,
    batch_size=16,
    patch=512,
    augment=Augment(vertical=0.0, quarter_turns=False),
    keep="last",
)
"""ConvNeXt and DeiT III in HieraRS (Section V.A: AdamW, 80k iterations, four GPUs, MMSegmentation), with the details
of the published runs: 1e-4, decay 0.05, stage-wise layer decay 0.9 over 12, warm-up 1500 from 1e-6, poly 1.0 to 0.
Four GPUs of 2 or 4 patches: 16 here, ``replace(batch_size=8)`` for the other. Patches are 640 pixels for GaoFen-2,
512 for Sentinel-2, 896 for Google Earth: ``replace(patch=640)``."""

SWIN = CONVNEXT_DEIT.replace(lr=6e-5, weight_decay=0.01, layer_decay=1.0, no_decay=("norms", "positions"))
"""Swin in HieraRS (Section V.A): AdamW 6e-5, decay 0.01 but none on norms and position biases; the rest as there."""

DEEPLAB = CONVNEXT_DEIT.replace(
    optimizer="sgd",
    lr=0.01,
    weight_decay=5e-4,
    no_decay=(),
    momentum=0.9,
    layer_decay=1.0,
    warmup_steps=0,
    power=0.9,
    min_lr=1e-4,
)
"""DeepLabv3+ ResNet-101 in HieraRS (Section V.A): SGD 0.01, momentum 0.9, decay 5e-4, poly 0.9 to 1e-4, 80k."""

TRANSLU = CONVNEXT_DEIT.replace(steps=20_000)
"""TransLU in HieraRS (Section V.A): AdamW 1e-4, decay 0.05, layer decay 0.9, the schedule of stage I, 20k."""

PARAFORMER = Recipe(
    lr=0.01,
    weight_decay=0.01,
    no_decay=(),
    schedule="poly",
    power=0.9,
    warmup_steps=0,
    steps=91_500,
    batch_size=8,
    patch=224,
    augment=None,
    keep="last",
)
"""Paraformer (Section 4): AdamW 0.01, batches of 8 chips of 224 pixels. The paper lowers the rate by a tenth when the
loss has not fallen for eight epochs; a rate that looks at the loss is no schedule here, and the release's poly 0.9
takes its place. How many epochs are trained is not published: 20 of 732 tiles with 50 chips each are our choice."""

PARAFORMER_RELEASE = PARAFORMER.replace(
    optimizer="sgd", momentum=0.9, weight_decay=1e-4, batch_size=16, steps=PARAFORMER.steps // 2
)
"""The recipe of Paraformer's authors' release: SGD 0.01, momentum 0.9, decay 1e-4, poly 0.9, batches of 16; the two
losses halved there are ``PLAT(weights=(0.5, 0.5))``. The epochs are ours, as in ``PARAFORMER``."""

HIRESNET = Recipe(
    lr=1e-4,
    weight_decay=1e-8,
    no_decay=(),
    warmup_steps=3 * 1048,
    steps=400 * 1048,
    batch_size=16,
    patch=512,
    augment=Augment(quarter_turns=False, scale=(0.5, 1.5), max_share=None),
    keep="last",
)
"""Hi-ResNet on LoveDA (Section IV.B.1): AdamW 1e-4, decay 1e-8 as printed, 3 epochs of warm-up and cosine to epoch 400,
batches of 16 patches of 512 pixels. An epoch are the 16 764 quarters of the 4191 images of 1024 pixels of training and
validation set, 1048 batches. Potsdam and Vaihingen train for 200 epochs of their own length: ``replace(steps=…)``."""

HIRESNET_DECAY = HIRESNET.replace(weight_decay=1e-4)
"""Hi-ResNet with a weight decay of 1e-4, which the printed 1e-8 was probably meant to be."""

RECIPES = {
    "laptop": LAPTOP,
    "smoke": SMOKE,
    "convnext_deit": CONVNEXT_DEIT,
    "swin": SWIN,
    "deeplab": DEEPLAB,
    "translu": TRANSLU,
    "paraformer": PARAFORMER,
    "paraformer_release": PARAFORMER_RELEASE,
    "hiresnet": HIRESNET,
    "hiresnet_decay": HIRESNET_DECAY,
}

_OF_PAPERS = {  # by how a network's name begins
    "paraformer": PARAFORMER,
    "hiresnet": HIRESNET,
    "hrnet-w48": HIRESNET,
    "resnet101c-deeplabv3plus": DEEPLAB,
    "convnext": CONVNEXT_DEIT,
    "deit3": CONVNEXT_DEIT,
    "swin": SWIN,
    "segnext": SWIN,
}


def of_paper(network: str) -> Recipe | None:
    """The recipe with which a paper trains the network of that name; None for others.

    HieraRS does not give SegNeXt's rate: it gets Swin's, AdamW with 6e-5 and 0.01, which are SegNeXt's own.
    """
    return next((recipe for start, recipe in _OF_PAPERS.items() if network.startswith(start)), None)


# ---------------------------------------------------------------- schedule


def learning_rate(step: int, recipe: Recipe) -> float:
    """The learning rate of update number ``step`` (from 0), before any layer's own factor.

    Linear warm-up, w the warm-up steps: warmup_lr + (lr − warmup_lr) · step / w for step < w; then, with
    t = (step − w) / (steps − w), min_lr + (lr − min_lr) · f(t), where f is (1 − t)^power (``poly``) or
    (1 + cos πt) / 2 (``cosine``). It is ``lr`` at step w and ``min_lr`` from step ``steps`` on.
    """
    if step < recipe.warmup_steps:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * step / recipe.warmup_steps
    t = min(1.0, (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps))
    left = (1 - t) ** recipe.power if recipe.schedule == "poly" else (1 + math.cos(math.pi * t)) / 2
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * left


# ---------------------------------------------------------------- parameter groups

_POSITION = re.compile(r"(pos_embed|position_bias_table|rel_pos|cls_token|dist_token|reg_token|pos_emb)")
_DOWNSAMPLING = re.compile(r"(?:stages|layers)[._]\d+\.downsample\.")  # not a residual shortcut, layer2.0.downsample
_STAGE = (
    re.compile(r"\.(?:stages?|layers?)[._]?(\d+)\."),
    re.compile(r"\.blocks[._](\d+)\."),
)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Optimiser groups of the trainable parameters: ``params``, ``weight_decay``, ``scale``, ``name``.

    The loop sets each group's rate to ``learning_rate(step) · scale``. Without layer decay every scale is 1.

    With it, the encoder (the submodule called ``encoder``, or else ``backbone``) is cut by the order of its parts, as
    MMSegmentation's "stage_wise" rule cuts ConvNeXt: everything before the first stage (stem, tokens, position
    embedding) and the downsampling layers between stages are number 0, stage i is number i + 1, and the scale is
    layer_decay^(decay_layers + 1 − number). With 0.9 over 12 the four stages get 0.9^12 … 0.9^9, the stem 0.9^13. A
    plain transformer has no stages: its blocks are numbered, so block i of 12 gets 0.9^(12 − i); with more than 12
    they share 12 numbers evenly. What follows the last stage in the encoder (norms), the decoder and the head have 1.

    Raises ValueError when there is nothing to train, or nothing that layer decay could act on.
    """
    owner = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    number = _layer_numbers(model, recipe.decay_layers) if recipe.layer_decay < 1 else {}
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kinds = {
            "vectors": parameter.ndim <= 1,
            "norms": "Norm" in type(owner[id(parameter)]).__name__,
            "positions": _POSITION.search(name) is not None,
        }
        decays = not any(kinds[kind] for kind in recipe.no_decay)
        layer = number.get(name)
        scale = 1.0 if layer is None else recipe.layer_decay ** (recipe.decay_layers + 1 - layer)
        label = ("rest" if layer is None else f"layer {layer}") + ("" if decays else ", no decay")
        decay = recipe.weight_decay if decays else 0.0
        group = groups.setdefault(label, {"params": [], "weight_decay": decay, "scale": scale, "name": label})
        group["params"].append(parameter)
    if not groups:
        raise ValueError("The model has no parameter that requires a gradient, so there is nothing to train.")
    return list(groups.values())


def _layer_numbers(model: nn.Module, layers: int) -> dict[str, int]:
    """The layer number of every encoder parameter up to the last stage, by the parameter's name."""
    modules = [name for name, _ in model.named_modules()]
    prefix = next((n for word in ("encoder", "backbone") for n in modules if n.rpartition(".")[2] == word), None)
    if prefix is None:
        raise ValueError(
            "Layer decay needs an encoder, a submodule called 'encoder' or 'backbone'; this model has none. "
            "Use recipe.replace(layer_decay=1.0)."
        )
    names = [name for name, _ in model.named_parameters() if name.startswith(prefix + ".")]
    stage: dict[str, int] = {}
    for pattern in _STAGE:
        found = {name: pattern.search(name[len(prefix) :]) for name in names}
        stage = {name: int(match[1]) for name, match in found.items() if match}
        if len(set(stage.values())) > 1:
            break
    order = {index: rank for rank, index in enumerate(sorted(set(stage.values())))}
    if len(order) < 2:
        raise ValueError(
            f"Layer decay needs the stages or blocks of '{prefix}', and its parameters' names show none "
            f"(stages.0, layer1, blocks.0, …). Use recipe.replace(layer_decay=1.0)."
        )
    numbers, number = {}, 0
    for name in names[: 1 + max(i for i, name in enumerate(names) if name in stage)]:
        if name in stage:
            rank = order[stage[name]]
            number = 1 + (rank if len(order) <= layers else rank * layers // len(order))
        numbers[name] = 0 if _DOWNSAMPLING.search(name) else number
    return numbers


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over :func:`parameter_groups`."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.lr)
