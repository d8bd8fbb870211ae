"""`jaxgeom compare INITIAL FINAL --out DIR`."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.commands.entries import entry_progress, other_processes, say_what_is_replaced, writes_report
from jaxgeom.comparison import CompareSettings, Report, compare_checkpoints
from jaxgeom.comparison.run.plan import check_pair
from jaxgeom.cpu_memory import keep_freed_memory
from jaxgeom.errors import UserError
from jaxgeom.progress import Reporter
from jaxgeom.report import print_table, write_report
from jaxgeom.training.functional_distance import NULL, functional_distance


def compare(
    initial: Positional[str],
    final: Positional[str],
    settings: CompareSettings,
    out: Path,
    cache: Path | None = None,
    prompts: Path | None = None,
    force: bool = False,
    distributed: bool = False,
) -> Callable[[str], None]:
    """Every diagnostic, with its null, between two checkpoints.

    A checkpoint is a Hugging Face directory, a training run (its last step), or RUN@STEP. An interrupted comparison
    goes on when the same command is given again.

    Args:
        initial: The checkpoint that holds W0.
        final: The checkpoint that holds W+.
        settings: What is measured, and how.
        out: Where report.json, matrices.csv, figures and page are written.
        cache: Directory of base spectra, keyed by content: later comparisons with the same W0 are faster.
        prompts: Rows with `prompt` or `messages`: adds the functional distance, the forward KL between the two models
            on answers that the initial one samples. Both must be Qwen3 models, the initial one with its tokenizer.
            Without it the distance that a finished comparison of the same weights in `out` has is kept.
        force: Take over a directory that holds another comparison.
        distributed: Share the work with the other processes that were started with this command (TPU pod, SLURM, MPI,
            or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID); they need a shared --out.
    """

    def run(command: str) -> None:
        reporter = Reporter()
        say_what_is_replaced(out, force, reporter)
        with other_processes(distributed, out) as team:
            keep_freed_memory(settings.device)
            first, second = open_checkpoint(initial), open_checkpoint(final)
            held = _finished(out)
            if prompts is not None and not force and _prompts_of(held) not in (None, str(prompts)):
                raise UserError(
                    f"{out}: holds the functional distance on {_prompts_of(held)}; give another --out or --force"
                )
            distance = None
            if prompts is not None and (team is None or team.index == 0):
                check_pair(first, second, settings)  # before the models answer, which may take long
                reporter.say("functional distance: the initial model answers, both score")
                distance = functional_distance(initial, final, prompts, seed=settings.seed)
            with entry_progress(reporter, "compare") as progress:
                report = compare_checkpoints(
                    first, second, settings, out=out, cache=cache, progress=progress, force=force, command=command,
                    team=team,
                )  # fmt: skip
        if not writes_report(team, reporter):
            return
        if prompts is not None and distance is not None:
            report = _with_distance(report, distance.to_json(), str(prompts))
            report.write(out)
        elif (found := _distance_of(held, report)) is not None:
            reporter.say(f"functional distance: kept from the earlier run with --prompts {found[1]}")
            report = _with_distance(report, *found)
            report.write(out)
        page = write_report(out)
        print_table(report.to_json(), reporter.console)
        reporter.say(f"page: {page}")

    return run


def _with_distance(report: Report, distance: dict[str, Any], prompts: str) -> Report:
    """The report with a statistic of the models beside those of their matrices."""
    forms = report.settings["null_forms"] | {"functional_distance": NULL}
    return dataclasses.replace(
        report,
        summary=report.summary | {"functional_distance": distance},
        coverage=report.coverage | {"functional_distance": {"parameters": 1.0, "matrices": 0}},  # of the whole model
        settings=report.settings | {"null_forms": forms, "prompts": prompts},
    )


def _finished(out: Path) -> dict[str, Any]:
    """The report that a folder holds, empty where it holds none that can be read."""
    try:
        held = json.loads((out / "report.json").read_text(encoding="utf-8"))
        parts = (held["inputs"], held["settings"], held["summary"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return held if all(isinstance(part, dict) for part in parts) else {}


def _prompts_of(held: dict[str, Any]) -> str | None:
    """The prompts whose functional distance a report has."""
    return held["settings"].get("prompts") if "functional_distance" in held.get("summary", {}) else None


def _distance_of(held: dict[str, Any], report: Report) -> tuple[dict[str, Any], str] | None:
    """Functional distance and prompts of an earlier report, where it is one of the same weights, seed and version."""
    prompts = _prompts_of(held)
    same = prompts is not None and held["inputs"] == report.inputs and held.get("version") == report.version
    if prompts is None or not same or held["settings"].get("seed") != report.settings["seed"]:
        return None
    return held["summary"]["functional_distance"], prompts
