"""Flat segmentation networks: a timm encoder, a decoder, one classification convolution.

A network is named ``<timm encoder>-<decoder>``, for instance ``resnet18-unet`` or ``convnext_base-upernet``, and
is built by :func:`build` for any number of bands. Encoders come from timm. UPerNet and DeepLabv3+ are written
here in the form that HieraRS trains (Tables II-IV), and so is SegNeXt as a whole (:mod:`hierlab.networks.segnext`);
the other decoders come from segmentation_models_pytorch.
Every network ends with ``network.classifier``, a convolution whose output is only resized and cropped, so that it
may be exchanged for one with other channels, or for a hierarchical head.
"""

from .compose import DECODERS, ENCODERS, NETWORKS, build
from .count import describe
from .parts import Network
from .weights import load_weights

__all__ = ["DECODERS", "ENCODERS", "NETWORKS", "Network", "build", "describe", "load_weights"]
