"""The files that a new template is made of.

They lie under ``skeleton/``: ``common`` for each template, and a folder for each kind. The names end in ``.skeleton``, so
that no tool takes them for this repository's own code, and words like ``@NAME@`` are filled in: Jinja's own braces are
for Copier, later.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from scaffold import __version__
from scaffold.fetching import Template

_FILES = Path(__file__).with_name("skeleton")
_SUFFIX = ".skeleton"

_MARKS = """
_scaffold:
  requires: ">=@SCAFFOLD@"
  managed: # projects leave these to the template: `scaffold check --drift` tells when they were changed
    - ".github/**"
    - .gitlab-ci.yml
    - .gitattributes
    - .pre-commit-config.yaml
"""

_MUTED = """\
  lint:
    ignore: # CI looks at commits between two releases
      - T702 # a template without a release
      - T703 # changes after the newest release
"""

_ONE_TEMPLATE = """\
template: # a constant here: which of the built-in templates the files come from
  type: str
  when: false
  default: "{name}"
"""


def write(kind: str, folder: Path, filling: Mapping[str, str]) -> None:
    """Write the files of a template into ``folder``.

    Args:
        kind: The folder's name under ``skeleton/``.
        filling: What each ``@WORD@`` stands for.
    """
    for part in ("common", kind):
        for source in sorted((_FILES / part).rglob(f"*{_SUFFIX}")):
            name = source.relative_to(_FILES / part).as_posix().removesuffix(_SUFFIX)
            target = folder / fill(name, filling)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(fill(source.read_text(encoding="utf-8"), filling), encoding="utf-8", newline="\n")


def fill(text: str, filling: Mapping[str, str]) -> str:
    """Put in what each ``@WORD@`` stands for.

    >>> fill("docs/@NAME@.md", {"NAME": "acme"})
    'docs/acme.md'
    """
    everything = {"SCAFFOLD": __version__, **filling}
    return re.sub(r"@([A-Z_]+)@", lambda match: everything[match[1]], text)


def write_fork(name: str, template: Template, folder: Path, scratch: Path) -> None:
    """Write the built-in template ``name`` into ``folder``, as one that stands alone in its repository."""
    template.unpack(scratch)
    shutil.copytree(scratch / "templates" / name, folder / "template")
    shown = (scratch / "copier.yml").read_text(encoding="utf-8")
    (folder / "copier.yml").write_text(alone(shown, name, template.version), encoding="utf-8", newline="\n")


def alone(config: str, name: str, version: str) -> str:
    """The copier.yml of the built-in templates, for the one called ``name`` in a repository of its own.

    Comments stay: only what differs is written anew.
    """
    config = _replaced(config, "_subdirectory", "_subdirectory: template\n")
    config = _replaced(config, "template", _ONE_TEMPLATE.format(name=name))
    if not re.search(r"^_scaffold:", config, re.MULTILINE):
        config += fill(_MARKS, {})
    config = re.sub(r"^_scaffold:.*\n", lambda found: found[0] + _MUTED, config, flags=re.MULTILINE)
    return f"# A fork of scaffold's template {name} {version}; below are its own words.\n#\n{config}"


def _replaced(config: str, key: str, block: str) -> str:
    """``config`` with another block at its top-level ``key``."""
    found = re.search(rf"^{key}:.*\n(?:[ \t]+\S.*\n)*", config, re.MULTILINE)
    assert found, f"the built-in templates have no {key}"
    return config[: found.start()] + block + config[found.end() :]
