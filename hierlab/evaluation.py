"""From logits to classes, and from a data set to measures."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ._training import Bar, loader, to_device
from .checkpoints import Normalized, pick_device
from .metrics import TreeMetrics
from .tree import ClassTree

RULES = ("sigmoid", "log_softmax", "independent")


def predict(logits: Sequence[Tensor], tree: ClassTree, rule: str = "sigmoid", aggregate: bool = False) -> Tensor:
    """Classes (B, L, H, W) from a model's logits, a list of (B, K_l, H, W), or one of the leaves alone (flat).

    ``rule`` ``"sigmoid"`` or ``"log_softmax"``: :meth:`ClassTree.decode`, always a valid path. ``"independent"``: the
    best class of every level on its own, which need not be consistent. ``aggregate``: leaf probabilities summed up the
    tree, then the best class of every level on its own, the papers' flat baseline; only for a flat model.
    """
    if rule not in RULES:
        raise ValueError(f"The rule is one of {', '.join(RULES)}; got {rule!r}.")
    flat = len(logits) == 1 and tree.depth > 1
    if aggregate and not flat:
        raise ValueError(
            "aggregate=True sums the leaf probabilities of a flat model; this one has logits at every level."
        )
    if flat and (aggregate or rule == "independent"):
        logits, rule = tree.aggregate(logits[0].softmax(1)), "independent"
    if rule == "independent":
        return torch.stack([level.argmax(1) for level in logits], dim=1)
    return tree.decode(logits, rule)


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    tree: ClassTree,
    device: str | torch.device = "auto",
    batch_size: int = 8,
    rule: str = "sigmoid",
    aggregate: bool = False,
    *,
    precision: str = "32-true",
    workers: int = 0,
    progress: bool = False,
) -> dict:
    """The measures of :class:`TreeMetrics` of ``model`` over ``dataset``, with ``rule`` and ``aggregate`` as in
    :func:`predict`.

    Adds ``images``, ``seconds`` (data reading included) and ``images_per_second``. ``precision`` is ``"32-true"`` (the
    weights' own) or ``"bf16-mixed"``. Images of unequal size need ``batch_size=1``. The model is moved to ``device``;
    its training mode is put back. In a distributed run each process gives its share, and all get the whole result.
    """
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(f"precision is 32-true or bf16-mixed here; got {precision!r}.")
    device = pick_device(device)
    whole = (model if isinstance(model, Normalized) else Normalized(model)).to(device)
    metrics = TreeMetrics(tree).to(device)
    modes = {module: module.training for module in whole.modules()}
    whole.eval()
    images, began = 0, time.perf_counter()
    try:
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
        with torch.inference_mode(), autocast, Bar(progress, "evaluating", len(dataset)) as bar:
            for batch in loader(dataset, device, workers, batch_size=batch_size):
                batch = to_device(batch, device)
                logits = [level.float() for level in whole(batch)["logits"]]
                metrics.update(predict(logits, tree, rule, aggregate), tree.targets(batch["label"]))
                images += len(batch["label"])
                bar.advance(len(batch["label"]), f"{images / (time.perf_counter() - began):.1f} images/s")
    finally:
        for module, mode in modes.items():
            module.training = mode
    seconds = time.perf_counter() - began
    return {**metrics.compute(), "images": images, "seconds": seconds, "images_per_second": images / max(seconds, 1e-9)}
