"""What a run is told of its rows, apart from what reads them: help waits for no reader."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class RowSettings:
    """How rows become tokens.

    Attributes:
        on_bad_row: What a row does that cannot be used: refuse the run before it starts, or leave the row out and say
            how many were.
        chat_template: A Jinja file in place of the tokenizer's own template.
        template_argument: `NAME=VALUE` for the template, such as `enable_thinking=false`; may be given several times.
    """

    on_bad_row: Literal["refuse", "skip"] = "refuse"
    chat_template: Path | None = None
    template_argument: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
