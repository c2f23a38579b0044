"""Reading and validating the YAML of a class tree: every error names the line and the mend."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

MAX_NODES = 255  # labels are uint8 and 255 means ignore


class TreeError(ValueError):
    """A class tree that cannot be used; the message names the place and the mend."""


@dataclass(frozen=True)
class ClassNode:
    """One class of one level: name, colour (R, G, B), source codes, names of its parents one level above."""

    name: str
    color: tuple[int, int, int]
    codes: tuple[int, ...]
    parents: tuple[str, ...]


class _Mapping(dict):
    """A YAML mapping that remembers the line on which it starts."""

    line: int | None = None


class _LineLoader(yaml.SafeLoader):
    """A safe YAML loader whose mappings know their line and refuse a key given twice."""


def _construct_mapping(loader: _LineLoader, node: yaml.MappingNode) -> _Mapping:
    mapping = _Mapping()
    mapping.line = node.start_mark.line + 1
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            where = f"{Path(node.start_mark.name).name}, line {key_node.start_mark.line + 1}"
            raise TreeError(f"{where}: '{key}' is given twice in one entry; keep one.")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_LineLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read(path: Path) -> dict:
    """The content of a tree's YAML file, its mappings knowing their lines."""
    try:
        with open(path, encoding="utf-8") as stream:
            return yaml.load(stream, Loader=_LineLoader)
    except OSError as error:
        raise TreeError(f"The class tree '{path}' cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise TreeError(f"{path.name}: not valid YAML: {error}") from error


class Validator:
    """Turns the content of a tree file into the arguments of ``ClassTree``; ``where`` is the file's name."""

    def __init__(self, where: str):
        self.where = where

    def fail(self, entry, message: str) -> None:
        """Raise a :class:`TreeError` that starts with the file and, where known, the line of ``entry``."""
        line = getattr(entry, "line", None)
        raise TreeError(f"{self.where}{f', line {line}' if line else ''}: {message}")

    def arguments(self, content, default_name: str | None = None) -> dict:
        """Validate the whole content; raises :class:`TreeError` at the first fault."""
        if not isinstance(content, dict) or not isinstance(content.get("levels"), list) or not content["levels"]:
            self.fail(content, "a tree has a list `levels`, coarse to fine, each with `name` and `classes`.")
        self._known(content, {"name", "title", "source", "ignore", "levels"}, "a tree")
        name = content.get("name", default_name)
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            self.fail(content, f"`name` is a word of letters, digits, '.', '_' and '-'; got {name!r}.")
        for key in ("title", "source"):
            if not isinstance(content.get(key, ""), str):
                self.fail(content, f"`{key}` is text; put it in quotes.")
        ignore = self._codes(content, content.get("ignore", []), "ignore")
        level_names, entries = self._levels(content["levels"])
        nodes = [[self._node(entry, level) for entry in level_entries] for level, level_entries in enumerate(entries)]
        self._unique(entries, nodes, ignore)
        for level in range(1, len(nodes)):
            for entry, node in zip(entries[level], nodes[level], strict=True):
                self._check_parents(entry, node, level, nodes)
        for level in range(len(nodes) - 1):
            with_child = {parent for node in nodes[level + 1] for parent in node.parents}
            for entry, node in zip(entries[level], nodes[level], strict=True):
                if node.name not in with_child:
                    self.fail(
                        entry,
                        f"level gap: '{node.name}' ({level_names[level]}) has no class below it, so its path stops "
                        f"before {level_names[-1]}; give it a child in {level_names[level + 1]} "
                        "(of the same name, if it is not divided).",
                    )
        return {
            "name": name,
            "level_names": level_names,
            "nodes": nodes,
            "ignore_codes": ignore,
            "title": content.get("title", ""),
            "source": content.get("source", ""),
        }

    def _known(self, entry: dict, keys: set[str], what: str) -> None:
        unknown = sorted(str(key) for key in entry if key not in keys)
        if unknown:
            self.fail(entry, f"{what} has no `{unknown[0]}`; it takes {', '.join(sorted(keys))}.")

    def _levels(self, levels: list) -> tuple[list[str], list[list[dict]]]:
        names, entries = [], []
        for number, level in enumerate(levels, 1):
            classes = level.get("classes") if isinstance(level, dict) else None
            if not isinstance(classes, list) or not classes:
                self.fail(level, f"level {number} needs `name` and a non-empty list `classes`.")
            self._known(level, {"name", "classes"}, "a level")
            name = level.get("name", f"L{number}")
            if not isinstance(name, str) or name in names:
                self.fail(level, f"level names are text and differ; got {name!r} for level {number}.")
            for entry in classes:
                if not isinstance(entry, dict):
                    self.fail(
                        level,
                        f"each class is an entry with `name`, `color`, `codes`, `parent`; got {entry!r}.",
                    )
                self._known(entry, {"name", "color", "codes", "parent"}, "a class")
            names.append(name)
            entries.append(classes)
        total = sum(map(len, entries))
        if total > MAX_NODES:
            self.fail(levels[0], f"{total} classes in all; labels are one byte, so at most {MAX_NODES}.")
        return names, entries

    def _node(self, entry: dict, level: int) -> ClassNode:
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            self.fail(
                entry,
                f"a class needs a `name`, as text (in quotes where YAML reads another type); got {name!r}.",
            )
        parents = entry.get("parent", [])
        parents = [parents] if isinstance(parents, str) else parents
        if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
            self.fail(entry, f"`parent` of '{name}' is the name of a class one level above, or a list of names.")
        if level == 0 and parents:
            self.fail(entry, f"'{name}' is on the first level and cannot have a parent.")
        if level and not parents:
            self.fail(entry, f"'{name}' needs a `parent`: the name of the class one level above it.")
        if len(set(parents)) < len(parents):
            self.fail(entry, f"'{name}' names the same parent twice.")
        codes = self._codes(entry, entry.get("codes", []), f"codes of '{name}'")
        return ClassNode(name, self._color(entry, name), tuple(codes), tuple(parents))

    def _codes(self, entry, codes, what: str) -> list[int]:
        codes = codes if isinstance(codes, list) else [codes]
        for code in codes:
            if isinstance(code, bool) or not isinstance(code, int):
                self.fail(entry, f"{what}: a source code is a whole number; got {code!r}.")
        return codes

    def _color(self, entry: dict, name: str) -> tuple[int, int, int]:
        color = entry.get("color")
        if isinstance(color, str) and re.fullmatch(r"#[0-9A-Fa-f]{6}", color):
            return tuple(bytes.fromhex(color[1:]))
        if isinstance(color, list) and len(color) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in color):
            return tuple(color)
        self.fail(
            entry,
            f"'{name}' needs a `color` such as \"#00f096\" (in quotes) or [0, 240, 150]; got {color!r}.",
        )

    def _unique(self, entries: list[list[dict]], nodes: list[list[ClassNode]], ignore: list[int]) -> None:
        codes = dict.fromkeys(ignore, "the ignored codes")
        for level_entries, level_nodes in zip(entries, nodes, strict=True):
            names: dict[str, dict] = {}
            for entry, node in zip(level_entries, level_nodes, strict=True):
                if node.name in names:
                    line = getattr(names[node.name], "line", None)
                    first = f" (first on line {line})" if line else ""
                    self.fail(
                        entry,
                        f"the name '{node.name}' stands twice on one level{first}; rename or remove one.",
                    )
                names[node.name] = entry
                for code in node.codes:
                    if code in codes:
                        self.fail(
                            entry,
                            f"the code {code} of '{node.name}' already belongs to {codes[code]}; keep one.",
                        )
                    line = getattr(entry, "line", None)
                    codes[code] = f"'{node.name}'" + (f" (line {line})" if line else "")

    def _check_parents(self, entry: dict, node: ClassNode, level: int, nodes: list[list[ClassNode]]) -> None:
        above = {other.name for other in nodes[level - 1]}
        for parent in node.parents:
            if parent in above:
                continue
            cycle = self._cycle(node.name, parent, nodes)
            if cycle:
                self.fail(entry, f"a cycle: {' → '.join(cycle)}; a parent stands one level above its child.")
            found = next((i for i, others in enumerate(nodes) if parent in {o.name for o in others}), None)
            if found is None:
                self.fail(
                    entry,
                    f"'{node.name}' names the parent '{parent}', which no level has; check the spelling.",
                )
            self.fail(
                entry,
                f"level gap: '{node.name}' on level {level + 1} names '{parent}' of level {found + 1} as its parent; "
                f"a parent stands on level {level}. Add a class between them, or move one.",
            )

    @staticmethod
    def _cycle(start: str, parent: str, nodes: list[list[ClassNode]]) -> list[str]:
        """The names from ``start`` through its parents back to ``start``, or nothing."""
        parents: dict[str, set[str]] = {}
        for level in nodes:
            for node in level:
                parents.setdefault(node.name, set()).update(node.parents)
        stack = [[start, parent]]
        seen = set()
        while stack:
            chain = stack.pop()
            if chain[-1] == start:
                return chain
            if chain[-1] not in seen:
                seen.add(chain[-1])
                stack.extend([*chain, up] for up in sorted(parents.get(chain[-1], ())))
        return []
