"""An update by Copier itself, for templates that run commands: their migrations work on a project, which a merge of trees has
not. It happens in a clone, and what came of it is applied like any merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scaffold import git, merging, rendering
from scaffold.errors import UpdateError
from scaffold.merging import Merged, Repository, Stage
from scaffold.steps import Step

_Stages = dict[str, dict[Stage, tuple[str, str]]]

_AUTHOR = ("-c", "user.name=scaffold", "-c", "user.email=scaffold@localhost")


def merge(repository: Repository, steps: Sequence[Step], *, trusted: bool) -> Merged:
    """What Copier makes of the project's last commit, and the edits that it would drop without a word as conflicts.

    Args:
        trusted: The templates' commands may run.

    Raises:
        UpdateError: They may not.
    """
    if not trusted:
        raise UpdateError(
            "A template of this project runs commands: tasks, migrations or Jinja extensions.",
            why="they would run on your machine, with your rights, and nobody has said that they may.",
            fix="read them in the template's copier.yml, then: scaffold update --trust",
        )
    with rendering.scratch() as scratch:
        top = scratch / "repository"
        git.git("clone", "-q", "--shared", "--", str(repository.top), str(top), cwd=scratch)
        clone = top / repository.prefix
        stages: _Stages = {}
        for step in steps:
            if step.new is None or step.idle:
                continue
            rendering.update(clone, step.new, answers=step.answers, answers_file=step.answers_file)
            stages |= merging.unmerged(clone)
            git.git("add", "-A", "-f", "--", ".", cwd=clone)
            git.git(
                *_AUTHOR, "commit", "-q", "--no-verify", "--no-gpg-sign", "--allow-empty", "-m", "updated", cwd=clone
            )
        for refused in clone.rglob("*.rej"):
            stages.setdefault(refused.relative_to(clone).as_posix(), {})
        tree = merging.take_over(repository, clone, stages)
        edited = _dropped(repository, tree, steps, scratch / "old" / repository.root.name)
    tree = merging.put_back(repository, tree, {path: sides["2"] for path, sides in edited.items()})
    return Merged(
        tree=tree, conflicts={**stages, **edited}, reasons=dict.fromkeys(edited, "modify/delete"), kept_deleted=()
    )


def _dropped(repository: Repository, tree: str, steps: Sequence[Step], folder: Path) -> _Stages:
    """Files that the user changed and Copier deleted."""
    project = merging.project_tree(repository)
    ours = merging.files(repository, project)
    gone = ours.keys() - merging.files(repository, tree).keys()
    if not gone:
        return {}
    for step in steps:
        if step.old:
            layer = step.as_it_was(step.old)
            rendering.render(
                step.old,
                folder,
                answers={},
                defaults=layer.defaults,
                answers_file=layer.answers_file,
                trust=True,
                skip_tasks=True,
            )
    rendered, _ = merging.write_tree(repository, folder, ours)
    old = merging.files(repository, rendered)
    return {
        path: {**({"1": old[path]} if path in old else {}), "2": ours[path]}
        for path in sorted(gone)
        if old.get(path) != ours[path]
    }
