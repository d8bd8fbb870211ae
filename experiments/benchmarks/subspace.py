"""What training inside a subspace saves and costs: full AdamW, each confined form, and GaLore, over seeds.

    python experiments/benchmarks/subspace.py --out runs/subspace
    python experiments/benchmarks/subspace.py --out runs/subspace --steps 64 --json subspace.json

From the quickstart's anchor, by SFT as in `experiments/confined.py`: seed s trains `--early` steps freely and
goes on from there in every form for `--steps` steps on the same rows in the same order, moments empty. Bases are the
leading right directions of the seed's own early update, the mask is what that update changed visibly in bf16; confined
runs and GaLore leave embeddings and norms as they are, full AdamW does not. GaLore is Optax's
(`optax.contrib.galore`), on every layer's matrices apart, with a new basis every `--refresh` steps.

- state: bytes of the optimizer's state, bases and masks in it. start: the parameters of the start beside it, from which
  confined updates are counted.
- summed: bytes that are all-reduced in a step, read from the step as compiled for 8 simulated devices, data-parallel.
- step: median without the steps that compile. The forms take their steps in turn, another one first each time, so that
  what else the machine does falls on all; in brackets processor seconds.
- accuracy: greedy, on the held-out problems; mean over the seeds with its 95 % interval.

Anchor and early runs are kept in `--out` and not trained again; other early steps or another rate need another one.
"""

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxgeom.cpu_memory import keep_freed_memory
from jaxgeom.data import embedded_model
from jaxgeom.diagnostics import map_matrices
from jaxgeom.diagnostics.matrix_spec import from_matrix, is_spec
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.models.load import abstract_parameters
from jaxgeom.models.names import spectral_specs
from jaxgeom.optimizers import learning_rate_schedule, with_standard_promotion
from jaxgeom.optimizers.leaves import own_copy
from jaxgeom.planning import count_program
from jaxgeom.progress import Reporter
from jaxgeom.sharding import batch_sharding, make_mesh, parameter_shardings
from jaxgeom.study.data import data_files, make_data
from jaxgeom.study.experiment import Experiment, load_experiment
from jaxgeom.study.seeds import mean_interval
from jaxgeom.training import (
    Actor,
    Batch,
    ConfineSettings,
    Frozen,
    RunInputs,
    SFTSettings,
    evaluate,
    initial_state,
    make_optimizer,
    make_train_step,
    objective_of,
    train,
)
from jaxgeom.training.confinement import Confinement, make_confinement
from jaxgeom.training.objectives import Tools
from jaxgeom.training.ready import Ready, make_ready
from jaxgeom.training.state import TrainState, abstract_state

FORMS = ("gradients", "updates", "coordinates", "mask")
WARM, COLUMNS, DEVICES = 2, 64, 8


class Told(NamedTuple):
    """What the command line says of the forms."""

    rank: int
    refresh: int


class Entry(NamedTuple):
    """A form of training: its optimizer, and what confines it."""

    optimizer: optax.GradientTransformation
    confinement: Confinement | None = None


def galore(settings: SFTSettings, config: Qwen3Config, told: Told) -> optax.GradientTransformation | None:
    """Optax's GaLore on every matrix of a dense model, AdamW inside it as `settings` have it; None where it has none.

    Its matrices have two axes and ours are stacked by layer, so that it is given a tree of one layer after the other.
    """
    make = getattr(optax.contrib, "galore", None)
    if make is None:
        return None
    own, specs, layers = settings.optimizer, spectral_specs(config), config.num_hidden_layers
    inner = make(
        learning_rate_schedule(own, settings.steps), rank=told.rank, update_proj_gap=told.refresh,
        base_optimizer=optax.scale_by_adam(own.b1, own.b2, own.eps), weight_decay=own.weight_decay,
    )  # fmt: skip
    if own.clip_norm is not None:
        inner = optax.chain(optax.clip_by_global_norm(own.clip_norm), inner)
    inner = with_standard_promotion(inner)

    def by_layer(tree: Any) -> list[dict[str, Any]]:
        leaves = jax.tree_util.tree_leaves_with_path(map_matrices(lambda matrix: matrix, specs, tree))
        named = {jax.tree_util.keystr(path, simple=True, separator="/"): matrix for path, matrix in leaves}
        return [{name: matrix[layer] for name, matrix in named.items()} for layer in range(layers)]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps: Any
        steps, state = inner.update(by_layer(updates), state, by_layer(params))

        def one(path: Any, spec: Any, leaf: Any) -> Any:
            if spec is None:
                return jnp.zeros_like(leaf)
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return from_matrix(jnp.stack([step[name] for step in steps]), spec, leaf.shape)

        return jax.tree_util.tree_map_with_path(one, specs, updates, is_leaf=is_spec), state

    return optax.GradientTransformation(lambda params: inner.init(by_layer(params)), update)


def entries(
    settings: SFTSettings, config: Qwen3Config, told: Told, *, params: Any, model: Path, early: Path | None, mesh: Any
) -> dict[str, Entry]:
    """Every form, by name, in the table's order.

    Args:
        settings: of full AdamW.
        config: of the model.
        told: what the command line says.
        params: at the start, or their shapes.
        model: the start.
        early: the checkpoint that bases and mask are of; None: random ones, where shapes are all that counts.
        mesh: the devices.
    """
    found = {"AdamW": Entry(make_optimizer(settings, params))}
    for form in FORMS:
        if form == "mask":
            how = ConfineSettings(confine=form, mask="random" if early is None else "changed")
        else:
            basis = "random" if early is None else "delta"
            how = ConfineSettings(confine=form, basis=basis, basis_rank=told.rank)
        confinement = make_confinement(
            how, config, model=model, mesh=mesh, basis_from=None if form == "mask" else early,
            mask_from=early if form == "mask" else None,
        )  # fmt: skip
        found[form] = Entry(make_optimizer(settings, params, confinement), confinement)
    optimizer = galore(settings, config, told)
    if optimizer is not None:
        found["GaLore"] = Entry(optimizer)
    return found


def summed_bytes(settings: SFTSettings, model: Path, told: Told) -> dict[str, dict[str, float]]:
    """By form: bytes of the arrays that a step's collectives give every device, by kind. For a process of its own."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    config = Qwen3Config.from_hf(json.loads((model / "config.json").read_text()))
    mesh = make_mesh(DEVICES)
    module = Qwen3(config, platform="cpu", mesh=mesh)
    shapes = abstract_parameters(module)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes, parameter_shardings(shapes, mesh),
    )  # fmt: skip
    objective = objective_of(settings, module, mesh=mesh)
    place, shape = batch_sharding(mesh), (settings.batch_size, COLUMNS)
    tokens, flags = (jax.ShapeDtypeStruct(shape, dtype, sharding=place) for dtype in (jnp.int32, jnp.bool_))
    batch = Batch(tokens=tokens, valid=flags, loss_mask=flags)
    found = {}
    for name, entry in entries(settings, config, told, params=params, model=model, early=None, mesh=mesh).items():
        state = abstract_state(params, entry.optimizer)
        step = make_train_step(objective, entry.optimizer, state, entry.confinement)
        frozen = Frozen(start=None if entry.confinement is None else params)
        counts = count_program(step.lower(state, batch, frozen).compile().as_text(), dict(mesh.shape))
        by_kind: dict[str, float] = {}
        for one in counts.collectives:
            by_kind[one.kind] = by_kind.get(one.kind, 0.0) + one.payload
        found[name] = by_kind
    return found


class Running:
    """One form while it trains: its state, and what its steps took."""

    def __init__(self, step: Any, state: TrainState, frozen: Frozen):
        self.step, self.state, self.frozen = step, state, frozen
        held = getattr(state.opt_state, "bases", getattr(state.opt_state, "masks", None))
        projectors = [one.projector for one in galore_states(state.opt_state)]
        self.state_bytes, self.start_bytes = size_of(state.opt_state), size_of(frozen.start)
        self.held_bytes = size_of((held, projectors))
        self.times: list[tuple[float, float]] = []
        self.metrics: dict[str, Any] = {}

    def take(self, batch: Batch) -> None:
        """One step, with its seconds and processor seconds."""
        wall, processor = time.perf_counter(), time.process_time()
        self.state, self.metrics = jax.block_until_ready(self.step(self.state, batch, self.frozen))
        self.times.append((time.perf_counter() - wall, time.process_time() - processor))


def galore_states(opt_state: Any) -> list[Any]:
    """The states in an optimizer's that have a projector for every matrix."""

    def is_one(node: Any) -> bool:
        return hasattr(node, "projector")

    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(node)]


def size_of(tree: Any) -> int:
    """Bytes of a tree's arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def accuracy_of(ready: Ready, params: Any) -> float:
    (prompts,) = ready.rows.evaluated.values()
    actor = Actor(ready.model, params)
    return evaluate(actor, ready.rows.tokenizer, prompts, max_new_tokens=32, rewards=ready.rows.rewards)[0]


def run_seed(
    settings: SFTSettings, inputs: RunInputs, told: Told, steps: dict[str, Any], out: Path
) -> tuple[float, dict[str, Running], dict[str, float]]:
    """All forms of one seed, step by step in turn.

    Args:
        settings: of full AdamW.
        inputs: of all; the model is the early run's checkpoint.
        told: what the command line says.
        steps: the compiled steps by form, filled by the first seed: bases and masks are in the state.
        out: where the kept rows are.

    Returns:
        Held-out accuracy at the start; the forms at their end; their accuracy.
    """
    ready = make_ready(settings, inputs, out / "unused", Reporter(quiet=True), force=False, kept_rows=out / "rows")
    assert ready is not None
    running = {}
    for name, entry in entries(
        settings, ready.model.config, told, params=ready.params, model=inputs.model, early=inputs.model, mesh=ready.mesh
    ).items():
        state = initial_state(own_copy(ready.params), entry.optimizer)
        if name not in steps:
            steps[name] = make_train_step(ready.objective, entry.optimizer, state, entry.confinement)
        start = None if entry.confinement is None else own_copy(ready.params)
        running[name] = Running(steps[name], state, Frozen(start=start))
    tools = Tools(ready.rows.batches(settings), ready.rows.tokenizer, ready.rows.rewards)
    order = list(running.values())
    for number in range(settings.steps):
        drawn = ready.objective.draw(ready.params, ready.frozen, tools, number)
        batch = ready.objective.prepare(ready.params, ready.frozen, drawn, number).batches[0]
        first = number % len(order)
        for one in order[first:] + order[:first]:
            one.take(batch)
    accuracy = {name: accuracy_of(ready, one.state.params) for name, one in running.items()}
    return accuracy_of(ready, ready.params), running, accuracy


def early_run(out: Path, seed: int) -> Path:
    """Where a seed's early run is."""
    return out / f"early_{seed}"


def sft_of(experiment: Experiment, rate: float) -> SFTSettings:
    """The settings of SFT's early run, at another rate."""
    found = next(arm.settings for arm in experiment.every_arm() if arm.name == "sft_early")
    assert isinstance(found, SFTSettings)
    optimizer = dataclasses.replace(found.optimizer, learning_rate=rate)
    return dataclasses.replace(found, eval_every=0, optimizer=optimizer)


def trained(experiment: Experiment, settings: SFTSettings, early: int, seeds: range, out: Path) -> RunInputs:
    """Trains the anchor and every seed's early run where they are not there; what goes on from them reads this."""
    assert experiment.anchor is not None and experiment.base is not None
    out.mkdir(parents=True, exist_ok=True)
    make_data(experiment.data, out)
    files = data_files(experiment.data, out)
    assert files.demonstrations_continued is not None
    rows, reporter = out / "rows", Reporter()
    inputs = RunInputs(model=Path(experiment.base), data=files.demonstrations)
    train(experiment.anchor, inputs, out / "anchor", kept_rows=rows, reporter=reporter)
    anchor = out / f"anchor@{experiment.anchor.steps}"
    inputs = RunInputs(model=anchor, data=files.demonstrations_continued)
    for seed in seeds:
        own = dataclasses.replace(settings, steps=early, save_every=early, seed=seed)
        train(own, inputs, early_run(out, seed), kept_rows=rows, reporter=reporter)
    return dataclasses.replace(inputs, eval_data=files.heldout)


def summarized(seeds: list[dict[str, Running]], told: Told) -> dict[str, dict[str, Any]]:
    """By form: bytes, leakage at the end, and medians over the steps of all seeds.

    A step that takes a new basis of GaLore's is no median step and stands by itself.
    """
    found = {}
    for name in seeds[0]:
        runs = [one[name] for one in seeds]
        first = runs[0]
        row: dict[str, Any] = {
            "state_bytes": first.state_bytes,
            "basis_or_mask_bytes": first.held_bytes,
            "start_bytes": first.start_bytes,
        }
        if "leakage" in first.metrics:
            row["leakage"] = statistics.fmean(float(run.metrics["leakage"]) for run in runs)
        times = [(number, taken) for run in runs for number, taken in enumerate(run.times) if number >= WARM]
        fresh = [taken for number, taken in times if name == "GaLore" and number % told.refresh == 0]
        usual = [taken for number, taken in times if name != "GaLore" or number % told.refresh]
        for key, some in (("step", usual), ("refresh_step", fresh)):
            if some:
                wall, processor = zip(*some, strict=True)
                row |= {f"{key}_seconds": statistics.median(wall)}
                row |= {f"{key}_processor_seconds": statistics.median(processor)}
        found[name] = row
    return found


def print_table(found: dict[str, dict[str, Any]], start: list[float]) -> None:
    full = found["AdamW"]
    print("| form | state KB | of it bases, mask | start KB | summed KB a step | s/step | accuracy, % | leakage |")
    print("|---" * 8 + "|")
    for name, row in found.items():
        mean, low, high = mean_interval(row["accuracy"], bounds=(0.0, 1.0))
        ends = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
        cells = [f"{row['state_bytes'] / 1e3:,.0f} ({row['state_bytes'] / full['state_bytes']:.2f}×)"]
        cells += [f"{row[key] / 1e3:,.0f}" if row[key] else "–" for key in ("basis_or_mask_bytes", "start_bytes")]
        cells.append(f"{row['summed_bytes'] / 1e3:,.0f} ({row['summed_bytes'] / full['summed_bytes']:.2f}×)")
        cells.append(f"{row['step_seconds']:.3f} ({row['step_processor_seconds']:.3f})")
        cells += [f"{100 * mean:.1f}{ends}", f"{row['leakage']:.2g}" if "leakage" in row else "–"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    shown = ", ".join(f"{100 * one:.1f}" for one in start)
    print(f"\nAccuracy at the start, by seed: {shown} %.")
    if "GaLore" not in found:
        print(f"Optax {optax.__version__} has no GaLore.")
    elif "refresh_step_seconds" in found["GaLore"]:
        row = found["GaLore"]
        taken = f"{row['refresh_step_seconds']:.3f} ({row['refresh_step_processor_seconds']:.3f})"
        print(f"GaLore's steps that take a new basis: {taken} s.")
    others = sorted({kind for row in found.values() for kind in row["collectives"]} - {"all-reduce"})
    if others:
        print(f"Beside all-reduce some steps have {', '.join(others)}; their bytes are in the JSON file.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--early", type=int, default=32, help="steps before the forms part")
    parser.add_argument("--steps", type=int, default=32, help="of every form")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2.5e-6, help="learning rate")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--refresh", type=int, default=8, help="steps between GaLore's bases")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    if given.steps <= WARM + 1:
        parser.error(f"--steps {given.steps}: the first {WARM} are not timed")
    told, seeds = Told(given.rank, given.refresh), range(given.seeds)
    experiment = load_experiment(Path(__file__).parents[1] / "confined.py")
    settings = dataclasses.replace(sft_of(experiment, given.rate), steps=given.steps)
    # A process of its own: this one's steps are timed on one device, and none while that one compiles.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        counted = pool.submit(summed_bytes, settings, embedded_model("base"), told)
        inputs = trained(experiment, settings, given.early, seeds, given.out)
        summed = counted.result()
    steps: dict[str, Any] = {}
    start, ended, accuracy = [], [], []
    for seed in seeds:
        own = dataclasses.replace(inputs, model=Path(f"{early_run(given.out, seed)}@{given.early}"))
        begun, running, reached = run_seed(dataclasses.replace(settings, seed=seed), own, told, steps, given.out)
        print(f"seed {seed}: {', '.join(f'{name} {100 * one:.1f}' for name, one in reached.items())} %", flush=True)
        start.append(begun)
        ended.append(running)
        accuracy.append(reached)
    found = summarized(ended, told)
    for name, row in found.items():
        row["accuracy"] = [one[name] for one in accuracy]
        row["collectives"] = summed[name]
        row["summed_bytes"] = summed[name].get("all-reduce", 0.0)
    where = {
        "device": jax.devices()[0].device_kind, "jax": jax.__version__, "optax": optax.__version__,
        "early": given.early, "steps": given.steps, "rate": given.rate, "rank": given.rank, "refresh": given.refresh,
    }  # fmt: skip
    print("\n" + ", ".join(f"{key} {value}" for key, value in where.items()) + "\n")
    print_table(found, start)
    if given.json:
        given.json.write_text(json.dumps({**where, "accuracy_at_start": start, "forms": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
