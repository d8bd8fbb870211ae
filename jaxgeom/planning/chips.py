"""What the makers publish of their chips: the rates that a roofline is drawn from."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Published rates of one chip.

    Attributes:
        name: by which it is known.
        flops: bf16 operations a second of its matrix units.
        memory: bytes a second of its main memory.
        interconnect: bytes a second that it sends over all of its links together.
        source: where the numbers stand.
    """

    name: str
    flops: float
    memory: float
    interconnect: float
    source: str


_CLOUD = "https://cloud.google.com/tpu/docs"
# By the compiler's name of the device's kind. The interconnect of TPUs is published for both directions together
# (v5e 400, v6e 800 GB/s) or in Gbit/s for one (v5p 4800); v4: 6 links of 50 GB/s (arXiv 2304.01433, table 4). That of
# GPUs is NVLink's: half of the published bidirectional rate.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 1200e9, 300e9, f"{_CLOUD}/v4"),
    "TPU v5 lite": Chip("v5e", 197e12, 819e9, 200e9, f"{_CLOUD}/v5e"),
    "TPU v5": Chip("v5p", 459e12, 2765e9, 600e9, f"{_CLOUD}/v5p"),
    "TPU v6 lite": Chip("v6e", 918e12, 1638e9, 400e9, f"{_CLOUD}/v6e"),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 312e12, 2039e9, 300e9, "https://www.nvidia.com/en-us/data-center/a100"),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 3350e9, 450e9, "https://www.nvidia.com/en-us/data-center/h100"),
    "NVIDIA H200": Chip("H200", 989e12, 4800e9, 450e9, "https://www.nvidia.com/en-us/data-center/h200"),
}


class Roofline(NamedTuple):
    """Seconds that a program takes at least, were one rate alone its limit.

    Attributes:
        flops: by its matrix products.
        memory: by the bytes of main memory.
        interconnect: by the bytes that are sent, all links busy.
    """

    flops: float
    memory: float
    interconnect: float

    @property
    def binds(self) -> str:
        """The field whose seconds are most."""
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def seconds(self) -> float:
        """The most of the three."""
        return max(self)


def roofline(chip: Chip, *, flops: float, memory: float, sent: float) -> Roofline:
    """The roofline of a program.

    Args:
        chip: whose rates count.
        flops: operations of one chip.
        memory: bytes that it reads and writes.
        sent: bytes that it sends to others.
    """
    return Roofline(flops / chip.flops, memory / chip.memory, sent / chip.interconnect)
