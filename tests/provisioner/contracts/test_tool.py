"""Running tools: their output, their end, and that no process is left."""

import os
import sys
from pathlib import Path

import pytest
import trio

from provisioner.contracts.errors import ToolError
from provisioner.contracts.tool import OUTPUT_LIMIT, last_words, run_tool


def sh(script):
    return ["/bin/sh", "-c", script]


def processes_with(argument):
    """Return the ids of running processes with ``argument`` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def mark(tmp_path):
    """A unique argument for command lines: a number of seconds to sleep."""
    return f"{100000 + os.getpid()}.{abs(hash(str(tmp_path))) % 10**9}"


async def test_run_tool_returns_output():
    result = await run_tool(sh("echo out; echo err >&2"))
    assert (result.status, result.stdout, result.stderr) == (0, "out\n", "err\n")


async def test_run_tool_stderr_after_stdout_closed():
    with pytest.raises(ToolError, match="late words") as caught:
        await run_tool(sh("exec >&-; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo late words >&2; exit 7"))
    assert caught.value.status == 7


async def test_run_tool_failure_message():
    with pytest.raises(ToolError, match=r"^sh failed with exit status 3: first; second$") as caught:
        await run_tool(sh("echo first >&2; echo >&2; echo second >&2; exit 3"))
    assert (caught.value.tool, caught.value.status) == ("sh", 3)


async def test_run_tool_unchecked_failure():
    assert (await run_tool(sh("exit 5"), check=False)).status == 5


async def test_run_tool_killed_by_signal():
    with pytest.raises(ToolError, match="signal SIGSEGV"):
        await run_tool(sh("kill -SEGV $$"))


async def test_run_tool_missing_program():
    with pytest.raises(ToolError, match="lvs could not be started: No such file"):
        await run_tool(["/nowhere/lvs"])


async def test_run_tool_arguments_without_shell():
    assert (await run_tool(["/bin/echo", "$(id); `id` *"])).stdout == "$(id); `id` *\n"


async def test_run_tool_environment_and_stdin(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    result = await run_tool(sh("env; cat"))
    assert "hunter2" not in result.stdout
    assert "LC_ALL=C\n" in result.stdout


async def test_run_tool_inherited_descriptors(tmp_path):
    (tmp_path / "a").write_text("given")
    given = os.open(tmp_path / "a", os.O_RDONLY)
    kept = os.open(tmp_path / "a", os.O_RDONLY)
    os.set_inheritable(kept, True)
    try:
        result = await run_tool(sh(f"cat /proc/self/fd/{given}; ls /proc/self/fd"), pass_fds=[given])
    finally:
        os.close(given)
        os.close(kept)
    assert result.stdout.startswith("given")
    assert str(kept) not in result.stdout.split()


async def test_run_tool_output_limit():
    chunks = []
    result = await run_tool(
        [sys.executable, "-c", f"import sys; sys.stdout.write('x' * {3 * OUTPUT_LIMIT})"], on_output=chunks.append
    )
    assert sum(map(len, chunks)) == 3 * OUTPUT_LIMIT
    assert len(result.stdout) == OUTPUT_LIMIT


async def test_run_tool_output_not_utf8():
    assert (await run_tool(sh(r"printf 'a\377b'"))).stdout == "a\ufffdb"


async def test_run_tool_timeout(mark):
    with pytest.raises(ToolError, match=r"did not end within 0\.2 s") as caught:
        await run_tool(sh(f"echo before >&2; sleep {mark}"), timeout=0.2)
    assert "before" in caught.value.stderr
    assert processes_with(mark) == []


@pytest.mark.parametrize(
    "script",
    ["exec sleep {0}", "sleep {0} & sleep {0} & echo; wait", "trap '' TERM; echo; while :; do sleep {0}; done"],
)
async def test_run_tool_cancelled_with_children(mark, script):
    scope = trio.CancelScope()
    with scope:
        await run_tool(sh("echo go;" + script.format(mark)), on_output=lambda _: scope.cancel())
    assert scope.cancelled_caught
    assert processes_with(mark) == []


async def test_run_tool_cancelled_orphans(mark):
    scope = trio.CancelScope()
    with scope:
        await run_tool(sh(f"sleep {mark} & echo"), on_output=lambda _: scope.cancel())
    assert processes_with(mark) == []


async def test_run_tool_on_output_fails(mark):
    def fail(chunk):
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        await run_tool(sh(f"echo; sleep {mark}"), on_output=fail)
    assert processes_with(mark) == []


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("", "no output on stderr"),
        (" \n\n", "no output on stderr"),
        ("one\n\n  two  \n", "one; two"),
        ("x" * 500, "x" * 400),
    ],
)
def test_last_words(stderr, expected):
    assert last_words(stderr) == expected
