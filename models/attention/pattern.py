"""Patterns: which blocks have a mixing rule.

A word names the blocks that have the rule of the `attention` axis, the others have softmax. The words are those of the
hybrids of Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602), blocks counted from 1. The paper has 24
blocks; what a half is of an odd number of them is our reading: the lower half is the smaller one.

A list names a rule for each block and is repeated over the blocks, `self` is the rule of the axis; the others are as
their files have them.
"""

from collections.abc import Callable, Collection

from conf.axis import near

SELF = "self"
OTHERS = "softmax"


def _middle(block: int, depth: int) -> bool:
    half = max(1, depth // 2)
    first = (depth - half) // 2 + 1
    return first <= block < first + half


# Whether block 1 ... depth has the rule.
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
    """The rule of each block from the first, `self` for the one of the axis."""
    if isinstance(pattern, str):
        return [SELF if WORDS[pattern](block, depth) else OTHERS for block in range(1, depth + 1)]
    return [pattern[block % len(pattern)] for block in range(depth)]


def written(pattern: Pattern) -> str:
    """As on the command line."""
    return pattern if isinstance(pattern, str) else f"[{','.join(pattern)}]"


def check(pattern: object, rules: Collection[str]) -> Pattern:
    """ValueError, one line, for what is no pattern of these rules."""
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
        raise ValueError(f"{written(tuple(pattern))} has no block of the rule itself: use self for it")
    return tuple(pattern)


def check_depth(rule: str, pattern: Pattern, depth: int) -> None:
    """ValueError, one line, where a model of so many blocks doesn't have all that the pattern names."""
    used = set(names(pattern, depth))
    missing = {SELF} - used if isinstance(pattern, str) else set(pattern) - used
    if depth > 0 and missing:
        lacks = rule if SELF in missing else sorted(missing)[0]
        raise ValueError(
            f"attention.pattern={written(pattern)} leaves no block to {lacks} with attention={rule} and "
            f"model.depth={depth}: use attention.pattern=all or a deeper model"
        )
