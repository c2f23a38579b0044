"""Crosswalks: which classes of a target tree are which of a source tree, read from YAML; and the two trees merged.

A crosswalk names, for nodes of the target tree, the nodes of the source tree that they are (Fig. 3 d of HieraRS, as
data). Target classes below a mapped node are **new**: they divide what the source knows as one. The ``rest`` are the
classes that stand for everything the source's mapped nodes are not. Shapes: B batch, L levels, H W pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from . import _treefile
from .tree import ALIASES, IGNORE, SHIPPED, ClassTree, TreeError

MAPPINGS = SHIPPED / "mappings"
Node = tuple[int, int]  # (level, class) of a tree, both from 0


class Crosswalk:
    """A checked mapping from nodes of ``target`` to nodes of ``source``; read one with :meth:`load`.

    Attributes: ``name``, ``title``; ``source`` and ``target``, the :class:`ClassTree` of each side; ``nodes``, for
    each mapped node (level, class) of the target the source nodes that make it up; ``rest``, target nodes that stand
    for what is not mapped.

    Raises :class:`TreeError` for a target class that neither lies on or below a mapped node nor is (or lies below)
    one of the rest; a node that is both; one that is mapped below one of the rest; two classes of a level that share
    ground in the source; a class whose source nodes do not lie within those of the class above it.
    """

    def __init__(
        self,
        source: ClassTree,
        target: ClassTree,
        nodes: dict[Node, Iterable[Node]],
        rest: Iterable[Node] = (),
        name: str = "crosswalk",
        title: str = "",
    ):
        self.source, self.target, self.name, self.title = source, target, name, title or name
        self.nodes = {node: tuple(dict.fromkeys(origins)) for node, origins in sorted(nodes.items())}
        self.rest = frozenset(rest)
        self._check()

    # ------------------------------------------------------------------ reading and writing

    @classmethod
    def load(cls, name: str | Path, source: ClassTree | None = None, target: ClassTree | None = None) -> Crosswalk:
        """Read a mapping from a YAML file, or a shipped one by its name (see :func:`shipped`).

        ``source`` and ``target`` take the place of the trees that the file names; its nodes must exist in them.
        """
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            path = MAPPINGS / f"{name}.yaml"
            if not path.exists():
                near = difflib.get_close_matches(str(name), shipped(), n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise TreeError(
                    f"No mapping is called '{name}'.{hint} Shipped: {', '.join(shipped())}; or give the path of a "
                    ".yaml file."
                )
        return cls.from_dict(_treefile.read(path), source, target, where=path.name, default_name=path.stem)

    @classmethod
    def from_dict(
        cls,
        content: dict,
        source: ClassTree | None = None,
        target: ClassTree | None = None,
        where: str = "mapping",
        default_name: str = "crosswalk",
    ) -> Crosswalk:
        """Build a crosswalk from the structure of the YAML files (see :meth:`to_dict`)::

            source: mm5b               # a shipped tree, a file, or a whole tree written out here
            target: crop10m
            nodes:                     # target class: source class, or a list of them
              L1/vegetation: L1/vegetation
              L2/cropland: cropland    # the level may be left out where only one has the class
            rest: [other]              # on every level that has it

        Raises :class:`TreeError` that names the file and what is wrong.
        """
        keys = {"name", "title", "source", "target", "nodes", "rest"}
        if not isinstance(content, dict) or not isinstance(content.get("nodes"), dict) or not content["nodes"]:
            raise TreeError(f"{where}: a mapping has `nodes`, entries 'target class: source class', at least one.")
        if unknown := sorted(str(key) for key in content if key not in keys):
            raise TreeError(f"{where}: a mapping has no `{unknown[0]}`; it takes {', '.join(sorted(keys))}.")
        source = source or _tree(content, "source", where)
        target = target or _tree(content, "target", where)
        rest = content.get("rest", [])
        try:
            nodes: dict[Node, list[Node]] = {}
            for to, given in content["nodes"].items():
                node = _find(target, to, "target")
                if node in nodes:
                    raise TreeError(f"'{to}' is given twice; keep one.")
                nodes[node] = [_find(source, origin, "source") for origin in _listed(given, f"the source of '{to}'")]
            others = [node for word in _listed(rest, "rest", empty=True) for node in _everywhere(target, word)]
            return cls(source, target, nodes, others, content.get("name", default_name), str(content.get("title", "")))
        except TreeError as error:
            meant = content.get("source")
            if isinstance(meant, str) and source.name not in (meant, ALIASES.get(meant)):
                error = TreeError(f"{error} (The mapping was written for '{meant}'; the source is '{source.name}'.)")
            raise TreeError(f"{where}: {error}") from error

    def to_dict(self) -> dict:
        """The mapping without its trees as plain, JSON-able data, which :meth:`from_dict` reads back with them."""
        return {
            "name": self.name,
            "title": self.title,
            "nodes": {
                _text(self.target, node): [_text(self.source, origin) for origin in origins]
                for node, origins in self.nodes.items()
            },
            "rest": [_text(self.target, node) for node in sorted(self.rest)],
        }

    def __repr__(self) -> str:
        return f"Crosswalk({self.name!r}, {self.source.name} -> {self.target.name}, {len(self.nodes)} nodes)"

    # ------------------------------------------------------------------ checks

    def _ground(self, node: Node) -> set[int]:
        """The numbers of the source's paths through the origins of a mapped node."""
        paths = self.source.paths.tolist()
        return {n for n, path in enumerate(paths) if any(path[level] == index for level, index in self.nodes[node])}

    def _check(self) -> None:
        def called(node: Node) -> str:
            return f"'{_text(self.target, node)}'"

        if both := sorted(self.rest & self.nodes.keys()):
            raise TreeError(f"{called(both[0])} is mapped and one of the rest; keep one.")
        ground = {node: self._ground(node) for node in self.nodes}
        for node in self.nodes:
            for other in self.nodes:
                if node < other and node[0] == other[0] and ground[node] & ground[other]:
                    raise TreeError(
                        f"{called(node)} and {called(other)} share source classes, so neither mask nor merged tree is "
                        "certain; give each its own."
                    )
        lost = []
        for path in self.target.paths.tolist():
            known: list[Node] = []
            for node in enumerate(path):
                if node in self.nodes:
                    if known and known[-1] in self.rest:
                        raise TreeError(
                            f"{called(node)} is mapped, but lies below {called(known[-1])}, one of the rest."
                        )
                    if known and not ground[node] <= ground[known[-1]]:
                        raise TreeError(
                            f"the source of {called(node)} does not lie within that of {called(known[-1])} above it."
                        )
                if node in self.nodes or node in self.rest:
                    known.append(node)
            if not known:
                lost.append(" > ".join(self.target.classes[level][index] for level, index in enumerate(path)))
        if lost:
            raise TreeError(
                f"no class on {'; '.join(lost)} is mapped, so these targets have no ancestor in the source tree "
                f"'{self.source.name}': map the class or one above it, or name it under `rest`."
            )

    # ------------------------------------------------------------------ the merged tree

    def _chain(self, path: list[int]) -> tuple[int, list[int], list[Node]] | None:
        """Of a target path: (source level, classes there, new target nodes below), or None if it brings no new class.

        The new nodes are those below the deepest mapped one; none are new where one of them is of the rest, which
        keeps what the source says.
        """
        mapped = [node for node in enumerate(path) if node in self.nodes]
        if not mapped:
            return None
        below = [node for node in enumerate(path) if node[0] > mapped[-1][0]]
        if not below or any(node in self.rest for node in below):
            return None
        levels = {level for level, _ in self.nodes[mapped[-1]]}
        if len(levels) > 1:
            raise TreeError(
                f"'{_text(self.target, mapped[-1])}' is made of source classes on several levels, so what lies below "
                "it has no one place in a merged tree; name its origins on one level."
            )
        return levels.pop(), [index for _, index in self.nodes[mapped[-1]]], below

    @cached_property
    def _merged(self) -> tuple[ClassTree, Tensor]:
        source, target = self.source, self.target
        old = [[("old", level, index) for level, index in enumerate(path)] for path in source.paths.tolist()]
        chains = [self._chain(path) for path in target.paths.tolist()]
        depth = max([source.depth, *(chain[0] + 1 + len(chain[2]) for chain in chains if chain)])

        def filled(path: list[tuple]) -> tuple:
            return (*path, *[path[-1]] * (depth - len(path)))  # an undivided class goes on under its own name

        table, paths = [], dict.fromkeys(filled(path) for path in old)
        for path in old:
            row = []
            for chain in chains:
                here = filled(path)
                if chain is not None and path[chain[0]][2] in chain[1]:
                    here = filled(path[: chain[0] + 1] + [("new", *node) for node in chain[2]])
                paths[here] = None
                row.append(here)
            table.append(row)

        names: list[dict[tuple, str]] = []
        for level in range(depth):
            here: dict[tuple, str] = {}
            for key in sorted({path[level] for path in paths}, key=lambda key: (key[0] != "old", key[1:])):
                tree = source if key[0] == "old" else target
                name = tree.classes[key[1]][key[2]]
                here[key] = f"{name} ({target.name})" if name in here.values() else name
            names.append(here)
        levels = []
        for level, here in enumerate(names):
            classes = []
            for key, name in here.items():
                node = (source if key[0] == "old" else target).nodes[key[1]][key[2]]
                above = dict.fromkeys(names[level - 1][path[level - 1]] for path in paths if path[level] == key)
                parents = {"parent": list(above)} if level else {}
                classes.append({"name": name, "color": list(node.color), **parents})
            known = source.level_names[level] if level < source.depth else f"L{level + 1}"
            levels.append({"name": known, "classes": classes})
        content = {
            "name": f"{source.name}-{target.name}",
            "title": f"{source.title}; divided further: {target.title}",
            "ignore": [IGNORE],
            "levels": levels,
        }
        merged = ClassTree.from_dict(content, where=f"the merger of '{source.name}' and '{target.name}'")
        place = [{key: index for index, key in enumerate(here)} for here in names]
        classes = [[[place[i][key] for i, key in enumerate(path)] for path in row] for row in table]
        numbers = merged.path_number(torch.tensor(classes).movedim(-1, 0)[None])[0]
        return merged, numbers

    @property
    def merged(self) -> ClassTree:
        """The source tree with the target's new classes in it: category expansion that loses no old class.

        Every new class stands below the source class that its nearest mapped ancestor is; where that one is a leaf,
        the tree gets one level more, on which undivided classes go on under their own names. The old classes keep
        their index on every level; the new ones follow. A new name that a level has already gets the target's name in
        brackets. Source codes are those of the merged tree's own labels.
        """
        return self._merged[0]

    def fuse(self, source: Tensor, target: Tensor) -> Tensor:
        """Two predictions to one on the merged tree (the last column of Fig. 10).

        ``source`` (B, L_s, H, W) and ``target`` (B, L_t, H, W) are decoded classes, on valid paths of their trees;
        returns (B, L, H, W) on valid paths of :attr:`merged`. A pixel gets the target's new class where the source
        predicts the class that it divides, else it keeps the source's classes: so crops replace cropland only, and
        what the target calls "other" stays what it was. Raises ValueError for a path that a tree does not have.
        """
        merged, table = self._merged
        numbers = []
        for tree, pred in ((self.source, source), (self.target, target)):
            number = tree.path_number(pred)
            if (number < 0).any():
                raise ValueError(
                    f"The prediction has paths that the tree '{tree.name}' does not have; decode it with "
                    "tree.decode(logits) first."
                )
            numbers.append(number)
        fused = table.to(numbers[0].device)[numbers[0], numbers[1]]
        return merged.paths.to(fused.device)[fused].movedim(-1, 1)


def shipped() -> list[str]:
    """The names of the mappings that come with hierlab."""
    return sorted(path.stem for path in MAPPINGS.glob("*.yaml"))


def _tree(content: dict, side: str, where: str) -> ClassTree:
    given = content.get(side)
    if isinstance(given, dict):
        return ClassTree.from_dict(given, where=f"{where}, {side}")
    if not isinstance(given, str):
        raise TreeError(f"{where}: `{side}` is the name of a tree, a file, or a tree written out; got {given!r}.")
    return ClassTree.load(given)


def _listed(given, what: str, empty: bool = False) -> list[str]:
    words = given if isinstance(given, list) else [given]
    if not all(isinstance(word, str) for word in words) or not (words or empty):
        raise TreeError(f"{what} is the name of a class or a list of them; got {given!r}.")
    return words


def _text(tree: ClassTree, node: Node) -> str:
    return f"{tree.level_names[node[0]]}/{tree.classes[node[0]][node[1]]}"


def _everywhere(tree: ClassTree, text: str) -> list[Node]:
    """The nodes that ``level/name`` or a name alone may mean; TreeError where there is none."""
    if not isinstance(text, str):
        raise TreeError(f"a class is named by text (in quotes where YAML reads another type); got {text!r}.")
    level, _, name = text.partition("/")
    if level in tree.level_names and name:
        levels = [tree.level_index(level)]
    else:
        levels, name = list(range(tree.depth)), text
    found = [(i, tree.classes[i].index(name)) for i in levels if name in tree.classes[i]]
    if not found:
        known = [_text(tree, (i, index)) for i in range(tree.depth) for index in range(tree.sizes[i])]
        near = difflib.get_close_matches(text, known, 3, 0.5) or difflib.get_close_matches(name, tree.label_names, 3)
        raise TreeError(
            f"the tree '{tree.name}' has no class '{text}'" + (f"; near: {', '.join(near)}." if near else ".")
        )
    return found


def _find(tree: ClassTree, text: str, side: str) -> Node:
    found = _everywhere(tree, text)
    if len(found) > 1:
        raise TreeError(
            f"the {side} class '{text}' stands on several levels of '{tree.name}'; write "
            f"{' or '.join(_text(tree, node) for node in found)}."
        )
    return found[0]
