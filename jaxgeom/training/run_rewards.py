"""What a run's answers are worth: the verifiers that its settings name, and the rows that these are given."""

import dataclasses
from pathlib import Path

from jaxgeom.data.prepared import Prepared
from jaxgeom.data.rows import read_row_file
from jaxgeom.rewards import GivenRow, Rewards, Verifier, own_reward
from jaxgeom.training.reward_settings import rewards_of
from jaxgeom.training.settings import OnPolicySettings, RunSettings


def run_rewards(settings: RunSettings) -> Rewards:
    """The verifiers of a run.

    Args:
        settings: of the run.

    Raises:
        UserError: a user's own that cannot be imported.
    """
    given = settings.reward if isinstance(settings, OnPolicySettings) else ()
    parts = rewards_of(given)
    return Rewards(
        Verifier(settings.allow_unisolated_code, settings.code_timeout),
        {part.name: part.weight for part in parts if part.is_built_in},
        tuple((own_reward(part.name), part.weight) for part in parts if not part.is_built_in),
        is_told_apart=bool(given),
    )


def judged_by(rewards: Rewards, rows: Prepared, path: Path) -> Prepared:
    """Rows with what their verifiers read of the file.

    Args:
        rewards: of the run.
        rows: prompts.
        path: of the file.

    Raises:
        UserError: a row that no verifier judges.
    """
    rewards.require(rows.truths, lambda index: f"{path}: row {int(rows.numbers[index])}")
    if not rewards.own:
        return rows
    file = read_row_file(path)
    chosen = [file[number] for number in rows.numbers.tolist()]
    given = [GivenRow(f"{path}: {row.place}", row.content) for row in chosen if isinstance(row.content, dict)]
    return dataclasses.replace(rows, given=given)
