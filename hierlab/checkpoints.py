"""Runs on disk: the weights as safetensors beside a JSON of everything needed to rebuild the model.

A run folder holds ``model.safetensors`` and ``model.json`` (:func:`save`, :func:`load`), ``log.jsonl`` and, for
resuming, ``state.pt`` (:mod:`hierlab.train`).
"""

import json
import pickle
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ._io import atomic
from .recipes import Recipe
from .tree import ClassTree

SCHEMA = 1
WEIGHTS, CONFIG, STATE, LOG = "model.safetensors", "model.json", "state.pt", "log.jsonl"
HEADS = ("flat", "bhccm", "translu")
_NEEDED = ("network", "bands", "head", "tree", "normalisation")


# ---------------------------------------------------------------- models that eat raw pixel values


class Normalize(nn.Module):
    """``batch["image"]`` (B, C, H, W) in the sensor's units -> (image − mean) / std, band by band, in float32.

    Where ``batch["valid"]`` (B, H, W), bool, is given and False, the result is 0, which is the mean. ``mean`` and
    ``std`` are buffers (C,); without them the image keeps its values. ``batch["series"]`` (B, T, C', h, w), if there is
    one, goes the same way with ``series``, a dict of its own ``mean`` and ``std``, and with ``batch["series_valid"]``
    (B, T, h, w) or (B, T). The other entries of the batch pass through. Raises ValueError for a std that is not
    positive, and for bands that do not fit.
    """

    def __init__(self, mean=None, std=None, series: dict | None = None):
        super().__init__()
        self._keep("", mean, std)
        self._keep("series_", **(series or {}))

    def _keep(self, prefix: str, mean=None, std=None) -> None:
        if mean is None:
            self.register_buffer(prefix + "mean", None)
            self.register_buffer(prefix + "std", None)
            return
        mean, std = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
        if mean.ndim != 1 or mean.shape != std.shape or not (torch.isfinite(mean) & torch.isfinite(std)).all():
            given = f"{mean.tolist()} and {std.tolist()}"
            raise ValueError(f"Normalisation takes one finite mean and one finite std a band; got {given}.")
        if (std <= 0).any():
            bands = (std <= 0).nonzero().flatten().tolist()
            raise ValueError(f"Band(s) {bands} have a std of 0, so a constant value: leave them out, or give std 1.")
        self.register_buffer(prefix + "mean", mean)
        self.register_buffer(prefix + "std", std)

    def forward(self, batch: dict) -> dict:
        image = batch["image"].float()
        if self.mean is not None:
            if image.ndim != 4 or image.shape[1] != len(self.mean):
                raise ValueError(f"The model takes images (B, {len(self.mean)}, H, W); got {tuple(image.shape)}.")
            image = (image - self.mean[:, None, None]) / self.std[:, None, None]
        if batch.get("valid") is not None:
            image = torch.where(batch["valid"][:, None], image, 0.0)
        if "series" not in batch:
            return {**batch, "image": image}
        return {**batch, "image": image, "series": self._series(batch["series"].float(), batch.get("series_valid"))}

    def _series(self, series: Tensor, valid: Tensor | None) -> Tensor:
        if self.series_mean is not None:
            if series.ndim != 5 or series.shape[2] != len(self.series_mean):
                raise ValueError(
                    f"The model takes series (B, T, {len(self.series_mean)}, h, w); got {tuple(series.shape)}."
                )
            series = (series - self.series_mean[:, None, None]) / self.series_std[:, None, None]
        if valid is not None:
            valid = valid if valid.ndim == 4 else valid[..., None, None]
            series = torch.where(valid[:, :, None], series, 0.0)
        return series


class Normalized(nn.Module):
    """A network behind its normalisation: ``model(batch)`` takes raw pixel values.

    ``normalize`` always computes in float32, whatever the type of the network's weights: raw values of some thousands
    would lose their differences in bfloat16.
    """

    def __init__(self, network: nn.Module, mean=None, std=None, series: dict | None = None):
        super().__init__()
        self.normalize = Normalize(mean, std, series)
        self.network = network

    def forward(self, batch: dict) -> dict:
        """``batch["image"]`` (B, C, H, W), ``batch["valid"]`` (B, H, W) if some pixels are not, and the rest."""
        batch = self.normalize(batch)
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), batch["image"])
        return self.network({**batch, "image": batch["image"].to(weight.dtype)})


# ---------------------------------------------------------------- the description of a model


def make_config(
    network: str,
    tree: ClassTree,
    mean: list[float],
    std: list[float],
    *,
    series: dict | None = None,
    band_names: list[str] | None = None,
    head: str = "bhccm",
    fusion: str = "both",
    residual: bool = False,
    options: dict | None = None,
    patch: int | None = None,
    gsd: float | None = None,
    **more,
) -> dict:
    """The content of ``model.json``: all that :func:`build_model` needs, and what a user should know.

    ``network`` and ``options`` go to :func:`hierlab.models.build`, ``mean`` and ``std`` are the statistics of each
    band, ``series`` a dict of the ``mean`` and ``std`` of a time series' bands, ``head`` is ``"bhccm"`` (with
    ``fusion`` and ``residual``, see :func:`hierlab.hierars.hierarchical`), ``"flat"``, or ``"translu"`` (with
    ``head_options``, see :func:`hierlab.translu.rebuild`), ``patch`` the pixels a side and ``gsd`` the metres a pixel
    that it is trained at; ``more`` is kept as it is. Raises ValueError for an unknown head and for statistics that do
    not fit.
    """
    config = {
        "schema": SCHEMA,
        "network": network,
        "network_options": dict(options or {}),
        "bands": len(mean),
        "band_names": list(band_names) if band_names is not None else [f"band {i + 1}" for i in range(len(mean))],
        "head": head,
        "head_options": {"fusion": fusion, "residual": residual} if head == "bhccm" else {},
        "tree": tree.to_dict(),
        "normalisation": {"mean": [float(m) for m in mean], "std": [float(s) for s in std]}
        | ({"series": {name: [float(v) for v in values] for name, values in series.items()}} if series else {}),
        "patch": patch,
        "gsd": gsd,
        **more,
    }
    check_config(config, "make_config")
    return config


def check_config(config: dict, where: str) -> None:
    """ValueError when ``config`` (from ``where``) is not a description that this version can build."""
    if config.get("schema", SCHEMA) > SCHEMA:
        raise ValueError(
            f"{where} has schema {config['schema']}, written by hierlab {config.get('versions', {}).get('hierlab')}; "
            f"this version reads up to {SCHEMA}. Install a newer hierlab."
        )
    if missing := [key for key in _NEEDED if key not in config]:
        raise ValueError(f"{where} does not describe a model: it lacks {', '.join(missing)} (see make_config).")
    if config["head"] not in HEADS:
        raise ValueError(f"{where} names the head {config['head']!r}; there are {', '.join(HEADS)}.")
    Normalize(**config["normalisation"])
    statistics = {key: config["normalisation"][key] for key in ("mean", "std")}
    for key, entries in {"band_names": config.get("band_names"), **statistics}.items():
        if entries is not None and len(entries) != config["bands"]:
            raise ValueError(f"{where} says {config['bands']} bands, but has {len(entries)} entries in {key}.")


def build_model(config: dict, weights: str | None = None) -> Normalized:
    """The model that ``config`` (see :func:`make_config`) describes, in training mode, on the CPU.

    ``weights`` are for the encoder, as in :func:`hierlab.models.build`; without them it starts at random
    (``seed_everything`` first makes that repeatable).
    """
    from . import models
    from .hierars import hierarchical
    from .translu import rebuild

    check_config(config, "The config")
    tree = ClassTree.from_dict(config["tree"])
    options = config.get("network_options", {})
    network = models.build(config["network"], config["bands"], tree.num_leaves, weights=weights, **options)
    if config["head"] == "bhccm":
        network = hierarchical(network, tree, layer="classifier", **config.get("head_options", {}))
    elif config["head"] == "translu":
        network = rebuild(network, tree, **config["head_options"])
    return Normalized(network, **config["normalisation"])


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """``"auto"`` is a CUDA GPU if there is one, else the CPU; ``"cpu"``, ``"cuda:1"``, ``"mps"`` … themselves.

    Raises ValueError for a device that this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"No device is called {device!r}; use auto, cpu, cuda, cuda:N or mps.") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise ValueError(f"The device {device} is not available here; use auto or cpu.")
    return device


def versions() -> dict[str, str]:
    """The versions that produced a run, by package name."""
    found = {"python": platform.python_version()}
    for name in ("hierlab", "torch", "torchvision", "timm", "segmentation-models-pytorch", "lightning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


# ---------------------------------------------------------------- saving and loading


def save(run: str | Path, model: nn.Module, config: dict | None = None, metadata: dict[str, str] | None = None) -> None:
    """Write ``model.safetensors`` and, with ``config``, ``model.json`` into the folder ``run``.

    Each file appears whole or not at all. ``metadata`` (strings) goes into the header of the weights. Tensors that
    share their memory (tied weights) are written once, and their other names noted in the header.
    """
    run = Path(run)
    if config is not None:
        check_config(config, "The config")
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[tuple, str] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict().items():
        storage = tensor.untyped_storage().data_ptr()
        same = (storage, tensor.device, tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and same in names:
            aliases[name] = names[same]
            continue
        names[same] = name
        copied = tensor.detach().to("cpu").contiguous()
        tensors[name] = copied.clone() if storage in storages else copied  # part of another tensor's memory
        storages.add(storage)
    with atomic(run / WEIGHTS) as path:
        save_file(tensors, path, metadata={**(metadata or {}), "aliases": json.dumps(aliases)})
    if config is not None:
        content = {"schema": SCHEMA, **config, "versions": versions()}
        with atomic(run / CONFIG) as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_weights(run: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of ``model.safetensors`` by name, tied ones under each of their names, and its metadata."""
    path = Path(run) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {run} holds no trained model. Train one, or give its folder.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}). Copy or train it again.") from error
    for name, kept in json.loads(metadata.pop("aliases", "{}")).items():
        tensors[name] = tensors[kept]
    return tensors, metadata


def load_weights(model: nn.Module, run: str | Path) -> dict[str, str]:
    """Put the weights of a run folder into ``model``, as built; returns their metadata.

    Raises FileNotFoundError or ValueError naming the tensors that are missing, superfluous or of another shape.
    """
    tensors, metadata = read_weights(run)
    own = model.state_dict()
    wrong = [f"{name}: {tuple(own[name].shape)} in the model, missing in the file" for name in own.keys() - tensors]
    wrong += [f"{name}: {tuple(tensors[name].shape)} in the file, not in the model" for name in tensors.keys() - own]
    wrong += [
        f"{name}: {tuple(own[name].shape)} in the model, {tuple(tensors[name].shape)} in the file"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if wrong:
        shown = "\n  ".join(sorted(wrong)[:8] + (["…"] if len(wrong) > 8 else []))
        raise ValueError(
            f"The weights in {Path(run) / WEIGHTS} do not fit the model ({len(wrong)} differences, {len(own)} tensors):"
            f"\n  {shown}\nThey come from another network, tree or version; build it from the model.json there."
        )
    model.load_state_dict(tensors)
    return metadata


def read_config(run: str | Path) -> dict:
    """The checked content of a run's ``model.json``."""
    path = Path(run) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. "
            + (
                "The run was trained without a config: build its model yourself and use load_weights(model, run)."
                if (Path(run) / WEIGHTS).is_file()
                else f"{run} holds no trained model. Train one, or give its folder."
            )
        )
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__} at the top")
    except ValueError as error:
        raise ValueError(f"{path} is no valid description of a model ({error}).") from error
    check_config(config, str(path))
    return config


def load(run: str | Path, device: str | torch.device = "cpu") -> tuple[Normalized, dict]:
    """The trained model of a run folder, in evaluation mode on ``device``, and its config.

    Raises FileNotFoundError for a missing folder or file, ValueError for a description of a newer schema, and for
    weights that are damaged or do not fit.
    """
    config = read_config(run)
    model = build_model(config)
    load_weights(model, run)
    return model.to(pick_device(device)).eval(), config


# ---------------------------------------------------------------- the state of a run, to resume from


def run_identity(model: nn.Module, items: int, tree: ClassTree, recipe: Recipe, seed: int, config: dict | None) -> dict:
    """What must be the same for a run to be resumed, by name."""
    described = {name: value for name, value in (config or {}).items() if name != "versions"}
    identity = {
        **{f"recipe.{name}": value for name, value in recipe.to_dict().items()},
        **described,
        "seed": seed,
        "tree": f"{tree.name} {tree.fingerprint}",
        "training items": items,
        **{f"tensor {name}": list(tensor.shape) for name, tensor in model.state_dict().items()},
    }
    return json.loads(json.dumps(identity))


def write_state(path: Path, model: nn.Module, optimizer, step: int, identity: dict) -> None:
    """Write the state of a run after ``step`` updates, whole or not at all; ``identity`` says whose it is."""
    state = {"step": step, "identity": identity, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    try:
        with atomic(path) as temporary:
            torch.save(state, temporary)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{path} could not be written ({error}). Is the disk full?") from error


def read_state(path: Path, model: nn.Module, optimizer, identity: dict) -> int:
    """Put a run's state into model and optimiser; returns the number of steps done.

    Raises ValueError naming every difference between the run that wrote it and this one.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, before = state["step"], state["identity"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged or no state of a run ({error}). Start the run again.") from error
    different = [
        f"{name}: {_short(before.get(name, 'absent'))} in the run, {_short(identity.get(name, 'absent'))} now"
        for name in [*identity, *sorted(before.keys() - identity.keys())]
        if before.get(name, "absent") != identity.get(name, "absent")
    ]
    if different:
        more = [f"… and {len(different) - 8} more"] if len(different) > 8 else []
        raise ValueError(
            f"The run in {path.parent} cannot be resumed, because it was another one:\n  "
            + "\n  ".join(different[:8] + more)
            + "\nResume it with what it was started with, or start a new run in another folder."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return step


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
