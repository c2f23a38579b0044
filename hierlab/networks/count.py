"""What a network costs: parameters, multiply-accumulates, the shape of every stage."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .compose import build


def describe(
    network: str | nn.Module,
    bands: int = 3,
    classes: int = 2,
    size: int | tuple[int, int] = 512,
    example: dict[str, Tensor] | None = None,
    **options,
) -> dict:
    """Count a network, given by name or as a module, for one image of ``size`` (a side, or (H, W)).

    The count runs on the meta device: shapes only, so that the largest network takes a second and no memory. GMAC
    are 1e9 multiply-accumulates in convolutions and matrix products, attention's included; additions, norms,
    activations and resizing are not counted, as is usual.

    Args:
        classes, options: for a name, as for :func:`build`.
        example: another batch than ``{"image": (1, bands, H, W)}``, for models that take more inputs.

    Returns a JSON-able dict: ``name``, ``params``, ``trainable``, ``gmac``, ``size_mb`` (of the weights, 1e6
    bytes), ``input`` (shape by name), ``outputs`` (shapes of the logits) and ``stages``: a list of ``name``,
    ``shape`` (without B), ``stride`` and ``channels`` for every map of the encoder, the decoder and the classifier;
    for other models, for every direct child that returns maps.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if isinstance(network, str):
        with torch.device("meta"):
            model = build(network, bands, classes, **options)
    else:
        model = network
    batch = example or {"image": torch.empty(1, bands, height, width)}
    batch = {key: value.to("meta") for key, value in batch.items()}
    state = {name: tensor.detach().to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    modes = [(module, module.training) for module in model.modules()]
    stages: list[dict] = []
    handles = [
        child.register_forward_hook(_recorder(stages, name, batch["image"].shape[-2:]))
        for name, child in _root(model).named_children()
        if not isinstance(child, nn.Dropout | nn.Dropout2d | nn.Identity)
    ]
    try:
        model.eval()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            outputs = functional_call(model, state, (batch,))
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    return {
        "name": getattr(_root(model), "name", type(model).__name__),
        "params": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "gmac": counter.get_total_flops() / 2e9,
        "size_mb": sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 1e6,
        "input": {key: list(value.shape) for key, value in batch.items()},
        "outputs": [list(logits.shape) for logits in outputs["logits"]],
        "stages": stages,
    }


def parts(module: nn.Module, *inputs) -> dict[str, dict]:
    """What runs inside a module when it is called on ``inputs``: {name: part}, in the order of the first call.

    A part has ``layer``, words such as "Linear 128 → 64", the ``shape`` of its last output, its ``params`` and the
    number of its ``calls``; the parts of parts follow by their dotted names. Parts that return no tensor are left out.
    """
    found: dict[str, dict] = {}

    def begin(name: str, part: nn.Module) -> None:
        count = sum(p.numel() for p in part.parameters())
        found.setdefault(name, {"layer": _words(part), "shape": None, "params": count, "calls": 0})["calls"] += 1

    def end(name: str, output: object) -> None:
        found[name]["shape"] = tuple(output.shape) if isinstance(output, Tensor) else None

    with ExitStack() as hooks, torch.no_grad():
        for name, part in module.named_modules():
            if name:
                before = part.register_forward_pre_hook(lambda part, _, name=name: begin(name, part))
                after = part.register_forward_hook(lambda _part, _, output, name=name: end(name, output))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
        module(*inputs)
    return {name: part for name, part in found.items() if part["shape"] is not None}


def _words(part: nn.Module) -> str:
    if isinstance(part, nn.Linear):
        return f"Linear {part.in_features} → {part.out_features}"
    if isinstance(part, nn.Conv2d):
        kind = "depthwise " if part.groups == part.in_channels > 1 else ""
        return f"{kind}{'×'.join(map(str, part.kernel_size))} conv {part.in_channels} → {part.out_channels}"
    return type(part).__name__


def _root(model: nn.Module) -> nn.Module:
    """The part whose children are the stages: the first with a name, inside wrappers, or the model itself."""
    return next((module for module in model.modules() if isinstance(getattr(module, "name", None), str)), model)


def _recorder(stages: list[dict], name: str, size: tuple[int, int]):
    """A forward hook that notes the shape of every map (B, C, H, W) that a module returns."""

    def record(_module: nn.Module, inputs: tuple, output: object) -> None:
        maps = output if isinstance(output, list | tuple) else [output]
        maps = [x for x in maps if isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] and x is not inputs[0]]
        for i, x in enumerate(maps):
            stride = size[0] / x.shape[2]
            stages.append(
                {
                    "name": f"{name} {i + 1}" if len(maps) > 1 else name,
                    "shape": list(x.shape[1:]),
                    "stride": int(stride) if stride.is_integer() else round(stride, 3),
                    "channels": x.shape[1],
                }
            )

    return record
