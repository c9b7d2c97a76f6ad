"""A trained module as one file that runs without its code, or as bare weights; checked before it counts as written."""

from treadle.export.exporting import Written, export
from treadle.export.formats import Format
from treadle.export.loading import Exported, load_exported, read_manifest, read_weights
from treadle.export.manifest import Manifest, TensorSpec

__all__ = [
    "Exported",
    "Format",
    "Manifest",
    "TensorSpec",
    "Written",
    "export",
    "load_exported",
    "read_manifest",
    "read_weights",
]
