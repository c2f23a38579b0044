"""HieraRS, stage II: TransLU, the transfer of a hierarchical land-use model to another class tree.

In the order of the paper (Section IV.C): cross-domain knowledge sharing (CDKS, eqs. 7 and 8, Fig. 6), cross-domain
semantic alignment (CDSA, eqs. 9-13, Fig. 3 c and d), the two branches, the loss, and the fused prediction of Fig. 10.
Which classes of the new tree are which of the old is a :class:`hierlab.crosswalk.Crosswalk`.

Letters: B batch, D width, N = h·w tokens, L levels (coarse to fine), K_l classes of level l, M interactions.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._blocks import Layout, Watched, after, blocks_of
from .crosswalk import Crosswalk
from .hierars import Hierarchical, HSCLoss, hierarchical
from .networks import Network
from .networks.deformable import DeformableAttention
from .tree import IGNORE, ClassTree

MERGES = ("outputs", "steps", "none")
OTHERS = ("keep", "complement")


# ---------------------------------------------------------------- CDKS (Section IV.C.1)


class ConvFFN(nn.Module):
    """D -> ratio·D, a depthwise 3×3 convolution on the map, GELU, back to D: (B, N, D), (h, w) -> (B, N, D)."""

    def __init__(self, width: int, ratio: float = 0.25):
        super().__init__()
        hidden = max(1, int(width * ratio))
        self.inward = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.outward = nn.Linear(hidden, width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        maps = self.inward(x).mT.unflatten(-1, size)
        return self.outward(F.gelu(self.depthwise(maps).flatten(2).mT))


class BranchInteraction(nn.Module):
    """Branch interaction unit (BIU, Fig. 6): what branch 2 knows, added to branch 1.

    - eq. 7:  F̂₁ = F₁ + γ · Attn(norm(F₁), norm(FC(F₂)))
    - eq. 8:  F̃₁ = F̂₁ + τ · FFN(norm(F̂₁))

    γ and τ, (D,), start at 0, so that the unit starts as the identity. 67,552, 216,832, 761,152 and 2,832,832
    parameters at widths of 128, 256, 512 and 1024.

    Args:
        width: D of both branches.
        heads, points, value_ratio: of the attention, see :class:`DeformableAttention`.
        ffn_ratio: hidden width of the FFN over D.
        drop_path: probability by which each of the two terms is left out for a sample in training.
    """

    def __init__(
        self,
        width: int,
        heads: int = 16,
        points: int = 4,
        value_ratio: float = 0.5,
        ffn_ratio: float = 0.25,
        drop_path: float = 0.4,
    ):
        super().__init__()
        from timm.layers import DropPath

        self.project = nn.Linear(width, width)
        self.norm_query, self.norm_value, self.norm_ffn = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.attention = DeformableAttention(width, heads, points, value_ratio)
        self.ffn = ConvFFN(width, ffn_ratio)
        self.gamma = nn.Parameter(torch.zeros(width))
        self.tau = nn.Parameter(torch.zeros(width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x1: Tensor, x2: Tensor, size: tuple[int, int]) -> Tensor:
        """F₁ and F₂, (B, N, D) on h × w = size -> F̃₁, (B, N, D), of F₁'s type."""
        attended = self.attention(self.norm_query(x1), self.norm_value(self.project(x2)), size)
        updated = x1 + self.drop_path(self.gamma * attended)
        updated = updated + self.drop_path(self.tau * self.ffn(self.norm_ffn(updated), size))
        return updated.to(x1.dtype)


class CDKS(nn.Module):
    """Cross-domain knowledge sharing: a :class:`BranchInteraction` after M blocks, and the merging of the branches.

    Interactions come after the last block of each stage and every ``interval``-th block before it: for ConvNeXt-B
    after blocks 3; 3; 3, 6, …, 27; 3 of its stages, for a ViT of 12 after every block. M = 12 for both.

    At the start γ and τ are 0, so branch 1's encoder gives what it gives alone, bit for bit, and so does the whole of
    branch 1 with ``merge`` ``"steps"`` or ``"none"``; with ``"outputs"`` its decoder gets merged maps from the start.

    Args:
        network: branch 1, of which the encoder is looked at; nothing of it is kept.
        interval: 3, or 1 for a plain ViT, where None.
        merge: how the maps of the branches become one.

            - ``"outputs"`` (the published runs): the encoder's maps at the end of a stage, for a ViT its last one,
              become w₁ · side₁(F₁) + w₂ · side₂(F₂) on their way to the decoder; a side is GroupNorm (32 groups) and
              ReLU, for a ViT twice 3×3 convolution, GroupNorm, ReLU; scalars w start at 1.
            - ``"steps"`` (the text): after each interaction, for a ViT the last one, the block hands on
              w₁ · F̃₁ + w₂ · F₂. The text does not say where w starts; with 1 and 0 branch 1 starts as it was.
            - ``"none"``: interactions alone.
        heads, points, value_ratio, ffn_ratio, drop_path: see :class:`BranchInteraction`. In narrow networks heads are
            as many as divide the values' width, and groups as many as divide the channels.
    """

    def __init__(
        self,
        network: Network,
        *,
        interval: int | None = None,
        merge: str = "outputs",
        heads: int = 16,
        points: int = 4,
        value_ratio: float = 0.5,
        ffn_ratio: float = 0.25,
        drop_path: float = 0.4,
    ):
        super().__init__()
        if merge not in MERGES:
            raise ValueError(f"merge is one of {', '.join(MERGES)}; got {merge!r}.")
        if interval is not None and interval < 1:
            raise ValueError(f"interval is a number of blocks, at least 1; got {interval}.")
        stages = blocks_of(network.encoder)
        self.merge, self.plain = merge, len(stages) == 1
        interval = interval or (1 if self.plain else 3)
        self.blocks = [name for stage in stages for name in stage[::-1][::interval][::-1]]

        size = (2 * network.stride, 3 * network.stride)
        seen = self._look(network, size)
        patch = network.stride // 2  # of a plain ViT
        self.layouts = [Layout(output, size, patch) for output in seen.blocks]
        self.units = nn.ModuleList(
            BranchInteraction(
                layout.width,
                heads=math.gcd(heads, max(1, int(layout.width * value_ratio))),
                points=points,
                value_ratio=value_ratio,
                ffn_ratio=ffn_ratio,
                drop_path=drop_path,
            )
            for layout in self.layouts
        )
        ends = {tuple(layout.tokens(x).shape[1:]) for layout, x in zip(self.layouts, seen.blocks, strict=True)}
        of_stages = [i for i, x in enumerate(seen.maps) if (x.shape[2] * x.shape[3], x.shape[1]) in ends]
        self.merged = {"outputs": [len(seen.maps) - 1] if self.plain else of_stages}.get(merge, [])
        self.sides = nn.ModuleList(
            nn.ModuleList(self._side(seen.maps[i].shape[1]) for _branch in (1, 2)) for i in self.merged
        )
        count = {"outputs": len(self.merged), "steps": 1 if self.plain else len(self.units), "none": 0}[merge]
        start = (1.0, 0.0) if merge == "steps" else (1.0, 1.0)
        self.w = nn.ParameterList(nn.Parameter(torch.tensor(start)) for _ in range(count))

    def _look(self, network: Network, size: tuple[int, int]) -> Watched:
        """What the encoder gives for an image of zeros, in evaluation mode; modes are put back."""
        modes = {module: module.training for module in network.modules()}
        weight = next(network.encoder.parameters())
        with torch.no_grad(), ExitStack() as hooks:
            seen = Watched(network.encoder, self.blocks, hooks)
            network.encoder.eval()(torch.zeros(1, network.bands, *size, device=weight.device, dtype=weight.dtype))
        for module, mode in modes.items():
            module.training = mode
        return seen

    def _side(self, channels: int) -> nn.Sequential:
        def norm() -> list[nn.Module]:
            return [nn.GroupNorm(math.gcd(32, channels), channels), nn.ReLU()]

        if not self.plain:
            return nn.Sequential(*norm())
        first, second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in (1, 2))
        return nn.Sequential(first, *norm(), second, *norm())

    def attach(self, hooks: ExitStack, encoder: nn.Module, seen: Watched) -> None:
        """Let branch 1's ``encoder`` share what branch 2 was ``seen`` to have, until ``hooks`` close."""
        for step, name in enumerate(self.blocks):
            after(hooks, encoder.get_submodule(name), lambda _, x1, step=step: self._interact(step, x1, seen))
        if self.merged:
            after(hooks, encoder, lambda _, maps: self._merge_outputs(list(maps), seen.maps))

    def _interact(self, step: int, output: Tensor, seen: Watched) -> Tensor:
        layout = self.layouts[step]
        x1, x2 = layout.tokens(output), layout.tokens(seen.blocks[step])
        x1 = self.units[step](x1, x2, layout.grid(output, seen.size))
        if self.merge == "steps" and (not self.plain or step == len(self.units) - 1):
            w1, w2 = self.w[0 if self.plain else step]
            x1 = (w1 * x1 + w2 * x2).to(x1.dtype)
        return layout.put_back(x1, output)

    def _merge_outputs(self, maps1: list[Tensor], maps2: list[Tensor]) -> list[Tensor]:
        for (w1, w2), (side1, side2), i in zip(self.w, self.sides, self.merged, strict=True):
            maps1[i] = (w1 * side1(maps1[i]) + w2 * side2(maps2[i])).to(maps1[i].dtype)
        return maps1


# ---------------------------------------------------------------- CDSA (Section IV.C.2)


class CDSA:
    """Cross-domain semantic alignment: what branch 2 sees steers the upper levels of branch 1. It has no parameters.

    On every level of the target tree above its leaves that has mapped classes, for a mapped class c:

    - F_soft^c, the soft region of interest, is the sum of branch 2's probabilities of c's source classes (a softmax a
      level), in [0, 1];
    - eqs. 9-12: the input channel of branch 1's BHCCM becomes Z̃_in^c = Z_in^c · F_soft^c; other channels stay
      (``others="keep"``, the text) or are multiplied by 1 − Σ F_soft (``"complement"``, the published runs);
    - the class that branch 2 holds for most likely is what branch 1 is to say there (:class:`TransLULoss`).

    The leaves are left alone (eq. 13). Raises ValueError where no level above the leaves has a mapped class.
    """

    def __init__(self, crosswalk: Crosswalk, others: str = "keep"):
        if others not in OTHERS:
            raise ValueError(f"others is one of {', '.join(OTHERS)}; got {others!r}.")
        self.crosswalk, self.others = crosswalk, others
        self.levels: dict[int, dict[int, tuple[tuple[int, int], ...]]] = {}
        for (level, index), origins in crosswalk.nodes.items():
            if level < crosswalk.target.depth - 1:
                self.levels.setdefault(level, {})[index] = origins
        if not self.levels:
            raise ValueError(
                f"The mapping '{crosswalk.name}' maps no class above the leaves of '{crosswalk.target.name}', so CDSA "
                "has nothing to align: map an upper class, or use cdsa=False."
            )

    def soft_masks(self, logits: list[Tensor]) -> dict[int, dict[int, Tensor]]:
        """F_soft by target level and class, (B, h, w), from branch 2's logits, a list of (B, K_l, h, w)."""
        probability = [level.float().softmax(1) for level in logits]
        return {
            level: {c: sum(probability[j][:, k] for j, k in origins).clamp(0, 1) for c, origins in classes.items()}
            for level, classes in self.levels.items()
        }

    def factors(self, soft: dict[int, dict[int, Tensor]]) -> dict[int, Tensor]:
        """By target level, what every channel of Z_in is multiplied by: (B, K_l, h, w)."""
        found = {}
        for level, masks in soft.items():
            total = sum(masks.values())
            others = (1 - total).clamp(0, 1) if self.others == "complement" else torch.ones_like(total)
            found[level] = torch.stack([masks.get(c, others) for c in range(self.crosswalk.target.sizes[level])], 1)
        return found

    def guide(self, logits: list[Tensor], soft: dict[int, dict[int, Tensor]]) -> Tensor:
        """Branch 2's best classes in the target's terms: long (B, L, h, w), 255 where it says nothing.

        Where none of a level's mapped classes is best it is the level's one class of the rest; 255 if it has none.
        """
        best = [level.argmax(1) for level in logits]
        guide = torch.full_like(best[0], IGNORE)[:, None].repeat(1, self.crosswalk.target.depth, 1, 1)
        for level, classes in self.levels.items():
            rest = [c for on, c in self.crosswalk.rest if on == level]
            if len(rest) == 1:
                guide[:, level] = rest[0]
            score = torch.full_like(next(iter(soft[level].values())), -1)
            for c, origins in classes.items():
                hit = torch.stack([best[j] == k for j, k in origins]).any(0) & (soft[level][c] > score)
                guide[:, level] = torch.where(hit, c, guide[:, level])
                score = torch.where(hit, soft[level][c], score)
        return guide


# ---------------------------------------------------------------- the two branches (Fig. 3)


class TransLU(nn.Module):
    """A hierarchical model of one class tree, carried over to another: two branches of one architecture.

    Branch 2 is the source model, frozen: it is run in evaluation mode and without gradients, whatever ``train()`` is
    called on. Branch 1 starts from the same weights but for its BHCCM, which is that of the new tree, and is trained.

    ``model(batch)`` with ``image`` (B, C, H, W) returns ``logits``, the new tree's, a list of (B, K_l, H, W);
    ``source_logits``, branch 2's (not in training without CDKS and CDSA, where branch 2 is not run); with CDSA
    ``guide``, long (B, L, H, W), what branch 2 says in the new tree's terms, 255 where nothing.

    Args:
        source: a :class:`hierlab.networks.Network` made hierarchical on the crosswalk's source tree.
        crosswalk: which classes of the target tree are which of the source tree.
        cdks, cdsa: the two components (Tables VIII and IX).
        merge, others: their variants, see :class:`CDKS` and :class:`CDSA`.
        fusion, residual: of branch 1's BHCCM.
        start: another flat network of the same form for branch 1 to start from ("Branch1 Pre." of Table VIII).
        units: further keywords of :class:`CDKS`.

    Raises ValueError where source, crosswalk and start do not go together.
    """

    def __init__(
        self,
        source: Hierarchical,
        crosswalk: Crosswalk,
        *,
        cdks: bool = True,
        cdsa: bool = True,
        merge: str = "outputs",
        others: str = "keep",
        fusion: str = "both",
        residual: bool = False,
        start: Network | None = None,
        **units,
    ):
        super().__init__()
        if not isinstance(source, Hierarchical) or not isinstance(source.network, Network):
            raise ValueError(
                "TransLU carries over a network of hierlab.networks that was made hierarchical: "
                f"hierarchical(build(...), tree); got a {type(source).__name__}."
            )
        if source.sizes != crosswalk.source.sizes:
            raise ValueError(
                f"The source model has {source.sizes} classes a level, the source tree '{crosswalk.source.name}' of "
                f"the mapping '{crosswalk.name}' has {crosswalk.source.sizes}: give the tree that it was trained on."
            )
        alignment = CDSA(crosswalk, others) if cdsa else None
        flat = start if start is not None else _flat(source, crosswalk.target.num_leaves)
        self.crosswalk, self.cdsa = crosswalk, alignment
        self.branch1 = hierarchical(flat, crosswalk.target, layer=source.layer, fusion=fusion, residual=residual)
        self.branch2 = copy.deepcopy(source).requires_grad_(False).eval()
        self.cdks = CDKS(self.branch1.network, merge=merge, **units) if cdks else None

    def forward(self, batch: dict) -> dict:
        self.branch2.eval()
        more: dict = {}
        if self.cdks is not None or self.cdsa is not None or not self.training:
            found: list[list[Tensor]] = []
            with torch.no_grad(), ExitStack() as hooks:
                seen = Watched(self.branch2.network.encoder, self.cdks.blocks if self.cdks is not None else [], hooks)
                after(hooks, self.branch2.bhccm, lambda _, logits: found.append(logits))
                more["source_logits"] = self.branch2(batch)["logits"]
        with ExitStack() as hooks:
            if self.cdks is not None:
                self.cdks.attach(hooks, self.branch1.network.encoder, seen)
            if self.cdsa is not None:
                soft = self.cdsa.soft_masks(found[0])
                for level, factor in self.cdsa.factors(soft).items():
                    after(hooks, self.branch1.bhccm.heads[level], lambda _, z, by=factor: z * by.to(z.dtype))
                guide = F.interpolate(self.cdsa.guide(found[0], soft).float(), size=seen.size, mode="nearest").long()
                more["guide"] = guide[..., : batch["image"].shape[-2], : batch["image"].shape[-1]]
            outputs = self.branch1(batch)
        return {**outputs, **more}


def _flat(source: Hierarchical, classes: int) -> Network:
    """A copy of a hierarchical network with a new classifier of so many classes in the place of its BHCCM."""
    network = copy.deepcopy(source.network)
    old = source.bhccm.heads[0]
    keys = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    new = nn.Conv2d(old.in_channels, classes, **{key: getattr(old, key) for key in keys})
    parent, _, child = source.layer.rpartition(".")
    setattr(network.get_submodule(parent), child, new.to(old.weight.device, old.weight.dtype))
    return network


# ---------------------------------------------------------------- loss and fused prediction


class TransLULoss(HSCLoss):
    """L_HSC (eq. 17) with branch 2 as the teacher of the aligned levels, the labels that of all others.

    On a level with CDSA the target is ``outputs["guide"]``, or the label where the guide says nothing (255). L_HPC
    counts the pixels whose targets form a valid path, for guide and label may contradict each other. Without a guide
    it is L_HSC of the labels.

    Args:
        tree, consistency, weights: see :class:`hierlab.hierars.HSCLoss`.
        alpha: α, 1 on Crop10m.
        labels_first: the guide is the target only where the label leaves a level open, so that what the label implies
            (rice is cropland) outweighs a weak branch 2. Not in the paper.
        everywhere: also where the label is 255 (but not where ``batch["valid"]`` is False): then images without
            labels teach the upper levels too. By default a pixel without label counts nowhere.
    """

    def __init__(
        self,
        tree: ClassTree,
        alpha: float = 1.0,
        consistency: str | None = "path",
        weights: Sequence[float] | None = None,
        *,
        labels_first: bool = False,
        everywhere: bool = False,
    ):
        super().__init__(tree, alpha, consistency, weights)
        self.labels_first, self.everywhere = labels_first, everywhere

    def forward(self, outputs: dict, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """``outputs`` of :class:`TransLU`, ``batch["label"]`` (B, H, W). A scalar and its parts."""
        targets = self.tree.targets(batch["label"])
        guide = outputs.get("guide")
        if guide is not None:
            known = guide != IGNORE
            if self.labels_first:
                known &= targets == IGNORE
            if not self.everywhere:
                known &= (batch["label"] != IGNORE)[:, None]
            elif batch.get("valid") is not None:
                known &= batch["valid"][:, None]
            targets = torch.where(known, guide, targets)
        return self.of_targets(outputs["logits"], targets)

    def _known(self, logits: list[Tensor], targets: Tensor) -> tuple[list[Tensor], Tensor]:
        on_path = (self.tree.path_number(targets) >= 0)[:, None]
        return HSCLoss._known(logits, torch.where(on_path, targets, IGNORE))


def fused_prediction(outputs: dict, crosswalk: Crosswalk, rule: str = "sigmoid") -> Tensor:
    """One map of old and new classes (the last column of Fig. 10): long (B, L, H, W) on ``crosswalk.merged``.

    ``outputs`` of :class:`TransLU` in evaluation mode; both branches are decoded by ``rule``
    (:meth:`ClassTree.decode`) and joined by :meth:`Crosswalk.fuse`, so every pixel is on a valid path.
    """
    old = crosswalk.source.decode(outputs["source_logits"], rule)
    return crosswalk.fuse(old, crosswalk.target.decode(outputs["logits"], rule))


def rebuild(network: Network, tree: ClassTree, *, source_tree: dict, source_head: dict, crosswalk: dict, **settings):
    """A TransLU with random weights in the form of one that was saved (``head_options`` of its ``model.json``)."""
    old = ClassTree.from_dict(source_tree)
    source = hierarchical(network, old, layer="classifier", **source_head)
    return TransLU(source, Crosswalk.from_dict(crosswalk, old, tree), **settings)
