"""A runner whose jobs take no time: what a row does stands in it, and every job that begins leaves a line in a file."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from hierlab.experiments import record
from hierlab.experiments.define import Claim, Experiment, Row, Setting
from hierlab.profiles import PROFILES
from hierlab.recipes import LAPTOP

LOG = "FAKE_RUNNER_LOG"  # environment variable: the file that says which jobs began
FINGERPRINT = "0" * 16
PLAYED = {"profile": "laptop", "device": "cpu", "progress": False}  # arguments of a run


@dataclass(frozen=True)
class FakeRow(Row):
    """``does``: score, fail (until ``mended`` stands beside the log), die, die once, stop (by Ctrl-C), or sleep."""

    does: str = "score"


def experiment(**does: str) -> Experiment:
    """Table VII in its three last rows, with what each of them does (``both="fail"``); two steps, two seeds."""
    names = ("coarse-to-fine", "both", "both-hsc")
    return Experiment(
        key="hierars/table-07",
        title="HieraRS, Table VII, played",
        published="hierars-table-07",
        dataset="nothing",
        network="none",
        rows=tuple(FakeRow(name, name, does.get(name.replace("-", "_"), "score")) for name in names),
        claims=(Claim("Both ways beat one", better="both", worse="coarse-to-fine"),),
        settings={name: Setting(width=0.5, depth=1.0, steps=2, batch=2, seeds=2) for name in PROFILES},
        runner="fake_runner",
    )


def began(log: Path) -> list[str]:
    """The jobs in the file of begun ones, which is removed."""
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def results(path: Path) -> dict[str, dict]:
    """What must not depend on how jobs were run: {hash: row, seed, metrics, inputs} of a file of records."""
    names = ("row", "seed", "metrics", "losses", "parameters", "data", "overrides")
    return {entry["hash"]: {name: entry[name] for name in names} for entry in record.read(path)}


def inputs(experiment, row, profile, setting):
    """The inputs that a job of the size of ``setting`` has; more patches than 64 a batch there are not."""
    if setting.batch > 64:
        raise ValueError(f"batch is {setting.batch}, but there are only 64 patches to train on.")
    recipe = LAPTOP.replace(steps=setting.steps, warmup_steps=0, batch_size=setting.batch)
    parameters = {"network": "none", "width": setting.width, "depth": setting.depth, "recipe": recipe.to_dict()}
    twin = setting.data_root is None or Path(setting.data_root, "twin.json").exists()
    data = {"twin": twin, "name": "nothing", "fingerprint": FINGERPRINT, "train": 64, "validation": 8}
    return {"parameters": parameters | {"row": row.name}, "data": data}


def work(experiment, row, seed, profile, setting, device, tell):
    """A score that follows from row, seed and steps."""
    log = Path(os.environ[LOG])
    with log.open("a") as stream:
        stream.write(f"{row.name} {seed}\n")
    if tell is not None:
        tell({"share": 0.5, "rate": 2.0})
    if row.does == "fail" and not (log.parent / "mended").exists():
        raise RuntimeError("the row is broken")
    if row.does == "die" or (row.does == "die once" and not (log.parent / "died").exists()):
        (log.parent / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if row.does == "stop" and not (log.parent / "mended").exists():
        raise KeyboardInterrupt
    if row.does == "sleep" and not (log.parent / "mended").exists():
        time.sleep(600)  # its process is ended before
    score = (len(row.name) + seed / 10 + setting.steps / 100) / 30
    return {
        "metrics": {"levels": [{"level": "L1", "mIoU": 1.0}, {"level": "L3", "mIoU": score}]},
        "losses": {"loss": 1.0},
        "cost": {
            "seconds": 0.1,
            "images_per_second": 2.0,
            "peak_memory": 1,
            "params": 1,
            "gmac": 0.1,
        },
    }
