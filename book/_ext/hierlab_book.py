"""What this book needs of Sphinx beyond Jupyter Book's own settings.

- Launch buttons. Binder and Colab open a notebook from a public repository, so they appear when this checkout
  has one: its `origin` on GitHub, or the address in HIERLAB_REPOSITORY. A fork's book thus launches the fork.
  A button to the reader's own JupyterLab (`make lab`) is always there.
- Pages that can be read without a network, where `vendor.py` has fetched the JavaScript.
- API pages that cannot go stale: a line `% modules: NAME ...` in a Markdown page becomes a section for each of these
  modules and of their public submodules, `% commands: NAME` the help of every command of that module's Typer app.
"""

import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

from sphinx.errors import ExtensionError

LOCAL_LAB = "http://localhost:8888/lab/tree"
VENDOR = Path("_build", "vendor")


def repository(folder):
    """The (address, branch) of the public repository on GitHub, or None."""

    def git(*args):
        try:
            done = subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError:  # built from an archive, on a machine without git
            return ""
        return done.stdout.strip()

    url = os.environ.get("HIERLAB_REPOSITORY") or git("config", "--get", "remote.origin.url")
    match = re.fullmatch(r"(?:https://|git@|ssh://git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?", url)
    if match is None:
        return None
    return f"https://github.com/{match[1]}", git("branch", "--show-current") or "main"


def configure(app, config):
    theme = config.html_theme_options
    theme["navbar_persistent"] = []  # the search field stands in the sidebar already
    found = repository(app.confdir)
    if found is None:
        theme.pop("repository_url", None)
        theme["launch_buttons"] = {}
    else:
        theme["repository_url"], theme["repository_branch"] = found
        theme["launch_buttons"] = {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        }
    vendor = Path(app.confdir, VENDOR)
    if (vendor / "complete").exists():
        config.html_static_path.append(str(VENDOR))
        config.mathjax_path = "mathjax.js"
        cdn = {"data-jupyter-widgets-cdn": "https://cdn.jsdelivr.net/npm/"}
        config.nb_ipywidgets_js = {"require.js": {}, "widget-paths.js": {}, "embed-amd.js": cdn}


def add_local_button(app, pagename, templatename, context, doctree):
    """Put "Local" into the launch menu of a page that is a notebook, making the menu if there is none."""
    if pagename not in app.env.found_docs or "kernelspec" not in app.env.metadata[pagename]:
        return
    button = {
        "type": "link",
        "text": "Local",
        "tooltip": "Open in the JupyterLab that `make lab` started on this machine",
        "icon": "fas fa-laptop-code",
        "url": f"{LOCAL_LAB}/{pagename}.ipynb",
    }
    for group in context["header_buttons"]:
        if group.get("label") == "launch-buttons":
            group["buttons"].append(button)
            return
    context["header_buttons"].append(
        {
            "type": "group",
            "tooltip": "Launch this page",
            "icon": "fas fa-rocket",
            "buttons": [button],
            "label": "launch-buttons",
        }
    )


def public_modules(name):
    """The dotted names to document for a module: itself and, if it is a package that does not say by `__all__` what
    it offers, its public submodules; none if it does not exist."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return []
    below = []
    if spec.submodule_search_locations and not hasattr(importlib.import_module(name), "__all__"):
        below = sorted(module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
    return [name, *(deep for child in below if child[0] != "_" for deep in public_modules(f"{name}.{child}"))]


def module_sections(names):
    modules = [module for name in names for module in public_modules(name)]
    if not modules:
        raise ExtensionError(f"API page: none of {', '.join(names)} can be found")
    directive = "```{{eval-rst}}\n.. automodule:: {0}\n```"
    if len(modules) == 1:
        return directive.format(modules[0])
    return "\n\n".join(f"## `{module}`\n\n{directive.format(module)}" for module in modules)


def command_help(module):
    command = [sys.executable, "-m", "typer", module, "utils", "docs", "--name", "hierlab"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExtensionError(f"API page: {' '.join(command)} failed:\n{done.stderr}")
    text = done.stdout
    # Typer cuts the commands' summaries in its list short; each command's own section has the whole.
    for command, summary in re.findall(r"^## `hierlab (\S+)`\n\n(.+)$", text, flags=re.MULTILINE):
        text = re.sub(
            rf"^\* `{command}`: .*$", lambda _, c=command, s=summary: f"* `{c}`: {s}", text, flags=re.MULTILINE
        )
    return re.sub(r"^#", "##", text, flags=re.MULTILINE)


def expand(app, docname, source):
    source[0] = re.sub(r"^% modules: (.+)$", lambda m: module_sections(m[1].split()), source[0], flags=re.MULTILINE)
    source[0] = re.sub(r"^% commands: (\S+)$", lambda m: command_help(m[1]), source[0], flags=re.MULTILINE)


def escape_bars(app, what, name, obj, options, lines):
    """Docstrings write |A ∩ B| for a count; reStructuredText would take it for a substitution."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        lines[number] = "".join(p if p.startswith("``") else p.replace("|", r"\|") for p in parts)


def skip_foreign(app, what, name, obj, skip, options):
    """Leave out methods that another library put into a class of ours, such as matplotlib's `set`."""
    return True if not (getattr(obj, "__module__", None) or "hierlab").startswith("hierlab") else None


def setup(app):
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("source-read", expand)
    app.connect("config-inited", configure, priority=10)
    app.connect("html-page-context", add_local_button, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
