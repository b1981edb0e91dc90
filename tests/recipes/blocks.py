"""The blocks of a recipe, in their order: commands to run, files to write, and what is not run here and why.

A line ``<!-- test: WORDS -->`` before a block, which readers do not see, says what to do with it:

    <!-- test: file PATH -->      the block is the file PATH
    <!-- test: append PATH -->    the block is added to the file PATH
    <!-- test: not run, KEY -->   the block is not run; ``NOT_RUN`` in test_recipes.py has the reason
    <!-- test: status N -->       the last command of the block ends with the status N
    <!-- test: background -->     the command goes on; the next one begins when its output is complete

In a block ``console``, a line that begins with ``$`` or ``#`` is a command, with here-documents and continued lines;
other lines are its output, in which ``...`` stands for anything. Without such lines the output may be anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = re.compile(r"(?m)^(?:<!-- test: (?P<mark>.+) -->\n+)?```(?P<language>\w*)\n(?P<text>(?:.*\n)*?)```$")
_PROMPT = re.compile(r"[$#] ")
_HERE = re.compile(r"<<-?'?(\w+)'?")


@dataclass
class Command:
    """A command, its expected output (empty: any) and its expected exit status."""

    text: str
    output: list[str] = field(default_factory=list)
    status: int = 0
    goes_on: bool = False

    def matches(self, output: str) -> bool:
        """Return whether ``output`` is the expected one."""
        if not self.output:
            return True
        lines = [_any(line) for line in [*self.output, *(["..."] if self.goes_on else [])]]
        return re.fullmatch("".join(lines), output.rstrip("\n") + "\n") is not None


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    mark: str
    text: str

    def commands(self) -> list[Command]:
        """Return the commands of a block ``console``."""
        found = list(_commands(self.text.splitlines()))
        if self.mark.startswith("status "):
            found[-1].status = int(self.mark.removeprefix("status "))
        found[-1].goes_on = self.mark == "background"
        return found


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(found["language"], found["mark"] or "", found["text"]) for found in _BLOCK.finditer(page)]


def _commands(lines: list[str]) -> Iterator[Command]:
    command, rest = None, iter(lines)
    for line in rest:
        if not _PROMPT.match(line):
            assert command is not None, f"output before the first command: {line}"
            command.output.append(line)
            continue
        if command is not None:
            yield command
        text = [line[2:]]
        while text[-1].endswith("\\"):
            text.append(next(rest))
        if here := _HERE.search(text[-1]):
            while text[-1] != here[1]:
                text.append(next(rest))
        command = Command("\n".join(text))
    if command is not None:
        yield command


def _any(line: str) -> str:
    if line == "...":
        return r"(?:.*\n)*"
    return ".*".join(re.escape(part) for part in line.split("...")) + r"\n"
