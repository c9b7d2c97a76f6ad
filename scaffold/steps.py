"""What an update does to each layer of a project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scaffold.fetching import Template
from scaffold.merging import Labels
from scaffold.projects import Applied
from scaffold.rendering import Layer


@dataclass(frozen=True, kw_only=True)
class Step:
    """One layer, before and after. Of a layer that comes or goes, one of the two is missing."""

    name: str
    old: Template | None
    new: Template | None
    applied: Applied | None = None
    answers: Mapping[str, Any] = field(default_factory=dict)
    """Given anew."""
    kept: Mapping[str, Any] | None = None
    """The recorded answers that the new version accepts; None: nobody has looked."""
    answers_file: str

    @property
    def idle(self) -> bool:
        """It stays as it is."""
        return bool(self.old and self.new and self.old.commit == self.new.commit and not self.answers)

    def as_it_was(self, template: Template) -> Layer:
        """The layer at ``template``'s version, with what the project records."""
        known = self.applied.answers if self.applied else {}
        return Layer(template=template, answers={}, defaults=known, answers_file=self.answers_file)

    def as_it_is(self, template: Template) -> Layer:
        """The same with what is answered now, at the version it is brought to."""
        layer = self.as_it_was(template)
        return replace(
            layer,
            answers={
                name: value for name, value in self.answers.items() if name in template.config or not self.applied
            },
            defaults=layer.defaults if self.kept is None else self.kept,
            moment="" if self.idle else "update" if self.applied else "copy",
        )


def labels(steps: Sequence[Step]) -> Labels:
    base = steps[0]
    moved = [step for step in steps if not step.idle] or [base]
    before = [_spoken(step.name, step.old) for step in moved if step.old]
    after = [_spoken(step.name, step.new) for step in moved if step.new]
    return Labels(
        before=f"template {', '.join(before)}" if before else "no template",
        after=f"template {', '.join(after)}" if after else f"template without {moved[0].name}",
    )


def _spoken(name: str, template: Template) -> str:
    return template.version if name == "base" else f"{name} {template.version}"
