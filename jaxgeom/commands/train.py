"""`jaxgeom train {sft,rlvr,opd}`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from jaxgeom.commands.options import Directory, offered
from jaxgeom.errors import UserError
from jaxgeom.training.settings import OPDSettings, RLVRSettings, RunInputs, RunSettings, SFTSettings
from jaxgeom.unread_settings import refuse_unread

_Untaught = Annotated[RunInputs, offered(RunInputs, without=("teacher",))]
_Taught = Annotated[RunInputs, offered(RunInputs)]


def train_sft(
    settings: Annotated[SFTSettings, offered(SFTSettings)],
    inputs: _Untaught,
    out: Directory,
    force: bool = False,
    distributed: bool = False,
) -> Callable[[str], None]:
    """Cross-entropy on demonstrations: rows with `messages`.

    Args:
        settings: Of the run.
        inputs: What it reads.
        out: The run directory; an interrupted run goes on.
        force: Delete another run that is there.
        distributed: One run over all devices of the processes that were started with this command (TPU pod, SLURM, MPI,
            Kubernetes, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID); all must see `out`.
    """
    return _runner(settings, inputs, out, force, distributed)


def train_rlvr(
    settings: Annotated[RLVRSettings, offered(RLVRSettings)],
    inputs: _Untaught,
    out: Directory,
    force: bool = False,
    distributed: bool = False,
) -> Callable[[str], None]:
    """GRPO on prompts with verifiable answers: rows with `prompt` and `reward_model.ground_truth`.

    Args:
        settings: Of the run.
        inputs: What it reads.
        out: The run directory; an interrupted run goes on.
        force: Delete another run that is there.
        distributed: One run over all devices of the processes that were started with this command (TPU pod, SLURM, MPI,
            Kubernetes, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID); all must see `out`.
    """
    return _runner(settings, inputs, out, force, distributed)


def train_opd(
    settings: Annotated[OPDSettings, offered(OPDSettings)],
    inputs: _Taught,
    out: Directory,
    force: bool = False,
    distributed: bool = False,
) -> Callable[[str], None]:
    """On-policy distillation: the model answers prompts, a teacher scores every token of the answers.

    Args:
        settings: Of the run.
        inputs: What it reads, the teacher among them.
        out: The run directory; an interrupted run goes on.
        force: Delete another run that is there.
        distributed: One run over all devices of the processes that were started with this command (TPU pod, SLURM, MPI,
            Kubernetes, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID); all must see `out`.
    """
    if not inputs.teachers:
        raise UserError("train opd needs --teacher DIR; see jaxgeom train opd --help")
    return _runner(settings, inputs, out, force, distributed)


def _runner(
    settings: RunSettings, inputs: RunInputs, out: Path, force: bool, distributed: bool
) -> Callable[[str], None]:
    if not inputs.evaluations:
        refuse_unread(settings, ("eval_every", "eval_limit"), "eval_data=None")

    def run(command: str) -> None:
        from jaxgeom import processes
        from jaxgeom.cpu_memory import keep_freed_memory
        from jaxgeom.progress import Reporter
        from jaxgeom.training import train

        if distributed:
            processes.join()
        keep_freed_memory()
        reporter = Reporter(quiet=distributed and not processes.is_first())
        train(settings, inputs, out, reporter=reporter, force=force)
        reporter.say(f"run: {out}")

    return run
