"""How long the model tests search: MODEL_SCALE multiplies the number of examples, and MODEL_SEED repeats a history."""

import os
import random

from hypothesis import Phase

SCALE = float(os.environ.get("MODEL_SCALE", "1"))


# MODEL_SHRINK=0 leaves a failing history as it was found.
PHASES = tuple(Phase) if os.environ.get("MODEL_SHRINK") != "0" else (Phase.explicit, Phase.generate)


def scaled(examples: int) -> int:
    """So many examples, more or fewer as MODEL_SCALE says; at least one."""
    return max(1, round(examples * SCALE))


def seeds(count: int) -> list[int]:
    """Seeds of random histories: the same half every time, and half fresh; only MODEL_SEED where it is set."""
    repeated = os.environ.get("MODEL_SEED")
    if repeated is not None:
        return [int(repeated)]
    total = scaled(count)
    fixed = total - total // 2
    return [*range(fixed), *(random.SystemRandom().randrange(2**32) for _ in range(total - fixed))]
