"""What makes a study this study: the mathematics of every arm, where it starts, and the content of what is read."""

from pathlib import Path
from typing import Any

from jaxgeom.differences import other_content, unequal
from jaxgeom.study.arms import At
from jaxgeom.study.data import DataFiles
from jaxgeom.study.experiment import FOUR, Experiment
from jaxgeom.training.identity import file_content, mathematics, model_content, template_content, update_content
from jaxgeom.training.settings import to_json

_SHOWN = {"sft_anchor.start": "base", "opd.teacher": "teacher", "sft_anchor.chat_template": "anchor.chat_template"}
"""What inputs of the four arms that have fields of their own are called there."""


def study_config(experiment: Experiment, version: str) -> dict[str, Any]:
    """What `config.json` of a study says."""
    return {
        "schema": 1,
        "kind": "study",
        "version": version,
        "experiment": experiment_json(experiment),
        "contents": study_contents(experiment),
    }


def experiment_json(experiment: Experiment) -> dict[str, Any]:
    """An experiment as plain JSON values: its arms by name, each with its objective."""
    said = to_json(experiment)
    objectives = [{"objective": arm.settings.objective} for arm in experiment.arms]
    said["arms"] = {one["name"]: own | one for own, one in zip(objectives, said["arms"], strict=True)}
    return said


def study_contents(experiment: Experiment) -> dict[str, str]:
    """Digests of what an experiment reads: `ARM.FIELD` of every arm, and the fields of its files.

    Raises:
        UserError: something that cannot be read.
    """
    found = {}
    for arm in experiment.every_arm():
        models = {"start": arm.start} | {
            f"teacher{place or ''}": path for place, path in enumerate(experiment.teachers_of(arm))
        }
        for field, path in models.items():
            if isinstance(path, Path):
                found[f"{arm.name}.{field}"] = model_content(path)
        for field in ("basis_from", "mask_from"):
            path = getattr(arm, field)
            if isinstance(path, Path):
                found[f"{arm.name}.{field}"] = update_content(path)
        for name, digest in template_content(arm.settings).items():
            found[f"{arm.name}.{name}"] = digest
    if isinstance(experiment.data, DataFiles):
        for name, path in vars(experiment.data).items():
            if path is not None:
                found[name] = file_content(path)
    return found


def study_differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What tells two studies' configurations apart, empty where one goes on with the other.

    More seeds, more and fewer arms, other measurements, and more steps of an arm from whose end no other starts go on;
    each run looks at its own settings once more.

    Args:
        held: of a directory, of any form.
        wanted: asked for.

    Returns:
        Sentences that name the field and both values.
    """
    try:
        old, new = held["experiment"], wanted["experiment"]
        found = []
        if "task" in new["data"] or "task" in old["data"]:  # files are told by their content
            found += unequal(old["data"], new["data"], "data")
        arms = _arms(old), _arms(new)
        both = [name for name in arms[1] if name in arms[0]]
        for name in both:
            found += _arm_differences(name, *arms)
        contents = _contents(held), _contents(wanted)
        for name in dict.fromkeys([*contents[1], *contents[0]]):
            arm = name.rpartition(".")[0]
            if contents[0].get(name) != contents[1].get(name) and (not arm or arm in both):
                paths = [_path_of(name, one, by_name) for one, by_name in zip((old, new), arms, strict=True)]
                found.append(other_content(_SHOWN.get(name, name), paths[0], paths[1]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"its config.json is damaged: {type(error).__name__}: {error}"]
    return found


def has_new_arms(held: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a study that goes on has arms that its directory does not know of.

    Args:
        held: of the directory.
        wanted: asked for.
    """
    return not _arms(wanted["experiment"]).keys() <= _arms(held["experiment"]).keys()


def _arms(experiment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of an experiment as JSON, by name; also of one that was written before there were others than four."""
    found = {}
    for name, (field, objective) in FOUR.items():
        if experiment[field] is not None:
            is_anchor = name == "sft_anchor"
            start = experiment["base"] if is_anchor else {"arm": "sft_anchor", "step": None, "share": None}
            teacher = experiment["teacher"] if name == "opd" else None
            found[name] = {
                "field": field, "objective": objective, "settings": experiment[field], "start": start,
                "shared": is_anchor, "teacher": teacher,
            }  # fmt: skip
    for name, arm in experiment.get("arms", {}).items():
        found[name] = arm | {"field": name, "teacher": arm["teacher"] or experiment["teacher"]}
    return found


def _contents(config: dict[str, Any]) -> dict[str, str]:
    """The digests of a configuration; one that was written before there were arms has them by other names."""
    names: dict[str, str] = {shown: name for name, shown in _SHOWN.items()}
    return {names[name] if name in names else name: digest for name, digest in config["contents"].items()}


def _arm_differences(name: str, held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    old, new = held[name], wanted[name]
    field = new["field"]
    found = unequal(old["objective"], new["objective"], f"{field}.objective")
    if found:
        return found
    was, is_now = (mathematics(_seedless(arm), arm["objective"]) for arm in (old, new))
    found += unequal(was, is_now, field)
    for source in ("start", "basis_from", "mask_from"):
        was, is_now = _place(old.get(source), held), _place(new.get(source), wanted)
        if was is None or is_now is None or was[0] != is_now[0]:
            found += unequal(_shown(was), _shown(is_now), f"{field}.{source}")
            continue
        parent = is_now[0]
        lengths = [arms[parent]["settings"]["steps"] for arms in (held, wanted)]
        if lengths == [was[1], is_now[1]]:  # each is the other arm's end: the length of that is what differs
            found += unequal(lengths[0], lengths[1], f"{wanted[parent]['field']}.steps")
        else:
            found += unequal(_shown(was), _shown(is_now), f"{field}.{source}")
    return list(dict.fromkeys(found))


def _place(source: Any, arms: dict[str, Any]) -> tuple[str, int] | None:
    """The arm and the step that something is taken from; None for paths, whose content tells them."""
    if not isinstance(source, dict):
        return None
    at = At(source["arm"], source["step"], source["share"])
    return at.arm, at.step_of(arms[at.arm]["settings"]["steps"])


def _shown(place: tuple[str, int] | None) -> str | None:
    return None if place is None else f"{place[0]}@{place[1]}"


def _seedless(arm: dict[str, Any]) -> dict[str, Any]:
    """Settings of an arm; the seeds of one that is run once a seed are those of the experiment."""
    settings = arm["settings"]
    return settings if arm["shared"] else {field: value for field, value in settings.items() if field != "seed"}


def _path_of(name: str, experiment: dict[str, Any], arms: dict[str, Any]) -> str | None:
    """The path of an input by the name of its content."""
    arm, _, field = name.rpartition(".")
    if not arm:
        return experiment["data"].get(name)
    if field == "chat_template":
        return arms[arm]["settings"]["rows"].get("chat_template")
    if not field.startswith("teacher"):
        return arms[arm].get(field)
    given = arms[arm]["teacher"]
    several = [given] if isinstance(given, str) else given
    return several[int(field.removeprefix("teacher") or 0)]
