"""Every model by name: networks of an encoder and a decoder, and those of the papers, each with the loss that it takes.

A family is a module with ``NETWORKS`` (a name and one line about it) and ``build``. The head that a model wears is
:mod:`hierlab.hierars`' matter.
"""

import os

import torch
from torch import nn

from . import hiresnet, networks, paraformer, stsnet
from .hierars import HSCLoss
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
