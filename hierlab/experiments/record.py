"""The run record: one JSON line a run, with everything needed to believe its numbers.

A record names the experiment, row, profile, seed, every parameter, the data (the twin's version and seed, or the
hash of the files), the metrics, the cost, the device, the versions of what ran, and the commit. Records are the only
source of the numbers that the book prints as ours.
"""

import json
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from .. import __version__

PACKAGES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "lightning", "numpy", "rasterio")
NUMBER, WHOLE, TEXT, NONE = (int, float), (int,), (str,), (type(None),)
REQUIRED = {
    "experiment": TEXT,
    "row": TEXT,
    "profile": TEXT,
    "seed": WHOLE,
    "parameters": {},
    "data": {"twin": (bool,)},
    "metrics": {},
    "cost": {},
    "machine": {},
    "versions": {},
    "commit": TEXT + NONE,
    "dirty": (bool, *NONE),
    "date": TEXT,
}
JOB = {  # what the record of a job has besides; it is told by its hash
    "hash": TEXT,
    "overrides": {},
    "data": {"name": TEXT, "fingerprint": TEXT, "train": WHOLE, "validation": WHOLE},
    "metrics": {"levels": (list,)},
    "losses": {},
    "cost": {
        "seconds": NUMBER,
        "job_seconds": NUMBER,
        "images_per_second": NUMBER + NONE,
        "peak_memory": WHOLE,
        "params": WHOLE,
        "gmac": NUMBER,
    },
    "machine": {"device": TEXT, "threads": WHOLE, "system": TEXT},
    "versions": {"hierlab": TEXT, "python": TEXT, "torch": TEXT},
}
SETTING = {  # what the record of a job may say besides: the size of the run, as the experiment's profile has it
    "width": NUMBER,
    "depth": NUMBER,
    "steps": WHOLE,
    "batch": WHOLE,
    "lr": NUMBER + NONE,
    "precision": TEXT + NONE,
}
COVERED = ("twin_version", "twin_seed")  # fields of the data that their fingerprint stands for
KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
KINDS[type(None)] = "null"


def provenance(device: str = "cpu") -> dict:
    """The machine, versions, commit and date of a run on ``device`` ("cpu" or "cuda…"), as fields of a record."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    commit, dirty = _commit()
    return {
        "machine": {"device": name, "threads": torch.get_num_threads(), "system": platform.system()},
        "versions": {
            "hierlab": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """The name of the CPU model, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@cache
def _commit() -> tuple[str | None, bool | None]:
    """The commit of the checkout that hierlab runs from and whether tracked code differs from it; None outside git.

    Looked up once a process: later changes of the files are not what runs.
    """
    here = Path(__file__).resolve().parents[1]  # all of hierlab, whatever of it changed

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def validate(record: dict) -> dict:
    """``record`` itself, or a ValueError naming the field that is missing or of the wrong type.

    A record with a ``hash`` is a job's and must be complete; those without are of runs that no job made, or made
    before jobs had one.
    """
    if not isinstance(record, dict):
        raise ValueError(f"A run record is a set of named fields; got {_kind(record)}.")
    _check(record, REQUIRED, "")
    if "hash" in record:
        _check(record, JOB | ({"setting": SETTING} if "setting" in record else {}), "")
        if not record["metrics"]["levels"]:
            raise ValueError("'metrics.levels' of a run record is empty; it needs an entry a level.")
        for place, level in enumerate(record["metrics"]["levels"]):
            if not isinstance(level, dict):
                raise ValueError(f"'metrics.levels.{place}' of a run record is named fields; got {_kind(level)}.")
            _check(level, {"level": TEXT}, f"metrics.levels.{place}.")
    return record


def _check(content: dict, schema: dict, inside: str) -> None:
    for field, kinds in schema.items():
        if field not in content:
            raise ValueError(f"A run record needs '{inside}{field}'; this one has {', '.join(sorted(content)) or '–'}.")
        value = content[field]
        if isinstance(kinds, dict):
            if not isinstance(value, dict):
                raise ValueError(f"'{inside}{field}' of a run record is named fields; got {_kind(value)}.")
            _check(value, kinds, f"{inside}{field}.")
        elif not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(KINDS[kind] for kind in kinds if not (kind is int and float in kinds))
            raise ValueError(f"'{inside}{field}' of a run record is {wanted}; got {_kind(value)}.")


def _kind(value) -> str:
    return KINDS.get(type(value), "named fields" if isinstance(value, dict) else type(value).__name__)


def append(path: Path, record: dict) -> None:
    """Append a validated record to the JSON-lines file ``path``, in one write."""
    append_line(path, validate(record))


def append_line(path: Path, content: dict) -> None:
    """Append one JSON line in one write, in place of what an interrupted write may have left of another."""
    line = json.dumps(content, sort_keys=True, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as stream:
        stream.seek(0)
        before = stream.read()
        whole = before.rfind(b"\n") + 1
        if _is_json(before[whole:]):
            line = "\n" + line
        else:
            stream.truncate(whole)
        stream.write(line.encode())


def read(path: Path) -> list[dict]:
    """The records of a JSON-lines file, validated; none when it does not exist."""
    return [_validated(path, number, content) for number, content in read_lines(path)]


def read_lines(path: Path) -> list[tuple[int, dict]]:
    """The lines of a JSON-lines file, numbered from 1; an unfinished one at the end is no line."""
    if not path.exists():
        return []
    *lines, last = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate([*lines, last] if _is_json(last) else lines, 1):
        try:
            found.append((number, json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from error
    return found


def _is_json(text: str | bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _validated(path: Path, number: int, content: dict) -> dict:
    try:
        return validate(content)
    except ValueError as error:
        raise ValueError(f"{path.name}, line {number}: {error}") from error


def results_folder() -> Path:
    """Where records are kept: ``book/results`` of the checkout that hierlab runs from, else ``results`` here."""
    stored = Path(__file__).resolve().parents[2] / "book" / "results"
    return stored if stored.is_dir() else Path("results")


def told(data: dict) -> dict:
    """The fields of a record's ``data`` that tell one set from another."""
    return {name: value for name, value in data.items() if name not in COVERED}


def stored_path(experiment, folder: Path, profile: str, tag: str = "", twin: bool = True) -> Path:
    """Where an experiment's records of one profile are kept below ``folder``: those on real data (not ``twin``) and
    those of overridden runs, by their ``tag``, in files of their own."""
    parts = [experiment.key, profile, "" if twin else "real", tag, "jsonl"]
    return folder / ".".join(filter(None, parts))


def failures_path(path: Path) -> Path:
    """The file beside a file of records that keeps the failures of its jobs."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.failed.jsonl")
