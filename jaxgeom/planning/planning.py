"""A plan: the programs of a run on a topology, whether they fit, and what would make them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.models.load import abstract_parameters
from jaxgeom.planning.programs import Planned, Refused, compile_program, plan_run
from jaxgeom.planning.search import Largest, largest_batch
from jaxgeom.planning.settings import PlanSettings
from jaxgeom.planning.shapes import model_config, products
from jaxgeom.planning.topologies import Topology, open_topology
from jaxgeom.sharding import batch_divisor
from jaxgeom.surroundings import refuse_64_bits
from jaxgeom.training.mesh_fit import mesh_notes, require_batch_divides, split_devices, undivided

# Of one kind: a hundred times what the largest slice holds.
_MOST_BYTES = 1 << 56


class Plan(NamedTuple):
    """What `jaxgeom plan` prints and writes.

    Attributes:
        settings: what was asked.
        topology: the devices.
        mesh: names and sizes of its axes.
        batch_size: sequences a step.
        programs: at that batch, in the order in which they run.
        expected: operations of a device by the rule of thumb (2·N a token forward, 6·N with its gradient), by program.
        resident: bytes a device of what lies on it all the time; of those that have most, where a teacher has its own.
        largest: the largest batch that fits; None before it is looked for, and where the memory of a device is unknown.
        advice: what would make it fit, and what is odd, a sentence each.
    """

    settings: PlanSettings
    topology: Topology
    mesh: dict[str, int]
    batch_size: int
    programs: list[Planned]
    expected: dict[str, float]
    resident: int
    largest: Largest | None
    advice: list[str]

    @property
    def fits(self) -> bool:
        """Whether every program has the memory that it needs, as far as that of a device is known."""
        memory = self.topology.memory
        return memory is None or all(one.needed <= memory for one in self.programs)


def make_plan(
    settings: PlanSettings, say: Callable[[str], Any], compiled: Callable[[Plan], Any] = lambda plan: None
) -> Plan:
    """Compiles the programs of a run and judges them.

    Args:
        settings: of the plan.
        say: told what is being done, a sentence each.
        compiled: told the plan as soon as its programs are, before more are to find the largest batch.

    Raises:
        UserError: an unknown model or topology, a mesh that does not multiply to the devices, a batch that the mesh
            does not divide, or settings that `train` refuses.
    """
    refuse_64_bits()
    student = model_config("--model", settings.model)
    teacher = None if settings.teacher is None else model_config("--teacher", settings.teacher)
    topology = open_topology(settings.topology)
    _require_sense("--model", settings, student)
    if teacher is not None:
        _require_sense("--teacher", settings, teacher)
    mesh, taught_on = split_devices(settings.mesh, settings.teacher_devices, topology.devices)
    unit = settings.unit(batch_divisor(mesh))
    batch = unit if settings.batch_size is None else settings.batch_size
    require_batch_divides(settings.run_settings(batch), mesh)
    settings, advice = _within_context(settings, student, teacher)
    run = settings.run_settings(batch)
    advice += mesh_notes(student, mesh)
    if teacher is not None and teacher.vocab_size != student.vocab_size:
        advice.append(f"the teacher's embedding is planned with the student's {student.vocab_size} rows")
        teacher = dataclasses.replace(teacher, vocab_size=student.vocab_size)
    if topology.chip is not None and settings.compute_dtype == "float32":
        advice.append("seconds by FLOPs are of bfloat16 products; --compute-dtype float32 takes several times as long")
    if teacher is not None:
        advice += [f"the teacher: {note}" for note in undivided(teacher, taught_on)]
    planned_run = plan_run(settings, run, student, teacher, mesh, taught_on)
    planned: list[Planned] = []

    def beside(name: str) -> int:  # as much at any batch
        left = planned_run.programs[name].beside
        return next((one.outputs or 0 for one in planned if one.name == left), 0)

    for name in planned_run.programs:
        say(f"{name}: compiling for {planned_run.mesh_of(name).size} devices ({topology.kind})")
        planned.append(compile_program(planned_run, name, topology, beside(name)))
        needed = f"needs {planned[-1].needed / 2**30:.2f} GiB a device"
        say(f"{name}: compiled in {planned[-1].compile_seconds:.0f} s, {needed}")

    resident = planned_run.resident_bytes()
    tokens = {name: _tokens(settings, batch, name) / planned_run.mesh_of(name).size for name in planned_run.programs}
    taught = ("score.teacher", "rollout.") if settings.rollouts == "teacher" else ("score.teacher",)
    expected = {name: _rule_of_thumb(teacher if name.startswith(taught) else student, name, count)
                for name, count in tokens.items()}  # fmt: skip
    plan = Plan(
        settings, topology, dict(mesh.shape), batch, planned, expected, max(held for _, held in resident), None,
        [*advice, *(f"{one.name}: {note}" for one in planned if one.counts for note in one.counts.notes)],
    )  # fmt: skip
    compiled(plan)
    if topology.memory is None:
        return plan

    def compile_at(name: str, batch: int, **changes: Any) -> Planned:
        other = dataclasses.replace(settings, **changes)
        said = ", ".join([f"batch {batch}", *(f"{key}={value}" for key, value in changes.items())])
        say(f"{name}: compiling at {said}")
        again = plan_run(other, other.run_settings(batch), student, teacher, mesh, taught_on)
        return compile_program(again, name, topology, beside(name))

    largest = largest_batch(planned, batch, unit, topology.memory, compile_at, settings.search)
    shards = batch_divisor(mesh)
    advised = _advice(settings, planned, batch, shards, resident, largest, topology, compile_at)
    return plan._replace(largest=largest, advice=plan.advice + advised)


def _require_sense(option: str, settings: PlanSettings, config: Qwen3Config) -> None:
    """Refuses sizes at which the compiler's own numbers overflow, which ends the process."""
    columns = settings.prompt_length + (0 if settings.objective == "sft" else settings.max_new_tokens)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(Qwen3(config))))
    widest = max(config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    activations = (settings.batch_size or 1) * columns * widest
    for what, count in (("the parameters", parameters), ("a layer's activations", activations)):
        if 4 * count >= _MOST_BYTES:
            raise UserError(f"{what} of {option} are {4 * count / 2**50:,.0f} PiB: no devices hold them")


def _within_context(
    settings: PlanSettings, student: Qwen3Config, teacher: Qwen3Config | None
) -> tuple[PlanSettings, list[str]]:
    """Rows no longer than `train` would make them, and what is said of that."""
    context = student.max_position_embeddings
    if settings.objective == "sft":
        if settings.max_length <= context:
            return settings, []
        said = f"--max-length {settings.max_length}: the model takes {context} tokens, as long rows are planned"
        return dataclasses.replace(settings, max_length=context), [said]
    if teacher is not None and settings.rollouts == "teacher":
        context = min(context, teacher.max_position_embeddings)
    left = context - settings.max_new_tokens
    if settings.max_prompt_length <= left:
        return settings, []
    if left < 1:
        said = f"the model takes {context} tokens, and `train` no prompt with answers that long; planned all the same"
        return settings, [f"--max-new-tokens {settings.max_new_tokens}: {said}"]
    said = f"with the answers the model's context of {context} tokens leaves {left}, prompts as long are planned"
    return dataclasses.replace(settings, max_prompt_length=left), [
        f"--max-prompt-length {settings.max_prompt_length}: {said}"
    ]


def _tokens(settings: PlanSettings, batch: int, name: str) -> int:
    """Tokens that a program puts through its model."""
    if name == "rollout.decoding_weights":
        return 0
    if name.startswith("rollout."):
        answers = batch * settings.updates_per_rollout
        return answers * (settings.prompt_length if name == "rollout.prefill" else settings.max_new_tokens - 1)
    columns = settings.prompt_length + (0 if settings.objective == "sft" else settings.max_new_tokens)
    return batch * columns


def _rule_of_thumb(config: Any, name: str, tokens: float) -> float:
    """6·N operations a token of a step, 2·N of a forward pass; a prefill needs the head for its last column alone."""
    layers, head = products(config)
    return (6 if name == "train" else 2) * tokens * (layers + (0 if name == "rollout.prefill" else head))


def _advice(
    settings: PlanSettings, planned: list[Planned], batch: int, shards: int, resident: list[tuple[int, int]],
    largest: Largest, topology: Topology, compile_at: Callable[..., Planned],
) -> list[str]:  # fmt: skip
    """What would make the run fit; nothing where it does."""
    memory = topology.memory or 0
    short = [one for one in planned if one.needed > memory]
    if not short:
        return []
    said = []
    for one in short:
        said.append(f"{one.name} needs {one.needed / 2**30:.1f} GiB a device, {memory / 2**30:.2f} GiB are there")
    whose = ["parameters, optimizer and teachers"] if len(resident) == 1 else ["parameters and optimizer", "teachers"]
    overfull = [one for one in zip(whose, resident, strict=True) if one[1][1] >= memory]
    for what, (there, held) in overfull:
        said.append(
            f"{what} alone are {held / 2**30:.1f} GiB a device: more than {held * there // memory} devices are"
            f" needed{'' if what == 'teachers' else ', or fewer of them in --mesh-data'}"
        )
    train = next((one for one in short if one.name == "train"), None)
    if train is not None and not settings.remat and settings.search:
        said.append(_with_remat(batch, memory, compile_at))
    if largest.batch:
        how = "" if largest.is_compiled else " (estimated)"
        said.append(f"the largest batch that fits is {largest.batch}{how}: --batch-size {largest.batch}")
    parts = []
    if train is not None and short == [train] and not overfull:
        least = -(-batch // largest.batch) if largest.batch else _least_parts(train, memory)
        parts = _in_parts(batch, shards, settings.micro_batches * least, memory, settings.search, compile_at)
    if not largest.batch and not overfull:
        at_once = " at once" if parts else ""
        said.append(f"no batch fits on this mesh{at_once}: more devices in --mesh-fsdp or --mesh-tensor are needed")
    return said + parts


def _with_remat(batch: int, memory: int, compile_at: Callable[..., Planned]) -> str:
    try:
        needed = compile_at("train", batch, remat=True).needed
    except Refused as refused:
        return f"with --remat: {refused}"
    fits = "it fits" if needed <= memory else "that is still too much"
    return f"with --remat train needs {needed / 2**30:.1f} GiB: {fits}"


def _least_parts(train: Planned, memory: int) -> int:
    """By how many what a step needs beside its arguments would have to be divided, more than one."""
    fixed = train.held + train.arguments
    return max(2, -(-(train.needed - fixed) // (memory - fixed))) if fixed < memory else 2


def _in_parts(
    batch: int, shards: int, least: int, memory: int, tries: int, compile_at: Callable[..., Planned]
) -> list[str]:  # fmt: skip
    """The parts in which a whole batch should fit, `least` or more: compiled, as many tries as there are."""
    parts, said = _parts(batch, shards, least), []
    if parts is not None and not tries:
        return [f"or the same batch in parts (not compiled): --micro-batches {parts}"]
    for _ in range(tries):
        if parts is None:
            break
        try:
            needed = compile_at("train", batch, micro_batches=parts).needed
        except Refused as refused:
            said.append(f"in parts: --micro-batches {parts}: {refused}")
            break
        fits = needed <= memory
        how = "or the same batch in parts" if fits else "in parts it is still too much"
        said.append(f"{how}: --micro-batches {parts}, with which train needs {needed / 2**30:.1f} GiB")
        if fits:
            break
        parts = _parts(batch, shards, parts + 1)
    return said


def _parts(batch: int, shards: int, least: int) -> int | None:
    """The fewest parts, `least` or more, into which a batch can be divided so that the shards divide each."""
    rows = batch // shards
    return next((parts for parts in range(least, rows + 1) if rows % parts == 0), None)
