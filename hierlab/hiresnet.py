"""Hi-ResNet: a network that keeps its resolution, and a loss that looks at edges.

In the order of the paper (Section III): funnel, multi-branch module with information aggregation (IA) blocks, feature
refinement with object-contextual representations (OCR), generalised Dice, label smoothing, the class-agnostic edge
aware (CEA) loss, and their sum (eqs. 1-9). HRNet and every variant of Tables V-VII are settings of the same network
(:data:`VARIANTS`). Pre-training (Section III.C) is :mod:`hierlab.pretraining`.

Letters: B batch, C bands or channels, K classes, D width of the refined features, H W pixels, L side of a window.
"""

import inspect
import math
import os
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._hrnet import Joined, MultiBranch, conv_unit
from .networks import load_weights
from .networks.parts import BatchNorm2d, Network, check_image, check_size, whole_strides
from .tree import IGNORE, ClassTree

STEPS = 4  # of the distance in L_CEA

# ---------------------------------------------------------------- funnel (Section III.A.1, Fig. 3)


class InvertedBottleneck(nn.Module):
    """3×3 convolution to ``width``, BN, 1×1 to 4·width, GELU, 1×1 back, on a skip with a layer scale of 1e-6.

    (B, C, H, W) -> (B, width, H, W); where C is not ``width`` the skip is a 1×1 convolution.
    """

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.spread = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.widen = nn.Conv2d(width, 4 * width, 1)
        self.narrow = nn.Conv2d(4 * width, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.skip = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(F.gelu(self.widen(self.norm(self.spread(x)))))
        return self.skip(x) + self.scale * y


class Funnel(nn.Sequential):
    """Two 3×3 convolutions of stride 2, BN before each, then inverted bottlenecks: (B, C, H, W) -> (B, 4w, H/4, W/4).

    ``width`` is w, the channels of the two convolutions: 64 in the paper, so 256 come out.
    """

    def __init__(self, bands: int, width: int = 64, blocks: int = 4):
        down = [conv_unit(bands, width, 3, 2, norm_first=True), conv_unit(width, width, 3, 2, norm_first=True)]
        stem = [InvertedBottleneck(4 * width if i else width, 4 * width) for i in range(blocks)]
        super().__init__(*down, *stem)


# ---------------------------------------------------------------- information aggregation block (III.A.3, Fig. 6)


def to_windows(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, h, w, L, L): h × w windows of L = ``side`` pixels, padded with zeros over the edge."""
    x = F.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side))
    return x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).transpose(3, 4)


def from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`to_windows`, cropped to (B, C, height, width)."""
    return windows.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows of L × L pixels that neither overlap nor shift, (B, C, H, W).

    The paper's reshape of C×H×W to (C·HW/L²)×L×L is read as usual: L² tokens of width C a window, 4·C² weights. What a
    window holds beyond the edge of the map is never attended to. Heads are at least ``head`` channels wide.
    """

    def __init__(self, channels: int, window: int = 8, head: int = 24):
        super().__init__()
        self.window, self.heads = window, math.gcd(channels, max(1, channels // head))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        windows = to_windows(self.qkv(x), self.window)  # (B, 3C, h, w, L, L)
        b, _, rows, columns, side, _ = windows.shape
        tokens = windows.flatten(4).unflatten(1, (3, self.heads, -1))  # (B, 3, heads, C / heads, h, w, L²)
        tokens = tokens.permute(1, 0, 4, 5, 2, 6, 3).flatten(1, 3)  # (3, B·h·w, heads, L², C / heads)
        seen = None
        if height % side or width % side:
            seen = to_windows(x.new_ones(1, 1, height, width), side).reshape(rows * columns, 1, 1, -1).bool()
            seen = seen.repeat(b, 1, 1, 1)  # (B·h·w, 1, 1, L²)
        y = F.scaled_dot_product_attention(*tokens, attn_mask=seen)
        y = y.reshape(b, rows, columns, self.heads, side, side, -1).permute(0, 3, 6, 1, 2, 4, 5).flatten(1, 2)
        return self.project(from_windows(y, height, width))


class MapAttention(nn.Module):
    """The paper's reshape by the letter: every channel of every window is one L × L map, its rows L tokens of width L.

    4·L² weights for all channels together, so it cannot be what the printed counts hold; kept to compare. What a window
    holds beyond the edge of the map is zeros here.
    """

    def __init__(self, channels: int, window: int = 8, head: int = 24):
        super().__init__()
        self.window, self.qkv, self.project = window, nn.Linear(window, 3 * window), nn.Linear(window, window)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(to_windows(x, self.window)).chunk(3, -1)  # (B, C, h, w, L, L) each
        relation = (q @ k.transpose(-1, -2) * self.window**-0.5).softmax(-1)
        return from_windows(self.project(relation @ v), *x.shape[2:])


ATTENTIONS = {"tokens": WindowAttention, "maps": MapAttention}


class IABlock(nn.Module):
    """Information aggregation block, (B, C, H, W) -> the same: an outer skip around BN, window attention with a skip, a
    depthwise convolution of a large kernel with a skip, squeeze-and-excitation (SE) and a 1×1 convolution.

    Fig. 6 shows these parts and not their sizes; the printed parameters decide. Of 26.0M without OCR all but the 152 IA
    blocks has 7.55M, which leaves 7.79·C² a block. Attention has 4·C² and the 1×1 convolution C². An SE with a hidden
    layer of all C channels (``reduction=1``) adds 2·C², and a 9×9 kernel, on average over the blocks, 0.57·C²: 7.64·C²
    with biases and BN. An SE of the usual reductions, 4 or 16, would need a part that the figure lacks.
    """

    def __init__(
        self,
        channels: int,
        window: int = 8,
        head: int = 24,
        kernel: int = 9,
        reduction: int = 1,
        attention: str = "tokens",
    ):
        super().__init__()
        if attention not in ATTENTIONS or kernel % 2 == 0 or min(window, head, kernel, reduction) < 1:
            raise ValueError(
                f"An IA block has attention {' or '.join(ATTENTIONS)}, an odd kernel, window, head and reduction from "
                f"1 on; got {attention=}, {kernel=}, {window=}, {head=}, {reduction=}."
            )
        hidden = max(1, channels // reduction)
        self.norm = nn.BatchNorm2d(channels)
        self.attention = ATTENTIONS[attention](channels, window, head)
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def gate(self, x: Tensor) -> Tensor:
        """What SE multiplies x (B, C, H, W) by: (B, C, 1, 1), between 0 and 1."""
        return torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y = y + self.attention(y)
        y = y + F.silu(self.depthwise(y))
        return x + self.project(F.gelu(y * self.gate(y)))


# ---------------------------------------------------------------- feature refinement (III.A.4)


class OCR(nn.Module):
    """Object-contextual representations (Yuan et al., 2020), a head for any network's features.

    Pixels x (B, D, H, W) and coarse scores (B, K, H, W) -> refined features (B, D, H, W). A softmax over the pixels
    makes each class's scores a soft region, whose feature is the weighted mean of its pixels; every pixel then attends
    to the K regions, in ``key`` channels, and is joined with what it gathers. K may be any number and vary.
    """

    def __init__(self, width: int = 512, key: int = 256, dropout: float = 0.05):
        super().__init__()

        def unit(inputs: int, outputs: int) -> list[nn.Module]:
            # K regions of one image are few values, down to one, for the statistics
            return [nn.Conv2d(inputs, outputs, 1, bias=False), BatchNorm2d(outputs), nn.ReLU(inplace=True)]

        self.query = nn.Sequential(*unit(width, key), *unit(key, key))
        self.key = nn.Sequential(*unit(width, key), *unit(key, key))
        self.value = nn.Sequential(*unit(width, key))
        self.widen = nn.Sequential(*unit(key, width))
        self.join = nn.Sequential(*unit(2 * width, width), nn.Dropout2d(dropout))

    def relations(self, pixels: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Region features (B, D, K, 1), and how much each pixel takes from each region, (B, K, H, W), sum 1 over K."""
        weight = coarse.flatten(2).softmax(2)  # (B, K, HW)
        regions = (weight @ pixels.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)  # (B, D, K, 1)
        query, key = self.query(pixels).flatten(2), self.key(regions).flatten(2)  # (B, key, HW), (B, key, K)
        relation = (key.transpose(1, 2) @ query * query.shape[1] ** -0.5).softmax(1)
        return regions, relation.unflatten(2, pixels.shape[-2:])

    def forward(self, pixels: Tensor, coarse: Tensor) -> Tensor:
        """(B, D, H, W)."""
        regions, relation = self.relations(pixels, coarse)
        context = self.value(regions).flatten(2) @ relation.flatten(2)  # (B, key, HW)
        context = self.widen(context.unflatten(2, pixels.shape[-2:]))
        return self.join(torch.cat([context, pixels], 1))


# ---------------------------------------------------------------- the network and its variants


class HiResNet(Network):
    """``model(batch) -> {"logits": [(B, K, H, W)]}``, and with OCR ``coarse`` and ``refined``, (B, K, H, W) each.

    With OCR the logits are coarse + refined, 1:1. Their two classifiers are the halves of one convolution without bias
    over joined features, W [x, y] = W_c x + W_r y, of which ``coarse`` is W [x, 0] and ``refined`` W [0, y]. So the
    sum, too, comes from one last convolution, whose place a hierarchical head can take.

    Arguments are those of :data:`VARIANTS`; :func:`build` fills them in.
    """

    def __init__(self, bands: int, classes: int, *, name: str, ocr: bool, refined_width: int, key_width: int, **others):
        stem, block, ia = others.pop("stem"), others.pop("block"), others.pop("ia")
        funnel = Funnel(bands, others["stem_width"], others["stem_blocks"]) if stem == "funnel" else None
        branches = MultiBranch(bands, funnel=funnel, block=partial(IABlock, **ia) if block == "ia" else None, **others)
        classifier = nn.Conv2d((1 + ocr) * refined_width, classes, 1, bias=not ocr)
        nn.init.normal_(classifier.weight, std=0.01)
        super().__init__(
            nn.Sequential(OrderedDict(model=branches)),  # the name under which load_weights looks for an encoder
            Joined(branches.channels, refined_width),
            classifier,
            bands=bands,
            stride=branches.stride,
            name=name,
            encoder_name="hrnet_w48",
        )
        self.ocr = OCR(refined_width, key_width) if ocr else None

    @property
    def params_without_ocr(self) -> int:
        """Parameters as the paper counts them: the whole without OCR."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith("ocr."))

    def forward(self, batch: dict[str, Tensor]) -> dict:
        """``batch["image"]`` (B, C, H, W), any H and W: padded by replication to at least two strides, cropped back."""
        image = whole_strides(check_image(batch["image"], self.bands, self.name), self.stride)
        whole = partial(self.enlarged, padded=image, image=batch["image"])
        pixels = self.decoder(self.encoder(image))  # (B, D, padded / 4)
        if self.ocr is None:
            return {"logits": [whole(self.classifier(pixels))]}
        nothing = torch.zeros_like(pixels)
        coarse = self.classifier(torch.cat([pixels, nothing], 1))
        features = self.ocr(pixels, coarse)
        refined = self.classifier(torch.cat([nothing, features], 1))
        logits = self.classifier(torch.cat([pixels, features], 1))
        return {"logits": [whole(logits)], "coarse": whole(coarse), "refined": whole(refined)}


_HRNET = {
    "stem": "bottleneck",
    "stem_width": 64,
    "stem_blocks": 4,
    "channels": (48, 96, 192, 384),
    "modules": (1, 4, 3),
    "blocks": (4, 4, 4),
    "block": "basic",
    "norm_first": False,
    "ia": {},
    "ocr": False,
    "refined_width": 512,
    "key_width": 256,
}
_BASE = _HRNET | {"channels": (48, 96, 192), "modules": (1, 4), "blocks": (4, 12)}
VARIANTS = {
    "hrnet-w48": _HRNET,
    "hiresnet-v1": _HRNET | {"blocks": (4, 12, 4)},
    "hiresnet-v2": _HRNET | {"blocks": (4, 4, 12)},
    "hiresnet-base": _BASE,
    "hiresnet-base-funnel": _BASE | {"stem": "funnel"},
    "hiresnet": _BASE | {"stem": "funnel", "block": "ia", "norm_first": True, "ocr": True},
}
"""The settings of every network by name. ``stem``: ``"bottleneck"`` (HRNet's first stage) or ``"funnel"``, of so many
blocks. ``channels`` of the branches; ``modules`` a stage, of so many ``blocks`` a branch, ``"basic"`` or ``"ia"`` with
the options ``ia`` of :class:`IABlock`. ``norm_first``: BN before the convolutions between the branches, and no ReLU
after their sums (Fig. 5), or HRNet's order. ``ocr``: feature refinement. ``refined_width``, ``key_width``: channels of
the head and of OCR's attention."""

NETWORKS = {
    "hrnet-w48": "HRNet-W48, the baseline of Hi-ResNet",
    "hiresnet-v1": "HRNet-W48 with its third stage three times as deep (Table VI: V1)",
    "hiresnet-v2": "HRNet-W48 with its fourth stage three times as deep (Table VI: V2)",
    "hiresnet-base": "V1 without its fourth stage (Tables VI and VII)",
    "hiresnet-base-funnel": "the base with the funnel (Table VII: Hi-ResNet v1)",
    "hiresnet": "Hi-ResNet: funnel, three branches of IA blocks, OCR",
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
) -> HiResNet:
    """The network called ``name``, one of :data:`NETWORKS`, for ``bands`` input bands and ``classes`` classes.

    Args:
        weights: None (random), a file with the weights of such a network or of its encoder, as
            :mod:`hierlab.pretraining` writes, or ``"imagenet"`` for networks with HRNet-W48's stem and blocks. What
            matched is logged (:func:`hierlab.networks.load_weights`).
        width, depth: the fraction kept of all channels (in multiples of 8), and of blocks and modules (at least one).
        options: other settings than the name's, see :data:`VARIANTS`.

    Raises ValueError for an unknown name or setting, and for weights that do not fit.
    """
    if name not in VARIANTS:
        raise ValueError(f"There is no network {name!r} here; there are {', '.join(VARIANTS)}.")
    check_size(name, bands, classes, width, depth)
    for what, given, known in (
        (name, options, _HRNET),
        ("ia", options.get("ia", {}), list(inspect.signature(IABlock).parameters)[1:]),
    ):
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"{what} has no setting {', '.join(unknown)}; it has {', '.join(known)}.")
    settings = VARIANTS[name] | options
    if len(settings["channels"]) != len(settings["modules"]) + 1 or len(settings["modules"]) != len(settings["blocks"]):
        raise ValueError(
            f"A network of n stages has n + 1 channels, n modules and n blocks; given channels={settings['channels']}, "
            f"modules={settings['modules']}, blocks={settings['blocks']}."
        )
    for key, known in {"stem": ("bottleneck", "funnel"), "block": ("basic", "ia")}.items():
        if settings[key] not in known:
            raise ValueError(f"{key} is one of {', '.join(known)}; got {settings[key]!r}.")

    def scaled(value, fraction: float, unit: int):
        if isinstance(value, int):
            return value if fraction == 1 else max(1, round(value * fraction / unit)) * unit
        return tuple(scaled(v, fraction, unit) for v in value)

    for key in ("stem_width", "channels", "refined_width", "key_width"):
        settings[key] = scaled(settings[key], width, 8)
    for key in ("stem_blocks", "modules", "blocks"):
        settings[key] = scaled(settings[key], depth, 1)
    if weights == "imagenet" and (settings["stem"], settings["block"]) != ("bottleneck", "basic"):
        raise ValueError(
            f"There are no ImageNet weights for {name}: pre-train it (hierlab.pretraining), or give a file."
        )
    network = HiResNet(bands, classes, name=name, **settings)
    if weights is not None:
        load_weights(network, weights)
    return network


# ---------------------------------------------------------------- losses (III.B)


def _targets(target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(B, H, W) class indices or 255 -> one-hot T (B, K, H, W), all 0 where ignored (eq. 6), and known (B, 1, H, W)."""
    known = target != IGNORE
    one_hot = F.one_hot(torch.where(known, target, 0), classes).movedim(-1, 1)
    return (one_hot * known[:, None]).float(), known[:, None]


def generalised_dice(logits: Tensor, target: Tensor, power: float = 2.0) -> Tensor:
    """L_GD (eqs. 1-2): 1 − 2 Σ_l w_l Σ_n r p / Σ_l w_l Σ_n (r + p), over all known pixels n of the batch.

    w_l = 1 / (Σ_n r_ln)^power; the square is that of the source (Sudre et al., 2017), eq. 2 is illegible there.
    Classes without a pixel in the batch have no weight. ``logits`` (B, K, H, W), ``target`` (B, H, W) or 255.
    """
    true, known = _targets(target, logits.shape[1])
    predicted = logits.softmax(1) * known
    volume = true.sum((0, 2, 3))
    weight = torch.where(volume > 0, volume.clamp(min=1) ** -power, 0)  # (K,)
    both = 2 * (weight * (true * predicted).sum((0, 2, 3))).sum()
    either = (weight * (true + predicted).sum((0, 2, 3))).sum()
    return (either - both) / either.clamp(min=1e-12)


def label_smoothing(logits: Tensor, target: Tensor, smoothing: float = 0.1) -> Tensor:
    """L_LSCE (eqs. 3-4), the mean over known pixels: the target is 1 − ε on the true class, ε / (K − 1) on the others.

    PyTorch spreads its ε over all K classes, the true one included, so its own is ε · K / (K − 1).
    """
    classes = logits.shape[1]
    spread = smoothing * classes / max(1, classes - 1)
    total = F.cross_entropy(logits, target, ignore_index=IGNORE, label_smoothing=spread, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)


@torch.no_grad()
def edge_distance(mask: Tensor, known: Tensor | None = None, steps: int = STEPS) -> Tensor:
    """D_S of eq. 7: the Manhattan distance of every pixel to the nearest pixel on the other side of the map's edge.

    ``mask`` (N, 1, H, W) bool -> (N, 1, H, W) float: 1 beside the edge, at most ``steps``, 0 all over a map that has no
    edge. Each step is one convolution with a cross, which dilates both sides by a pixel; H + W − 2 steps reach every
    pixel. Pixels that are not ``known`` (the same shape) lie on neither side, so they make no edge.
    """
    known = torch.ones_like(mask) if known is None else known
    cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]], device=mask.device).view(1, 1, 3, 3)
    sides = torch.cat([mask & known, ~mask & known])  # (2N, 1, H, W)
    reached = sides.float()
    distance = torch.zeros_like(reached)
    for _ in range(steps):
        distance += 1 - reached
        reached = (F.conv2d(reached, cross, padding=1) > 0).float()
    distance *= sides.flatten(1).any(1).view(-1, 1, 1, 1)
    outside, inside = distance.chunk(2)
    return torch.where(mask, inside, outside)


def edge_aware(
    logits: Tensor,
    target: Tensor,
    *,
    beta: float = 2.0,
    steps: int = STEPS,
    threshold: float = 0.5,
    classes: str = "random",
) -> Tensor:
    """L_CEA (eqs. 5-7): the mean of (T − P)² · (D_S(T)^β + D_S(P)^β), P the softmax and T the one-hot label.

    D_S is :func:`edge_distance`, of T and of P > ``threshold``; it has no gradient, P has. ``classes``: ``"random"``
    takes one class against all others, drawn anew from those in the batch (Fig. 2), ``"all"`` every class. The mean is
    over the known pixels of every image and class that the image's label holds: absent classes give 0.

    A distance counts in pixels, so with s ``steps`` an error weighs up to 2 · s^β, against 1 in the other losses. With
    the default of 4, L_CEA starts at some two times the others, as the weights 1 : 1 : 0.4 suppose (Section IV.C.3).
    """
    if classes not in ("random", "all"):
        raise ValueError(f"classes is 'random' or 'all'; got {classes!r}.")
    true, known = _targets(target, logits.shape[1])
    predicted = logits.softmax(1)
    present = true.flatten(2).any(2)  # (B, K)
    if classes == "random":
        drawn = (torch.rand(present.shape[1], device=logits.device) * present.any(0)).argmax().view(1)
        true, predicted, present = (x.index_select(1, drawn) for x in (true, predicted, present))
    maps = torch.stack([true > 0, predicted > threshold]).flatten(0, 2)[:, None]  # (2·B·K, 1, H, W)
    seen = known.expand_as(true).flatten(0, 1)[:, None].repeat(2, 1, 1, 1)
    far = edge_distance(maps, seen, steps).pow(beta).view(2, *true.shape).sum(0)
    counted = (known & present[:, :, None, None]).float()
    return (counted * (true - predicted).square() * far).sum() / counted.sum().clamp(min=1)


WEIGHTS = {
    "v1": (1.0, 1.0, 1.0),
    "v2": (1.0, 1.0, 0.4),
    "v3": None,
    "v4": tuple(torch.tensor([1.0, 1.0, 0.4]).softmax(0).tolist()),
}
"""α, β, γ of eq. 8 by the names of Table VIII; v3 draws them anew each step: softmax of three normal numbers."""


class HiResNetLoss(nn.Module):
    """L = r_c · L_coarse + r_r · L_refined (eq. 9), each α · L_GD + β · L_LSCE + γ · L_CEA (eq. 8).

    A model without ``coarse`` and ``refined`` in its outputs has the loss of its logits. A hierarchical model has the
    sum over its levels.

    Args:
        tree: the class tree.
        weights: a name of :data:`WEIGHTS`, or (α, β, γ); a part of weight 0 is left out.
        ratio: (r_c, r_r), 1:1 in the paper; Fig. 8 also tries 1:0.4 and 0.4:1, Table VIII 0:1.
        smoothing: ε of L_LSCE.
        edges: keywords of :func:`edge_aware`.
    """

    def __init__(
        self,
        tree: ClassTree,
        weights: str | tuple[float, float, float] = "v4",
        ratio: tuple[float, float] = (1.0, 1.0),
        smoothing: float = 0.1,
        edges: dict | None = None,
    ):
        super().__init__()
        if isinstance(weights, str) and weights not in WEIGHTS:
            raise ValueError(f"weights is one of {', '.join(WEIGHTS)}, or three numbers; got {weights!r}.")
        self.weights = WEIGHTS[weights] if isinstance(weights, str) else tuple(weights)
        for what, given, n in (("weights (α, β, γ)", self.weights or (1, 1, 1), 3), ("ratio (r_c, r_r)", ratio, 2)):
            if len(given) != n or min(given) < 0 or max(given) == 0:
                raise ValueError(f"{what} are {n} numbers of at least 0, and not all 0; got {given!r}.")
        self.tree, self.ratio, self.smoothing, self.edges = tree, tuple(ratio), smoothing, dict(edges or {})

    def forward(self, outputs: dict, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """``outputs`` of the model, ``batch["label"]`` (B, H, W). A scalar and its parts, each before its weight."""
        weights = self.weights or torch.randn(3).softmax(0).tolist()
        losses = {
            "dice": generalised_dice,
            "label_smoothing": partial(label_smoothing, smoothing=self.smoothing),
            "edge_aware": partial(edge_aware, **self.edges),
        }
        heads = [("", 1.0, outputs["logits"])]
        if "refined" in outputs:
            names = ("coarse", "refined")
            heads = [(f"{name}_", r, self._levels(outputs[name])) for name, r in zip(names, self.ratio, strict=True)]
        total, parts = 0.0, {}
        targets = self.tree.targets(batch["label"]).unbind(1)
        for head, ratio, levels in heads:
            pairs = [(x.float(), y) for x, y in zip(levels, targets[-len(levels) :], strict=True)]
            for (name, loss), weight in zip(losses.items(), weights, strict=True):
                if ratio * weight > 0:
                    value = sum(loss(logits, target) for logits, target in pairs)
                    total = total + ratio * weight * value
                    parts[head + name] = value.detach()
        return total, parts

    def _levels(self, scores: Tensor) -> list[Tensor]:
        """The levels that a hierarchical head joined along the channels, or the one of a flat model."""
        return list(scores.split(self.tree.sizes, 1)) if scores.shape[1] == sum(self.tree.sizes) else [scores]
