"""Components: a model, a callback, an experiment ... added to a project that is there, or taken away again.

A component is a source file, a config and a test, all new: nothing that exists is changed, and nowhere is it listed in
code. The config names the class, so that it takes effect where the config is given and nowhere else.

Source files lie flat in the package, beside the template's ``data.py`` and ``model.py``: one folder, one rule for names,
and no ``__init__.py`` that several components would have to share.

A callback and a logger are named in an overlay for the project's own command. A model and a datamodule cannot be:
``treadle.cli.main`` is given its two classes by the project. Theirs is therefore a module with a command line of its own
(``python -m PACKAGE.NAME``), and a class that starts as a variant of what the project trains, so that it fits whatever
that is, and trains from the first moment.

How it is taken away again: see ``record``.
"""

from scaffold.components.adding import Component, add
from scaffold.components.kinds import Kind
from scaffold.components.offering import Offer, offered
from scaffold.components.removing import remove

__all__ = ["Component", "Kind", "Offer", "add", "offered", "remove"]
