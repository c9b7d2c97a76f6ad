"""All rules. An id is for ever: people write it into their templates to mute it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from scaffold.linting import asking, expressions, outcome, recording, repository, safety, workflows
from scaffold.linting.findings import Fault, Rule, Severity
from scaffold.linting.template import Template


def _rule(name: str, severity: Severity, title: str, check: Callable[[Template], Iterator[Fault]]) -> Rule:
    return Rule(id=name, severity=severity, title=title, check=check)


RULES = (
    _rule("T101", "error", "A path that no project may hold", safety.unsafe_path),
    _rule("T102", "error", "A link that leads out of the project", safety.link_out),
    _rule("T103", "error", "Tasks", safety.tasks),
    _rule("T104", "error", "Migrations", safety.migrations),
    _rule("T105", "error", "Jinja extensions", safety.extensions),
    _rule("T106", "error", "A secret question without a default", safety.secret_without_default),
    _rule("T107", "error", "A secret that is recorded", safety.secret_recorded),
    _rule("T108", "warning", "A file name that Windows cannot check out", safety.not_on_windows),
    _rule("T201", "error", "Answers that are not recorded", recording.not_recorded),
    _rule("T202", "error", "An answers file without the answers", recording.not_printed),
    _rule("T203", "error", "_subdirectory without _exclude", recording.empties_exclude),
    _rule("T204", "warning", "No _min_copier_version", recording.no_min_version),
    _rule("T205", "error", "A layer's answers file with another name", recording.layer_answers_file),
    _rule("T206", "error", "A file that the base template writes, too", recording.overlap),
    _rule("T207", "warning", "A managed pattern that matches nothing", recording.matches_nothing),
    _rule("T208", "warning", "A managed file that its user must edit", recording.users_files),
    _rule("T209", "error", "A setting that nobody reads", recording.misshapen),
    _rule("T301", "warning", "A question without help", asking.no_help),
    _rule("T302", "warning", "A question without default or validator", asking.neither_default_nor_validator),
    _rule("T303", "warning", "Choices without a default", asking.choices_without_default),
    _rule("T304", "error", "A preset that answers no question", asking.preset_without_question),
    _rule("T401", "error", "Jinja that cannot be read", expressions.syntax),
    _rule("T402", "error", "A variable that has no value", expressions.undefined),
    _rule("T403", "error", "${{ in a file that is rendered", expressions.collision),
    _rule("T404", "warning", "A rendered file without Jinja", expressions.needless_suffix),
    _rule("T405", "warning", "Jinja in a file that is not rendered", expressions.not_rendered),
    _rule("T406", "warning", "A long conditional file name", expressions.long_name),
    _rule("T407", "error", "A filter or test that does not exist", expressions.unknown_filter),
    _rule("T408", "error", "A rendered file that is not UTF-8", expressions.not_utf8),
    _rule("T501", "error", "An action that follows a branch", workflows.branch),
    _rule("T502", "warning", "An action that follows a tag", workflows.tag),
    _rule("T601", "error", "The defaults do not render", outcome.fails),
    _rule("T602", "error", "The defaults give broken YAML", outcome.bad_yaml),
    _rule("T603", "error", "The defaults give broken TOML", outcome.bad_toml),
    _rule("T604", "error", "The defaults give broken Python", outcome.bad_python),
    _rule("T605", "warning", "A project without tests", outcome.no_tests),
    _rule("T701", "warning", "A template that nothing tests", repository.no_own_tests),
    _rule("T702", "warning", "A template without a release", repository.untagged),
    _rule("T703", "warning", "Changes after the newest release", repository.tag_is_behind),
    _rule("T704", "warning", "No licence", repository.no_licence),
    _rule("T705", "warning", "Somebody's own folder", repository.personal),
)
