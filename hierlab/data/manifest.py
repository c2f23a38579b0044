"""The record of a prepared data set: which files are finished, their checksums, and what made them.

A folder in preparation holds ``manifest.json`` (the settings that decide the content of its files; ``complete`` is
false until the end) and ``checksums.sha256`` (a line for every finished file, as ``sha256sum -c`` reads it). Files are
written under a temporary name first, so that an interrupted preparation leaves no half file under its own name, and the
next one goes on after the last finished file.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from hierlab._io import atomic

MANIFEST, CHECKSUMS = "manifest.json", "checksums.sha256"


def checksum(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """The checksum of a file in hexadecimal digits; ``algorithm`` as in :mod:`hashlib`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check(path: str | os.PathLike, expected: str, algorithm: str = "sha256") -> None:
    """ValueError where a file has another checksum than its publisher says."""
    found = checksum(path, algorithm)
    if found != expected.lower():
        raise ValueError(
            f"{path}: its {algorithm} is {found}, the publisher's file has {expected.lower()}. It is damaged, "
            "incomplete or another version: fetch it again"
        )


class Ledger:
    """The finished files of one folder, by name below it, with their checksums.

    settings: JSON; what decides the files' content. An empty or new folder takes them; one that was begun is gone on
    with. ValueError where the folder holds something else, or was begun with other settings.
    """

    def __init__(self, folder: str | os.PathLike, settings: dict):
        self.folder, self.settings = Path(folder), json.loads(json.dumps(settings))
        self.files: dict[str, str] = {}
        self._sure: set[str] = set()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: give a folder, or the name of one to be made")
        if self.folder.exists() and any(self.folder.iterdir()):
            self._resume()
        else:
            self._say(complete=False)

    def _resume(self) -> None:
        try:
            found = json.loads((self.folder / MANIFEST).read_text("utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self.folder} holds something else than a data set in preparation: give an empty folder"
            ) from None
        names = [name for name in {**found, **self.settings} if found.get(name) != self.settings.get(name)]
        if names:
            said = "; ".join(f"{n} {_short(found.get(n))} then, {_short(self.settings.get(n))} now" for n in names)
            raise ValueError(f"{self.folder} was begun with other settings ({said}): give another folder")
        path = self.folder / CHECKSUMS
        for line in path.read_text("utf-8").splitlines(keepends=True) if path.exists() else ():
            whole = re.fullmatch(r"([0-9a-f]{64})  (.+)\n", line)  # an interruption may leave half a line
            if whole:
                self.files[whole[2]] = whole[1]
        for temporary in self.folder.rglob(".*.part*"):
            temporary.unlink(missing_ok=True)

    def _say(self, **facts) -> None:
        with atomic(self.folder / MANIFEST) as temporary:
            content = {"settings": self.settings, **facts}
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")

    def has(self, name: str) -> bool:
        """Whether a file is there, finished and undamaged. It is read once; later calls remember."""
        path = self.folder / name
        if name not in self._sure and name in self.files and path.is_file() and checksum(path) == self.files[name]:
            self._sure.add(name)
        return name in self._sure

    def write(self, name: str, make: Callable[[Path], None]) -> bool:
        """Let ``make`` write the file under a temporary name, unless it is finished; True where it was written."""
        if self.has(name):
            return False
        with atomic(self.folder / name) as temporary:
            make(temporary)
        self.files[name] = checksum(self.folder / name)
        self._sure.add(name)
        with open(self.folder / CHECKSUMS, "a", encoding="utf-8") as file:
            file.write(f"{self.files[name]}  {name}\n")
        return True

    def write_json(self, name: str, content: dict) -> bool:
        """Write a dict as JSON, unless that file is finished; True where it was written."""
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        return self.write(name, lambda path: path.write_text(text, "utf-8"))

    def read_json(self, name: str) -> dict:
        """A finished JSON file."""
        return json.loads((self.folder / name).read_text("utf-8"))

    def finish(self, wanted: Iterable[str] | None = None, **facts) -> None:
        """Rewrite the checksums in order and the manifest with ``complete``, file count, bytes and ``facts``.

        wanted: the names that belong to the set; ValueError where one is missing, and what is not wanted is removed
        (files of a step that has since changed its mind, say a patch that no longer holds a label).
        """
        wanted = set(self.files) if wanted is None else set(wanted)
        if missing := sorted(name for name in wanted if name not in self.files):
            raise ValueError(f"{self.folder}: {len(missing)} files are not finished: {', '.join(missing[:10])}")
        for name in sorted(set(self.files) - wanted):
            (self.folder / name).unlink(missing_ok=True)
            del self.files[name]
        with atomic(self.folder / CHECKSUMS) as temporary:
            temporary.write_text("".join(f"{self.files[name]}  {name}\n" for name in sorted(self.files)), "utf-8")
        size = sum((self.folder / name).stat().st_size for name in self.files)
        self._say(complete=True, files=len(self.files), bytes=size, **facts)


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
