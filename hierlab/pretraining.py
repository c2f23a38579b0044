"""Pre-training of an encoder (Hi-ResNet, Section III.C): MoCo v2 without labels, or supervised with other labels.

Both run on :func:`hierlab.train.fit`, so they log, resume and draw at random as any other training. Both end with
``encoder.safetensors`` in the run folder, which ``hierlab.hiresnet.build(..., weights=file)`` loads into a segmenter.

Letters: B images, C bands, F pooled features, D axes of the embedding, N keys in the queue, τ temperature.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ._io import atomic
from .checkpoints import Normalize, Normalized
from .data.augment import Augment, augment
from .hiresnet import HiResNetLoss
from .networks import Network
from .recipes import Recipe
from .train import fit
from .tree import ClassTree

ENCODER = "encoder.safetensors"

SUPERVISED = Recipe(
    lr=5e-5,
    weight_decay=1e-8,
    warmup_steps=15_000,
    steps=3_125_000,
    batch_size=80,
    patch=256,
    augment=Augment(quarter_turns=False, scale=(0.5, 1.5), max_share=None),
    keep="last",
)
"""Table III, first row, on 400,000 crops of Mapillary. What it does not say is as in Section IV.B.1: AdamW, weight
decay 1e-8 as printed, three epochs of warm-up, cosine, flips, scales of 0.5 to 1.5."""

MOCO = Recipe(
    optimizer="sgd",
    lr=0.015,
    weight_decay=1e-4,
    no_decay=(),
    warmup_steps=0,
    steps=3_125_000,
    batch_size=64,
    patch=400,
    augment=None,
    keep="last",
)
"""Table III, second row, on Million-AID; what it does not say is as in MoCo v2 (Chen et al., 2020): SGD with momentum
0.9, weight decay 1e-4, cosine. The views are made inside :class:`MoCo`."""


# ---------------------------------------------------------------- two views of an image


@dataclass(frozen=True)
class Views:
    """How :func:`view` changes an image: MoCo v2's settings for any number of bands, seen from above.

    ``geometry``: crops of a fifth to all of the area, flips, quarter turns, brightness and contrast by band. Then, with
    probability ``grey``, every band becomes the mean of all, and with probability ``blur`` the image is convolved with
    a Gaussian whose σ is drawn from ``sigma``, in pixels.
    """

    geometry: Augment = field(
        default_factory=lambda: Augment(scale=(1.0, 5**0.5), max_share=None, brightness=0.4, contrast=0.4)
    )
    grey: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)


def view(image: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """A random view of each square image, (B, C, S, S) normalised -> the same shape; ``generator`` is on the CPU."""
    b, c = image.shape[:2]
    label = torch.zeros(b, *image.shape[2:], dtype=torch.long, device=image.device)
    x = augment({"image": image, "label": label}, views.geometry, generator)["image"]
    draws = torch.rand(3, b, generator=generator).to(x)
    grey = (draws[0] < views.grey).view(-1, 1, 1, 1)
    x = torch.where(grey, x.mean(1, keepdim=True).expand_as(x), x)
    sigma = views.sigma[0] + (views.sigma[1] - views.sigma[0]) * draws[2]
    radius = int(2 * views.sigma[1]) + 1
    offset = torch.arange(-radius, radius + 1, device=x.device)
    kernel = (-0.5 * (offset / sigma[:, None]) ** 2).softmax(1).repeat_interleave(c, 0)  # (B·C, 2·radius + 1)
    soft = F.pad(x, [radius] * 4, mode="replicate").flatten(0, 1)[None]  # (1, B·C, ...)
    soft = F.conv2d(soft, kernel[:, None, :, None], groups=b * c)
    soft = F.conv2d(soft, kernel[:, None, None, :], groups=b * c).view_as(x)
    return torch.where((draws[1] < views.blur).view(-1, 1, 1, 1), soft, x)


# ---------------------------------------------------------------- MoCo v2 (III.C.2, Fig. 7)


class Embedder(nn.Module):
    """Images (B, C, H, W) -> unit vectors (B, D): encoder, the mean of every map over its pixels, a two-layer MLP."""

    def __init__(self, network: Network, dim: int):
        super().__init__()
        self.encoder, self.stride = network.encoder, network.stride
        side = 2 * network.stride
        weight = next(network.parameters())
        features = pooled(network, torch.zeros(1, network.bands, side, side).to(weight)).shape[1]
        self.project = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dim)).to(weight)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[2] % self.stride or image.shape[3] % self.stride:
            raise ValueError(
                f"The encoder takes images whose sides are multiples of {self.stride}; got {tuple(image.shape[2:])}."
            )
        return F.normalize(self.project(_pool(self.encoder(image))).float(), dim=1)


def _pool(maps: list[Tensor]) -> Tensor:
    return torch.cat([x.mean((2, 3)) for x in maps], 1)


@torch.no_grad()
def pooled(network: Network, image: Tensor) -> Tensor:
    """The frozen features of images (B, C, H, W): the mean of every map of the encoder, (B, F), in evaluation mode."""
    training = network.training
    network.eval()
    try:
        return _pool(network.encoder(image))
    finally:
        network.train(training)


class MoCo(nn.Module):
    """Momentum contrast, version 2 (Chen et al., 2020): ``model(batch)`` for ``batch["image"]`` (B, C, S, S).

    Two views of each image are embedded: one by the query encoder, which is ``network.encoder`` itself and is trained,
    one by the key encoder, which follows it (eq. 11) and gets no gradient. The keys of former batches wait in a queue,
    the newest in the place of the oldest, as negatives for :class:`InfoNCE`. The queue starts with random directions.

    An encoder with batch normalisation could tell a query's own key by the statistics that they share, without looking
    at the images. So a batch is embedded in ``groups``, each with statistics of its own, and the keys in other groups
    than the queries, drawn anew each step: on one device what MoCo's shuffling does on several.

    Returns ``query`` and ``key`` (B, D), ``queue`` (N, D) as it was before these keys entered, all of length 1, and
    ``logits``, the queries again as a list of (B, D, 1, 1), which :func:`hierlab.train.fit` asks of every model.

    Args:
        network: whose encoder is trained, in place.
        dim, queue, momentum: D, N and m; the paper names no values, these are MoCo v2's.
    """

    def __init__(
        self,
        network: Network,
        *,
        dim: int = 128,
        queue: int = 65_536,
        momentum: float = 0.999,
        groups: int = 4,
        views: Views | None = None,
    ):
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"The momentum m of eq. 11 lies in [0, 1); got {momentum}.")
        if groups < 2 or queue < 1:
            raise ValueError(
                f"MoCo needs at least 2 groups, or batch statistics tell which key belongs to a query, and a queue of "
                f"at least 1 key; got groups={groups}, queue={queue}."
            )
        self.momentum, self.groups, self.views = momentum, groups, views or Views()
        self.query = Embedder(network, dim)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def forward(self, batch: dict) -> dict:
        image = batch["image"]
        if len(image) < 2 * self.groups:
            raise ValueError(
                f"A batch of {len(image)} images is too small for {self.groups} groups of at least 2: take larger "
                "batches, or fewer groups."
            )
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        first, second = (view(image, self.views, generator).to(image.dtype) for _ in range(2))
        query = self.in_groups(self.query, first, torch.arange(len(image)))
        with torch.no_grad():
            if self.training:
                self.follow()
            key = self.in_groups(self.key, second, torch.randperm(len(image)))
        queue = self.queue.clone()  # the gradient of the queries needs it as it is now
        if self.training:
            self.enqueue(key)
        return {"logits": [query[:, :, None, None]], "query": query, "key": key, "queue": queue}

    def in_groups(self, embed: nn.Module, image: Tensor, order: Tensor) -> Tensor:
        """Embeddings (B, D) in the order of the images, computed in groups of successive entries of ``order`` (B,)."""
        order = order.to(image.device)
        vectors = torch.cat([embed(image[part]) for part in order.tensor_split(self.groups)])
        return vectors[order.argsort()]

    @torch.no_grad()
    def follow(self) -> None:
        """θ_k ← m θ_k + (1 − m) θ_q (eq. 11), for the parameters; the key's batch statistics are its own."""
        for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
            key.mul_(self.momentum).add_(query, alpha=1 - self.momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put keys (B, D) in the places of the B oldest; of more than N keys the last N."""
        size = len(self.queue)
        keys = keys[-size:]
        places = (self.oldest + torch.arange(len(keys), device=keys.device)) % size
        self.queue[places] = keys.to(self.queue.dtype)
        self.oldest.copy_((self.oldest + len(keys)) % size)


class InfoNCE(nn.Module):
    """L_q (eq. 10): −log exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ exp(q·k⁻/τ)), the mean over the batch.

    k⁺ is the key of the same image, k⁻ are the keys of the queue. Parts: ``top1``, the share of queries that are
    nearer to their own key than to any in the queue, and ``spread``, the standard deviation of the queries over the
    batch, 1 where they lie all over the sphere and 0 where they have collapsed into a point.
    """

    def __init__(self, temperature: float = 0.2):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"The temperature τ is above 0; got {temperature}.")
        self.temperature = temperature

    def forward(self, outputs: dict, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        query, key, queue = outputs["query"], outputs["key"], outputs["queue"].to(outputs["query"].dtype)
        own, others = (query * key).sum(1, keepdim=True), query @ queue.T  # (B, 1), (B, N)
        scores = torch.cat([own, others], 1) / self.temperature
        loss = F.cross_entropy(scores, torch.zeros(len(query), dtype=torch.long, device=query.device))
        top1 = (own > others).all(1).float().mean()
        spread = query.detach().std(0, correction=0).square().sum().sqrt()
        return loss, {"top1": top1, "spread": spread}


# ---------------------------------------------------------------- both on the loop


class _Axes(NamedTuple):
    """What the loop asks of a class tree, for a model whose outputs are the axes of an embedding."""

    sizes: tuple[int, ...]
    name: str = "embedding"
    fingerprint: str = ""


class _Images(Dataset):
    """The images of a data set; the label is a number that the loop asks for and nothing uses."""

    def __init__(self, data: Dataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.data[index]["image"], "label": torch.zeros((), dtype=torch.long)}


def moco(
    network: Network,
    data: Dataset,
    out: str | Path,
    recipe: Recipe = MOCO,
    *,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    temperature: float = 0.2,
    settings: dict | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    resume: bool = False,
    every: int | None = None,
    progress: bool = True,
    workers: int = 0,
) -> dict:
    """Pre-train ``network.encoder`` in place without labels, on one device; the result of :func:`hierlab.train.fit`.

    ``data`` gives dicts with a square ``image`` (C, S, S), S a multiple of the network's stride; other entries are not
    used. ``mean`` and ``std`` by band normalise it. ``settings`` are the keywords of :class:`MoCo`; the rest is as for
    ``fit``. ``out`` gets the run and ``encoder.safetensors``.
    """
    if recipe.augment is not None:
        raise ValueError(
            "MoCo makes its views itself: give a recipe with augment=None, and settings={'views': Views()}."
        )
    model = MoCo(network, **(settings or {}))
    axes = _Axes((model.queue.shape[1],))
    options = {"resume": resume, "every": every, "progress": progress, "workers": workers}
    normalized = Normalized(model, mean, std)
    result = fit(normalized, InfoNCE(temperature), _Images(data), None, axes, recipe, out, seed, device, **options)
    save_encoder(network, Path(out) / ENCODER)
    return result


def supervised(
    network: Network,
    data: Dataset,
    tree: ClassTree,
    out: str | Path,
    recipe: Recipe = SUPERVISED,
    *,
    val: Dataset | None = None,
    loss: nn.Module | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    **options,
) -> dict:
    """Pre-train the whole network in place as a segmenter of other classes, those of ``tree``.

    ``loss`` is the paper's (:class:`hierlab.hiresnet.HiResNetLoss`) unless given; ``options`` are those of
    :func:`hierlab.train.fit`, whose result this returns. ``out`` gets the run and ``encoder.safetensors``.
    """
    loss = loss if loss is not None else HiResNetLoss(tree)
    result = fit(Normalized(network, mean, std), loss, data, val, tree, recipe, out, **options)
    save_encoder(network, Path(out) / ENCODER)
    return result


def save_encoder(network: Network, path: str | Path) -> None:
    """Write the encoder's weights under the names that :func:`hierlab.networks.load_weights` looks for."""
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items() if k.startswith("encoder.")}
    with atomic(path) as temporary:
        save_file(state, temporary)


# ---------------------------------------------------------------- what was learned


def probe(
    network: Network,
    train: Dataset,
    test: Dataset,
    *,
    label: str = "scene",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    batch_size: int = 32,
) -> dict[str, float]:
    """How well a logistic regression on the frozen encoder's pooled features tells whole images apart.

    ``train`` and ``test`` give dicts with ``image`` (C, H, W) and ``label``, one class an image. Returns ``accuracy``
    on the test images, and ``majority``, that of always saying the commonest training class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    normalize, device = Normalize(mean, std), next(network.parameters()).device

    def features(data: Dataset) -> tuple:
        batches = list(DataLoader(data, batch_size))
        rows = [pooled(network, normalize(batch)["image"].to(device)).float().cpu() for batch in batches]
        return torch.cat(rows).numpy(), torch.cat([batch[label] for batch in batches]).numpy()

    (x, y), (x_test, y_test) = features(train), features(test)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
    values, counts = torch.from_numpy(y).unique(return_counts=True)
    right, common = model.predict(x_test) == y_test, y_test == values[counts.argmax()].item()
    return {"accuracy": float(right.mean()), "majority": float(common.mean())}
