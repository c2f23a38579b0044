"""HieraRS, stage I: any flat segmentation network made hierarchical.

In the order of the paper (Section IV): the bidirectional hierarchical consistency constraint mechanism (BHCCM,
eqs. 1-6, Figs. 4 and 5), the head that puts it in the place of a network's last convolution, and the hierarchical
semantic consistency loss (eqs. 14-17). Joint scoring-based path selection (JSPS, eq. 18) is
:meth:`hierlab.tree.ClassTree.decode`, because every tree-aware model uses it.

Letters: B batch, D decoder channels, L levels (coarse to fine), K_l classes of level l, P valid paths, H W pixels.
"""

import copy
import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import cross_entropy, zero_with_gradient
from .tree import IGNORE, ClassTree

FUSIONS = ("none", "coarse_to_fine", "fine_to_coarse", "both")


# ---------------------------------------------------------------- BHCCM (Section IV.B)


class MergingBlock(nn.Module):
    """Carries one level's maps to another level's classes, steered by two attentions (MB, Fig. 5).

    (B, c_in, H, W) -> (B, c_out, H, W). The map is projected by a 1×1 convolution and multiplied by

    - channel attention σ(MLP(max-pool) + MLP(mean-pool)), (B, c_out, 1, 1), the MLP one shared layer c_in → c_out;
    - spatial attention σ(7×7 conv of [channel max, channel mean]), (B, 1, H, W).

    No layer has a bias: 2·c_in·c_out + 98 parameters.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.mlp = nn.Linear(c_in, c_out, bias=False)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.project = nn.Conv2d(c_in, c_out, 1, bias=False)

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Channel attention (B, c_out, 1, 1) and spatial attention (B, 1, H, W) of x (B, c_in, H, W)."""
        channel = torch.sigmoid(self.mlp(x.amax((2, 3))) + self.mlp(x.mean((2, 3))))
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return channel[:, :, None, None], torch.sigmoid(self.spatial(pooled))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        channel, spatial = self.attention(x)
        return self.project(x) * channel * spatial


class BHCCM(nn.Module):
    """Bidirectional hierarchical consistency constraint mechanism (eqs. 1-6, Fig. 4), for any number of levels.

    A drop-in for a classification convolution: decoder features (B, D, H, W) -> a list of logits (B, K_l, H, W),
    coarse to fine. One convolution a level gives F_in; then

    - coarse to fine (eqs. 1-3):  F_mid^i = W_i^i · F_in^i + Σ_{j<i} W_i^j · MB_ji(F_in^j),   F_mid^1 = F_in^1
    - fine to coarse (eqs. 4-6):  F_out^i = Y_i^i · F_mid^i + Σ_{j>i} Y_i^j · MB_ji(F_mid^j), F_out^L = F_mid^L

    with learnable scalars W and Y, one a term, initialised to 1.

    Args:
        in_channels: D.
        sizes: classes a level, coarse to fine, e.g. (4, 9, 18).
        fusion: ``"both"``, one direction alone, or ``"none"`` (independent heads; the rows of Table VII).
        residual: out^i = F_in^i + z_i · out^i with learnable scalars z_i = 1. The printed equations have no such
            term; it is the setting of the best published runs of Tables II-VI.
        conv: keywords of the level convolutions; 1×1 as in the paper unless a replaced layer says otherwise.
    """

    def __init__(
        self,
        in_channels: int,
        sizes: Sequence[int],
        fusion: str = "both",
        residual: bool = False,
        conv: dict | None = None,
    ):
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is one of {', '.join(FUSIONS)}; got {fusion!r}.")
        self.in_channels, self.sizes, self.fusion, self.residual = in_channels, tuple(sizes), fusion, residual
        self.heads = nn.ModuleList(nn.Conv2d(in_channels, size, **(conv or {"kernel_size": 1})) for size in sizes)
        levels = range(len(self.sizes))
        down = [(j, i) for i in levels for j in levels if j < i] if fusion in ("both", "coarse_to_fine") else []
        up = [(j, i) for i in levels for j in levels if j > i] if fusion in ("both", "fine_to_coarse") else []
        self.down, self.w = self._blocks(down), self._scalars(down)
        self.up, self.y = self._blocks(up), self._scalars(up)
        self.z = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in levels) if residual else None

    def _blocks(self, terms: list[tuple[int, int]]) -> nn.ModuleDict:
        return nn.ModuleDict({f"{j}_{i}": MergingBlock(self.sizes[j], self.sizes[i]) for j, i in terms})

    @staticmethod
    def _scalars(terms: list[tuple[int, int]]) -> nn.ParameterDict:
        targets = {i for _, i in terms}
        names = [f"{i}_{i}" for i in sorted(targets)] + [f"{j}_{i}" for j, i in terms]
        return nn.ParameterDict({name: nn.Parameter(torch.ones(())) for name in names})

    @staticmethod
    def _fuse(maps: list[Tensor], blocks: nn.ModuleDict, scalars: nn.ParameterDict) -> list[Tensor]:
        fused = []
        for i, own in enumerate(maps):
            name = f"{i}_{i}"
            total = scalars[name] * own if name in scalars else own
            for j, other in enumerate(maps):
                if f"{j}_{i}" in blocks:
                    total = total + scalars[f"{j}_{i}"] * blocks[f"{j}_{i}"](other)
            fused.append(total)
        return fused

    def forward(self, features: Tensor) -> list[Tensor]:
        """Decoder features (B, D, H, W) -> logits, a list of (B, K_l, H, W)."""
        f_in = [head(features) for head in self.heads]
        f_mid = self._fuse(f_in, self.down, self.w)
        f_out = self._fuse(f_mid, self.up, self.y)
        if self.z is not None:
            f_out = [own + z * out for own, z, out in zip(f_in, self.z, f_out, strict=True)]
        return f_out


# ---------------------------------------------------------------- the hierarchical head on any network


class _Joined(nn.Module):
    """BHCCM as a layer of the network that it enters: its levels joined along the channels, (B, ΣK_l, H, W)."""

    def __init__(self, bhccm: BHCCM):
        super().__init__()
        self.bhccm = bhccm

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat(self.bhccm(features), 1)


class Hierarchical(nn.Module):
    """A segmentation network that wears BHCCM; made by :func:`hierarchical`.

    ``model(batch) -> dict`` with ``logits``, a list of (B, K_l, H, W), coarse to fine; other outputs of the network
    are passed on by name.
    """

    def __init__(self, network: nn.Module, sizes: Sequence[int], layer: str, takes_batch: bool):
        super().__init__()
        self.network, self.sizes, self.layer, self.takes_batch = network, tuple(sizes), layer, takes_batch

    @property
    def bhccm(self) -> BHCCM:
        """The mechanism inside."""
        return self.network.get_submodule(self.layer).bhccm

    def forward(self, batch: dict) -> dict:
        """``batch["image"]`` (B, C, H, W) -> ``{"logits": [...], ...}``."""
        outputs = self.network(batch if self.takes_batch else batch["image"])
        logits = list(_main_output(outputs).split(self.sizes, dim=1))
        others = {name: value for name, value in outputs.items() if name != "out"} if isinstance(outputs, dict) else {}
        return {**others, "logits": logits}


def hierarchical(
    model: nn.Module,
    tree: ClassTree,
    *,
    fusion: str = "both",
    residual: bool = False,
    layer: str | None = None,
    example: dict | Tensor | None = None,
) -> Hierarchical:
    """Make a flat segmentation network hierarchical: BHCCM takes the place of its last classification convolution.

    Works on a model of this library (``model(batch) -> {"logits": [one tensor]}``), on a plain module that maps an
    image (B, C, H, W) to logits (B, K, H', W'), and on one that returns a dict with ``"out"`` (torchvision). A network
    whose ``forward`` calls its first argument ``batch`` is given a batch, any other the image. The network given is
    not changed; the result holds a copy. The new convolutions have the kernel, stride and padding of the one
    replaced; what follows it (resizing, cropping) then acts on all levels.

    The layer is found by running ``example`` (an image, or a batch; by default a small one of zeros) and taking the
    last convolution with K output channels, K the tree's leaves, on which the output depends. ``layer`` names it
    instead (as in ``model.named_modules()``).

    Raises ValueError when no such layer is found, or when what follows mixes channels (a softmax, say), saying what
    was found and what to do.
    """
    if isinstance(model, Hierarchical):
        raise ValueError("This model is hierarchical already; give the flat network it was made from.")
    network = copy.deepcopy(model)
    example, takes_batch = _example(network, example)
    name = layer if layer is not None else _last_classifier(network, example, tree)
    try:
        old = network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"The network has no layer '{name}'; see model.named_modules().") from error
    if not isinstance(old, nn.Conv2d):
        raise ValueError(f"Layer '{name}' is a {type(old).__name__}; BHCCM takes the place of an nn.Conv2d.")
    if old.groups != 1:
        raise ValueError(f"Layer '{name}' is a grouped convolution; BHCCM takes the place of an ordinary one.")
    keys = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    conv = {key: getattr(old, key) for key in keys}
    bhccm = BHCCM(old.in_channels, tree.sizes, fusion, residual, conv).to(old.weight.device, old.weight.dtype)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, _Joined(bhccm))
    _check_channelwise(network, example, name, sum(tree.sizes))
    return Hierarchical(network, tree.sizes, name, takes_batch)


def _main_output(outputs) -> Tensor:
    """The logits among what a network returns: a tensor, a dict with ``logits`` (one level) or with ``out``."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict) and isinstance(outputs.get("logits"), list) and len(outputs["logits"]) == 1:
        return outputs["logits"][0]
    if isinstance(outputs, dict) and isinstance(outputs.get("out"), Tensor):
        return outputs["out"]
    found = f"a dict with {sorted(outputs)}" if isinstance(outputs, dict) else f"a {type(outputs).__name__}"
    raise ValueError(
        f"A flat network returns a tensor (B, K, H, W), a dict with 'out', or a dict with 'logits', a list of one "
        f"tensor; this one returned {found}."
    )


def _example(network: nn.Module, example) -> tuple[dict | Tensor, bool]:
    """The input to look at the network with, and whether the network takes a batch (a dict) or an image."""
    takes_batch = isinstance(example, dict) or next(iter(inspect.signature(network.forward).parameters), "") == "batch"
    if example is None:
        first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
        if first is None:
            raise ValueError("The network holds no nn.Conv2d, so BHCCM has no convolution to take the place of.")
        weight = first.weight
        image = torch.zeros(2, first.in_channels, 64, 64).to(weight.device, weight.dtype)
        example = {"image": image} if takes_batch else image
    return example, takes_batch


def _run(network: nn.Module, example) -> Tensor:
    """One pass in evaluation mode with gradients, leaving the modes of all modules as they were."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.enable_grad():
            return _main_output(network(example))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _last_classifier(network: nn.Module, example, tree: ClassTree) -> str:
    """The name of the last convolution with as many outputs as the tree has leaves that the output depends on."""
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        output = _run(network, example)
        weights = [network.get_submodule(name).weight for name in order]
        used = torch.autograd.grad(output.sum(), weights, allow_unused=True) if output.requires_grad else []
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
    reached = [name for name, gradient in zip(order, used, strict=False) if gradient is not None]
    fitting = [name for name in reached if network.get_submodule(name).out_channels == tree.num_leaves]
    if fitting and fitting[-1] == reached[-1]:
        return fitting[-1]
    last = f"'{reached[-1]}' with {network.get_submodule(reached[-1]).out_channels} outputs" if reached else "none"
    raise ValueError(
        f"No classification convolution found: BHCCM takes the place of a network's last nn.Conv2d, which must have "
        f"{tree.num_leaves} outputs, the leaves of the tree '{tree.name}'. The last one on the way to the output is "
        f"{last}. Build the network with {tree.num_leaves} classes, or name the layer: hierarchical(model, tree, "
        f"layer='…')."
    )


def _check_channelwise(network: nn.Module, example, name: str, channels: int) -> None:
    """Raise unless what follows the layer ``name`` treats each of its channels by itself."""
    shift = torch.zeros(1, channels, 1, 1)
    hook = network.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: output + shift.to(output))
    try:
        try:
            before = _run(network, example).detach()
        except RuntimeError as error:
            raise ValueError(
                f"The network does not run with BHCCM in the place of '{name}' ({error}). What follows the last "
                "classification convolution may only resize or crop; two summed classifiers, for one, do not fit."
            ) from error
        shift[:, 0] = 1.0
        after = _run(network, example).detach()
    finally:
        hook.remove()
    if before.shape[1] != channels:
        raise ValueError(
            f"The output has {before.shape[1]} channels where layer '{name}' gives {channels}: something after it "
            "changes the channels. BHCCM needs only resizing and cropping there; remove it from the network."
        )
    moved = (after - before).float()
    if not torch.allclose(moved, shift.to(moved).expand_as(moved), atol=1e-2):
        raise ValueError(
            f"What follows layer '{name}' mixes or bends its channels (a softmax, a sigmoid, another layer), so the "
            "levels cannot be told apart behind it. Build the network without an activation at its end."
        )


# ---------------------------------------------------------------- L_HSC (Section IV.D)


class HSCLoss(nn.Module):
    """Hierarchical semantic consistency loss: L_HSC = L_HCE + α · L_HPC (eq. 17).

    L_HCE = Σ_l λ_l · CE_l (eqs. 14-15), each level over the pixels known at that level. L_HPC, over the pixels known
    at every level, has two readings:

    - ``"path"`` (what the published runs use, default): the score of a valid path is the sum of its classes'
      per-level log-softmax; log-softmax over the P paths; negative log-likelihood of the true path.
    - ``"concat"`` (the text, eq. 16): log-softmax over the ΣK_l concatenated logits, KL divergence to the
      concatenated one-hot vectors, summed over channels. The target holds L ones and is not normalised, so this is
      no divergence between distributions: its entropy term Σ t·log t is 0 (0·log 0 and 1·log 1), and the smallest
      value is L·log L, at 1/L on each true class, not 0.
    - ``None``: L_HCE alone.

    Args:
        tree: the class tree.
        alpha: α; 2 on MM-5B (1 in some of its published runs), 1 on Crop10m.
        consistency: the reading, see above.
        weights: λ_l, one a level; 1 by default.
    """

    def __init__(
        self,
        tree: ClassTree,
        alpha: float = 2.0,
        consistency: str | None = "path",
        weights: Sequence[float] | None = None,
    ):
        super().__init__()
        if consistency not in ("path", "concat", None):
            raise ValueError(f"consistency is 'path', 'concat' or None; got {consistency!r}.")
        if weights is not None and len(weights) != tree.depth:
            raise ValueError(f"{tree.depth} levels need {tree.depth} weights; got {len(weights)}.")
        self.tree, self.alpha, self.consistency = tree, alpha, consistency
        self.weights = tuple(weights) if weights is not None else (1.0,) * tree.depth
        self.register_buffer("paths", tree.paths.clone(), persistent=False)

    def forward(self, outputs: dict, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """``outputs["logits"]`` L × (B, K_l, H, W); ``batch["label"]`` (B, H, W). A scalar and its parts."""
        return self.of_targets(outputs["logits"], self.tree.targets(batch["label"]))

    def of_targets(self, logits: list[Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of logits and one target a level, (B, L, H, W), 255 where it is not known."""
        logits = [level.float() for level in logits]
        if len(logits) != self.tree.depth:
            raise ValueError(
                f"L_HSC needs logits at each of the tree's {self.tree.depth} levels; the model gives {len(logits)}. "
                "Make it hierarchical first: hierarchical(model, tree)."
            )
        parts = {}
        hce = logits[0].new_zeros(())
        for level, weight in enumerate(self.weights):
            part = cross_entropy(logits[level], targets[:, level])
            parts[f"cross_entropy_{self.tree.level_names[level]}"] = part.detach()
            hce = hce + weight * part
        if self.consistency is None:
            return hce, parts
        hpc = self.path_loss(logits, targets) if self.consistency == "path" else self.concat_loss(logits, targets)
        parts["path_consistency"] = hpc.detach()
        return hce + self.alpha * hpc, parts

    def path_loss(self, logits: list[Tensor], targets: Tensor) -> Tensor:
        """The ``"path"`` reading: -log softmax over the valid paths of the summed per-level log-probabilities."""
        rows, true = self._known(logits, targets)
        if not len(true):
            return zero_with_gradient(logits)
        score = sum(F.log_softmax(row, 1)[:, self.paths[:, level]] for level, row in enumerate(rows))
        return F.cross_entropy(score, self.tree.path_number(true[:, :, None, None])[:, 0, 0])

    def concat_loss(self, logits: list[Tensor], targets: Tensor) -> Tensor:
        """The ``"concat"`` reading (eq. 16): KL of the concatenated one-hot targets from the joint softmax."""
        rows, true = self._known(logits, targets)
        if not len(true):
            return zero_with_gradient(logits)
        log_prob = F.log_softmax(torch.cat(rows, 1), 1)
        one_hot = torch.cat([F.one_hot(true[:, i], size) for i, size in enumerate(self.tree.sizes)], 1)
        return F.kl_div(log_prob, one_hot.to(log_prob.dtype), reduction="sum") / len(true)

    @staticmethod
    def _known(logits: list[Tensor], targets: Tensor) -> tuple[list[Tensor], Tensor]:
        """The N pixels known at every level: logits L × (N, K_l) and true classes (N, L)."""
        known = (targets != IGNORE).all(1)
        return [level.movedim(1, -1)[known] for level in logits], targets.movedim(1, -1)[known]
