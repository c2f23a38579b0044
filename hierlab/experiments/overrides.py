"""Parameters given on the command line (``-p steps=50``) or by a notebook, checked against what there is."""

import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping

from .define import Experiment, Setting

KINDS = {int: "a whole number", float: "a number", str: "a text"}
PLACES = ("data_root",)  # where a run reads; never recorded, because records name data by their fingerprint


def split(assignments: Iterable[str]) -> dict[str, str]:
    """``["steps=50", "width=0.25"]`` as a dict of texts; ValueError for what is no assignment, or given twice."""
    found: dict[str, str] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ValueError(f"-p takes name=value, for example -p steps=100; got '{text}'.")
        if name.strip() in found:
            raise ValueError(f"-p gives '{name.strip()}' twice.")
        found[name.strip()] = value.strip()
    return found


def apply(experiment: Experiment, profile: str, given: Mapping[str, object] | None) -> tuple[Setting, dict]:
    """The setting of a profile with parameters replaced, and those that differ from the profile's, as recorded.

    ``given`` holds texts (from a command line) or values of the right type; None leaves a parameter as it is. A value
    equal to the profile's own is no override. Raises ValueError that lists what there is for an unknown name, a wrong
    type, and values that cannot go together.
    """
    setting = experiment.setting(profile)
    kinds = _kinds(setting)
    changes = {}
    for name, value in (given or {}).items():
        if name not in kinds:
            raise ValueError(f"{experiment.key} has no parameter '{name}'. {told(experiment, profile)}")
        if value is not None:
            changes[name] = _typed(name, value, kinds[name], f"{told(experiment, profile)}")
    try:
        changed = dataclasses.replace(setting, **changes)
    except ValueError as error:
        raise ValueError(f"{error} {told(experiment, profile)}") from error
    differing = {name: value for name, value in changes.items() if value != getattr(setting, name)}
    return changed, {name: value for name, value in sorted(differing.items()) if name not in PLACES}


def told(experiment: Experiment, profile: str) -> str:
    """One sentence that lists the parameters with their types and the profile's values."""
    setting = experiment.setting(profile)
    parts = []
    for name, kind in _kinds(setting).items():
        value = getattr(setting, name)
        parts.append(f"{name} ({KINDS[kind]}, {'unset' if value is None else value})")
    return f"Profile {profile} takes: {', '.join(parts)}."


def tag(overrides: Mapping[str, object]) -> str:
    """A short name of a set of overrides, for the file that keeps its records apart; empty for none."""
    if not overrides:
        return ""
    return hashlib.sha256(json.dumps(dict(overrides), sort_keys=True).encode()).hexdigest()[:8]


def _kinds(setting: Setting) -> dict[str, type]:
    """The parameters of a setting that may be overridden, with the type of each (without None)."""
    hints = typing.get_type_hints(type(setting))
    found = {}
    for entry in dataclasses.fields(setting):
        hint = hints[entry.name]
        if isinstance(hint, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        if entry.name != "seeds":
            found[entry.name] = hint
    return found


def _typed(name: str, value: object, kind: type, choices: str):
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    fits = isinstance(value, str if kind is str else int if kind is int else int | float)
    if fits and not isinstance(value, bool):
        return kind(value)
    if isinstance(value, str):
        try:
            found = kind(value)
        except ValueError:
            found = math.nan
        if found == found:
            return found
    raise ValueError(f"{name} takes {KINDS[kind]}; got {value!r}. {choices}")
