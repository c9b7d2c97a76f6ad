"""Names to sources: what ``--template`` and a project's recorded ``_src_path`` mean.

=========== ========================================================================
sources     addresses: URLs and paths, with all that is refused in them
shipped     the templates that came with this distribution
files       YAML of the user's own or a stranger's: read within limits, changed atomically
entries     what a catalog file holds
shared      catalogs of a team: fetched when asked to, read from the cache otherwise
downloading one small file from a URL
names       the user's own catalog, and looking a name up in all of them
describing  what a template asks, for people who choose one
=========== ========================================================================
"""

from scaffold.catalog.describing import Description, Question, describe
from scaffold.catalog.entries import Entry, plain
from scaffold.catalog.names import Listing, Removed, add, find, listing, pin, remove, subscribe
from scaffold.catalog.shipped import BUILT_IN, built_in, recorded, refresh
from scaffold.catalog.sources import Source

__all__ = [
    "BUILT_IN",
    "Description",
    "Entry",
    "Listing",
    "Question",
    "Removed",
    "Source",
    "add",
    "built_in",
    "describe",
    "find",
    "listing",
    "pin",
    "plain",
    "recorded",
    "refresh",
    "remove",
    "subscribe",
]
