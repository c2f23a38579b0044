"""Weights from timm's hub or from a file, matched by name and shape, and never by executing anything."""

import logging
import os
import pickle
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from .parts import Network, reference
from .segnext import VARIANTS, from_published

log = logging.getLogger(__name__)

_BODY = "encoder.model."  # where a network keeps its timm encoder


def load_weights(network: Network, source: str | os.PathLike) -> dict[str, list[str]]:
    """Load weights into a network and say what matched.

    ``source`` is ``"imagenet"`` (the weights that timm's hub has for the encoder) or a file, ``.safetensors`` or
    PyTorch's own format, which holds a network or an encoder under timm's names (for SegNeXt those of its published
    files), whatever stands before them. The first convolution is adapted to another number of bands as timm does it:
    its three channels are repeated in turn and scaled by three over the bands, which keeps their sum where the bands
    are a multiple of three. Decoder and classifier are taken where names and shapes agree.

    Returns the names of the tensors ``matched``, ``missing`` (in the network, not in the source), ``mismatched``
    (of another shape, left as they were) and ``unused`` (in the source only), and logs their numbers.

    Raises OSError if the weights cannot be had or read, ValueError if they are not this encoder's.
    """
    own = network.state_dict()
    imagenet, mscan = str(source) == "imagenet", network.name in VARIANTS
    if imagenet and mscan:
        raise ValueError(
            f"timm's hub has no weights for the encoder of {network.name}: give the file that was published with "
            f"SegNeXt ({network.encoder_name.replace('-', '_')}.pth or the like), or weights=None for random ones."
        )
    stored = from_hub(network.encoder_name) if imagenet else from_file(Path(source))
    stored = from_published(stored) if mscan else stored
    names = align({key: key for key in own}, stored)
    if not any(key.startswith(_BODY) for key in names):
        if mscan:
            raise ValueError(f"{source} holds no weights of MSCAN. It has {some(list(stored))}.")
        names, stored = _align_encoder(network, own, stored, source)

    report: dict[str, list[str]] = {"matched": [], "missing": [], "mismatched": [], "unused": []}
    chosen = {}
    for key, tensor in own.items():
        if key not in names:
            report["missing"].append(key)
            continue
        value = _adapt(stored[names[key]], tensor)
        report["mismatched" if value is None else "matched"].append(key)
        if value is not None:
            chosen[key] = value
    report["unused"] = sorted(set(stored) - {names[key] for key in chosen})

    wrong = [key for key in report["mismatched"] if key.startswith(_BODY)]
    if wrong:
        given, wanted = tuple(stored[names[wrong[0]]].shape), tuple(own[wrong[0]].shape)
        raise ValueError(
            f"The weights of {source} are of another encoder than {network.encoder_name} as it was built: "
            f"{len(wrong)} tensors differ in shape, first {wrong[0]}, {given} there and {wanted} here. Build the "
            f"network with the width, depth and bands that the weights have, or with weights=None."
        )
    lacking = [key for key in report["missing"] if key.startswith(_BODY)]
    if lacking:
        log.warning("%s lacks %d tensors of the encoder, left random: %s", source, len(lacking), some(lacking))
    log.info(
        "%s from %s: %d of %d tensors; not in the source: %s; of another shape: %s; unused: %s",
        network.name,
        source,
        len(chosen),
        len(own),
        some(report["missing"]),
        some(report["mismatched"]),
        some(report["unused"]),
    )
    network.load_state_dict(chosen, strict=False)
    return report


def some(keys: list[str]) -> str:
    """The first four names and how many more there are, for a message."""
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "") if keys else "none"


def align(wanted: dict[str, str], stored: dict[str, Tensor]) -> dict[str, str]:
    """{key of the network: key in the source} under the one prefix of the source that fits most names.

    ``wanted`` gives the name to look for by key of the network.
    """
    ends = tuple(wanted.values())
    prefixes = {key[: -len(end)] for key in stored if key.endswith(ends) for end in ends if key.endswith(end)}
    if not prefixes:
        return {}
    best = max(sorted(prefixes), key=lambda prefix: sum(prefix + end in stored for end in ends))
    return {key: best + end for key, end in wanted.items() if best + end in stored}


def _align_encoder(network: Network, own: dict, stored: dict, source) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The same for a source that holds an encoder under timm's names, or names that timm itself can convert."""
    whole = reference(network.encoder_name)
    wanted = _timm_names(own, whole.state_dict())
    names = align(wanted, stored)
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if len(names) < len(wanted) and convert is not None:
        try:
            converted = convert(dict(stored), whole)
        except (KeyError, AttributeError, IndexError, RuntimeError, ValueError):
            log.debug("timm cannot convert the names in %s", source, exc_info=True)
        else:
            better = align(wanted, converted)
            if len(better) > len(names):
                names, stored = better, converted
    if 2 * len(names) < len(wanted):
        raise ValueError(
            f"{source} holds no weights of the encoder {network.encoder_name}: {len(names)} of {len(wanted)} tensors "
            f"found. It has {some(list(stored))}; the encoder has {some(list(wanted.values()))}."
        )
    return names, stored


def _timm_names(own: dict[str, Tensor], whole: dict[str, Tensor]) -> dict[str, str]:
    """{key of the network: name in the whole timm model}; timm renames a little when it extracts features."""
    names = {}
    for key in own:
        if key.startswith(_BODY):
            inner = key.removeprefix(_BODY)
            unwrapped = inner.removeprefix("model.").removeprefix("body.")
            forms = (inner, unwrapped, re.sub(r"_(\d+)\.", r".\1.", inner, count=1))
            names[key] = next((form for form in forms if form in whole), inner)
    return names


def _adapt(value: Tensor, target: Tensor) -> Tensor | None:
    """``value`` in the shape of ``target``, or None: only convolutions of RGB images are adapted, to other bands."""
    from timm.models import adapt_input_conv

    if value.shape == target.shape:
        return value
    image = value.ndim == 4 and value.shape[1] == 3 and value.shape[::2] == target.shape[::2]
    if image and value.shape[3] == target.shape[3]:
        return adapt_input_conv(target.shape[1], value)
    return None


def from_hub(encoder_name: str) -> dict[str, Tensor]:
    """The tensors that timm's hub has for an encoder, by name.

    ValueError if there are none, OSError if they cannot be fetched.
    """
    import timm

    published = timm.get_pretrained_cfg(encoder_name)
    if not published.has_weights:
        raise ValueError(f"timm has no weights for {encoder_name}: pass a file, or weights=None for random ones.")
    try:
        return timm.create_model(encoder_name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # the hub's client raises many kinds
        where = f"https://huggingface.co/{published.hf_hub_id}" if published.hf_hub_id else published.url
        raise OSError(
            f"The ImageNet weights of {encoder_name} could not be fetched ({type(error).__name__}: {error}). Where "
            f"there is no network: fetch the file elsewhere from {where} (model.safetensors) and give its path as "
            f"weights, or give weights=None for random ones."
        ) from error


def from_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Pickled objects other than tensors are refused, not loaded."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}. Weights are a file, 'imagenet' or None.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} cannot be read safely: it is no PyTorch file, or holds Python objects beside tensors. Save only "
            f"its state_dict, best with safetensors, where you trust it, and pass that file."
        ) from error
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise OSError(f"{path} is no readable weights file ({type(error).__name__}: {error}).") from error
    for wrapper in ("state_dict", "model", "state_dict_ema", "model_ema"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name (a state_dict), so no weights can be taken from it.")
    return tensors
