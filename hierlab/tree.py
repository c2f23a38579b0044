"""Class trees: levels, valid paths, labels, and the decoding that always lands on a valid path.

A tree has levels L1 … Ln, coarse to fine, and is a **set of valid paths**, one class a level. In most trees a leaf
has one path; it may have more (Crop10m's "other" lies under "other" and under "cropland").

A **label** is one integer a pixel: the leaves 0 … K-1, then the inner nodes level by level, coarse to fine, then
255 for "ignore". An inner-node label says "forest, kind unknown"; :meth:`ClassTree.targets` turns a label into one
target a level, 255 below what is known. Shapes: B batch, L levels, K_l classes of level l, P paths, H W pixels.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import _treefile
from ._treefile import ClassNode, TreeError

IGNORE = 255
RULES = ("sigmoid", "log_softmax")
SHIPPED = Path(__file__).parent / "trees"
ALIASES = {"landuse": "mm5b", "crops": "crop10m"}  # as the names of mappings have them, landuse-to-crops


class ClassTree:
    """A validated class tree; build it with :meth:`load` (YAML or a shipped name) or :meth:`from_dict`.

    Attributes: ``name``, ``title``, ``source`` (text); ``level_names`` (L); ``nodes`` (per level, tuples of
    :class:`ClassNode`); ``paths`` LongTensor (P, L) of class indices, in lexicographic order; ``ignore_codes``.
    """

    def __init__(
        self,
        name: str,
        level_names: Sequence[str],
        nodes: Sequence[Sequence[ClassNode]],
        ignore_codes: Iterable[int] = (),
        title: str = "",
        source: str = "",
    ):
        self.name, self.title, self.source, self.level_names = name, title or name, source, tuple(level_names)
        self.nodes = tuple(tuple(level) for level in nodes)
        self.ignore_codes = tuple(sorted(set(ignore_codes)))
        self.classes = tuple(tuple(node.name for node in level) for level in self.nodes)
        self.sizes = tuple(len(level) for level in self.nodes)
        self.depth = len(self.nodes)
        self.num_leaves = self.sizes[-1]
        self.colors = [np.array([node.color for node in level], np.uint8) for level in self.nodes]
        self.paths = torch.tensor(self._all_paths(), dtype=torch.long)

    # ------------------------------------------------------------------ reading and writing

    @classmethod
    def load(cls, source: str | Path) -> ClassTree:
        """Read a tree from a YAML file, or a shipped one by its name (see :func:`shipped`)."""
        path = Path(source)
        if path.suffix not in (".yaml", ".yml"):
            path = SHIPPED / f"{ALIASES.get(str(source), source)}.yaml"
            if not path.exists():
                near = difflib.get_close_matches(str(source), shipped(), n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise TreeError(
                    f"No class tree is called '{source}'.{hint} Shipped: {', '.join(shipped())}; "
                    "or give the path of a .yaml file."
                )
        return cls.from_dict(_treefile.read(path), where=path.name, default_name=path.stem)

    @classmethod
    def from_dict(cls, content: dict, where: str = "tree", default_name: str | None = None) -> ClassTree:
        """Build and validate a tree from the structure of the YAML files (see :meth:`to_dict`).

        Raises :class:`TreeError` for a cycle, a level gap, a name or code given twice, a parent that does not
        exist, or a malformed entry; the message names the line when the tree came from a file.
        """
        return cls(**_treefile.Validator(where).arguments(content, default_name))

    def to_dict(self) -> dict:
        """The tree as plain, JSON-able data, which :meth:`from_dict` reads back to an equal tree."""
        levels = []
        for level, (level_name, nodes) in enumerate(zip(self.level_names, self.nodes, strict=True)):
            classes = []
            for node in nodes:
                entry = {"name": node.name, "color": "#{:02x}{:02x}{:02x}".format(*node.color)}
                if node.codes:
                    entry["codes"] = list(node.codes)
                if level:
                    entry["parent"] = list(node.parents)
                classes.append(entry)
            levels.append({"name": level_name, "classes": classes})
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "ignore": list(self.ignore_codes),
            "levels": levels,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when levels, names, paths, colours or codes change."""
        content = {key: value for key, value in self.to_dict().items() if key in ("ignore", "levels")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def __eq__(self, other) -> bool:
        return isinstance(other, ClassTree) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"ClassTree({self.name!r}, {'/'.join(map(str, self.sizes))} classes, {len(self.paths)} paths)"

    def __str__(self) -> str:
        lines, shown = [f"{self.title} ({'/'.join(map(str, self.sizes))})"], [None] * self.depth
        for path in self.paths.tolist():
            changed = False
            for level, index in enumerate(path):
                changed = changed or shown[level] != index
                if changed:
                    lines.append("  " * (level + 1) + self.classes[level][index])
                    shown[level] = index
        return "\n".join(lines)

    # ------------------------------------------------------------------ labels

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The class name of every label integer: the leaves, then the inner nodes, coarse to fine."""
        inner = [name for level in self.classes[:-1] for name in level]
        return self.classes[-1] + tuple(inner)

    def label_of(self, name: str, level: int | str | None = None) -> int:
        """The label integer of a class name; ``level`` settles names that stand on several levels (finest wins)."""
        levels = reversed(range(self.depth)) if level is None else [self.level_index(level)]
        for index in levels:
            if name in self.classes[index]:
                return self._label(index, self.classes[index].index(name))
        near = difflib.get_close_matches(name, self.label_names, n=3)
        raise TreeError(
            f"The tree '{self.name}' has no class '{name}'" + (f"; near: {', '.join(near)}." if near else ".")
        )

    def level_index(self, level: int | str) -> int:
        """A level's index (0 is the coarsest) from its index or name."""
        if isinstance(level, str):
            if level not in self.level_names:
                raise TreeError(f"The tree '{self.name}' has no level '{level}'; it has {', '.join(self.level_names)}.")
            return self.level_names.index(level)
        if not -self.depth <= level < self.depth:
            raise TreeError(f"The tree '{self.name}' has {self.depth} levels; level {level} does not exist.")
        return level % self.depth

    def _label(self, level: int, index: int) -> int:
        return index if level == self.depth - 1 else self.num_leaves + sum(self.sizes[:level]) + index

    @cached_property
    def codes(self) -> dict[int, int]:
        """Source code -> label. A tree whose classes name no codes uses the labels themselves as codes."""
        codes = {
            code: self._label(level, index)
            for level, nodes in enumerate(self.nodes)
            for index, node in enumerate(nodes)
            for code in node.codes
        }
        if not codes:
            codes = {label: label for label in range(len(self.label_names)) if label not in self.ignore_codes}
        return codes | dict.fromkeys(self.ignore_codes, IGNORE)

    @cached_property
    def _code_table(self) -> tuple[np.ndarray, np.ndarray]:
        codes = np.array(sorted(self.codes), np.int64)
        return codes, np.array([self.codes[int(code)] for code in codes], np.uint8)

    def unknown_codes(self, codes: np.ndarray, valid: np.ndarray | None = None) -> Counter:
        """Codes of ``codes`` (any shape, integers) that the tree does not know, with their pixel counts."""
        values, counts = np.unique(codes if valid is None else codes[valid], return_counts=True)
        return Counter({int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in self.codes})

    def unknown_codes_error(self, unknown: Counter, where: str = "The label raster") -> TreeError:
        """The error that says which codes the tree does not know, how many pixels bear each, and what to do."""
        listed = ", ".join(f"{code}: {count} px" for code, count in sorted(unknown.items())[:40])
        listed += ", …" if len(unknown) > 40 else ""
        return TreeError(
            f"{where} holds {len(unknown)} code(s) that the tree '{self.name}' does not know ({listed}). "
            "Add each to a class's `codes` or to `ignore` in the tree's YAML, or choose another tree."
        )

    def encode(self, codes: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """Source codes, an integer array of any shape, to labels (uint8, same shape).

        Pixels where ``valid`` (bool, same shape) is false become 255. Raises :class:`TreeError` listing every
        unknown code with its pixel count.
        """
        codes = np.asarray(codes)
        if codes.dtype.kind not in "iub":
            raise TreeError(f"Label codes must be whole numbers; this array is {codes.dtype}.")
        known, labels = self._code_table
        wide = codes.astype(np.int64)
        place = np.minimum(np.searchsorted(known, wide), len(known) - 1)
        found = known[place] == wide
        if valid is not None:
            found |= ~valid
        if not found.all():
            raise self.unknown_codes_error(self.unknown_codes(codes, valid))
        result = labels[place]
        return result if valid is None else np.where(valid, result, np.uint8(IGNORE))

    @cached_property
    def _target_table(self) -> np.ndarray:
        """(labels + 1, L) uint8: each label's target a level; the last row is that of the ignore label."""
        table = np.full((len(self.label_names) + 1, self.depth), IGNORE, np.uint8)
        paths = self.paths.numpy()
        for level, size in enumerate(self.sizes):
            for index in range(size):
                through = paths[paths[:, level] == index]
                same = (through == through[0]).all(0)
                table[self._label(level, index), same] = through[0, same]
        return table

    def targets(self, label: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """One target a level: label (B, H, W) -> LongTensor (B, L, H, W), 255 where a level is not known.

        A level is known when every valid path through the labelled class agrees on it; so a leaf with two paths
        is unknown where they differ, and an inner node with one child knows that child. A NumPy array (…) gives
        uint8 (L, …).
        """
        last = len(self._target_table) - 1
        if isinstance(label, np.ndarray):
            self._check_labels(label)
            row = np.where(label == IGNORE, last, label).astype(np.intp)
            return np.moveaxis(self._target_table[row], -1, 0)
        if label.device.type == "cpu":
            self._check_labels(label.numpy())
        row = torch.where(label == IGNORE, last, label.long())
        table = torch.from_numpy(self._target_table).to(label.device)
        return torch.stack([table[:, level].long()[row] for level in range(self.depth)], dim=1)

    def _check_labels(self, label: np.ndarray) -> None:
        wrong = (label != IGNORE) & ((label < 0) | (label >= len(self.label_names)))
        if wrong.any():
            raise TreeError(
                f"Labels of the tree '{self.name}' are 0 to {len(self.label_names) - 1}, or {IGNORE} for ignore; "
                f"found {np.unique(label[wrong])[:10].tolist()}. Map source codes with tree.encode first."
            )

    def coarsen(self, label: Tensor | np.ndarray, level: int | str) -> Tensor | np.ndarray:
        """The class index of ``label`` (any shape) at one level, 255 where it is not known."""
        index = self.level_index(level)
        if isinstance(label, np.ndarray):
            return self.targets(label)[index]
        return self.targets(label[None])[0, index]

    # ------------------------------------------------------------------ predictions

    @torch.no_grad()
    def decode(self, logits: Sequence[Tensor], rule: str = "sigmoid") -> Tensor:
        """Joint scoring-based path selection (JSPS, HieraRS eq. 18): logits a level -> valid paths.

        ``logits``: L tensors (B, K_l, H, W), coarse to fine; returns LongTensor (B, L, H, W). A path's score is
        the sum over levels of σ(logit) (``rule="sigmoid"``, as printed) or of the level's log-softmax
        (``"log_softmax"``; each level's normaliser is the same for all paths, so the logits themselves are summed).
        The highest score wins, the first of equals. A list of length 1 is a flat model's leaf logits: the best leaf,
        on its first path.

        Exact, and always on a valid path: NaN counts as the lowest number, infinities as the largest ones. Beyond
        its input and output it holds L + 4 planes (B, H, W), whatever the number of classes: the paths are walked in
        order and share the sums of their prefixes.
        """
        if rule not in RULES:
            raise ValueError(f"The decoding rule is one of {', '.join(RULES)}; got {rule!r}.")
        if len(logits) == 1 and self.depth > 1:
            self._check_logits(logits, self.sizes[-1:])
            return self.paths_of(_finite(logits[0]).argmax(1))
        self._check_logits(logits, self.sizes)
        partial: list[Tensor] = [torch.empty(0)] * self.depth
        previous = [-1] * self.depth
        best = choice = None
        for number, path in enumerate(self.paths.tolist()):
            shared = next(level for level in range(self.depth) if path[level] != previous[level])
            for level in range(shared, self.depth):
                score = _finite(logits[level][:, path[level]])
                if rule == "sigmoid":
                    score.sigmoid_()
                partial[level] = score if level == 0 else score.add_(partial[level - 1])
            previous = path
            if best is None:
                best, choice = partial[-1].clone(), torch.zeros_like(partial[-1], dtype=torch.int16)
            else:
                choice.masked_fill_(partial[-1] > best, number)
                torch.maximum(best, partial[-1], out=best)
        return self.paths.to(choice.device)[choice.long()].movedim(-1, 1)

    def paths_of(self, leaf: Tensor) -> Tensor:
        """Leaf classes (B, H, W) to per-level classes (B, L, H, W), each leaf on its first path."""
        return self.paths.to(leaf.device)[self._first_path.to(leaf.device)[leaf]].movedim(-1, 1)

    @cached_property
    def _first_path(self) -> Tensor:
        """(K,) the number of each leaf's first path."""
        return torch.from_numpy(np.unique(self.paths[:, -1].numpy(), return_index=True)[1])

    def _check_logits(self, logits: Sequence[Tensor], sizes: Sequence[int]) -> None:
        given = tuple(level.shape[1] for level in logits)
        if given != tuple(sizes):
            raise ValueError(
                f"The tree '{self.name}' has {self.sizes} classes a level; the logits have {given} channels. "
                "Give one tensor (B, K_l, H, W) a level, coarse to fine, or the leaves alone."
            )

    def aggregate(self, leaf_prob: Tensor) -> list[Tensor]:
        """A flat model's leaf probabilities (B, K, H, W) summed up the tree: a list of (B, K_l, H, W).

        A leaf with several paths gives an equal share to each.
        """
        self._check_logits([leaf_prob], self.sizes[-1:])
        leaf = self.paths[:, -1]
        weight = 1.0 / torch.bincount(leaf, minlength=self.num_leaves).to(leaf_prob.dtype)
        sums = []
        for level, size in enumerate(self.sizes[:-1]):
            share = torch.zeros(self.num_leaves, size, dtype=leaf_prob.dtype)
            share.index_put_((leaf, self.paths[:, level]), weight[leaf], accumulate=True)
            sums.append(torch.einsum("bkhw,kc->bchw", leaf_prob, share.to(leaf_prob.device)))
        return [*sums, leaf_prob]

    def path_number(self, pred: Tensor) -> Tensor:
        """The row of ``paths`` that per-level classes (B, L, H, W) form: long (B, H, W), -1 where they form none."""
        sizes = torch.tensor(self.sizes)
        radix = sizes.flip(0).cumprod(0).flip(0) // sizes
        keys = (self.paths * radix).sum(1).to(pred.device)  # ascending, because the paths are in order
        shape = (1, -1, 1, 1)
        inside = ((pred >= 0) & (pred < sizes.view(shape).to(pred.device))).all(1)
        key = (pred * radix.view(shape).to(pred.device)).sum(1)
        number = torch.searchsorted(keys, key).clamp_(max=len(keys) - 1)
        return torch.where(inside & (keys[number] == key), number, -1)

    def consistent(self, pred: Tensor) -> Tensor:
        """Whether per-level classes (B, L, H, W) lie on a valid path: bool (B, H, W)."""
        return self.path_number(pred) >= 0

    # ------------------------------------------------------------------ other trees, pictures

    def subset(self, leaves: Iterable[int]) -> ClassTree:
        """The tree of the given leaf labels alone, with the inner nodes above them.

        The source codes of a class left out go to its nearest kept ancestor (known no finer), or, when none is
        kept or its ancestors differ, to the ignored codes.
        """
        kept_leaves = {int(leaf) for leaf in leaves}
        wrong = sorted(leaf for leaf in kept_leaves if not 0 <= leaf < self.num_leaves)
        if wrong or not kept_leaves:
            raise TreeError(
                f"subset takes leaf labels 0 to {self.num_leaves - 1}, at least one; got {wrong or 'none'}."
            )
        paths = self.paths.tolist()
        kept = [{path[level] for path in paths if path[-1] in kept_leaves} for level in range(self.depth)]
        extra: dict[tuple[int, int], list[int]] = {}
        ignored = list(self.ignore_codes)
        for level, nodes in enumerate(self.nodes):
            for index, node in enumerate(nodes):
                if index in kept[level] or not node.codes:
                    continue
                above = [(up, self._target_table[self._label(level, index), up]) for up in reversed(range(level))]
                home = next(((up, int(c)) for up, c in above if c != IGNORE and c in kept[up]), None)
                if home:
                    extra.setdefault(home, []).extend(node.codes)
                else:
                    ignored.extend(node.codes)
        nodes = []
        for level in range(self.depth):
            above = {self.classes[level - 1][index] for index in kept[level - 1]} if level else set()
            nodes.append(
                [
                    ClassNode(
                        node.name,
                        node.color,
                        (*node.codes, *extra.get((level, index), ())),
                        tuple(parent for parent in node.parents if parent in above),
                    )
                    for index, node in enumerate(self.nodes[level])
                    if index in kept[level]
                ]
            )
        return ClassTree(self.name, self.level_names, nodes, ignored, self.title, self.source)

    def show(self, ax=None):
        """Draw the tree, coarse to the left: one square a class in its colour, one line a parent."""
        from matplotlib.figure import Figure

        rows: dict[tuple[int, int], list[int]] = {}  # (level, index) -> the places of its paths
        paths = self.paths.tolist()
        for place, path in enumerate(paths):
            for level, index in enumerate(path):
                rows.setdefault((level, index), []).append(place)
        middle = {key: float(np.mean(places)) for key, places in rows.items()}
        widths = [0.75 + 0.075 * max(map(len, names)) for names in self.classes]  # inches, names and lines
        left = np.concatenate([[0.0], np.cumsum(widths)])
        if ax is None:
            figure = Figure(figsize=(left[-1], 0.5 + 0.25 * len(paths)), layout="constrained")
            figure.set_label(f"The class tree {self.title}: {' / '.join(map(str, self.sizes))} classes.")
            ax = figure.add_subplot()
        for level, parent, child in {(i, path[i - 1], path[i]) for path in paths for i in range(1, self.depth)}:
            ends = [middle[level - 1, parent], middle[level, child]]
            ax.plot([left[level] - 0.5, left[level] - 0.06], ends, color="0.6", linewidth=0.9, zorder=1)
        for (level, index), row in middle.items():
            color = self.colors[level][index] / 255
            ax.plot(left[level], row, marker="s", markersize=9, color=color, markeredgecolor="0.25", zorder=3)
            ax.text(left[level] + 0.12, row, self.classes[level][index], va="center", fontsize=9)
        for level, (name, size) in enumerate(zip(self.level_names, self.sizes, strict=True)):
            ax.text(left[level] - 0.06, -1.1, f"{name} · {size}", fontsize=9, fontweight="bold", va="center")
        ax.set(xlim=(-0.15, left[-1] - 0.5), ylim=(len(paths) - 0.4, -1.7))
        ax.set_axis_off()
        return ax.figure

    def _all_paths(self) -> list[list[int]]:
        paths = [[index] for index in range(self.sizes[0])]
        for level in range(1, self.depth):
            children: dict[int, list[int]] = {}
            for index, node in enumerate(self.nodes[level]):
                for parent in node.parents:
                    children.setdefault(self.classes[level - 1].index(parent), []).append(index)
            paths = [[*path, child] for path in paths for child in children.get(path[-1], [])]
        return paths


def shipped() -> list[str]:
    """The names of the trees that come with hierlab."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _finite(logits: Tensor) -> Tensor:
    """A copy in at least single precision, NaN as the lowest number, infinities as the largest ones."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nan_to_num(logits, nan=torch.finfo(logits.dtype).min)
