"""Data: demonstrations and prompts as grain pipelines, chat templates, and the synthetic task."""

from typing import TYPE_CHECKING

from jaxgeom.lazy import import_when_asked

if TYPE_CHECKING:
    from .arithmetic import ArithmeticTask as ArithmeticTask
    from .chat import encode_demonstration as encode_demonstration
    from .chat import encode_prompt as encode_prompt
    from .chat import load_tokenizer as load_tokenizer
    from .embedded import embedded_model as embedded_model
    from .pipelines import Prompt as Prompt
    from .pipelines import all_prompts as all_prompts
    from .pipelines import demonstration_batches as demonstration_batches
    from .pipelines import prompt_batches as prompt_batches
    from .prepared import Limits as Limits
    from .prepared import Prepared as Prepared
    from .preparing import prepare_demonstrations as prepare_demonstrations
    from .preparing import prepare_prompts as prepare_prompts
    from .row_settings import RowSettings as RowSettings
    from .rows import read_rows as read_rows
    from .rows import write_jsonl as write_jsonl
else:
    import_when_asked(__name__)
