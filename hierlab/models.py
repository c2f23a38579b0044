"""Every model by name: networks of an encoder and a decoder, and those of the papers, each with the loss that it takes.

A family is a module with ``NETWORKS`` (a name and one line about it) and ``build``. The head that a model wears is
:mod:`hierlab.hierars`' matter.
"""

import os
from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from . import hiresnet, networks, paraformer, stsnet
from .hierars import BHCCM, HSCLoss
from .losses import FlatLoss
from .tree import ClassTree

FAMILIES = (networks, paraformer, hiresnet, stsnet)
NETWORKS: dict[str, str] = {name: line for family in FAMILIES for name, line in family.NETWORKS.items()}
WEAK = ("paraformer", "paraformer-light")  # networks whose two predictions check weak labels against each other

SERIES = ("stsnet", "stsnet-temporal")  # networks that take a time series beside the image


def build(name: str, bands: int, classes: int, weights: str | os.PathLike | None = None, **options) -> nn.Module:
    """The flat network called ``name`` for ``bands`` input bands and ``classes`` classes.

    ``name`` is one of :data:`NETWORKS`, or ``<timm encoder>-<decoder>``. ``weights`` and ``options`` (``width`` and
    ``depth``, the fractions kept of either, among them) are those of the family's own ``build``, for instance
    :func:`hierlab.networks.build`. Raises ValueError for what cannot be built and for weights that do not fit, OSError
    for weights that cannot be read.
    """
    family = next((family for family in FAMILIES if name in family.NETWORKS), networks)
    return family.build(name, bands, classes, weights, **options)


def describe(name: str, bands: int = 3, classes: int = 2, size: int = 512, **options) -> dict:
    """What :func:`hierlab.networks.describe` tells of a network by name, for one image of ``size`` pixels a side.

    A network that takes more than an image is counted with its own ``example(size)``. For Hi-ResNet,
    ``params_without_ocr`` is there too, which is how its paper counts.
    """
    with torch.device("meta"):
        model = build(name, bands, classes, **options)
    return _count(model, bands, size)


def _count(model: nn.Module, bands: int, size: int) -> dict:
    example = model.example(size) if hasattr(model, "example") else None
    found = networks.describe(model, bands, size=size, example=example)
    if isinstance(model, hiresnet.HiResNet):
        found["params_without_ocr"] = model.params_without_ocr
    return found


def check_series(name: str, given: bool) -> None:
    """ValueError where a network needs a time series beside the image and none is given, or takes none and one is."""
    if name == "stsnet" and not given:
        raise ValueError(
            "stsnet trains on an image and a time series: give its raster (series=…, --series FILE), or take "
            "stsnet-spectral, which is its part for the image."
        )
    if given and name not in SERIES:
        raise ValueError(f"{name} takes no time series: leave it out (--series), or choose {' or '.join(SERIES)}.")


def sizes(
    names: Iterable[str], tree: ClassTree, bands: int | Sequence[int] = 4, size: int = 512, **options
) -> pd.DataFrame:
    """What networks by name cost flat, with the leaves of ``tree`` as classes, and what BHCCM of ``tree`` adds.

    A row for every network and number of ``bands``, for one image of ``size`` pixels a side (or the network's own
    ``example(size)``), counted on the meta device as by :func:`describe`: ``network``, ``bands``, ``width`` (D, the
    channels that the classification convolution takes), ``params_m`` (millions), ``gmac``, ``bhccm_k`` (thousands of
    parameters that BHCCM has more than that convolution) and ``bhccm_gmac``, of the heads alone (Hi-ResNet's OCR has
    a region for every class of every level, which comes on top). ``options`` are those of :func:`build`.
    """
    counts = [bands] if isinstance(bands, int) else bands
    return pd.DataFrame([_size(name, tree, count, size, options) for name in names for count in counts])


def _size(name: str, tree: ClassTree, bands: int, size: int, options: dict) -> dict:
    """A row of :func:`sizes`."""
    with torch.device("meta"):
        model = build(name, bands, tree.num_leaves, **options)
        flat = model.classifier
        layout = {key: getattr(flat, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        bhccm = BHCCM(flat.in_channels, tree.sizes, conv=layout)
    features: list[torch.Tensor] = []  # of every call of the classifier: Hi-ResNet has three
    with flat.register_forward_hook(lambda _module, given, _output: features.append(given[0])):
        found = _count(model, bands, size)

    def gmac(head: nn.Module) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for x in features:
                head(x)
        return counter.get_total_flops() / 2e9

    added = sum(p.numel() for p in bhccm.parameters()) - sum(p.numel() for p in flat.parameters())
    return {
        "network": name,
        "bands": bands,
        "width": flat.in_channels,
        "params_m": found["params"] / 1e6,
        "gmac": found["gmac"],
        "bhccm_k": added / 1e3,
        "bhccm_gmac": gmac(bhccm) - gmac(flat),
    }


def make_loss(
    name: str,
    tree: ClassTree,
    head: str = "bhccm",
    *,
    alpha: float = 2.0,
    consistency: str | None = "path",
    weak: bool = False,
) -> nn.Module:
    """The loss that a network called ``name`` takes with a head.

    With ``bhccm`` L_HSC; with ``flat`` cross entropy on the leaves, or Hi-ResNet's own loss. A network with two
    predictions (:data:`WEAK`) wraps it in PLAT, whose mask is on for ``weak`` labels, coarser than the image. Raises
    ValueError for ``weak`` with another network.
    """
    if weak and name not in WEAK:
        raise ValueError(f"Weak labels are the matter of {', '.join(WEAK)}; {name} would believe them. Leave it out.")
    loss: nn.Module = HSCLoss(tree, alpha, consistency)
    if head == "flat":
        loss = hiresnet.HiResNetLoss(tree) if name in hiresnet.NETWORKS else FlatLoss(tree)
    return paraformer.PLAT(tree, loss, mask=weak) if name in WEAK else loss
