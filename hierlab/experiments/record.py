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
REQUIRED = {
    "experiment": str,
    "row": str,
    "profile": str,
    "seed": int,
    "parameters": dict,
    "data": dict,
    "metrics": dict,
    "cost": dict,
    "machine": dict,
    "versions": dict,
    "commit": (str, type(None)),
    "dirty": (bool, type(None)),
    "date": str,
}


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
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def validate(record: dict) -> dict:
    """``record`` itself, or a ValueError naming the field that is missing or of the wrong type."""
    for field, kind in REQUIRED.items():
        if field not in record:
            raise ValueError(f"A run record needs '{field}'; this one has {', '.join(sorted(record))}.")
        if not isinstance(record[field], kind):
            raise ValueError(f"'{field}' of a run record is {kind}; got {type(record[field]).__name__}.")
    if record["data"].get("twin") not in (True, False):
        raise ValueError(
            "A run record says in data['twin'] (true or false) whether it ran on the twin or on real data."
        )
    return record


def append(path: Path, record: dict) -> None:
    """Append a validated record to the JSON-lines file ``path``, in one write."""
    line = json.dumps(validate(record), sort_keys=True, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(line)


def read(path: Path) -> list[dict]:
    """The records of a JSON-lines file, validated; none when it does not exist."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(validate(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from error
    return records
