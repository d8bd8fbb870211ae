"""What a study says of its confined arms: what they learned beside the free one, and how much of the update leaked."""

from typing import Any

from .formatting import format_number, format_value
from .learned import without_seeds
from .reading import confined_words, from_words, label_of, methods_of, number, seeds_of, spread, spread_words


def confined_sentences(report: dict[str, Any]) -> list[str]:
    """A sentence per confined method: final accuracy, paired difference to the free one of its start, leakage.

    The free one is the unconfined method of the same objective that starts where the confined one does.

    Args:
        report: the content of a study's `report.json`.
    """
    methods = methods_of(report)
    said = []
    for name, method in methods.items():
        words = confined_words(method)
        if not words or label_of(name, method) in without_seeds(report):
            continue
        free = next((other for other in methods if _is_free(methods[other], method)), None)
        own = _finals(method)
        start = f", from {from_words(method)}" if method.get("origin") else ""
        text = f"{label_of(name, method)}, confined {words}{start}: held-out accuracy {_mean(own)}"
        if free is not None:
            beside = _finals(methods[free])
            text += f", {label_of(free, methods[free])} {_mean(beside)}{_difference(own, beside)}"
        leakage = method.get("leakage")
        if isinstance(leakage, dict) and (mean := number(leakage.get("mean"))) is not None:
            largest = number(leakage.get("largest"))
            text += f"; of the energy of its update {_share(mean)} lies outside (mean over matrices"
            text += f"; largest {_share(largest)})" if largest is not None else ")"
        said.append(text + ".")
    return said


def _is_free(one: dict[str, Any], confined: dict[str, Any]) -> bool:
    alike = all(one.get(key) == confined.get(key) and one.get(key) for key in ("objective", "origin"))
    return alike and not one.get("confined") and bool(seeds_of(one))


def _finals(method: dict[str, Any]) -> dict[Any, float]:
    """Final accuracy by seed."""
    found = {seed.get("seed"): number((seed.get("accuracy") or {}).get("final")) for seed in seeds_of(method)}
    return {seed: value for seed, value in found.items() if value is not None}


def _mean(values: dict[Any, float]) -> str:
    if not values:
        return "undefined"
    return format_value("accuracy", sum(values.values()) / len(values)) + _brackets(list(values.values()), (0.0, 1.0))


def _brackets(values: list[float], bounds: tuple[float, float], *, signed: bool = False) -> str:
    span = spread(values, bounds)
    if span is None:
        return ""
    low, high = (format_value("accuracy", value, signed=signed) for value in span)
    return " " + spread_words(len(values), low, high)


def _difference(own: dict[Any, float], free: dict[Any, float]) -> str:
    paired = [own[seed] - free[seed] for seed in own if seed in free]
    if not paired:
        return ""
    mean = format_value("accuracy", sum(paired) / len(paired), signed=True)
    return f" (paired difference {mean}{_brackets(paired, (-1.0, 1.0), signed=True)})"


def _share(value: float) -> str:
    """A share that may be tiny, such as what rounding leaves."""
    if value and abs(value) < 1e-4:
        return format_number(value)
    return " ".join(f"{100 * value:.2g} %".split())
