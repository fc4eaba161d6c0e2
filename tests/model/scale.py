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


def seeds(count: int) -> list[int | None]:
    """Seeds of random histories: half of them the same every time, half fresh (`None`); MODEL_SEED alone where set.

    A fresh one is chosen by the test itself (`chosen`), so that all processes of a test run collect the same tests.
    """
    repeated = os.environ.get("MODEL_SEED")
    if repeated is not None:
        return [int(repeated)]
    total = scaled(count)
    return [*range(total - total // 2), *([None] * (total // 2))]


def chosen(seed: int | None) -> int:
    """The seed, or a fresh one; either way it is printed with what repeats it."""
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    print(f"repeat with MODEL_SEED={seed}")
    return seed
