"""The two small models that come with the package: `base` and `teacher`, Hugging Face directories."""

from pathlib import Path

EMBEDDED_MODELS = Path(__file__).parent / "embedded_models"


def embedded_model(name: str) -> Path:
    """The directory of an embedded model.

    Args:
        name: `base` (plain additions only) or `teacher` (solves the task); see experiments/train_embedded_models.py.

    Returns:
        A Hugging Face directory.

    Raises:
        ValueError: another name.
    """
    directory = EMBEDDED_MODELS / name
    if not (directory / "config.json").is_file():
        held = sorted(path.name for path in EMBEDDED_MODELS.iterdir() if path.is_dir())
        raise ValueError(f"name={name!r}: the embedded models are {', '.join(held)}")
    return directory
