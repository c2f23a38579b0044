"""What networks are made of: the frame around encoder, decoder and classifier, and the decoders written here."""

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def check_image(image: Tensor, bands: int, name: str) -> Tensor:
    """The image, or a ValueError where it is not (B, C, H, W) of the ``bands`` that the network ``name`` takes."""
    if image.ndim != 4 or image.shape[1] != bands:
        raise ValueError(
            f"{name} takes images (B, {bands}, H, W), given {tuple(image.shape)}: select the bands it was built for, "
            f"or build it with bands={image.shape[1] if image.ndim == 4 else 'C'}."
        )
    return image


def whole_strides(image: Tensor, stride: int) -> Tensor:
    """An image (B, C, H, W), padded on the right and at the bottom by replication to a multiple of ``stride``.

    At least two strides, because batch normalisation cannot train on one value a channel.
    """
    below, beside = (max(2, math.ceil(side / stride)) * stride - side for side in image.shape[-2:])
    return F.pad(image, (0, beside, 0, below), mode="replicate")


def check_size(name: str, bands: int, classes: int, width: float, depth: float) -> None:
    """ValueError unless a network of this size can be built: what every ``build`` begins with.

    ``bands`` and ``classes`` are at least 1; ``width`` and ``depth``, the fractions kept, are positive and finite.
    """
    if bands < 1 or classes < 1 or not (0 < width < math.inf and 0 < depth < math.inf):
        raise ValueError(
            f"{name} needs at least one band and one class and a positive width and depth, given bands={bands}, "
            f"classes={classes}, width={width}, depth={depth}."
        )


class Network(nn.Module):
    """Encoder, decoder and classification convolution: ``model(batch) -> {"logits": [(B, K, H, W)]}``.

    ``batch["image"]`` is (B, C, H, W) with any H and W from 1: it is padded (:func:`whole_strides`), and the logits are
    cropped back.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        classifier: nn.Conv2d,
        *,
        bands: int,
        stride: int,
        dropout: float = 0.0,
        name: str = "",
        encoder_name: str = "",
    ):
        super().__init__()
        self.name, self.encoder_name, self.bands, self.stride = name, encoder_name, bands, stride
        self.encoder = encoder
        self.decoder = decoder
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier

    def forward(self, batch: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        image = whole_strides(check_image(batch["image"], self.bands, self.name), self.stride)
        features = self.decoder(self.encoder(image))  # (B, D, padded / 4 or so)
        logits = self.classifier(self.dropout(features))
        return {"logits": [self.enlarged(logits, image, batch["image"])]}

    @staticmethod
    def enlarged(scores: Tensor, padded: Tensor, image: Tensor) -> Tensor:
        """Scores enlarged (bilinear) to the size of the ``padded`` image and cropped to that of the ``image``."""
        scores = F.interpolate(scores, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return scores[..., : image.shape[-2], : image.shape[-1]]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that also trains on one value a channel, by its running statistics.

    A globally pooled branch and a batch of one leave a single value a channel, from which no variance can be
    estimated; PyTorch's own layer stops there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def _conv(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps H and W, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation, groups=groups, bias=False
        ),
        BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _separable(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, inputs, 3, dilation, groups=inputs), _conv(inputs, outputs))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """From the equal maps of a plain ViT, (B, D, h, w) each, to strides 1/4, 1/2, 1 and 2 of its patch.

    Transposed convolutions upwards, max pooling downwards, as BEiT (Bao et al., 2022) and XCiT (El-Nouby et al.,
    2021) feed UPerNet.
    """

    def __init__(self, width: int):
        super().__init__()
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, 2, stride=2),
                    BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, 2, stride=2),
                ),
                nn.ConvTranspose2d(width, width, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [level(x) for level, x in zip(self.levels, features, strict=True)]


def features_of(encoder_name: str, **options) -> nn.Module:
    """The timm model that returns the feature maps of an encoder."""
    import timm

    return timm.create_model(encoder_name, features_only=True, **options)


@functools.lru_cache(maxsize=8)
def reference(encoder_name: str) -> nn.Module:
    """The whole timm model at full size, without its classifier, on the meta device: shapes and names only."""
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(encoder_name, num_classes=0)
    except RuntimeError as error:
        raise ValueError(f"timm cannot build the encoder {encoder_name}: {error}") from error


def is_plain(strides: list[int]) -> bool:
    """Whether these are the strides of a plain ViT's maps: one throughout."""
    return len(strides) > 1 and len(set(strides)) == 1


class Encoder(nn.Module):
    """A timm ``features_only`` model: (B, C, H, W) -> maps (B, D_i, h_i, w_i), fine to coarse.

    Encoders without batch normalisation (ConvNeXt, Swin, ViT) leave their stages unnormalised, so each of their
    maps gets a LayerNorm over channels, as their own segmentation code has it. A plain ViT, all of whose maps have
    one stride, gets a :class:`Pyramid`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        from timm.layers import LayerNorm2d

        self.model = model
        self.channels = model.feature_info.channels()
        self.strides = model.feature_info.reduction()
        self.channels_last = getattr(model, "output_fmt", None) == "NHWC"
        batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        self.norms = nn.ModuleList(nn.Identity() if batch_norm else LayerNorm2d(c) for c in self.channels)
        self.pyramid = nn.Identity()
        if is_plain(self.strides):
            self.pyramid = Pyramid(self.channels[0])
            self.strides = [self.strides[0] * 2**i // 4 for i in range(4)]

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.model(image)
        if self.channels_last:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return self.pyramid([norm(x) for norm, x in zip(self.norms, features, strict=True)])


class UPerNet(nn.Module):
    """UPerNet's decoder (Xiao et al., 2018): pyramid pooling on the coarsest map, then a feature pyramid.

    Maps (B, D_i, h_i, w_i), fine to coarse -> (B, channels, h_1, w_1). HieraRS has 512 channels, pool scales 1, 2,
    3 and 6, and dropout of 0.1 before the classifier.
    """

    def __init__(self, widths: Iterable[int], channels: int = 512, scales: tuple[int, ...] = (1, 2, 3, 6)):
        super().__init__()
        *fine, top = widths
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(s), _conv(top, channels)) for s in scales)
        self.top = _conv(top + len(scales) * channels, channels, 3)
        self.laterals = nn.ModuleList(_conv(width, channels) for width in fine)
        self.smooth = nn.ModuleList(_conv(channels, channels, 3) for _ in fine)
        self.fuse = _conv((len(fine) + 1) * channels, channels, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        *fine, top = features
        maps = [self.top(torch.cat([top, *(_resize(pool(top), top) for pool in self.pools)], dim=1))]
        for lateral, x in zip(reversed(self.laterals), reversed(fine), strict=True):
            x = lateral(x)
            maps.insert(0, x + _resize(maps[0], x))
        maps = [smooth(x) for smooth, x in zip(self.smooth, maps, strict=False)] + maps[-1:]
        return self.fuse(torch.cat([_resize(x, maps[0]) for x in maps], dim=1))


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+'s decoder (Chen et al., 2018) with depthwise-separable ASPP.

    Two maps, the low-level one at stride 4 and the dilated last one -> (B, channels, H / 4, W / 4). HieraRS has
    rates 1, 12, 24 and 36, 512 channels, 48 low-level ones, and dropout of 0.1 before the classifier.
    """

    def __init__(
        self,
        widths: Iterable[int],
        channels: int = 512,
        low_channels: int = 48,
        rates: tuple[int, ...] = (12, 24, 36),
    ):
        super().__init__()
        low, top = widths
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv(top, channels))
        self.rates = nn.ModuleList([_conv(top, channels), *(_separable(top, channels, rate) for rate in rates)])
        self.project = _conv((len(rates) + 2) * channels, channels, 3)
        self.low = _conv(low, low_channels)
        self.fuse = nn.Sequential(_separable(channels + low_channels, channels), _separable(channels, channels))

    def forward(self, features: list[Tensor]) -> Tensor:
        low, top = features
        context = torch.cat([_resize(self.pool(top), top), *(rate(top) for rate in self.rates)], dim=1)
        return self.fuse(torch.cat([_resize(self.project(context), low), self.low(low)], dim=1))
