"""The programs of a planned run, compiled from shapes alone, and what each of them needs and does."""

import math
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.models.load import abstract_parameters
from jaxgeom.planning.chips import Roofline, roofline
from jaxgeom.planning.counting import Counts, count_program
from jaxgeom.planning.settings import PlanSettings
from jaxgeom.planning.topologies import Topology, read_size
from jaxgeom.sharding import parameter_shardings, platform_of
from jaxgeom.training.objectives import objective_of
from jaxgeom.training.optimizer import make_optimizer
from jaxgeom.training.programs import Program, run_programs
from jaxgeom.training.settings import RunSettings
from jaxgeom.training.state import Frozen

_TOO_LARGE = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
    re.compile(r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Out of memory while trying to allocate (\d+)() bytes"),
)


class Refused(UserError):
    """The compiler does not take a program, for another reason than the memory of the device."""


class Planned(NamedTuple):
    """One program on one device; bytes are of its main memory.

    Attributes:
        name: as `run_programs` calls it.
        arguments: bytes of what it is called with.
        temporary: bytes that it needs meanwhile; where it does not fit, all that the compiler asked for beyond the
            arguments.
        outputs: bytes of its results; None where it does not fit.
        new: bytes of results that take no argument's place.
        held: bytes of the run that it does not read and that stay where they are: the optimizer's state while answers
            are sampled, the teacher while the student is trained.
        counts: what it does; None where it does not fit.
        seconds: its roofline; None where it does not fit or the chip's rates are unknown.
        compile_seconds: that its compilation took.
    """

    name: str
    arguments: int
    temporary: int
    outputs: int | None
    new: int
    held: int
    counts: Counts | None
    seconds: Roofline | None
    compile_seconds: float

    @property
    def needed(self) -> int:
        """Bytes that the device must have while it runs."""
        return self.arguments + self.temporary + self.new + self.held


class PlannedRun(NamedTuple):
    """A run's programs before they are compiled.

    Attributes:
        programs: by name.
        resident: leaves that lie on the devices all the time: state, teachers, the start's parameters.
        mesh: the devices; the student's where the teacher has its own.
    """

    programs: dict[str, Program]
    resident: list[Any]
    mesh: jax.sharding.Mesh

    def mesh_of(self, name: str) -> jax.sharding.Mesh:
        """The devices that a program runs on."""
        return next((found for leaf in _shapes(self.programs[name]) if (found := _mesh(leaf)) is not None), self.mesh)

    def resident_bytes(self) -> list[tuple[int, int]]:
        """What lies all the time on each of so many devices, in bytes; a teacher's own devices stand last."""
        found = dict.fromkeys([self.mesh], 0)
        for leaf in self.resident:
            there = _mesh(leaf) or self.mesh
            found[there] = found.get(there, 0) + bytes_a_device(leaf)
        return [(there.size, held) for there, held in found.items()]


def plan_run(
    settings: PlanSettings, run: RunSettings, student: Qwen3Config, teacher: Qwen3Config | None,
    mesh: jax.sharding.Mesh, taught_on: jax.sharding.Mesh,
) -> PlannedRun:  # fmt: skip
    """The programs that `train` would run, from shapes.

    Args:
        settings: of the plan.
        run: of the run.
        student: what is trained.
        teacher: of OPD.
        mesh: the student's devices.
        taught_on: the teacher's, which may be the same.
    """
    dtype = jnp.dtype(run.compute_dtype)
    model, params = _abstract_model(student, jnp.dtype("float32"), dtype, run.remat, mesh)
    modules, teachers = [], ()
    if teacher is not None:
        own = jnp.dtype("float32" if settings.teacher_dtype is None else settings.teacher_dtype)
        computed = dtype if settings.teacher_dtype is None else own
        module, teacher_params = _abstract_model(teacher, own, computed, run.remat, taught_on)
        modules, teachers = [module], (teacher_params,)
    # A copy of the parameters, as the start's are: one, whatever it is for.
    referred = settings.kl_coefficient is not None and settings.objective != "sft"
    start = jax.tree.map(_like, params) if referred or run.geometry.geometry_every else None
    frozen = Frozen(teachers=teachers, reference=start if referred else None, start=None if referred else start)
    objective = objective_of(run, model, modules, mesh)
    programs = run_programs(
        objective, make_optimizer(run, params), params, frozen, prompt_length=settings.prompt_length
    )
    resident = jax.tree.leaves((programs["train"].arguments[0], frozen))
    return PlannedRun(programs, resident, mesh)


def _like(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _abstract_model(
    config: Qwen3Config, dtype: Any, compute_dtype: Any, remat: bool, mesh: jax.sharding.Mesh
) -> tuple[Qwen3, Any]:
    model = Qwen3(config, dtype=compute_dtype, remat=remat, platform=platform_of(mesh), mesh=mesh)
    shapes = abstract_parameters(model, dtype)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        parameter_shardings(shapes, mesh),
    )
    return model, params


def compile_program(run: PlannedRun, name: str, topology: Topology, beside: int = 0) -> Planned:
    """Compiles one program for the topology's devices and reads what the compiler says of it.

    Args:
        run: holds the program.
        name: of it.
        topology: the devices, with their memory and rates.
        beside: bytes that others have left on each device and that it does not read.

    Raises:
        Refused: the compiler does not take it, for another reason than the memory.
    """
    program = run.programs[name]
    read, mesh = _shapes(program), run.mesh_of(name)
    given = set(map(id, read))
    unread = [leaf for leaf in run.resident if id(leaf) not in given and (_mesh(leaf) or run.mesh) == mesh]
    held = beside + sum(map(bytes_a_device, unread))
    start = time.monotonic()
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as refused:
        asked = next((found for form in _TOO_LARGE if (found := form.search(str(refused)))), None)
        if asked is None:
            raise Refused(f"{name}: the compiler for {topology.name} refuses it: {_first_words(refused)}") from refused
        arguments = sum(map(bytes_a_device, read))
        # More than there is, however the compiler rounds what it says.
        needed = max(read_size(asked[1], asked[2]), (topology.memory or 0) + 1)
        temporary = max(needed - arguments, 0)
        return Planned(name, arguments, temporary, None, 0, held, None, None, time.monotonic() - start)
    seconds, memory = time.monotonic() - start, compiled.memory_analysis()
    assert memory is not None
    counts = count_program(compiled.as_text() or "", dict(mesh.shape)).times(program.copies)
    # What a copy has for itself is what it may overwrite, the cache; the parameters are those of all.
    of_copies = (program.copies - 1) * memory.alias_size_in_bytes
    rates = topology.chip
    times = None if rates is None else roofline(rates, flops=counts.flops, memory=counts.bytes, sent=counts.sent)
    return Planned(
        name=name,
        arguments=memory.argument_size_in_bytes + of_copies,
        temporary=program.copies * memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        outputs=program.copies * memory.output_size_in_bytes,
        new=program.copies * (memory.output_size_in_bytes - memory.alias_size_in_bytes),
        held=held + sum(map(bytes_a_device, _left_out(read, compiled))),
        counts=counts,
        seconds=times,
        compile_seconds=seconds,
    )


def _first_words(refused: BaseException) -> str:
    """What the compiler says, on two lines at most: the first may be the name of a kind of error alone."""
    lines = [line.strip() for line in str(refused).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])[:300]


def _shapes(program: Program) -> list[Any]:
    """What a program reads."""
    return [leaf for leaf in jax.tree.leaves(program.arguments) if isinstance(leaf, jax.ShapeDtypeStruct)]


def _left_out(read: list[Any], compiled: jax.stages.Compiled) -> list[Any]:
    """What a program is called with and does not use: JAX leaves it out of what is compiled, not of the memory."""
    used = jax.tree.map(lambda _, place: place is not None, compiled.args_info, compiled.input_shardings)
    return [leaf for leaf, is_used in zip(read, jax.tree.leaves(used), strict=True) if not is_used]


def _mesh(leaf: Any) -> jax.sharding.Mesh | None:
    """What a leaf is laid over, None where that is not said."""
    return getattr(getattr(leaf, "sharding", None), "mesh", None)


def bytes_a_device(leaf: Any) -> int:
    """Of an array or its shape on each device of its sharding."""
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * jnp.dtype(leaf.dtype).itemsize
