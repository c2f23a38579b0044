"""From files to a trained, evaluated model: what ``hierlab train`` and ``hierlab evaluate`` do, for notebooks too."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window

from . import profiles
from ._io import atomic
from ._training import seed_everything
from .checkpoints import Normalized, build_model, load, make_config, pick_device
from .data.augment import Augment
from .data.datasets import LabelledScene, RasterDataset
from .data.labels import LabelRaster
from .data.rasters import Scene
from .data.series import Series
from .data.stats import Statistics, series_statistics, statistics
from .data.tiles import Split, blocked_split
from .evaluation import evaluate, predict
from .models import check_series, make_loss
from .recipes import LAPTOP, Recipe
from .train import check_run, fit
from .tree import ClassTree

PATCH_UNIT = 32  # patches are multiples of it, the coarsest stride of most encoders
WINDOWS = 256  # side of the windows that are evaluated, in pixels: more context than a training patch has


@dataclass
class Prepared:
    """Labelled scenes, split into spatial blocks, ready to train on; made by :func:`prepare`."""

    tree: ClassTree
    scenes: list[LabelledScene]
    splits: list[Split]
    train: RasterDataset
    validation: RasterDataset
    test: RasterDataset | None
    statistics: Statistics
    patch: int
    block: int
    series_statistics: Statistics | None = None

    def describe(self) -> list[str]:
        """What was found, as lines for people: grids, bands, classes and their shares, the split."""
        lines = []
        for scene in self.scenes:
            lines += [*scene.scene.describe(), *scene.labels.describe()]
            if scene.series is not None:
                lines += scene.series.describe()
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        sizes = {name: int(part.counts.sum()) for name, part in parts.items() if part is not None}
        shares = ", ".join(f"{name} {size / sum(sizes.values()):.0%} ({size:,} px)" for name, size in sizes.items())
        lines.append(f"split   blocks of {self.block} pixels, a gap of {self.splits[0].gap} between parts: {shares}")
        absent = [
            name
            for label, name in enumerate(self.tree.classes[-1])
            if self.train.counts[label] == 0 and self.validation.counts[label] > 0
        ]
        if absent:
            lines.append(f"note    in validation but never in training: {', '.join(absent)}")
        lines.append(f"patch   {self.patch} pixels; bands {self.statistics}")
        if self.series_statistics is not None:
            lines.append(f"        beside the series it keeps its scale; bands {self.series_statistics}")
        return lines


def open_scenes(images: Sequence[str | Path], bands: Sequence[int | str] | None = None) -> list[Scene]:
    """Open image files: several single-band files are stacked as the bands of one scene, others are a scene each."""
    if not images:
        raise ValueError("No image was given; name one or more raster files.")
    scenes = []
    if len(images) > 1:
        import rasterio

        from .data.rasters import open_raster

        with rasterio.Env():
            counts = []
            for path in images:
                with open_raster(str(path)) as file:
                    counts.append(file.count)
        if set(counts) == {1}:
            return [Scene.open(images, bands)]
    for path in images:
        scenes.append(Scene.open(path, bands))
        if scenes[-1].count != scenes[0].count:
            raise ValueError(
                f"{path} has {scenes[-1].count} bands and {images[0]} has {scenes[0].count}: scenes trained together "
                "need the same bands in the same order."
            )
    return scenes


def open_labels(
    labels: Sequence[str | Path], scenes: Sequence[Scene], tree: ClassTree, crs: str | None = None
) -> list[LabelRaster]:
    """Label rasters on the scenes' grids: one file a scene in their order, or the same file(s) over every scene."""
    if not labels:
        raise ValueError("No labels were given; name one label raster for each image, or one that covers all.")
    if len(scenes) > 1 and len(labels) not in (1, len(scenes)):
        raise ValueError(f"{len(scenes)} images and {len(labels)} label files: give one a scene, or one for all.")
    paired = len(scenes) > 1 and len(labels) == len(scenes)
    given = [[path] for path in labels] if paired else [labels] * len(scenes)
    return [LabelRaster.open(paths, scene, tree, crs) for paths, scene in zip(given, scenes, strict=True)]


def open_series(
    series: Sequence[str | Path], scenes: Sequence[Scene], bands: Sequence[str] | None = None
) -> list[Series | None]:
    """The time series beneath each scene: one file a scene in their order, the same file over all, or none."""
    if not series:
        return [None] * len(scenes)
    if len(series) not in (1, len(scenes)):
        raise ValueError(f"{len(scenes)} images and {len(series)} time series: give one a scene, or one for all.")
    paths = series if len(series) > 1 else [*series] * len(scenes)
    return [Series.open(path, scene, bands) for path, scene in zip(paths, scenes, strict=True)]


def prepare(
    images: Sequence[str | Path],
    labels: Sequence[str | Path],
    tree: ClassTree,
    recipe: Recipe,
    *,
    seed: int = 0,
    bands: Sequence[int | str] | None = None,
    label_crs: str | None = None,
    validation: float = 0.2,
    test: float = 0.0,
    block: int | None = None,
    only_present: bool = False,
    series: Sequence[str | Path] = (),
) -> Prepared:
    """Open images, labels and time series (``series``, as :func:`open_series` takes them), check them, cut them into
    spatial blocks, and lay out patches.

    ``block``: side of a block in pixels, twice the patch by default. The patch is the recipe's, or a quarter of the
    smallest scene's shorter side where that is less. ``only_present`` drops the classes that no label names.
    Raises ValueError or OSError before any long work, see :class:`Scene` and :class:`LabelRaster`.
    """
    scenes = open_scenes(images, bands)
    beneath = open_series(series, scenes)
    rasters = open_labels(labels, scenes, tree, label_crs)
    if only_present:
        present = {label for raster in rasters for label in raster.counts() if label < tree.num_leaves}
        if len(present) < tree.num_leaves:
            tree = tree.subset(present)
            rasters = open_labels(labels, scenes, tree, label_crs)
    shortest = min(min(scene.height, scene.width) for scene in scenes)
    patch = min(recipe.patch, max(PATCH_UNIT, shortest // 4 // PATCH_UNIT * PATCH_UNIT))
    block = block or 2 * patch
    window = _window(patch, [side for scene in scenes for side in (scene.height, scene.width)])
    labelled = [LabelledScene(*parts) for parts in zip(scenes, rasters, beneath, strict=True)]
    splits = blocked_split(labelled, block, validation, seed, test)
    sources = list(zip(labelled, splits, strict=True))
    return Prepared(
        tree=tree,
        scenes=labelled,
        splits=splits,
        train=RasterDataset(
            sources, patch, "train", recipe.steps * recipe.batch_size, seed=seed, balance=recipe.balance
        ),
        validation=RasterDataset(sources, window, "validation"),
        test=RasterDataset(sources, window, "test") if test else None,
        statistics=statistics(sources, seed=seed),
        patch=patch,
        block=block,
        series_statistics=series_statistics(sources, seed=seed) if series else None,
    )


def train(
    prepared: Prepared,
    network: str,
    out: str | Path,
    recipe: Recipe,
    *,
    head: str = "bhccm",
    fusion: str = "both",
    residual: bool = False,
    alpha: float = 2.0,
    consistency: str | None = "path",
    rule: str = "sigmoid",
    weak: bool = False,
    weights: str | None = None,
    options: dict | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    profile: str | None = None,
    progress: bool = True,
) -> tuple[Normalized, dict, dict]:
    """Train a network on prepared scenes into the run folder ``out``; ``weak``: see :func:`hierlab.models.make_loss`.

    Beside a time series, ``options`` get its number of bands and dates, and patches are turned but not resized.
    Returns the model, its config (``model.json``) and what :func:`hierlab.train.fit` returns. The validation part
    chooses nothing unless the recipe keeps the best weights, so its score is that of unseen ground.
    """
    check_run(out, resume)
    beneath = prepared.series_statistics
    check_series(network, beneath is not None)
    loss = make_loss(network, prepared.tree, head, alpha=alpha, consistency=consistency, weak=weak)
    recipe = recipe.replace(patch=prepared.patch)
    about = {}
    if beneath is not None:
        options = {"series_bands": len(beneath.mean), "dates": prepared.train.dates} | (options or {})
        about["series"] = {"mean": list(beneath.mean), "std": list(beneath.std)}
        about["series_band_names"] = list(prepared.train.series_bands)
        if recipe.augment is not None:
            recipe = recipe.replace(augment=dataclasses.replace(recipe.augment, scale=None, crop=None))
    seed_everything(seed)
    config = make_config(
        network,
        prepared.tree,
        list(prepared.statistics.mean),
        list(prepared.statistics.std),
        band_names=list(prepared.train.bands),
        head=head,
        fusion=fusion,
        residual=residual,
        options=options,
        patch=prepared.patch,
        gsd=prepared.scenes[0].gsd,
        loss=({"alpha": alpha, "consistency": consistency} if head == "bhccm" else {})
        | ({"weak": True} if weak else {}),
        rule=rule,
        profile=profile or profiles.current(),
        data=data_config(prepared),
        **about,
    )
    model = build_model(config, weights)
    result = fit(
        model,
        loss,
        prepared.train,
        prepared.validation,
        prepared.tree,
        recipe,
        out,
        seed=seed,
        device=device,
        resume=resume,
        config=config,
        progress=progress,
        rule=rule,
    )
    return model, config, result


def data_config(prepared: Prepared) -> dict:
    """The files and the split of a run, so that ``evaluate`` can find its held-out blocks again."""
    return {
        "source": source_of(prepared.scenes[0].scene),
        "images": [scene.scene.paths for scene in prepared.scenes],
        "labels": [scene.labels.paths for scene in prepared.scenes],
        **({"series": [scene.series.path for scene in prepared.scenes]} if prepared.series_statistics else {}),
        "grids": [_grid(scene) for scene in prepared.scenes],
        "splits": [split.to_dict() for split in prepared.splits],
    }


def window_of(config: dict) -> int:
    """Side in pixels of the windows in which a model is evaluated and maps.

    They are the same, because a network that pools over its window, as BHCCM does, answers differently in another.
    So they are also no larger than the scenes of the run, if those are small: what lies beside a scene is nothing.
    """
    grids = config.get("data", {}).get("grids", [])
    return _window(config["patch"], [side for grid in grids for side in grid[:2]])


def _window(patch: int, sides: Sequence[int]) -> int:
    """Side of the windows for patches of ``patch`` pixels, of scenes with these ``sides``."""
    return max(patch, min(WINDOWS, max(sides, default=WINDOWS)))


def _grid(scene: LabelledScene | Scene) -> list:
    """Size, transform and CRS of a scene, as JSON-able data, to recognise it by."""
    return [scene.height, scene.width, list(scene.transform)[:6], scene.crs.to_wkt()]


def held_out(
    run: str | Path,
    images: Sequence[str | Path],
    labels: Sequence[str | Path],
    *,
    part: str | None = None,
    label_crs: str | None = None,
    series: Sequence[str | Path] = (),
) -> tuple[Normalized, dict, RasterDataset, str]:
    """The model of a run and a data set to evaluate it on: (model, config, data set, what the data set is).

    ``part`` is "train", "validation", "test" or "all". By default: the run's test blocks if it has some, else its
    validation blocks, when the images are those it was trained on; everything when they are others. ``series`` as for
    :func:`series_for`.
    """
    model, config = load(run)
    tree = ClassTree.from_dict(config["tree"])
    scenes = open_scenes(images)
    bands = matching_bands(config, scenes[0])
    if bands not in (None, list(scenes[0].bands)):
        scenes = open_scenes(images, bands)
    beneath = series_for(config, scenes, series)
    rasters = open_labels(labels, scenes, tree, label_crs)
    labelled = [LabelledScene(*parts) for parts in zip(scenes, rasters, beneath, strict=True)]
    splits = [Split.from_dict(content) for content in config.get("data", {}).get("splits", [])]
    trained_on = [_names(paths) for paths in config.get("data", {}).get("images", [])]
    grids = config.get("data", {}).get("grids")
    same = trained_on == [_names(scene.paths) for scene in scenes] and grids == [_grid(scene) for scene in scenes]
    if part is None:
        part = ("test" if any(2 in split.part for split in splits) else "validation") if same else "all"
    if part != "all" and not same:
        raise ValueError(f"The {part} blocks are known only for the images that {run} was trained on: {trained_on}.")
    sources = list(zip(labelled, splits if part != "all" else [None] * len(labelled), strict=True))
    what = "every labelled pixel" if part == "all" else f"the {part} blocks of the run"
    if same and part == "all":
        what += ", training blocks included"
    data = RasterDataset(sources, window_of(config), "train" if part == "all" else part)
    return model, config, data, what


def _names(paths: Sequence[str]) -> list[str]:
    return [Path(path).name for path in paths]


def matching_bands(config: dict, scene: Scene) -> list[str] | None:
    """The trained bands by name, where the scene has all of them; else None, the scene's own order.

    Raises ValueError when neither the names nor the number of bands fit.
    """
    wanted = config["band_names"]
    if set(wanted) <= set(scene.bands):
        return list(wanted)
    if scene.count != config["bands"]:
        raise ValueError(
            f"The model was trained on {config['bands']} bands ({', '.join(wanted)}); {', '.join(scene.paths)} has "
            f"{scene.count} ({', '.join(scene.bands)}). Give the same bands in the same order."
        )
    return None


def open_for(config: dict, images: Sequence[str | Path]) -> tuple[Scene, str | None]:
    """The scene that ``images`` form with the bands that a model was trained on, and a note where only order tells."""
    scene = Scene.open(images)
    bands = matching_bands(config, scene)
    if bands is not None:
        return (scene if list(scene.bands) == bands else Scene.open(images, bands)), None
    return scene, (
        f"the model knows its bands as {', '.join(config['band_names'])}, this scene as {', '.join(scene.bands)}: "
        "they are taken in this order"
    )


def series_for(config: dict, scenes: Sequence[Scene], series: Sequence[str | Path]) -> list[Series | None]:
    """The time series beneath each scene with the bands that a model was trained on, or None for a model of images.

    ``series`` as for :func:`open_series`. Raises ValueError where a series is missing or not wanted, and where its
    bands or dates do not fit.
    """
    wanted = config.get("series_band_names")
    if wanted is None:
        if series:
            raise ValueError(
                f"The model ({config['network']}) was trained without a time series: leave it out (--series)."
            )
        return [None] * len(scenes)
    places = config["network_options"]["dates"]
    fits = f"up to {places} dates of {len(wanted)} bands ({', '.join(wanted)})"
    if not series:
        raise ValueError(
            f"The model ({config['network']}) was trained with a time series: give one that lies beneath the scene "
            f"(--series FILE), of {fits}."
        )
    opened = open_series(series, scenes, wanted)
    for one in opened:
        if len(one.dates) > places:
            raise ValueError(f"{one.path} has {len(one.dates)} dates; the model takes {fits}. Leave dates out.")
    return opened


def run_evaluation(
    model: Normalized, config: dict, data: RasterDataset, *, device: str = "auto", progress: bool = False
) -> dict:
    """The tree metrics of a trained model on a data set, as :func:`hierlab.train.evaluate` gives them."""
    tree = ClassTree.from_dict(config["tree"])
    return evaluate(
        model, data, tree, device=pick_device(device), rule=config.get("rule", "sigmoid"), progress=progress
    )


def source_of(scene: Scene) -> str:
    """What a picture of ``scene`` says of its data: "twin" for a file that the twin wrote, else "real: FILE"."""
    import rasterio

    with rasterio.open(scene.paths[0]) as file:
        return "twin" if "twin" in file.tags() else f"real: {Path(scene.paths[0]).stem}"


def map_picture(model: Normalized, config: dict, data: RasterDataset, path: Path, look_at: int = 64) -> Path:
    """Image, reference and prediction a level, over the one of the first ``look_at`` windows with most classes."""
    from . import plot

    tree = ClassTree.from_dict(config["tree"])
    items = [data[index] for index in range(min(look_at, len(data)))]
    item = max(items, key=lambda item: (len(item["label"].unique()), int((item["label"] != 255).sum())))
    batch = {name: value[None] for name, value in item.items()}
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = model.eval()({name: value.to(device) for name, value in batch.items()})["logits"]
    pred = predict(logits, tree, config["rule"])[0].cpu().numpy()
    figure = plot.levels_figure(
        plot.true_colour(item["image"].numpy(), data.bands, item["valid"].numpy()),
        {"prediction": pred},
        tree,
        tree.targets(item["label"].numpy()),
        source=source_of(data.sources[0][0].scene),
        gsd=data.sources[0][0].gsd,
    )
    plot.save(figure, path)
    return path


def pictures(model: Normalized, config: dict, data: RasterDataset, history, metrics: dict, out: Path) -> list[Path]:
    """The pictures of a finished run: its course, its scores a class, and a held-out window as a map."""
    from . import plot

    tree = ClassTree.from_dict(config["tree"])
    plot.save(plot.history_figure(history), out / "history.png")
    plot.save(plot.class_bars(metrics, tree), out / "classes.png")
    return [out / "history.png", out / "classes.png", map_picture(model, config, data, out / "map.png")]


def map_preview(scene: Scene, mapped: Path, path: Path) -> Path:
    """A picture of a finished map beside its scene, both decimated to fit a page."""
    from . import plot
    from .mapping import preview, read_map

    _, tree, about = read_map(mapped, Window(0, 0, 1, 1))
    classes, _ = preview(mapped)
    image, valid = scene.thumbnail(max(classes.shape[1:]))
    figure = plot.levels_figure(
        plot.true_colour(image, scene.bands, valid),
        {"map": classes},
        tree,
        source=source_of(scene),
        gsd=scene.gsd * about["width"] / classes.shape[2],
    )
    plot.save(figure, path)
    return path


def write_json(path: Path, content: dict) -> None:
    """Write JSON-able content, tensors and NaN included (as lists and null), whole or not at all."""
    with atomic(path) as part:
        part.write_text(json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value


DEFAULT_RECIPE = LAPTOP.replace(
    keep="last", channels_last=True, balance=0.5, augment=Augment(scale=None, max_share=None)
)
"""What ``hierlab train`` starts from. The weights are those of the last step, so validation chooses nothing; patches
are flipped and turned but not resized, because every pixel of a sensor has the same size. Half of the patches are
drawn for a class, since the rare classes of a map are often those that it is made for."""
