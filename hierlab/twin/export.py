"""Writing a set of the twin as files, in the folders, names and formats of the real one (``layouts``).

An export can be stopped and started again: files that are there and whole are kept. Each file is written under a
temporary name first. ``twin.json`` in the folder says what it holds, ``checksums.sha256`` lists every finished file
(``sha256sum -c checksums.sha256`` checks them).
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hierlab._io import atomic
from hierlab.data.progress import track
from hierlab.twin.datasets import TWIN_VERSION, TwinDataset, dataset, share
from hierlab.twin.layouts import LAYOUTS, LISTS, POTSDAM, VAIHINGEN, Item
from hierlab.twin.presets import PRESETS, SPLITS

ABOUT, CHECKSUMS = "twin.json", "checksums.sha256"
_LIMITS = {  # splits whose files have the names of the real set's, of which there are so many
    "potsdam": {"train": len(POTSDAM["train"]), "test": len(POTSDAM["test"])},
    "vaihingen": {"train": len(VAIHINGEN["train"]), "test": len(VAIHINGEN["test"])},
    "aerorit": dict.fromkeys(SPLITS, 1),
}


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Folder:
    """The folder of an export: what it is for, and which files in it are finished."""

    def __init__(self, folder: Path, about: dict):
        self.folder, self.finished = folder, {}
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file: give a folder, or one to be made.")
        if folder.exists() and any(folder.iterdir()):
            self._resume(about)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic(folder / ABOUT) as temporary:
                temporary.write_text(json.dumps(about, indent=1) + "\n")

    def _resume(self, about: dict) -> None:
        try:
            found = json.loads((self.folder / ABOUT).read_text())
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or "twin" not in found:
            raise ValueError(f"{self.folder} holds something else than an export of the twin: give an empty folder.")
        wrong = [key for key, value in about.items() if found.get(key) != value]
        if wrong:
            said = ", ".join(f"{key} {found.get(key)!r} instead of {about[key]!r}" for key in wrong)
            raise ValueError(f"{self.folder} holds another export of the twin ({said}): give another folder.")
        path = self.folder / CHECKSUMS
        for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
            whole = re.fullmatch(r"([0-9a-f]{64})  (.+)\n", line)
            if whole:
                self.finished[whole[2]] = whole[1]
        for temporary in self.folder.rglob(".*.part*"):
            temporary.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether a file is there, finished and undamaged."""
        path = self.folder / name
        return name in self.finished and path.is_file() and _hash(path) == self.finished[name]

    def write(self, name: str, write) -> None:
        """Write one file whole, then note its checksum."""
        path = self.folder / name
        with atomic(path) as temporary:
            write(temporary)
        self.finished[name] = _hash(path)
        with open(self.folder / CHECKSUMS, "a", encoding="utf-8") as file:
            file.write(f"{self.finished[name]}  {name}\n")

    def close(self) -> None:
        """Rewrite the checksums, one line a file, in order."""
        with atomic(self.folder / CHECKSUMS) as temporary:
            temporary.write_text("".join(f"{h}  {name}\n" for name, h in sorted(self.finished.items())))


def sets(
    name: str,
    splits: Iterable[str] = SPLITS,
    profile: str | None = None,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    count: int | None = None,
    **options,
) -> list[TwinDataset]:
    """The sets that an export writes: those of ``dataset``, but whole files where the real set's hold many patches.

    ValueError as ``dataset``, and where a layout has no names for so many files.
    """
    preset, made = PRESETS.get(name), []
    for split in splits:
        data = dataset(name, split, profile, seed, size, count, **options)
        if preset.tile:
            from hierlab.profiles import current

            used = profile or current()
            part = share(preset, split, data.options, preset.tiles[used][split])
            data = dataset(name, split, used, seed, size or preset.tile[used], count or part, **options)
        most = _LIMITS.get(name, {}).get(split, len(data))
        if len(data) > most:
            raise ValueError(f"{name} has names for {most} {split} files; {len(data)} were asked for.")
        made.append(data)
    return made


def export(made: Sequence[TwinDataset], folder: str | Path, progress: bool = False) -> dict[str, int]:
    """Write ``sets(…)`` into a folder, new, empty or of an earlier, unfinished export of the same.

    Returns how many files were ``written`` and ``kept``. ``progress`` draws a bar with the rate and the time left.
    ValueError where the folder holds something else; OSError where it cannot be written.
    """
    first, folder = made[0], Path(folder)
    about = {"twin": TWIN_VERSION, "name": first.name, "seed": first.seed, "options": first.options}
    about["size"] = first.size if isinstance(first.size, int) else list(first.size)
    target = _Folder(folder, about)
    done = {"written": 0, "kept": 0}
    lists: dict[str, list[list[str]]] = {}
    items = [(part, n) for part in made for n in range(len(part))]
    for data, n in track(items, first.name, "items") if progress else items:
        names = []
        for name, write in LAYOUTS[data.name](Item(data, n)):
            names.append(name)
            kept = target.has(name)
            done["kept" if kept else "written"] += 1
            if not kept:
                target.write(name, write)
        lists.setdefault(data.split, []).append(names)
    for split, rows in lists.items() if first.name in LISTS else ():
        name, text = f"{split}.{LISTS[first.name]}", _list(rows, LISTS[first.name]).encode()
        kept = target.has(name) and (folder / name).read_bytes() == text
        done["kept" if kept else "written"] += 1
        if not kept:
            target.write(name, lambda path, text=text: path.write_bytes(text))
    target.close()
    return done


def _list(rows: list[list[str]], kind: str) -> str:
    """A list of a split's files: the first of each item, or a CSV of image and low-resolution label."""
    if kind == "txt":
        return "".join(f"{names[0]}\n" for names in rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("image_fn", "label_fn"), *(names[:2] for names in rows)])
    return text.getvalue()
