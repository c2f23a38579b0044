"""The work of a job that trains one network with one head on one data set, and scores it at every level."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import hierars, losses, twin
from .._training import seed_everything
from ..checkpoints import build_model, make_config, pick_device
from ..data.augment import Augment
from ..data.pairs import PairFolder
from ..evaluation import evaluate
from ..networks import describe
from ..recipes import CONVNEXT_DEIT, LAPTOP, Recipe, of_paper
from ..train import fit
from ..tree import ClassTree
from .define import Experiment, Setting
from .hierars import HeadRow

MEASURES = ("mIoU", "mAcc", "mF1", "OA")
TREE_MEASURES = ("hP", "hR", "hF", "tree_distance", "mistake_distance", "consistency")
NO_LOSS = ("step", "lr", "images_per_second", "gradient_norm")

_trained: dict[str, tuple[torch.nn.Module, dict]] = {}  # the last training of this process: rows may share it


def inputs(experiment: Experiment, row: HeadRow, profile: str, setting: Setting) -> dict:
    """Everything that decides a job but its seed: ``parameters`` and ``data``, JSON-able, found without running it.

    Raises ValueError where profile, setting, row and data do not go together.
    """
    if profile == "paper" and setting.data_root is None:
        raise ValueError(
            "The profile paper is for published data: name the folder that holds them prepared (data_root). "
            "Full-size networks run on the twin in the profile gpu."
        )
    train, validation = (_data(experiment, split, profile, setting) for split in ("train", "val"))
    if setting.batch > len(train):
        raise ValueError(f"batch is {setting.batch}, but there are only {len(train)} patches to train on.")
    bhccm, network = row.head == "bhccm", row.network or experiment.network
    parameters = {
        "network": network,
        "width": setting.width,
        "depth": setting.depth,
        "head": row.head,
        "fusion": row.fusion if bhccm else None,
        "residual": row.residual,
        "consistency": row.consistency if bhccm else None,
        "alpha": row.alpha if bhccm and row.consistency else None,
        "recipe": _recipe(network, profile, setting, max(_sides(train.size))).to_dict(),
    }
    if setting.start is not None:  # as with the rule below
        parameters["weights"] = setting.start
    if row.rule != HeadRow.rule:  # the usual one goes without saying, as in the records made before there was another
        parameters["rule"] = row.rule
    data = {
        "twin": train.is_twin,
        "name": experiment.dataset,
        "fingerprint": train.fingerprint,
        "train": len(train),
        "validation": len(validation),
    }
    if setting.data_root is None:
        data |= {"twin_version": twin.TWIN_VERSION, "twin_seed": train.seed}
    else:
        data["validation_fingerprint"] = validation.fingerprint
    return {"parameters": parameters, "data": data}


def work(
    experiment: Experiment,
    row: HeadRow,
    seed: int,
    profile: str,
    setting: Setting,
    device: str = "auto",
    tell: Callable[[dict], None] | None = None,
) -> dict:
    """Train and evaluate one row with one seed: ``metrics``, ``losses`` of the last step, and ``cost``.

    The data do not depend on the seed. ``tell`` is given ``{"share": of the job done, "rate": images/s}`` now and
    then. Rows that differ in the decoding alone share one training if they follow each other in a process; ``cost``
    tells of the training (``seconds``, ``images_per_second``, ``peak_memory`` in bytes), of the network for one image
    (``params``, ``gmac``).
    """
    train, validation = (_data(experiment, split, profile, setting) for split in ("train", "val"))
    rendered(train, validation)
    model, fitted, gmac = _fitted(experiment, row, seed, profile, setting, device, tell, train)
    # A flat model's coarser levels are its leaf probabilities summed up the tree, as in the paper.
    flat = row.head == "flat"
    scored = evaluate(model, validation, train.tree, pick_device(device), rule=row.rule, aggregate=flat)
    return {
        "metrics": {
            "levels": [
                {"level": level["level"], **_measures(level, train.tree.classes[i])}
                for i, level in enumerate(scored["levels"])
            ],
            **{name: _number(scored[name]) for name in TREE_MEASURES},
        },
        "losses": {name: _number(value) for name, value in fitted["history"][-1].items() if name not in NO_LOSS},
        "cost": {
            "seconds": round(fitted["seconds"], 1),
            "images_per_second": round(fitted["images_per_second"], 2),
            "peak_memory": fitted["peak_memory"],
            "peak_memory_of": fitted["peak_memory_of"],
            "params": fitted["parameters"],
            "gmac": round(gmac, 4),
        },
    }


def _fitted(experiment, row, seed, profile, setting, device, tell, train) -> tuple[torch.nn.Module, dict, float]:
    """The trained model, what :func:`hierlab.train.fit` says of it, and its GMAC; kept until another one is asked for.

    Training is deterministic, so a kept model is the one that training again would give.
    """
    found = inputs(experiment, row, profile, setting)
    found["parameters"].pop("rule", None)
    key = json.dumps([found, seed, str(pick_device(device))], sort_keys=True)
    if key not in _trained:
        _trained.clear()
        network = row.network or experiment.network
        recipe = _recipe(network, profile, setting, max(_sides(train.size)))
        mean, std = statistics(train)
        config = make_config(
            network,
            train.tree,
            mean,
            std,
            band_names=list(train.bands),
            head=row.head,
            fusion=row.fusion,
            residual=row.residual,
            options={"width": setting.width, "depth": setting.depth},
            gsd=train.gsd,
        )
        seed_everything(seed)
        model = build_model(config, setting.start)
        loss = (
            losses.FlatLoss(train.tree)
            if row.head == "flat"
            else hierars.HSCLoss(train.tree, row.alpha, row.consistency)
        )
        fitted = fit(
            model,
            loss,
            train,
            None,
            train.tree,
            recipe,
            seed=seed,
            device=device,
            progress=False,
            callback=None if tell is None else partial(_tell, tell, recipe.steps),
            deterministic=True,
        )
        gmac = describe(model, len(train.bands), train.tree.num_leaves, _sides(train.size))["gmac"]
        _trained[key] = model, fitted, gmac
    return _trained[key]


def _tell(tell: Callable[[dict], None], steps: int, line: dict) -> None:
    if "images_per_second" in line:
        tell({"share": line["step"] / (steps + 1), "rate": line["images_per_second"]})


def _recipe(network: str, profile: str, setting: Setting, patch: int, published: Recipe | None = None) -> Recipe:
    """The laptop recipe in the setting's size, or the ``published`` one of the network where networks are whole.

    At laptop size only the batch's own pixels, so no scaling and no drawing by class.
    """
    if profile in ("gpu", "paper"):
        recipe = published or of_paper(network) or CONVNEXT_DEIT
        warmup = recipe.warmup_steps * setting.steps // recipe.steps
    else:
        recipe = LAPTOP.scaled(profile).replace(augment=Augment(scale=None, max_share=None), channels_last=True)
        warmup = setting.steps // 20
    given = {"lr": setting.lr, "precision": setting.precision}
    return recipe.replace(
        steps=setting.steps,
        warmup_steps=warmup,
        batch_size=setting.batch,
        patch=patch,
        keep="last",
        **{name: value for name, value in given.items() if value is not None},
    )


def _data(experiment: Experiment, split: str, profile: str, setting: Setting):
    """A split of the twin's set, or of the prepared files below ``data_root``."""
    if setting.data_root is None:
        return twin.dataset(experiment.dataset, split, profile)
    return PairFolder(Path(setting.data_root), split, ClassTree.load(twin.PRESETS[experiment.dataset].tree))


def rendered(*sets: torch.utils.data.Dataset) -> None:
    """Have the twin's sets rendered, on all cores, before a network waits for them."""
    for data in sets:
        if isinstance(data, twin.TwinDataset):
            data.prepare()


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def statistics(dataset: torch.utils.data.Dataset, items: int = 128) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every band over the first ``items`` items of a data set."""
    pixels = np.concatenate(
        [
            np.asarray(dataset[i]["image"], np.float64).reshape(len(dataset[i]["image"]), -1)
            for i in range(min(items, len(dataset)))
        ],
        1,
    )
    return pixels.mean(1).tolist(), pixels.std(1).tolist()


def _measures(level: dict, names: tuple[str, ...]) -> dict:
    """The measures of one level, and the IoU of each class by name (null where the class occurs nowhere)."""
    return {
        **{name: _number(level[name]) for name in MEASURES},
        "IoU": {name: _number(value) for name, value in zip(names, level["IoU"].tolist(), strict=True)},
    }


def _number(value) -> float | None:
    value = float(value)
    return round(value, 6) if np.isfinite(value) else None
