"""The work of a job that carries a land-use model over to another class tree (HieraRS, Section IV.C), and scores it.

Stage I, a hierarchical network trained on the source data, is the same for all rows of one encoder, as in the paper,
whose Tables V, VIII and IX start from the models of Table III. So it is trained once, with the seed :data:`SEED`
whatever the job's, and kept in the cache; seeds vary stage II, its new weights and its order of patches. The spread
over seeds therefore tells nothing of other stages I.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from .. import hierars, losses, networks, twin
from .._training import device_name, seed_everything
from ..checkpoints import CONFIG, Normalized, build_model, load, make_config, pick_device, save, versions
from ..crosswalk import Crosswalk
from ..data.pairs import PairFolder
from ..evaluation import evaluate
from ..networks import Network, describe
from ..recipes import TRANSLU, Recipe
from ..train import fit
from ..translu import TransLU, TransLULoss
from ..tree import ClassTree
from . import segmentation
from .hierars_transfer import TransferExperiment, TransferRow, TransferSetting
from .segmentation import NO_LOSS, TREE_MEASURES, _measures, _number, _sides, rendered, statistics

SEED = 0  # of stage I
SOURCE_ALPHA = 2.0  # of L_HSC in stage I: α on MM-5B
DECIDING = ("hierars", "losses", "train", "_training", "recipes", "checkpoints", "tree", "data", "networks")


def inputs(experiment: TransferExperiment, row: TransferRow, profile: str, setting: TransferSetting) -> dict:
    """Everything that decides a job but its seed: ``parameters`` and ``data``, JSON-able, found without running it.

    Raises ValueError where profile, setting, row and data do not go together.
    """
    if profile == "paper" and setting.data_root is None:
        raise ValueError(
            "The profile paper is for published data: name the folder that holds them prepared (data_root), with "
            f"{experiment.source} and {experiment.dataset} in it. Full-size networks run on the twin in the profile "
            "gpu."
        )
    source, train, validation = _sets(experiment, profile, setting)
    if source.is_twin is not train.is_twin:
        raise ValueError(
            f"{experiment.source} and {experiment.dataset} must both be real or both the twin's; below "
            f"{setting.data_root}, only one of them is the twin's."
        )
    if len(source.bands) != len(train.bands):
        raise ValueError(
            f"{experiment.source} has {len(source.bands)} bands and {experiment.dataset} {len(train.bands)}; a model "
            "is carried over to images with the bands that it was trained on."
        )
    for name, patches in ((experiment.source, len(source)), (experiment.dataset, len(train))):
        if setting.batch > patches:
            raise ValueError(f"batch is {setting.batch}, but there are only {patches} patches of {name} to train on.")
    translu = row.head == "translu"
    parameters = {
        "network": _network(experiment, row),
        "width": setting.width,
        "depth": setting.depth,
        "head": row.head,
        "start": row.start,
        "weights": setting.start if row.start == "imagenet" else None,
        "cdks": row.cdks,
        "cdsa": row.cdsa,
        "merge": row.merge if row.cdks else None,
        "others": row.others if row.cdsa else None,
        "alpha": row.alpha if translu else None,
        "consistency": "path" if translu else None,
        "mapping": Crosswalk.load(experiment.mapping, target=train.tree).to_dict() if translu else None,
        "recipe": _recipe("target", _network(experiment, row), profile, setting, train).to_dict(),
        "stage I": _stage_one(experiment, row, profile, setting) if _needs_source(row) else None,
    }
    data = {
        "twin": train.is_twin,
        "name": experiment.dataset,
        "fingerprint": train.fingerprint,
        "train": len(train),
        "validation": len(validation),
        "source": _told(source),  # of every row, for its statistics normalise all
    }
    if setting.data_root is None:
        data |= {"twin_version": twin.TWIN_VERSION, "twin_seed": train.seed}
    else:
        data["validation_fingerprint"] = validation.fingerprint
    return {"parameters": parameters, "data": data}


def work(
    experiment: TransferExperiment,
    row: TransferRow,
    seed: int,
    profile: str,
    setting: TransferSetting,
    device: str = "auto",
    tell: Callable[[dict], None] | None = None,
) -> dict:
    """Stage I where the row needs it and the cache lacks it, then stage II, trained and scored on the target.

    ``metrics`` are the target's, at every level; ``source`` in them those of stage I on its own validation patches.
    ``cost`` is that of stage II, and ``stage_one_seconds`` that of stage I whenever it was trained. All rows are
    normalised by the statistics of the source's training patches: one sensor, one normalisation, and branch 2 knows no
    other. ``tell`` is given ``{"share": of the job done, "rate": images/s}`` now and then.
    """
    source, train, validation = _sets(experiment, profile, setting)
    rendered(source, train, validation)
    mean, std = statistics(source)
    stage_one = None
    if _needs_source(row):
        stage_one, trained = source_model(experiment, row, profile, setting, device, tell)

    seed_everything(seed)
    model = Normalized(_network_of(experiment, row, profile, setting, stage_one, train), mean, std)
    flat = row.head == "flat"
    recipe = _recipe("target", _network(experiment, row), profile, setting, train)
    fitted = fit(
        model,
        losses.FlatLoss(train.tree) if flat else TransLULoss(train.tree, row.alpha),
        train,
        None,
        train.tree,
        recipe,
        seed=seed,
        device=device,
        progress=False,
        callback=_telling(tell, setting, row, before=setting.source_steps if stage_one is not None else 0),
        deterministic=True,
    )
    gmac = describe(model, len(train.bands), train.tree.num_leaves, _sides(train.size))["gmac"]
    scored = evaluate(model, validation, train.tree, pick_device(device), aggregate=flat)
    about_source = {} if stage_one is None else {"source": trained["metrics"]}
    return {
        "metrics": _levels(scored, train.tree) | {name: _number(scored[name]) for name in TREE_MEASURES} | about_source,
        "losses": {name: _number(value) for name, value in fitted["history"][-1].items() if name not in NO_LOSS},
        "cost": {
            "seconds": round(fitted["seconds"], 1),
            "stage_one_seconds": None if stage_one is None else trained["seconds"],
            "images_per_second": round(fitted["images_per_second"], 2),
            "peak_memory": fitted["peak_memory"],
            "peak_memory_of": fitted["peak_memory_of"],
            "params": fitted["parameters"],
            "gmac": round(gmac, 4),
        },
    }


def _network_of(experiment, row, profile, setting, stage_one, train) -> torch.nn.Module:
    """The row's network before stage II; what is new in it follows from torch's random stream."""
    flat = None
    if row.head == "flat" or row.start == "imagenet":
        weights = setting.start if row.start == "imagenet" else None
        size = {"width": setting.width, "depth": setting.depth}
        flat = networks.build(_network(experiment, row), len(train.bands), train.tree.num_leaves, weights, **size)
    if row.head == "flat":
        return _started(flat, stage_one.network) if row.start == "source" else flat
    crosswalk = Crosswalk.load(experiment.mapping, target=train.tree)
    parts = {"cdks": row.cdks, "cdsa": row.cdsa, "merge": row.merge, "others": row.others}
    return TransLU(stage_one, crosswalk, start=flat, **parts)


def _started(flat: Network, source: Network) -> Network:
    """``flat`` with the weights of stage I's encoder and decoder; its classifier stays as it was."""
    own = flat.state_dict()
    theirs = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("classifier.")}
    flat.load_state_dict({name: own[name] for name in own if name.startswith("classifier.")} | theirs)
    return flat


# ---------------------------------------------------------------- stage I


def source_model(
    experiment: TransferExperiment,
    row: TransferRow,
    profile: str,
    setting: TransferSetting,
    device: str = "auto",
    tell: Callable[[dict], None] | None = None,
) -> tuple[hierars.Hierarchical, dict]:
    """The model of stage I in evaluation mode on the CPU, and what is told of it: ``metrics`` and ``seconds``.

    It is read from :func:`source_folder`, after it was trained into it where there was none; so one that was trained
    just now and one from the cache are the same. A damaged file is a ValueError that names it.
    """
    folder = source_folder(experiment, row, profile, setting, device)
    if not (folder / CONFIG).is_file():
        _train_source(experiment, row, profile, setting, device, tell, folder)
    model, config = load(folder)
    return model.network, config["stage I"]


def source_folder(
    experiment: TransferExperiment, row: TransferRow, profile: str, setting: TransferSetting, device: str = "auto"
) -> Path:
    """Where stage I is kept: below the twin's cache, by a hash of all that decides its weights.

    That is its parameters and data, the class tree, the versions of the libraries, the code of what it is made and
    trained with, the device and, on a CPU, the number of threads, by which sums are cut.
    """
    on = pick_device(device)
    validation = _set(experiment.source, "val", profile, setting)
    decides = {
        "stage I": _stage_one(experiment, row, profile, setting),
        "validation": _told(validation),
        "versions": versions(),
        "code": _code(),
        "tree": validation.tree.to_dict(),
        "device": device_name(on),
        "threads": torch.get_num_threads() if on.type == "cpu" else None,
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return twin.cache_dir() / "stage-one" / f"{_network(experiment, row)}-{experiment.source}-{profile}-{key}"


def _stage_one(experiment, row, profile, setting) -> dict:
    """The parameters of stage I, JSON-able."""
    source = _set(experiment.source, "train", profile, setting)
    return {
        "network": _network(experiment, row),
        "width": setting.width,
        "depth": setting.depth,
        "weights": setting.start,
        "head": "bhccm",
        "fusion": "both",
        "residual": False,
        "consistency": "path",
        "alpha": SOURCE_ALPHA,
        "seed": SEED,
        "recipe": _recipe("source", _network(experiment, row), profile, setting, source).to_dict(),
        "data": _told(source),
    }


def _train_source(experiment, row, profile, setting, device, tell, folder: Path) -> None:
    """Train stage I and write it into ``folder``: the weights, then ``model.json``, each beside and then renamed."""
    about = _stage_one(experiment, row, profile, setting)
    train, validation = (_set(experiment.source, split, profile, setting) for split in ("train", "val"))
    rendered(train, validation)
    mean, std = statistics(train)
    options = {"width": setting.width, "depth": setting.depth}
    config = make_config(
        about["network"], train.tree, mean, std, band_names=list(train.bands), options=options, gsd=train.gsd
    )
    seed_everything(SEED)
    model = build_model(config, about["weights"])
    recipe = _recipe("source", about["network"], profile, setting, train)
    fitted = fit(
        model,
        hierars.HSCLoss(train.tree, about["alpha"], about["consistency"]),
        train,
        None,
        train.tree,
        recipe,
        seed=SEED,
        device=device,
        progress=False,
        callback=_telling(tell, setting, row),
        deterministic=True,
    )
    metrics = _levels(evaluate(model, validation, train.tree, pick_device(device)), train.tree)
    told = {"metrics": metrics, "seconds": round(fitted["seconds"], 1), "parameters": about}
    save(folder, model, config | {"stage I": told})


@cache
def _code() -> str:
    """A hash of the source code that decides what a training gives, but for the data's, which versions tell."""
    package = Path(__file__).resolve().parents[1]
    files = [Path(__file__).resolve(), Path(segmentation.__file__).resolve()]
    for name in DECIDING:
        files += sorted((package / name).rglob("*.py")) or [package / f"{name}.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


# ---------------------------------------------------------------- what both stages share


def _telling(tell: Callable[[dict], None] | None, setting: TransferSetting, row: TransferRow, before: int = 0):
    """What :func:`hierlab.train.fit` calls with every line of its log, ``before`` steps being done already."""
    if tell is None:
        return None
    total = setting.steps + (setting.source_steps if _needs_source(row) else 0)

    def told(line: dict) -> None:
        if "images_per_second" in line:
            tell({"share": (before + line["step"]) / (total + 1), "rate": line["images_per_second"]})

    return told


def _needs_source(row: TransferRow) -> bool:
    return row.head == "translu" or row.start == "source"


def _network(experiment: TransferExperiment, row: TransferRow) -> str:
    return row.network or experiment.network


def _recipe(stage: str, network: str, profile: str, setting: TransferSetting, data) -> Recipe:
    """The recipe of stage "source" or "target", as in the other tables; at full size TransLU has one of its own."""
    steps, published = {"source": (setting.source_steps, None), "target": (setting.steps, TRANSLU)}[stage]
    return segmentation._recipe(network, profile, replace(setting, steps=steps), max(_sides(data.size)), published)


def _sets(experiment: TransferExperiment, profile: str, setting: TransferSetting) -> tuple:
    """The source to train on, the target to train on, the target to validate on."""
    target = experiment.dataset
    wanted = ((experiment.source, "train"), (target, "train"), (target, "val"))
    return tuple(_set(name, split, profile, setting) for name, split in wanted)


def _set(name: str, split: str, profile: str, setting: TransferSetting):
    """A split of the twin's set, or of the prepared files in the folder ``name`` below ``data_root``."""
    if setting.data_root is None:
        return twin.dataset(name, split, profile)
    return PairFolder(Path(setting.data_root) / name, split, ClassTree.load(twin.PRESETS[name].tree))


def _told(data) -> dict:
    """What tells a set from another, beside its name, which stands in the experiment."""
    return {"fingerprint": data.fingerprint, "patches": len(data)}


def _levels(scored: dict, tree: ClassTree) -> dict:
    """The measures of :func:`hierlab.evaluation.evaluate` at every level."""
    levels = zip(scored["levels"], tree.classes, strict=True)
    return {"levels": [{"level": level["level"], **_measures(level, names)} for level, names in levels]}
