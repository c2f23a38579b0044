"""From a name to a network: which encoder, which decoder, how wide."""

import difflib
import inspect
import os
from collections.abc import Iterable

import torch
from torch import nn

from .parts import BatchNorm2d, DeepLabV3Plus, Encoder, Network, UPerNet, check_size, features_of, is_plain, reference
from .segnext import MSCAN, STRIDES, VARIANTS, WIDTHS, LightHam
from .weights import load_weights

NETWORKS = {
    "resnet18-unet": "small and quick, the one to start with: U-Net on ResNet-18",
    "resnet34-unet": "U-Net on ResNet-34",
    "resnet50-fpn": "feature pyramid network on ResNet-50",
    "efficientnet_b0-unet": "U-Net on EfficientNet-B0, few parameters",
    "mobilenetv3_large_100-unet": "U-Net on MobileNetV3-L, for small machines",
    "resnet50-deeplabv3plus": "DeepLabv3+ on dilated ResNet-50",
    "resnet101c-deeplabv3plus": "HieraRS: dilated ResNet-101-V1c, depthwise-separable ASPP",
    "convnext_tiny-upernet": "UPerNet on ConvNeXt-T",
    "convnext_base-upernet": "HieraRS: UPerNet on ConvNeXt-B",
    "convnext_large-upernet": "HieraRS: UPerNet on ConvNeXt-L",
    "swin_tiny-upernet": "UPerNet on Swin-T",
    "swin_base-upernet": "HieraRS: UPerNet on Swin-B",
    "swin_large-upernet": "HieraRS: UPerNet on Swin-L",
    "segnext-s": "HieraRS: SegNeXt-S, LightHam on MSCAN-S",
    "segnext-b": "HieraRS: SegNeXt-B, LightHam on MSCAN-B",
    "segnext-l": "HieraRS: SegNeXt-L, LightHam on MSCAN-L",
    "deit3_small-upernet": "HieraRS: UPerNet on DeiT III-S",
    "deit3_base-upernet": "HieraRS: UPerNet on DeiT III-B",
    "deit3_large-upernet": "HieraRS: UPerNet on DeiT III-L",
}

# Short names of encoders whose name in timm also says patch, window and training size.
ENCODERS = {
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swin_large": "swin_large_patch4_window7_224",
    "deit3_small": "deit3_small_patch16_224",
    "deit3_base": "deit3_base_patch16_224",
    "deit3_large": "deit3_large_patch16_224",
}

# Every decoder and its defaults. `width` scales the options whose names end in "channels".
DECODERS = {
    "upernet": {"channels": 512},
    "deeplabv3plus": {"channels": 512, "low_channels": 48, "output_stride": 8},
    "unet": {"decoder_channels": (256, 128, 64, 32, 16)},
    "unetplusplus": {"decoder_channels": (256, 128, 64, 32, 16)},
    "manet": {"decoder_channels": (256, 128, 64, 32, 16)},
    "linknet": {},
    "fpn": {"decoder_pyramid_channels": 256, "decoder_segmentation_channels": 128},
    "pspnet": {"psp_out_channels": 512, "encoder_depth": 5, "output_stride": 8},
    "deeplabv3": {"decoder_channels": 256},
    "segformer": {"decoder_segmentation_channels": 256},
}


def build(
    name: str,
    bands: int,
    classes: int,
    weights: str | os.PathLike | None = None,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    drop_path: float | None = None,
    dropout: float = 0.1,
    encoder: dict | None = None,
    decoder: dict | None = None,
) -> Network:
    """Build the network called ``<timm encoder>-<decoder>`` for ``bands`` input bands and ``classes`` classes.

    Args:
        name: one of :data:`NETWORKS`, or any timm encoder that gives feature maps (``timm.list_models()``, or a
            short name of :data:`ENCODERS`; a dot and the tag of its weights may follow) with any of
            :data:`DECODERS`; or a SegNeXt, ``segnext-s``, ``segnext-b`` or ``segnext-l``.
        weights: None (random), ``"imagenet"`` or a file: see :func:`load_weights`.
        width, depth: the fraction kept of the channels of encoder and decoder, and of the blocks of every encoder
            stage: a narrower, shallower form of the same network, for SegNeXt and ResNet, ConvNeXt, Swin and ViT
            encoders. Channels are rounded to multiples of 8 or to whole attention heads, and there is always one block.
        drop_path: stochastic depth of the encoder (None: timm's default for it).
        dropout: before the classifier of UPerNet, DeepLabv3+ and SegNeXt (the other decoders have their own, or none).
        encoder, decoder: further keywords, of ``timm.create_model`` and of the decoder (:data:`DECODERS` has its
            defaults, :class:`UPerNet`, :class:`DeepLabV3Plus` and segmentation_models_pytorch the rest); for
            SegNeXt, of :class:`~hierlab.networks.segnext.MSCAN` and :class:`~hierlab.networks.segnext.LightHam`. An
            ``output_stride`` of 8 dilates the last two stages by 2 and 4.

    Raises ValueError for what cannot be built and for weights that do not fit, OSError for weights that cannot be
    read.
    """
    check_size(name, bands, classes, width, depth)
    if name in VARIANTS:
        options = ({} if drop_path is None else {"drop_path_rate": drop_path}) | (encoder or {})
        return _finish(_segnext(name, bands, classes, width, depth, dropout, options, decoder or {}), weights)
    encoder_name, decoder_name = _parse(name)
    whole = reference(encoder_name)
    options = _any_size(whole) | ({} if width == depth == 1 else _narrow(whole, width, depth))
    options |= ({} if drop_path is None else {"drop_path_rate": drop_path}) | (encoder or {})
    unit = 32 if decoder_name == "fpn" else 8  # FPN has groups of 32 channels
    head = {
        key: scaled(value, width, unit) if key.endswith("channels") else value
        for key, value in DECODERS[decoder_name].items()
    } | (decoder or {})
    compose = {"upernet": _upernet, "deeplabv3plus": _deeplabv3plus}.get(decoder_name, _smp)
    try:
        strides = _strides(encoder_name, options)
        if is_plain(strides) and decoder_name != "upernet":
            raise ValueError(f"all feature maps of {encoder_name} have one stride, which only upernet resamples")
        parts = compose(encoder_name, decoder_name, strides, bands, classes, options, head)
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{name} cannot be built ({str(error) or type(error).__name__}). Either encoder and decoder do not go "
            f"together: upernet takes every encoder with feature maps; unet and its relatives need strides of 2 or 4 "
            f"to 32; deeplabv3, deeplabv3plus and pspnet need an encoder that can be dilated, such as a ResNet. Or "
            f"one of them does not know an option among {options | head}."
        ) from error
    network = Network(
        *parts,
        bands=bands,
        stride=2 * strides[0] if is_plain(strides) else max(strides),
        dropout=0.0 if compose is _smp else dropout,
        name=name,
        encoder_name=encoder_name,
    )
    return _finish(network, weights)


def _finish(network: Network, weights: str | os.PathLike | None) -> Network:
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNorm2d  # with the parameters, buffers and hooks that it has
    if weights is not None:
        load_weights(network, weights)
    return network


def _upernet(
    encoder_name: str, _: str, strides: list[int], bands: int, classes: int, options: dict, head: dict
) -> tuple[nn.Module, nn.Module, nn.Conv2d]:
    if is_plain(strides):
        levels = [(i + 1) * len(strides) // 4 - 1 for i in range(4)]
    else:
        levels = list({stride: i for i, stride in enumerate(strides) if stride >= 4}.values())
    encoder = Encoder(features_of(encoder_name, in_chans=bands, out_indices=levels, **options))
    decoder = UPerNet(encoder.channels, **head)
    return encoder, decoder, _initialise(decoder, head["channels"], classes)


def _deeplabv3plus(
    encoder_name: str, _: str, strides: list[int], bands: int, classes: int, options: dict, head: dict
) -> tuple[nn.Module, nn.Module, nn.Conv2d]:
    head = dict(head)
    output_stride = head.pop("output_stride")
    levels = [max(i for i, stride in enumerate(strides) if stride <= 4), len(strides) - 1]
    options = options | {"in_chans": bands, "out_indices": levels, "output_stride": output_stride}
    encoder = Encoder(features_of(encoder_name, **options))
    if encoder.strides[-1] != output_stride:
        raise ValueError(f"its last map has stride {encoder.strides[-1]}, not the output_stride of {output_stride}")
    decoder = DeepLabV3Plus(encoder.channels, **head)
    return encoder, decoder, _initialise(decoder, head["channels"], classes)


def _smp(
    encoder_name: str, decoder_name: str, _: list[int], bands: int, classes: int, options: dict, head: dict
) -> tuple[nn.Module, nn.Module, nn.Conv2d]:
    import segmentation_models_pytorch as smp

    options = options | head | {"in_channels": bands, "classes": classes}
    model = smp.create_model(decoder_name, f"tu-{encoder_name}", None, **options)
    return model.encoder, model.decoder, model.segmentation_head[0]


def _segnext(
    name: str, bands: int, classes: int, width: float, depth: float, dropout: float, options: dict, head: dict
) -> Network:
    variant = dict(VARIANTS[name])
    channels = scaled(variant.pop("channels"), width, 32)  # GroupNorm has 32 groups
    variant["depths"] = tuple(max(1, round(blocks * depth)) for blocks in variant["depths"])
    variant["widths"] = scaled(WIDTHS, width)
    try:
        encoder = Encoder(MSCAN(bands, **variant | options))
        decoder = LightHam(encoder.channels, **{"channels": channels} | head)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be built ({error}) with the options {options | head}.") from error
    classifier = _initialise(decoder, decoder.channels, classes)
    return Network(
        encoder,
        decoder,
        classifier,
        bands=bands,
        stride=max(STRIDES),
        dropout=dropout,
        name=name,
        encoder_name=name.replace("segnext", "mscan"),
    )


def _initialise(decoder: nn.Module, channels: int, classes: int) -> nn.Conv2d:
    """The classifier of a decoder, both initialised: He et al. (2015) for the decoder, small for the classifier."""
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    classifier = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return classifier


def _parse(name: str) -> tuple[str, str]:
    """The timm name of the encoder and the name of the decoder, or a ValueError with what comes near."""
    import timm

    encoder, _, decoder = name.rpartition("-")
    encoder = ENCODERS.get(encoder, encoder)
    if decoder in DECODERS and timm.is_model(encoder):
        return encoder, decoder
    encoders = [*ENCODERS, *timm.list_models()]
    if decoder in DECODERS:
        near = [f"{found}-{decoder}" for found in difflib.get_close_matches(encoder, encoders, 4, 0.5)]
    else:
        near = difflib.get_close_matches(name, NETWORKS, 4, 0.5)
    raise ValueError(
        f"There is no network {name!r}. "
        + (f"Near it: {', '.join(near)}. " if near else "")
        + f"A name is <timm encoder>-<decoder>: an encoder of timm.list_models() or one of {', '.join(ENCODERS)}; "
        + f"a decoder out of {', '.join(DECODERS)}. `hierlab list networks` shows some."
    )


def _strides(encoder_name: str, options: dict) -> list[int]:
    """The stride of every feature map that the encoder offers."""
    with torch.device("meta"):
        info = features_of(encoder_name, **options).feature_info
    return [info[i]["reduction"] for i in range(len(info))]


def _any_size(whole: nn.Module) -> dict:
    """The keywords by which an encoder made for one image size takes any, as segmentation needs."""
    known = inspect.signature(type(whole).__init__).parameters
    wanted = {"dynamic_img_size": True, "strict_img_size": False, "always_partition": True}
    options = {key: value for key, value in wanted.items() if key in known}
    if not options and whole.pretrained_cfg.get("fixed_input_size"):
        size = whole.pretrained_cfg["input_size"]
        raise ValueError(
            f"The encoder {whole.pretrained_cfg['architecture']} takes images of {size[1]} x {size[2]} only; "
            f"choose one that takes any size, for instance of the families resnet, convnext, swin or deit3."
        )
    return options


def scaled(channels: int | tuple[int, ...], width: float, unit: int = 8):
    """``width`` times the channels, to the nearest multiple of ``unit`` from one unit up."""
    if isinstance(channels, int):
        return channels if width == 1 else max(1, round(channels * width / unit)) * unit
    return tuple(scaled(c, width, unit) for c in channels)


def _narrow(whole: nn.Module, width: float, depth: float) -> dict:
    """The keywords of ``timm.create_model`` that scale the encoder's channels and numbers of blocks."""
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import ResNet
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    def blocks(stages: Iterable) -> tuple[int, ...]:
        return tuple(max(1, round(len(stage) * depth)) for stage in stages)

    widths = tuple(info["num_chs"] for info in whole.feature_info)
    if isinstance(whole, ConvNeXt):
        return {"dims": scaled(widths, width), "depths": blocks(stage.blocks for stage in whole.stages)}
    if isinstance(whole, ResNet):
        stages = [getattr(whole, info["module"]) for info in whole.feature_info[1:]]
        expansion = stages[0][0].expansion
        channels = scaled(tuple(c // expansion for c in widths[1:]), width)
        stem = {"stem_width": scaled(widths[0] // 2, width)} if isinstance(whole.conv1, nn.Sequential) else {}
        return {"channels": channels, "layers": blocks(stages), **stem}
    if isinstance(whole, SwinTransformer):
        heads = [stage.blocks[0].attn.num_heads for stage in whole.layers]
        embed_dim = scaled(widths[0], width, widths[0] // heads[0])
        heads = tuple(count * embed_dim // widths[0] for count in heads)
        return {"embed_dim": embed_dim, "num_heads": heads, "depths": blocks(s.blocks for s in whole.layers)}
    if isinstance(whole, VisionTransformer):
        head = whole.blocks[0].attn.head_dim
        embed_dim = scaled(whole.embed_dim, width, head)
        count = max(4, round(len(whole.blocks) * depth))  # UPerNet takes four maps
        return {"embed_dim": embed_dim, "num_heads": embed_dim // head, "depth": count}
    raise ValueError(
        f"width and depth are known for ResNet, ConvNeXt, Swin and ViT encoders, not for {type(whole).__name__}: "
        f"pass timm's own keywords as encoder={{...}}, or take a smaller encoder."
    )
