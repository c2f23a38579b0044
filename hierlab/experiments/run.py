"""Running an experiment: one (row, seed) is one job, and one job gives one record."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from .. import hierars, losses, profiles, twin
from .._training import seed_everything
from ..checkpoints import build_model, make_config, pick_device
from ..data.augment import Augment
from ..evaluation import evaluate
from ..networks import describe
from ..recipes import LAPTOP
from ..train import fit
from . import record
from .define import Experiment, Row

MEASURES = ("mIoU", "mAcc", "mF1", "OA")
TREE_MEASURES = ("hP", "hR", "hF", "tree_distance", "mistake_distance", "consistency")


def run(
    experiment: Experiment,
    rows: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    profile: str | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> list[dict]:
    """Run the jobs of an experiment that have no record yet, and return the records of all that were asked for.

    ``rows``: names, all by default; ``seeds``: by default 0 … n - 1 with the profile's n; ``out``: the JSON-lines file
    of the records, to which each finished job is added (None keeps them in memory only). Raises ValueError for an
    unknown row or profile before anything runs.
    """
    record.provenance()  # before anything runs, so that the commit is that of the code loaded now
    profile = profiles.check(profile or profiles.current())
    chosen = [experiment.row(name) for name in rows] if rows is not None else list(experiment.rows)
    seeds = list(seeds) if seeds is not None else list(range(experiment.setting(profile).seeds))
    known = record.read(Path(out)) if out is not None else []
    done = {(r["row"], r["seed"]): r for r in known if r["profile"] == profile and r["experiment"] == experiment.key}
    results = []
    for seed in seeds:
        for row in chosen:
            if (row.name, seed) not in done:
                done[row.name, seed] = run_job(experiment, row, seed, profile, device, progress)
                if out is not None:
                    record.append(Path(out), done[row.name, seed])
            results.append(done[row.name, seed])
    return results


def run_job(
    experiment: Experiment, row: Row, seed: int, profile: str, device: str = "auto", progress: bool = True
) -> dict:
    """Train and evaluate one row with one seed; returns its validated record. The data do not depend on the seed."""
    setting = experiment.setting(profile)
    train = twin.dataset(experiment.dataset, "train", profile)
    validation = twin.dataset(experiment.dataset, "val", profile)
    tree = train.tree
    mean, std = statistics(train)
    recipe = LAPTOP.scaled(profile).replace(
        steps=setting.steps,
        warmup_steps=setting.steps // 20,
        batch_size=setting.batch,
        patch=train[0]["image"].shape[-1],
        augment=Augment(scale=None, max_share=None),
        keep="last",
        channels_last=True,
    )
    config = make_config(
        experiment.network,
        tree,
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
    model = build_model(config)
    loss = losses.FlatLoss(tree) if row.head == "flat" else hierars.HSCLoss(tree, row.alpha, row.consistency)
    fitted = fit(
        model, loss, train, None, tree, recipe, seed=seed, device=device, progress=progress, deterministic=True
    )
    # A flat model's coarser levels are its leaf probabilities summed up the tree, as in the paper.
    scored = evaluate(model, validation, tree, pick_device(device), aggregate=row.head == "flat")
    return record.validate(
        {
            "experiment": experiment.key,
            "row": row.name,
            "profile": profile,
            "seed": seed,
            "parameters": {
                "network": experiment.network,
                "width": setting.width,
                "depth": setting.depth,
                "head": row.head,
                "fusion": row.fusion if row.head == "bhccm" else None,
                "residual": row.residual,
                "consistency": row.consistency if row.head == "bhccm" else None,
                "alpha": row.alpha if row.head == "bhccm" and row.consistency else None,
                "recipe": recipe.to_dict(),
            },
            "data": {
                "twin": True,
                "name": train.name,
                "fingerprint": train.fingerprint,
                "train": len(train),
                "validation": len(validation),
            },
            "metrics": {
                "levels": [
                    {"level": level["level"], **_measures(level, tree.classes[i])}
                    for i, level in enumerate(scored["levels"])
                ],
                **{name: _number(scored[name]) for name in TREE_MEASURES},
            },
            "losses": {name: _number(value) for name, value in fitted["history"][-1].items() if "loss" in name},
            "cost": {
                "seconds": round(fitted["seconds"], 1),
                "images_per_second": round(fitted["images_per_second"], 2),
                "peak_memory": fitted["peak_memory"],
                "params": sum(parameter.numel() for parameter in model.parameters()),
                "gmac": round(describe(model, len(train.bands), tree.num_leaves, recipe.patch)["gmac"], 4),
            },
            **record.provenance(str(pick_device(device))),
        }
    )


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
