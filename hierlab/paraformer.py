"""Paraformer: high-resolution maps from low-resolution, historical labels (Li et al., CVPR 2024).

In the order of the paper's Section 3: the CNN branch, which never downsamples (3.1); the transformer branch and its
decoder (3.2); both branches as one network; pseudo-label-assisted training, PLAT (3.3, eqs. 1-4). Then names and
weights.

Letters: B batch, C channels of the CNN branch, D width of a token, K classes, L levels, H W pixels.
"""

import inspect
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .losses import FlatLoss, cross_entropy
from .networks.compose import scaled
from .networks.parts import BatchNorm2d, check_image, check_size, whole_strides
from .networks.weights import align, from_file, from_hub, some
from .tree import IGNORE, ClassTree

log = logging.getLogger(__name__)

BRANCHES = ("both", "cnn", "transformer")


# ---------------------------------------------------------------- CNN-based resolution-preserving branch (Section 3.1)


def _conv(inputs: int, outputs: int, kernel: int, bias: bool) -> nn.Sequential:
    """Convolution that keeps H and W, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias),
        BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class RPBlock(nn.Module):
    """Resolution-preserving block: (B, C, H, W) -> (B, C, H, W).

    Convolutions of kernel 1, 3 and 5 side by side with C, C/2 and C/4 channels, stride 1; concatenated, reduced to C
    by a 1×1 convolution, and added to the input. The convolutions keep the biases that batch normalisation makes
    idle, as in L2HNet, whose count the paper prints.
    """

    def __init__(self, channels: int):
        super().__init__()
        widths = [channels // 2**i for i in range(3)]
        self.scales = nn.ModuleList(_conv(channels, width, 2 * i + 1, bias=True) for i, width in enumerate(widths))
        self.reduce = _conv(sum(widths), channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(torch.cat([scale(x) for scale in self.scales], dim=1))


class ResolutionPreserving(nn.Module):
    """The CNN branch: (B, bands, H, W) -> the output of every RP block, each (B, C, H, W).

    A 3×3 convolution, then the blocks in a row. No step is larger than 1, so that moving the image by a pixel moves
    every output by a pixel. An output depends on 2·blocks + 1 pixels to each side.
    """

    def __init__(self, bands: int, channels: int = 128, blocks: int = 5):
        super().__init__()
        self.start = nn.Conv2d(bands, channels, 3, padding=1)
        self.blocks = nn.ModuleList(RPBlock(channels) for _ in range(blocks))

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.start(image), []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


# ---------------------------------------------------------------- transformer-based global-modelling branch (3.2)


class Stem(nn.Module):
    """What embeds the CNN's features, or the image, for the transformer: the stem of a hybrid ViT.

    (B, channels, H, W), H and W multiples of 16 -> three maps (B, widths[i], h, w) at strides 2, 4 and 16. Each is a
    convolution (kernels 3, 3, 5; strides 2, 2, 4) with standardised weights, GroupNorm of 32 groups, ReLU.
    """

    def __init__(self, channels: int, widths: Sequence[int] = (640, 1024, 1024)):
        super().__init__()
        from timm.layers import StdConv2d

        inputs = (channels, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                StdConv2d(inputs[i], widths[i], kernel, stride=stride, padding=kernel // 2),
                nn.GroupNorm(32, widths[i]),
                nn.ReLU(inplace=True),
            )
            for i, (kernel, stride) in enumerate(((3, 2), (3, 2), (5, 4)))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def vision_transformer(channels: int, dim: int = 768, layers: int = 12, grid: int = 14) -> nn.Module:
    """timm's ViT on a grid of features: (B, channels, h, w) -> tokens (B, h·w, D), row by row.

    A 1×1 convolution to D, a learned position embedding, and ``layers`` pre-norm layers with D/64 heads and an MLP of
    4D, then LayerNorm; no class token. The embedding is learned for ``grid`` × ``grid`` (images of 224 pixels) and
    interpolated (bicubic) for any other h and w.
    """
    import timm

    return timm.create_model(
        VIT,
        img_size=grid,
        patch_size=1,
        in_chans=channels,
        embed_dim=dim,
        depth=layers,
        num_heads=dim // 64,
        num_classes=0,
        class_token=False,
        global_pool="",
        dynamic_img_size=True,
    )


class Decoder(nn.Module):
    """Tokens back to pixels, joined by the stem's maps: (B, D, H/16, W/16) -> (B, widths[-1], H, W).

    A 3×3 convolution to widths[0]; then three times: concatenate the stem's map of the same stride, 3×3 convolution to
    widths[i], enlarge bilinearly (×4, ×2, ×2). Convolutions have batch normalisation and ReLU.
    """

    def __init__(self, dim: int, stem: Sequence[int], widths: Sequence[int] = (512, 640, 256)):
        super().__init__()
        inputs = (widths[0], *widths[:-1])
        self.entry = _conv(dim, widths[0], 3, bias=False)
        self.joins = nn.ModuleList(
            _conv(own + skip, width, 3, bias=False)
            for own, skip, width in zip(inputs, reversed(stem), widths, strict=True)
        )

    def forward(self, x: Tensor, stem: Sequence[Tensor]) -> Tensor:
        x = self.entry(x)
        for join, skip, factor in zip(self.joins, reversed(stem), (4, 2, 2), strict=True):
            x = join(torch.cat([x, skip], dim=1))
            x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        return x


# ---------------------------------------------------------------- both branches as one network (Fig. 3)


class Paraformer(nn.Module):
    """CNN branch and transformer branch: ``model(batch) -> {"logits": [prediction 2], "primal": prediction 1}``.

    ``batch["image"]`` is (B, bands, H, W) with any H and W from 1, padded by replication to a multiple of 16 and
    cropped back. Prediction 1, (B, K, H, W), is classified from the CNN's features alone; prediction 2, the map, from
    the decoder. Both classifiers are 3×3 convolutions, ``primal_classifier`` and ``classifier``; the latter may be
    exchanged for a hierarchical head. (In the authors' release classifier 1 also sees one channel of the decoder;
    Fig. 3, followed here, does not show that.)

    Args:
        branches: ``"both"``, or one alone, as in Table 3. ``"cnn"`` has no transformer, ``"transformer"`` embeds the
            image itself; either has one prediction, so no ``primal``, and is trained as any flat network.
        channels: C, 128 or (light) 64; a multiple of 4.
        blocks: RP blocks in a row.
        stem: channels of the stem's maps, multiples of 32.
        dim, layers: D (a multiple of 64) and depth of the ViT.
        decoder: channels of the decoder's maps.
        average_heads: in evaluation, logits are the mean of both predictions, as the authors' release maps. The
            paper calls prediction 2 the final output, which is the default. Two predictions cannot wear one
            hierarchical head.

    Raises ValueError for settings that do not fit, and for an image of other bands.
    """

    def __init__(
        self,
        bands: int,
        classes: int,
        *,
        branches: str = "both",
        channels: int = 128,
        blocks: int = 5,
        stem: Sequence[int] = (640, 1024, 1024),
        dim: int = 768,
        layers: int = 12,
        decoder: Sequence[int] = (512, 640, 256),
        average_heads: bool = False,
        name: str = "paraformer",
    ):
        super().__init__()
        if branches not in BRANCHES:
            raise ValueError(f"branches is one of {', '.join(BRANCHES)}; got {branches!r}.")
        if average_heads and branches != "both":
            raise ValueError(f"average_heads=True needs two predictions; branches={branches!r} has one.")
        rules = {"channels": ([channels], 4), "stem": (stem, 32), "dim": ([dim], 64)}
        for option, (values, unit) in rules.items():
            if any(value < unit or value % unit for value in values):
                raise ValueError(f"{option} is {', '.join(map(str, values))}; it takes multiples of {unit}.")
        if len(stem) != 3 or len(decoder) != 3 or min(bands, classes, blocks, layers, *decoder) < 1:
            raise ValueError(
                f"{name} needs three widths of stem and decoder, and at least one band, class, block and layer; "
                f"given {stem=}, {decoder=}, {bands=}, {classes=}, {blocks=}, {layers=}."
            )
        self.name, self.bands, self.branches, self.average_heads = name, bands, branches, average_heads
        self.cnn = ResolutionPreserving(bands, channels, blocks) if branches != "transformer" else None
        self.primal_classifier = nn.Conv2d(channels, classes, 3, padding=1) if branches == "both" else None
        self.stem = self.vit = self.decoder = None
        features = channels
        if branches != "cnn":
            self.stem = Stem(bands if self.cnn is None else blocks * channels, stem)
            self.vit = vision_transformer(stem[-1], dim, layers)
            self.decoder = Decoder(dim, stem, decoder)
            features = decoder[-1]
        self.classifier = nn.Conv2d(features, classes, 3, padding=1)

    def forward(self, batch: dict[str, Tensor]) -> dict:
        height, width = batch["image"].shape[-2:]
        x = whole_strides(check_image(batch["image"], self.bands, self.name), 16)
        outputs, primal = {}, None
        if self.cnn is not None:
            maps = self.cnn(x)  # blocks × (B, C, H, W)
            x = maps[-1] if self.stem is None else torch.cat(maps, dim=1)
        if self.primal_classifier is not None:
            primal = outputs["primal"] = self.primal_classifier(maps[-1])[..., :height, :width]
        if self.stem is not None:
            stem = self.stem(x)  # (B, 640, H/2, W/2), (B, 1024, H/4, W/4), (B, 1024, H/16, W/16)
            tokens = self.vit(stem[-1])  # (B, N, D)
            x = self.decoder(tokens.transpose(1, 2).unflatten(2, stem[-1].shape[2:]), stem)
        logits = self.classifier(x)[..., :height, :width]
        if self.average_heads and not self.training:
            logits = (primal + logits) / 2
        return {"logits": [logits], **outputs}


# ---------------------------------------------------------------- pseudo-label-assisted training, PLAT (Section 3.3)


@torch.no_grad()
def mask_labels(primal: Tensor, label: Tensor, tree: ClassTree) -> Tensor:
    """The mask label of PLAT (Fig. 3c): what the low-resolution label and prediction 1 agree on, 255 elsewhere.

    ``primal`` (B, K, H, W) are logits of the tree's leaves, of which the largest is the pseudo-label Y′; ``label``
    (B, H, W) are labels Y of the tree. The result, (B, H, W), are labels of the tree too:

    - In a tree of one level it is Y where Y = Y′, else 255 (eq. 3: the mask M is where it is not 255).
    - In a tree of several levels, it is the finest class that both lie in. The pseudo-label is one leaf, so one class
      at every level; the mask of level l is where Y is known at l and its class is that of Y′. Where two kinds of
      forest are confused, "forest" remains, and its level and those above still learn; only where nothing is shared
      is the pixel void. A label that stops half-way (an inner node) agrees where the pseudo-label lies below it. A
      leaf with several paths is unknown, thus never agrees, at levels where its paths differ.

    No gradient passes: the mask is a constant of the training step. Void never agrees.
    """
    own, pseudo = tree.targets(label), tree.targets(primal.argmax(1))  # (B, L, H, W)
    agree = (own == pseudo) & (own != IGNORE)
    masked = torch.full_like(own[:, 0], IGNORE)
    for level, names in enumerate(tree.classes):
        first = tree.label_of(names[0], level)  # the labels of a level follow each other
        masked = torch.where(agree[:, level], first + own[:, level], masked)
    return masked


class PLAT(nn.Module):
    """Loss of pseudo-label-assisted training: L_total = L_ce + L_mce (eq. 4).

    - L_ce (eq. 1): cross entropy of prediction 1, ``outputs["primal"]``, against the low-resolution label.
    - L_mce (eq. 2): ``second`` on prediction 2, ``outputs["logits"]``, against the mask label (:func:`mask_labels`),
      averaged over the kept pixels. By default cross entropy on the leaves; with a network that wears a hierarchical
      head, ``HSCLoss(tree)``: prediction 1 stays a prediction of leaves, and each level of prediction 2 learns from
      the pixels whose mask label is known at that level.

    Equations 1 and 2 are printed without the minus of a cross entropy, and eq. 1 divides by H·W: here both average
    over the labelled pixels, which is the same where, as in the paper, no training patch has a void pixel. L_ce
    counts the pixels whose leaf is known. A batch without any kept pixel adds a zero with zero gradients.

    Args:
        tree: the class tree of the low-resolution labels.
        second: loss of prediction 2, ``loss(outputs, batch) -> scalar, dict of parts``; None for ``FlatLoss(tree)``.
        mask: False for the hybrid without PLAT (Table 3): prediction 2 learns from all labels. ``weights=(0, 1)``
            then drops prediction 1's loss as well.
        weights: factors of L_ce and L_mce; 1 and 1 in eq. 4, a half each in the authors' release.
        label: the name of the low-resolution label in the batch, (B, H, W).

    Parts: ``primal_cross_entropy``; those of ``second``, with ``masked_`` before their names; ``kept``, the share of
    the labelled pixels whose label is kept at least at one level.
    """

    def __init__(
        self,
        tree: ClassTree,
        second: nn.Module | None = None,
        *,
        mask: bool = True,
        weights: tuple[float, float] = (1.0, 1.0),
        label: str = "label",
    ):
        super().__init__()
        if len(weights) != 2 or min(weights) < 0:
            raise ValueError(f"weights are two factors of at least 0, of L_ce and L_mce; got {weights}.")
        self.tree, self.second = tree, second or FlatLoss(tree)
        self.mask, self.weights, self.label = mask, tuple(weights), label

    def forward(self, outputs: dict, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """``outputs["primal"]`` (B, K, H, W), ``outputs["logits"]``, ``batch["label"]`` (B, H, W)."""
        if "primal" not in outputs:
            raise ValueError(
                "PLAT compares two predictions, and this model's outputs have no 'primal'. Build it with both "
                "branches, or train one branch with the loss of any other network (FlatLoss, HSCLoss)."
            )
        primal, label = outputs["primal"].float(), batch[self.label]
        ce = cross_entropy(primal, self.tree.targets(label)[:, -1])
        masked = mask_labels(primal, label, self.tree) if self.mask else label
        mce, parts = self.second(outputs, {**batch, "label": masked})
        kept = (masked != IGNORE).sum() / (label != IGNORE).sum().clamp(min=1)
        parts = {"primal_cross_entropy": ce.detach()} | {f"masked_{name}": part for name, part in parts.items()}
        return self.weights[0] * ce + self.weights[1] * mce, {**parts, "kept": kept}


# ---------------------------------------------------------------- names

NETWORKS = {
    "paraformer": "Paraformer: full-resolution CNN and ViT-B side by side, for weak labels (PLAT)",
    "paraformer-light": "Paraformer with 64 channels in its CNN branch",
    "paraformer-cnn": "Paraformer's CNN branch alone, nothing downsampled",
    "paraformer-transformer": "Paraformer's transformer branch alone, on the image",
}

_SETTINGS = {
    "paraformer-light": {"channels": 64},
    "paraformer-cnn": {"branches": "cnn"},
    "paraformer-transformer": {"branches": "transformer"},
}


def build(
    name: str,
    bands: int,
    classes: int,
    weights: str | os.PathLike | None = None,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    **options,
) -> Paraformer:
    """Build one of :data:`NETWORKS` for ``bands`` input bands and ``classes`` classes.

    Args:
        weights: None (random), ``"imagenet"`` (of the ViT) or a file: see :func:`load_weights`.
        width, depth: the fraction kept of all channels (rounded to what the layers need), and of the RP blocks and
            transformer layers (at least one of each): a narrower, shallower form of the same network.
        options: further keywords of :class:`Paraformer`, before that scaling.

    Raises ValueError for what cannot be built and for weights that do not fit, OSError for weights that cannot be
    read.
    """
    if name not in NETWORKS:
        raise ValueError(f"There is no Paraformer {name!r}; there are {', '.join(NETWORKS)}.")
    check_size(name, bands, classes, width, depth)
    known = {key: p.default for key, p in inspect.signature(Paraformer).parameters.items() if p.kind is p.KEYWORD_ONLY}
    del known["name"]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    chosen = known | _SETTINGS.get(name, {}) | options
    for key, unit in {"channels": 8, "stem": 32, "dim": 64, "decoder": 8}.items():
        chosen[key] = scaled(chosen[key], width, unit)
    for key in ("blocks", "layers"):
        chosen[key] = max(1, round(chosen[key] * depth))
    model = Paraformer(bands, classes, **chosen, name=name)
    if weights is not None:
        load_weights(model, weights)
    return model


# ---------------------------------------------------------------- weights

VIT = "vit_base_patch16_224"  # the timm model whose layers, position embedding and weights are used
_PREFIX = "vit."  # where the network keeps it


def load_weights(model: Paraformer, source: str | os.PathLike) -> dict[str, list[str]]:
    """Load a pretrained ViT, or a whole Paraformer, and say what matched.

    ``source`` is ``"imagenet"`` (the weights that timm's hub has for ViT-B/16) or a file, ``.safetensors`` or
    PyTorch's own format, which holds a ViT under timm's names or a Paraformer, whatever stands before the names. A
    ViT gives its layers and its position embedding, interpolated to this grid; its patch embedding fits only if it is
    a hybrid ViT's. What has another shape outside the transformer's layers (classifiers of another legend, the start
    convolution for other bands) is left as it was.

    Returns the names of the tensors ``matched``, ``missing`` (in the network, not in the source), ``mismatched`` and
    ``unused`` (in the source only), and logs their numbers. Raises OSError if the weights cannot be had or read,
    ValueError if they are no ViT of this width and depth.
    """
    if model.vit is None:
        raise ValueError(f"{model.name} has no transformer to load weights into: build it with weights=None.")
    own = model.state_dict()
    stored = from_hub(VIT) if str(source) == "imagenet" else from_file(Path(source))
    vit = {key: key.removeprefix(_PREFIX) for key in own if key.startswith(_PREFIX)}
    names = align({key: key for key in own}, stored)
    if not any(key in names for key in vit):
        names = align(vit, stored)
    if 2 * sum(key in names for key in vit) < len(vit):
        raise ValueError(
            f"{source} holds no weights of a ViT of {len(model.vit.blocks)} layers: {sum(key in names for key in vit)} "
            f"of {len(vit)} tensors found. It has {some(list(stored))}; the ViT has {some(list(vit.values()))}."
        )
    fitted = {key: _fitted(key, stored[found], own[key]) for key, found in names.items()}
    odd = {key.rpartition(".")[0] for key, value in fitted.items() if value is None}  # layers are taken whole
    chosen = {key: value for key, value in fitted.items() if key.rpartition(".")[0] not in odd}
    report = {
        "matched": list(chosen),
        "missing": [key for key in own if key not in names],
        "mismatched": [key for key in fitted if key not in chosen],
        "unused": sorted(set(stored) - set(names.values())),
    }
    if wrong := [key for key in report["mismatched"] if key.startswith(f"{_PREFIX}blocks.")]:
        raise ValueError(
            f"The weights of {source} are of another ViT: {len(wrong)} tensors differ in shape, first {wrong[0]}, "
            f"{tuple(stored[names[wrong[0]]].shape)} there and {tuple(own[wrong[0]].shape)} here. Build the network "
            "with the width and depth that the weights have, or with weights=None."
        )
    log.info("%s from %s: %s", model.name, source, "; ".join(f"{k} {len(v)}: {some(v)}" for k, v in report.items()))
    model.load_state_dict(chosen, strict=False)
    return report


def _fitted(key: str, value: Tensor, target: Tensor) -> Tensor | None:
    """``value`` in the shape of ``target``, or None: only a position embedding is resampled, to another grid."""
    if value.shape == target.shape:
        return value
    if key == f"{_PREFIX}pos_embed" and value.ndim == 3 and value.shape[2] == target.shape[2]:
        from timm.layers import resample_abs_pos_embed

        first = value.shape[1] - math.isqrt(value.shape[1]) ** 2  # class and register tokens stand before the grid
        return resample_abs_pos_embed(value[:, first:], [math.isqrt(target.shape[1])] * 2, num_prefix_tokens=0)
    return None
