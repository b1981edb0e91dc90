"""Tests of how the blocks of a recipe are read."""

from tests.recipes.blocks import blocks

PAGE = """\
Text with `code`.

<!-- test: file /etc/x.toml -->
```toml
a = 1
```

<!-- test: status 4 -->
```console
# first \\
    continued
...
one ... here
$ cat >y <<'END'
# not a prompt
END
```
"""


def test_file_and_commands():
    file, console = blocks(PAGE)
    assert (file.language, file.mark, file.text) == ("toml", "file /etc/x.toml", "a = 1\n")
    first, second = console.commands()
    assert (first.text, first.status) == ("first \\\n    continued", 0)
    assert (second.text, second.output, second.status) == ("cat >y <<'END'\n# not a prompt\nEND", [], 4)


def test_output_is_compared():
    first, second = blocks(PAGE)[1].commands()
    assert first.matches("any\nlines\none line is here\n")
    assert first.matches("one  here")
    assert not first.matches("one line is here\nand another\n")
    assert not first.matches("One line is here")
    assert second.matches("anything")
