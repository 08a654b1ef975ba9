"""What a sweep of probes is told besides the run, the probes and the checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from data_index.errors import InvalidRange

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """
    Attributes:
        num_tokens: about how many tokens of rows are looked at, in rows of at most `length` (None: as the run's).
        seed: of samples of rows, and of sampling.
        max_fetch: bytes that may be fetched from servers; None: 1 GiB.
        forget_fetched: delete what was fetched of a checkpoint's weights once they are read, so that disk holds two.
        device: auto, cpu or cuda. precision: fp32 or bf16, of models. threads: of the CPU; None: all its cores, or as
            OMP_NUM_THREADS says.
        num_generated: tokens after each prompt of `generations`.
        step_size, localization: of the sampling of `learning-coefficient`.
        num_fewshot, limit: of tasks; None: as the task says, all its instances.
    Raises:
        InvalidRange
    """

    num_tokens: int = 65_536
    length: int | None = None
    seed: int = 0
    max_fetch: int | None = None
    forget_fetched: bool = False
    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    num_generated: int = 32
    step_size: float = 1e-5
    localization: float = 100.0
    num_fewshot: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InvalidRange(f"--precision takes {' or '.join(PRECISIONS)}, not {self.precision!r}")
        if self.num_tokens < 2 or (self.length is not None and self.length < 2):
            asked = f"--num-tokens {self.num_tokens}" if self.num_tokens < 2 else f"--length {self.length}"
            raise InvalidRange(f"rows of two tokens or more are looked at, not {asked}")
