"""Patterns: which blocks use a mixing rule.

A word selects the blocks that use the rule of the `attention` axis; the others use softmax. The words are the hybrids
of Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602), with blocks counted from 1. The paper has 24 blocks.
For an odd number we choose the lower half to be the smaller one.

A list names one rule per block and repeats over the blocks. `self` is the rule of the axis; other rules use their
default settings.
"""

from collections.abc import Callable, Collection

from conf.axis import near

SELF = "self"
OTHERS = "softmax"


def _middle(block: int, depth: int) -> bool:
    half = max(1, depth // 2)
    first = (depth - half) // 2 + 1
    return first <= block < first + half


# Whether a block (1 ... depth) uses the rule, given block and depth.
WORDS: dict[str, Callable[[int, int], bool]] = {
    "all": lambda block, depth: True,
    "odd": lambda block, depth: block % 2 == 1,
    "even": lambda block, depth: block % 2 == 0,
    "top_half": lambda block, depth: block > depth // 2,
    "middle": _middle,
    "bottom_half": lambda block, depth: block <= depth // 2,
    "every_4": lambda block, depth: block % 4 == 0,
    "first": lambda block, depth: block == 1,
    "last": lambda block, depth: block == depth,
    "bilateral": lambda block, depth: block in (1, depth),
}

Pattern = str | tuple[str, ...]


def names(pattern: Pattern, depth: int) -> list[str]:
    """Returns the rule of each block, first block first; `self` is the rule of the axis."""
    if isinstance(pattern, str):
        return [SELF if WORDS[pattern](block, depth) else OTHERS for block in range(1, depth + 1)]
    return [pattern[block % len(pattern)] for block in range(depth)]


def written(pattern: Pattern) -> str:
    """Formats a pattern as on the command line."""
    return pattern if isinstance(pattern, str) else f"[{','.join(pattern)}]"


def check(pattern: object, rules: Collection[str]) -> Pattern:
    """Returns the pattern. Raises ValueError if it is not one made of these rules."""
    if isinstance(pattern, str):
        if pattern not in WORDS:
            raise ValueError(f"{pattern} is no pattern of blocks: {near(pattern, list(WORDS))}")
        return pattern
    if not isinstance(pattern, list | tuple) or not all(isinstance(name, str) for name in pattern):
        raise ValueError(f"{pattern} is no pattern of blocks: use a word like odd, or a list like [self,softmax]")
    for name in pattern:
        if name != SELF and name not in rules:
            raise ValueError(f"{name} is no rule of attention: {near(name, [SELF, *rules])}")
    if SELF not in pattern:
        raise ValueError(f"{written(tuple(pattern))} gives no block to the rule itself: add self to the list")
    return tuple(pattern)


def check_depth(rule: str, pattern: Pattern, depth: int) -> None:
    """Raises ValueError if a model of this depth has no block for one of the pattern's rules."""
    used = set(names(pattern, depth))
    missing = {SELF} - used if isinstance(pattern, str) else set(pattern) - used
    if depth > 0 and missing:
        lacks = rule if SELF in missing else sorted(missing)[0]
        raise ValueError(
            f"attention.pattern={written(pattern)} leaves no block to {lacks} with attention={rule} and "
            f"model.depth={depth}: use attention.pattern=all or a deeper model"
        )
