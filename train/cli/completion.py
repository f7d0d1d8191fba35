"""Completes `stabilab` in bash, zsh and fish, from the table of commands and the files in conf/.

`stabilab completion bash` prints a script to source. It calls `stabilab completion words ...` with the words typed so
far, the last of them unfinished, and offers what that prints; paths are left to the shell.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from train.cli.commands import COMMANDS
from train.config.choices import choices, default_choices

# In bash `=` ends a word. What is offered may then only contain what follows it.
BASH = """\
_stabilab() {
  local line="${COMP_LINE:0:COMP_POINT}" word
  read -ra words <<<"$line"
  [[ "$line" == *" " ]] && words+=("")
  word="${words[-1]}"
  mapfile -t COMPREPLY < <(stabilab completion words "${words[@]:1}" 2>/dev/null)
  [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
  [[ "${COMPREPLY[*]}" == *[=.] ]] && compopt -o nospace
}
complete -o default -F _stabilab stabilab
"""
ZSH = """\
#compdef stabilab
_stabilab() {
  local -a found=(${(f)"$(stabilab completion words "${words[@]:1:$((CURRENT-1))}" 2>/dev/null)"})
  (( ${#found} )) && compadd -S '' -- $found || _files
}
compdef _stabilab stabilab
"""
FISH = """\
complete -c stabilab -a '(stabilab completion words (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def complete(arguments: Sequence[str]) -> None:
    """Prints a shell's script, or what can replace the last of the words. Exits with 2 for an unknown shell."""
    first, *words = arguments or [""]
    if first == "words":
        print(*candidates(words or [""]), sep="\n")
    elif first in SCRIPTS:
        print(SCRIPTS[first], end="")
    else:
        print(f"error: completion {first}: write stabilab completion bash, zsh or fish", file=sys.stderr)
        sys.exit(2)


def candidates(words: Sequence[str]) -> list[str]:
    """Returns what can replace the last of the words after `stabilab`."""
    *before, word = words
    if not before:
        offered = [*COMMANDS, "completion", "--help", "--version"]
    elif before[-1] in ("--help", "-h"):
        offered = [*choices(), "fields", "all"]
    elif before[0] == "completion":
        offered = list(SCRIPTS)
    elif before[0] not in COMMANDS:
        offered = []
    else:
        takes = COMMANDS[before[0]].takes
        offered = list(_overrides(word, before)) if takes in ("overrides", "findings") else []
        offered += choices()["experiment"] if takes == "findings" else []
    return [text for text in offered if text.startswith(word)]


def _overrides(word: str, before: Sequence[str]) -> Iterator[str]:
    """Yields `axis=choice` for the axis of the word, `axis.field=` for its fields, or `axis=` and `field=` for all.

    A comma begins another value of a grid. Fields are those of the choice that the words before it choose.
    """
    from train.config.choices import default_fields, read, shared_fields

    groups = choices()
    group, equals, value = word.partition("=")
    if equals:
        first = value[: value.rfind(",") + 1]
        yield from (f"{group}={first}{name}" for name in groups.get(group, ()))
        return
    axis, dot, _ = word.partition(".")
    if dot and axis in groups:
        chosen = [text.partition("=")[2] for text in before if text.startswith(f"{axis}=")]
        name = [default_choices().get(axis) or "", *chosen][-1]
        fields = dict(shared_fields(axis))
        fields |= read(f"{axis}/{name}") if name in groups[axis] else {}
        yield from (f"{axis}.{field}=" for field in fields if field != "name")
        return
    yield from (f"{group}=" for group in groups if "/" not in group)
    yield from (f"{field}=" for field, value in default_fields().items() if field != "hydra" and field not in groups)
