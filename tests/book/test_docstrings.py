"""Docstrings become the API pages: each is valid reStructuredText, so that a slip shows here and not in the build."""

import importlib
import inspect
import io
import re

import docutils.core
import pytest
from docutils.utils import Reporter
from sphinx.ext.napoleon import Config, GoogleDocstring
from test_notebooks import ROOT, load

book = load("hierlab_book")
PAGES = "\n".join(path.read_text() for path in (ROOT / "book" / "api").glob("*.md"))
ASKED = [name for line in re.findall(r"^% modules: (.+)$", PAGES, re.MULTILINE) for name in line.split()]
MODULES = sorted({module for name in ASKED for module in book.public_modules(name)})


def documented(module):
    """(name, docstring) of a module, its public functions and classes, and their public methods and properties."""
    yield module.__name__, module.__doc__
    offered = getattr(module, "__all__", None)
    for name, thing in vars(module).items():
        ours = getattr(thing, "__module__", "").startswith("hierlab" if offered else module.__name__)
        if name.startswith("_") or not ours or (offered is not None and name not in offered):
            continue
        yield f"{module.__name__}.{name}", thing.__doc__
        for method, inner in vars(thing).items() if inspect.isclass(thing) else ():
            if not method.startswith("_"):
                yield f"{module.__name__}.{name}.{method}", getattr(inner, "__doc__", None)


def complaints(docstring):
    lines = inspect.cleandoc(docstring).splitlines()
    lines = str(GoogleDocstring(lines, Config(napoleon_use_rtype=False), what="function")).splitlines()
    book.escape_bars(None, "function", "", None, None, lines)
    stream = io.StringIO()
    settings = {"report_level": Reporter.WARNING_LEVEL, "halt_level": 5, "warning_stream": stream}
    docutils.core.publish_doctree("\n".join(lines), settings_overrides=settings)
    found = [line for line in stream.getvalue().splitlines() if re.search(r"\((WARNING/2|ERROR/3|SEVERE/4)\)", line)]
    return [line for line in found if "Unknown" not in line]  # roles and directives of Sphinx, unknown to docutils


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_are_valid(name):
    found = {
        where: problems
        for where, text in documented(importlib.import_module(name))
        if text and (problems := complaints(text))
    }
    assert not found


def test_complaints_find_a_slip():
    assert complaints("Takes ``**options``, gives |A|, as :func:`x` does.") == []
    assert "strong start-string" in complaints("Opened with f(**options).")[0]
