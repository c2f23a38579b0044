"""The training loop: explicit, on Lightning Fabric, resumable bit for bit on one CPU.

Read :func:`_train` first; it is the loop. Everything random in step s follows from (seed, s): which items make the
batch, how they are augmented, what dropout drops. So a resumed run needs the weights, the optimiser and the number of
the step, and replays nothing.

A run folder holds ``log.jsonl`` (a line a step, and one a validation), ``state.pt`` (to resume from),
``model.safetensors`` and ``model.json`` (to use the model, see :mod:`hierlab.checkpoints`).
"""

import json
import logging
import math
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from . import _training as base
from ._training import seed_everything
from .checkpoints import (
    CONFIG,
    LOG,
    STATE,
    WEIGHTS,
    Normalized,
    build_model,
    load,
    load_weights,
    make_config,
    pick_device,
    read_state,
    read_weights,
    run_identity,
    save,
    write_state,
)
from .data.augment import augment
from .evaluation import evaluate, predict
from .recipes import LAPTOP, RECIPES, Recipe, learning_rate, make_optimizer, parameter_groups
from .tree import ClassTree

__all__ = [
    "LAPTOP",
    "RECIPES",
    "Interrupted",
    "NonFiniteLoss",
    "Recipe",
    "build_model",
    "check_run",
    "evaluate",
    "fit",
    "learning_rate",
    "load",
    "load_weights",
    "make_config",
    "make_optimizer",
    "parameter_groups",
    "pick_device",
    "predict",
    "save",
    "seed_everything",
]


class NonFiniteLoss(ValueError):
    """The loss, one of its parts or the gradient became NaN or infinite."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and did so after saving its state."""


@dataclass
class _Run:
    """What a run is told besides its recipe; everything in it can be sent to another process."""

    out: Path | None
    seed: int
    resume: bool
    config: dict | None
    every: int
    progress: bool
    callback: Callable[[dict], None] | None
    workers: int
    deterministic: bool
    rule: str


# ---------------------------------------------------------------- the public door


def fit(
    model: nn.Module,
    loss: Callable[[dict, dict], tuple[Tensor, dict]],
    train: Dataset,
    val: Dataset | None,
    tree: ClassTree,
    recipe: Recipe,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    resume: bool = False,
    config: dict | None = None,
    every: int | None = None,
    progress: bool = True,
    callback: Callable[[dict], None] | None = None,
    *,
    devices: int = 1,
    strategy: str = "ddp_spawn",
    workers: int = 0,
    deterministic: bool = False,
    rule: str = "sigmoid",
) -> dict:
    """Train ``model`` in place and return what happened.

    Args:
        model: ``model(batch) -> {"logits": [...]}``; a :class:`Normalized` one is given raw pixel values.
        loss: ``loss(outputs, batch) -> scalar, dict of parts``.
        train, val: datasets of dicts with ``image`` (C, H, W), ``label`` (H, W) and whatever else the model takes. An
            item must depend on its index alone. ``val`` may be None.
        out: the run folder. None keeps nothing on disk.
        device, devices, strategy: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``; more than one device train
            data-parallel, in processes started here (``"ddp_spawn"``: model, loss and datasets are pickled, and a
            script needs ``if __name__ == "__main__":``) or by ``torchrun`` (``"ddp"``).
        resume: go on from the state in ``out``, with the same arguments. A recipe, config, seed, tree, number of items
            or model that differs is an error that names the differences.
        config: the model's description (:func:`make_config`), written beside the weights. Without it, only code
            that builds the same model can load them (:func:`load_weights`).
        every: steps between validations, which also save the state; by default a tenth of all steps.
        callback: called with every line of the log (on the first process).
        workers: processes that read data. 0 reads in this one.
        deterministic: only deterministic algorithms (an error where an operation has none on a GPU).
        rule: the decoding rule of the validation (:func:`predict`).

    Returns a dict: ``history`` (the lines of the log), ``metrics`` (of the last validation, or None), ``best``
    (``step`` and ``mIoU`` of the leaves, or None), ``steps``, ``seconds`` (all), ``images_per_second`` (training
    alone), ``peak_memory`` in bytes and ``peak_memory_of`` (``"cuda"``, or ``"process"``: the peak resident set since
    the process began), ``device``, ``parameters``.

    The model ends in evaluation mode, in float32, on the device it trained on (after ``ddp_spawn``: where it was), with
    the weights that ``recipe.keep`` names, as in ``model.safetensors``: during the run the best or the last so far.

    Ctrl-C (or SIGTERM) finishes the step, saves the state and raises :class:`Interrupted`, saying how to go on; twice
    stops at once. Raises NonFiniteLoss before a NaN reaches the weights, ValueError for what does not fit together,
    before training where that can be known.
    """
    device = pick_device(device)
    out = Path(out) if out is not None else None
    check_run(out, resume)
    _check(recipe, train, val, device, devices, every)
    every = every or max(1, recipe.steps // 10)
    run = _Run(out, seed, resume, config, every, progress, callback, workers, deterministic, rule)
    from lightning.fabric import Fabric

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    spawned = devices > 1 and "spawn" in strategy
    fabric = Fabric(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=[device.index] if device.index is not None and devices == 1 else devices,
        strategy=strategy if devices > 1 else "auto",
        precision=recipe.precision,
    )
    others = (loss, train, val, tree, recipe, run)
    if spawned:
        with (
            tempfile.TemporaryDirectory() as folder,
            base.on_signals(lambda: None, signal.SIGINT),  # the others stop by themselves, and this one waits for them
        ):
            answer = Path(folder) / "answer.pt"
            fabric.launch(partial(_in_process, answer, others), model)
            result = torch.load(answer, weights_only=False)
        if isinstance(result, BaseException):
            raise result
        model.load_state_dict(result.pop("weights"))
        model.eval()
    else:
        result = fabric.launch(_train, model, *others)
    if result.pop("interrupted"):
        last = result["history"][-1]["step"]
        kept = f"Its state is in {out}; go on with resume=True (--resume)." if out else "It had no folder to save to."
        raise Interrupted(f"Stopped after step {last} of {recipe.steps}. {kept}")
    return result


def check_run(out: str | Path | None, resume: bool) -> None:
    """ValueError when ``out`` holds another run and ``resume`` is False, or nothing to resume and it is True.

    :func:`fit` begins with it; callers that first do long work may too.
    """
    if out is None:
        if resume:
            raise ValueError("A run without a folder cannot be resumed; give out=, the folder it was trained in.")
        return
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a run needs a folder of its own.")
    if resume and not (out / STATE).is_file():
        raise ValueError(f"There is nothing to resume in {out}: it has no {STATE}. Start without resume (--resume).")
    held = [name for name in (LOG, STATE, WEIGHTS, CONFIG) if (out / name).exists()]
    if held and not resume:
        way_on = "go on with it (resume=True, --resume), " if STATE in held else ""
        raise ValueError(f"{out} already holds a run ({', '.join(held)}): {way_on}choose another folder, or delete it.")


def _check(recipe: Recipe, train: Dataset, val: Dataset | None, device: torch.device, devices: int, every) -> None:
    if not len(train) or (val is not None and not len(val)):
        raise ValueError(f"The {'validation' if len(train) else 'training'} dataset is empty.")
    if recipe.batch_size % (recipe.accumulate * devices):
        raise ValueError(
            f"A batch of {recipe.batch_size} patches cannot be shared equally by {devices} device(s) in "
            f"{recipe.accumulate} part(s); choose a batch_size that {recipe.accumulate * devices} divides."
        )
    if every is not None and every < 1:
        raise ValueError(f"every is {every}; it is a number of steps, at least 1.")
    if recipe.precision != "32-true":
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(f"{torch.cuda.get_device_name(device)} has no bfloat16; use precision 32-true.")
        if device.type == "mps":
            raise ValueError("bfloat16 training is not supported on mps; use precision 32-true.")


def _in_process(answer: Path, others: tuple, fabric, model: nn.Module) -> None:
    """:func:`_train` in a process of its own; the first leaves the result, or an error for the user, in a file."""
    try:
        result = _train(fabric, model, *others)
        result["weights"] = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    except (ValueError, OSError) as error:
        result = error
    if fabric.is_global_zero:
        torch.save(result, answer)


# ---------------------------------------------------------------- the loop


def _train(fabric, model, loss, train, val, tree, recipe: Recipe, run: _Run) -> dict:
    """The loop, in every process; ``fabric.global_rank`` says which one this is, and the first writes."""
    began, first = time.perf_counter(), fabric.is_global_zero
    device = fabric.device
    base.start_memory(device)
    whole = model.to(device) if isinstance(model, Normalized) else Normalized(model.to(device))
    if isinstance(loss, nn.Module):
        loss.to(device)
    if recipe.channels_last:
        whole.network.to(memory_format=torch.channels_last)
    if device.type == "cuda" and fabric.world_size > 1:
        whole.network = nn.SyncBatchNorm.convert_sync_batchnorm(whole.network)
    network = fabric.setup_module(whole.network)  # moved, in the recipe's precision, data-parallel
    optimizer = make_optimizer(whole, recipe)

    identity = run_identity(model, len(train), tree, recipe, run.seed, run.config)
    start, best, best_weights = 0, None, None
    log = base.Log(run.out / LOG if run.out else None, run.callback)
    if run.resume:
        start = read_state(run.out / STATE, model, optimizer, identity)
        log.cut(start)
        weights, noted = read_weights(run.out)
        best, best_weights = json.loads(noted["best"]), weights if recipe.keep == "best" else None
    optimizer = fabric.setup_optimizers(optimizer)
    order = base.Order(len(train), recipe, run.seed, start, fabric.global_rank, fabric.world_size)
    batches = base.loader(train, device, run.workers, batch_sampler=order)

    stop: list[int] = []  # filled by Ctrl-C
    metrics, images, seconds = log.last_metrics(), 0, 0.0
    done = start
    with (
        base.deterministic_algorithms(run.deterministic),
        base.on_signals(lambda: stop.append(1), signal.SIGINT, signal.SIGTERM),
        base.Bar(run.progress and first, "training", recipe.steps, start) as bar,
        log.opened(first),
    ):
        parts = iter(batches)
        for step in range(start, recipe.steps):
            clock = time.perf_counter()
            seed_everything(run.seed, base.STEP, step, fabric.global_rank)
            network.train()
            rate = learning_rate(step, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]

            sums: dict[str, Tensor] = {}
            for micro in range(recipe.accumulate):
                key = (run.seed, base.AUGMENT, step, micro, fabric.global_rank)
                batch = _prepare(next(parts), whole, recipe, key)
                last = micro == recipe.accumulate - 1
                with fabric.no_backward_sync(network, enabled=not last):
                    outputs = network(batch)
                    _check_outputs(outputs, tree)
                    scalar, terms = loss(outputs, batch)
                    fabric.backward(scalar / recipe.accumulate)
                for name, value in {**terms, "loss": scalar}.items():
                    part = torch.as_tensor(value, device=device).detach().float() / recipe.accumulate
                    sums[name] = sums.get(name, 0.0) + part
            if recipe.clip is not None:
                norm = fabric.clip_gradients(network, optimizer, max_norm=recipe.clip, error_if_nonfinite=False)
                sums["gradient_norm"] = norm.float()
            values, stopping = _over_processes(fabric, sums, bool(stop))
            if not all(map(math.isfinite, values.values())):
                raise NonFiniteLoss(_explain(values, step, rate, order.items(step), batch, run))
            optimizer.step()
            optimizer.zero_grad()

            done = step + 1
            images, seconds = images + recipe.batch_size, seconds + time.perf_counter() - clock
            log.write({"step": done, **values, "lr": rate, "images_per_second": round(images / seconds, 2)})
            bar.advance(1, f"loss {values['loss']:.3f}  {images / seconds:.1f} images/s")

            due = done % run.every == 0 or done == recipe.steps
            if due and val is not None:  # an interruption adds no validation
                metrics = _validate(fabric, whole, val, tree, recipe, run)
                log.write({"step": done, "validation": metrics})
                score = metrics["levels"][-1]["mIoU"]
                bar.say(f"step {done}: mIoU of the leaves {score if score is not None else math.nan:.3f}")
                better = score is not None and (best is None or score > best["mIoU"])
            else:
                better = False
            if better:
                best = {"step": done, "mIoU": score}
                if recipe.keep == "best":
                    best_weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            if first and run.out is not None and (due or stopping):
                if better or best is None or recipe.keep == "last":
                    _save_model(run, model, recipe, done, best, metrics)
                write_state(run.out / STATE, model, optimizer, done, identity)
            if stopping:
                break
    if recipe.keep == "best" and best is not None and done == recipe.steps:
        model.load_state_dict(best_weights)
    model.float().eval()
    return {
        "history": log.lines,
        "metrics": metrics,
        "best": best,
        "steps": recipe.steps,
        "seconds": time.perf_counter() - began,
        "images_per_second": images / seconds if seconds else None,
        **base.peak_memory(device),
        "device": base.device_name(device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "interrupted": done < recipe.steps,
    }


def _prepare(batch: dict, whole: Normalized, recipe: Recipe, key: tuple[int, ...]) -> dict:
    """A batch as the network trains on it: on the device, normalised in float32, augmented as ``key`` decides."""
    batch = whole.normalize(base.to_device(batch, next(whole.network.parameters()).device))
    if recipe.augment is not None:
        batch = augment(batch, recipe.augment, torch.Generator().manual_seed(base.stream(*key) % 2**63))
    if recipe.channels_last:
        batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
    return batch


def _over_processes(fabric, sums: dict[str, Tensor], stop: bool) -> tuple[dict[str, float], bool]:
    """The means of the values over all processes, and whether any of them was asked to stop."""
    values = torch.stack([*sums.values(), torch.tensor(float(stop), device=fabric.device)])
    if fabric.world_size > 1:
        values = fabric.all_reduce(values, reduce_op="mean")
    *numbers, stopping = values.tolist()  # waits for the device
    return dict(zip(sums, numbers, strict=True)), stopping > 0


def _explain(values: dict, step: int, rate: float, items: list[int], batch: dict, run: _Run) -> str:
    image = batch["image"]
    finite = image[image.isfinite()]
    kept = f"The state of the last save is still in {run.out}." if run.out is not None else "Nothing was saved."
    return (
        f"Step {step + 1}: {', '.join(f'{name} {value:.4g}' for name, value in values.items())}, at a learning rate of "
        f"{rate:.3g}. The batch: items {items[:16]}{' …' if len(items) > 16 else ''}, normalised image values "
        f"{finite.min() if len(finite) else math.nan:.4g} to {finite.max() if len(finite) else math.nan:.4g}, "
        f"{image.numel() - len(finite)} of them not finite. The weights were not changed by this step. {kept} "
        "Try a lower lr, a longer warm-up, clip=1.0 or precision 32-true; values far from 0 mean that the "
        "normalisation does not fit the images."
    )


def _check_outputs(outputs, tree: ClassTree) -> None:
    if isinstance(outputs, dict) and isinstance(outputs.get("logits"), list):
        given = tuple(level.shape[1] for level in outputs["logits"])
    else:
        given = f"a dict with {', '.join(outputs)}" if isinstance(outputs, dict) else f"a {type(outputs).__name__}"
    if given not in (tree.sizes, tree.sizes[-1:]):
        raise ValueError(
            f"The model must return a dict whose 'logits' list has {tree.sizes} channels (or {tree.sizes[-1:]}, flat) "
            f"for the tree '{tree.name}'; it gave {given}."
        )


def _save_model(
    run: _Run, model: nn.Module, recipe: Recipe, step: int, best: dict | None, metrics: dict | None
) -> None:
    """``model.safetensors`` first: its header says which weights these are, whatever happens before the next file."""
    training = {"recipe": recipe.to_dict(), "seed": run.seed, "step": step, "validation": metrics}
    config = None if run.config is None else {**run.config, "training": training}
    save(run.out, model, config, {"step": str(step), "best": json.dumps(best)})


def _validate(fabric, whole: Normalized, val: Dataset, tree: ClassTree, recipe: Recipe, run: _Run) -> dict:
    """The measures over ``val``, shared among the processes, as plain numbers (None for NaN) without confusions."""
    if fabric.world_size > 1:
        for buffer in whole.buffers():  # batch statistics differ a little between processes; the first's count
            torch.distributed.broadcast(buffer, 0)
    share = Subset(val, range(fabric.global_rank, len(val), fabric.world_size))
    size = recipe.batch_size // (recipe.accumulate * fabric.world_size)
    precision = "bf16-mixed" if recipe.precision == "bf16-mixed" else "32-true"
    rule, workers = run.rule, run.workers
    result = evaluate(whole, share, tree, fabric.device, size, rule, precision=precision, workers=workers)
    levels = [{k: _plain(v) for k, v in level.items() if k != "confusion"} for level in result["levels"]]
    timing = ("levels", "images", "seconds", "images_per_second")
    return {**{name: _plain(value) for name, value in result.items() if name not in timing}, "levels": levels}


def _plain(value):
    """Tensors as lists, NaN as None, as JSON can say it."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
