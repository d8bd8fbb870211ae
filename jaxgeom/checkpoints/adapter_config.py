"""What `adapter_config.json` says: which kind of adapter it is, of which modules, by which scale; as PEFT reads it."""

import math
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import regex

from jaxgeom.errors import UserError, listed

_SECONDS = 2.0  # for one pattern on one name: a pattern may ask for more than the age of the world
_CONV1D = ("gpt2", "imagegpt", "decision_transformer", "openai-gpt")
_CONV1D_MODULES = ("c_attn", "c_proj", "c_fc", "q_attn")
_OTHER_KINDS = (
    "use_dora", "use_bdlora", "use_qalora", "alora_invocation_tokens", "arrow_config", "layer_replication",
    "target_parameters", "trainable_token_indices", "monteclora_config",
)  # fmt: skip


class AdapterConfig:
    """The configuration of a LoRA adapter.

    Args:
        directory: the adapter's.
        fields: of its `adapter_config.json`.

    Raises:
        UserError: a kind of adapter that is not `W0 + scale*BA`, a field of another type.
    """

    def __init__(self, directory: pathlib.Path, fields: Mapping[str, Any]) -> None:
        self._fields, self._directory, self._where = fields, directory, directory / "adapter_config.json"
        kind = fields.get("peft_type")
        if kind != "LORA":
            raise UserError(
                f"{directory}: an adapter of type {kind!r}; LoRA adapters alone are read, merge it into its base"
            )
        start = fields.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
            raise UserError(
                f"{directory}: a LoRA adapter begun by {start!r}, which changes its base too; merge it first"
            )
        for field in _OTHER_KINDS:
            if fields.get(field):
                raise UserError(
                    f"{directory}: a LoRA adapter with {field}, which is not W0 + scale*BA; merge it into its base"
                )

    def require_rank(self, module: str, rank: int) -> None:
        """Holds the rank that it gives a module against that of its matrices; one that it does not give is theirs.

        Args:
            module: its name in the model.
            rank: of its matrices.

        Raises:
            UserError: they differ, and which scale the adapter was trained with cannot be told.
        """
        given = self._by_pattern("rank_pattern", module)
        field, given = ("r", self._fields.get("r")) if given is None else ("rank_pattern", given)
        if given is not None and (isinstance(given, bool) or given != rank):
            raise UserError(
                f"{self._where}: {field}={repr(given)[:40]}, but its file holds matrices of rank {rank} for {module!r}:"
                " one of the two is stale"
            )

    def scale(self, module: str, rank: int) -> float:
        """`alpha / r`, or `alpha / √r` for rank-stabilised LoRA, with the module's own alpha where a pattern has it.

        Args:
            module: its name in the model.
            rank: of its matrices.
        """
        alpha = self._by_pattern("alpha_pattern", module)
        alpha = self._fields.get("lora_alpha") if alpha is None else alpha
        try:
            value = math.nan if isinstance(alpha, bool) or not isinstance(alpha, int | float) else float(alpha)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise UserError(f"{self._where}: lora_alpha={repr(alpha)[:40]} is no number")
        return value / math.sqrt(rank) if self._fields.get("use_rslora") else value / rank

    def is_flipped(self, module: str, model: Mapping[str, Any]) -> bool:
        """Whether the base's matrix lies `[in, out]`: PEFT goes by the module's class, whatever `fan_in_fan_out` says.

        Args:
            module: its name in the model.
            model: the base's configuration.

        Source: PEFT, `peft.tuners.lora.layer.dispatch_default`.
        """
        return model.get("model_type") in _CONV1D and module.rpartition(".")[2] in _CONV1D_MODULES

    def notes(self) -> list[str]:
        """What is passed over."""
        if self._fields.get("fan_in_fan_out"):
            return ["fan_in_fan_out is passed over, as PEFT does: the class of a module says how its matrix lies"]
        return []

    def require_fits(self, adapted: Collection[str], whole: Collection[str], base: Iterable[str]) -> list[str]:
        """Holds the modules that it names against those that its file has.

        Args:
            adapted: names of the modules with `lora_A` and `lora_B`, as the model has them.
            whole: names of what the file stores whole.
            base: names of the base's modules.

        Returns:
            Sentences on modules that it names and the file does not have: they stay the base's.

        Raises:
            UserError: the file has what it does not name (PEFT would pass over that), or stores nothing whole of what
                it says is.
        """
        if self._fields.get("target_modules") not in (None, "all-linear"):
            odd = [module for module in adapted if not self._targets(module)]
            if odd:
                fields = [f"{field}={self._fields[field]!r}" for field in ("target_modules", "layers_to_transform",
                          "exclude_modules", "modules_to_save") if self._fields.get(field) is not None]  # fmt: skip
                raise UserError(
                    f"{self._where}: {', '.join(fields)[:200]} leaves out {listed(sorted(odd), 3)}, which its file"
                    " adapts: one of the two is stale"
                )
        saved = self._list("modules_to_save")
        absent = [name for name in saved if not any(_has_word(name, one) for one in whole)]
        if absent:
            raise UserError(
                f"{self._where}: modules_to_save names {listed(absent)}, which its file does not store:"
                " one of the two is stale"
            )
        if not isinstance(self._fields.get("target_modules"), list):
            return []
        missing = sorted(name for name in base if name not in adapted and self._targets(name))
        return [f"target_modules names {len(missing)} modules that its file does not adapt: {listed(missing, 3)}"] * (
            len(missing) > 0
        )

    def _targets(self, module: str) -> bool:
        """Whether PEFT adapts a module.

        Source: PEFT, `peft.tuners.tuners_utils.check_target_module_exists`.
        """
        excluded = self._fields.get("exclude_modules")
        if excluded and self._names(excluded, "exclude_modules", module):
            return False
        if any(_has_word(name, module) for name in self._list("modules_to_save")):
            return False
        targets = self._fields["target_modules"]
        if not self._names(targets, "target_modules", module):
            return False
        layers = self._fields.get("layers_to_transform")
        if isinstance(targets, str) or layers is None or layers == []:
            return True
        wanted = layers if isinstance(layers, list) else [layers]
        pattern = self._fields.get("layers_pattern")
        for one in [pattern] if isinstance(pattern, str) and pattern else pattern or [None]:
            which = r".*?\.[^.]*" if one is None else rf"(?:^|.*?\.){one}"
            found = self._match(rf"{which}\.(?P<idx>\d+)\.", "layers_pattern", module, whole=False)
            if found is not None:
                return int(found["idx"][:18]) in wanted
        return False

    def _names(self, value: Any, field: str, module: str) -> bool:
        if isinstance(value, str):
            return self._match(value, field, module) is not None
        return any(module == one or module.endswith(f".{one}") for one in self._list(field))

    def _list(self, field: str) -> list[str]:
        value = self._fields.get(field) or []
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise UserError(f"{self._where}: {field}={str(value)[:80]} is no list of names of modules")
        return value

    def _by_pattern(self, field: str, module: str) -> Any:
        """The value of the first of a field's patterns that a module's name has; None where it has none.

        Raises:
            UserError: the field is no mapping, or one of its keys is no regular expression.

        Source: PEFT, `peft.utils.other.get_pattern_key`.
        """
        patterns = self._fields.get(field) or {}
        if not isinstance(patterns, dict):
            raise UserError(f"{self._where}: {field}={patterns!r} is no mapping of modules to numbers")
        found = [
            value for key, value in patterns.items()
            if self._match(rf"(?:.*\.)?({key})$", field, module, shown=key, whole=False) is not None
        ]  # fmt: skip
        return found[0] if found else None

    def _match(self, pattern: str, field: str, name: str, *, shown: str | None = None, whole: bool = True) -> Any:
        where = f"{self._where}: {field} has {'the key ' if shown else ''}{(shown or pattern)[:80]!r}"
        try:
            return (regex.fullmatch if whole else regex.match)(pattern, name, timeout=_SECONDS)
        except TimeoutError as error:
            raise UserError(f"{where}, which is not matched against {name!r} within {_SECONDS:g} s") from error
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise UserError(f"{where}, which is no regular expression: {error}") from error


def _has_word(word: str, name: str) -> bool:
    """Whether a dotted name has a word, or words in a row, in it."""
    return f".{word}." in f".{name}."
