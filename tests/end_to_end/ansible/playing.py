"""Installs the collection as a user does, runs plays with the real ansible-core, and returns each task's result."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from contrib.clients.toolchain import python_environment

COLLECTION = Path(__file__).resolve().parents[3] / "contrib" / "ansible"
# The module runs with this Python, which has nothing but its standard library for it: it is not that of ansible-core.
HOST_PYTHON = "/usr/bin/python3"
# Writes a line for each result.
CALLBACK = """
import json, os
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "record"

    def _record(self, state, result):
        found = {"state": state, "task": result._task.get_name(), "result": result._result}
        with open(os.environ["RECORD"], "a") as file:
            file.write(json.dumps(found, default=str) + "\\n")

    def v2_runner_on_ok(self, result):
        self._record("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._record("failed", result)

    def v2_runner_on_unreachable(self, result):
        self._record("unreachable", result)
"""


class Ended(NamedTuple):
    status: int
    results: list[dict]
    output: str

    @property
    def only(self) -> dict:
        """Return the result of the only task."""
        (found,) = self.results
        return found

    @property
    def recap(self) -> str:
        return self.output.partition("PLAY RECAP")[2]


def program(name: str) -> Path:
    """Return the path of one of ansible-core's programs."""
    return python_environment("ansible-environment", COLLECTION / "requirements.txt").with_name(name)


def install(folder: Path) -> None:
    """Build the collection and install it below ``folder``."""
    galaxy = program("ansible-galaxy")
    environment = {**os.environ, "ANSIBLE_HOME": str(folder / "home")}
    build = [galaxy, "collection", "build", "--output-path", folder, COLLECTION]
    subprocess.run(build, check=True, capture_output=True, env=environment)
    (archive,) = folder.glob("lvp-provisioner-*.tar.gz")
    command = [galaxy, "collection", "install", "--offline", "--collections-path", folder / "collections", archive]
    subprocess.run(command, check=True, capture_output=True, env=environment)


@dataclass
class Ansible:
    """ansible-core with the collection installed in ``folder``; ``options`` are those of each module.

    ``keywords`` are further keywords of each play.
    """

    folder: Path
    options: dict
    keywords: dict = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("LVP_", "ANSIBLE_"))}
        return {
            **plain,
            "HOME": str(self.folder / "home"),
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "collections"),
            "ANSIBLE_CALLBACK_PLUGINS": str(self.folder / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "record",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "RECORD": str(self.folder / "record"),
            "LC_ALL": "C.UTF-8",
        }

    def command(self, tasks: list[dict], *words: str) -> list[str]:
        """Return the command line of a play with these tasks."""
        (self.folder / "callback").mkdir(exist_ok=True)
        (self.folder / "callback" / "record.py").write_text(CALLBACK)
        (self.folder / "record").write_text("")
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "module_defaults": {"group/lvp.provisioner.all": self.options},
            "vars": {"ansible_python_interpreter": HOST_PYTHON},
            "tasks": tasks,
            **self.keywords,
        }
        (self.folder / "play.json").write_text(json.dumps([play]))
        return [str(program("ansible-playbook")), "-i", "localhost,", str(self.folder / "play.json"), *words]

    def play(self, tasks: list[dict], *words: str, **variables: str) -> Ended:
        """Run a play with these tasks; ``words`` are further options of ansible-playbook."""
        environment = {**self.environment, **variables}
        command = self.command(tasks, "--diff", *words)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return Ended(done.returncode, self.results(), done.stdout + done.stderr)

    def results(self) -> list[dict]:
        """Return the results of the play so far."""
        lines = map(json.loads, (self.folder / "record").read_text().splitlines())
        return [{"state": line["state"], "task": line["task"], **line["result"]} for line in lines]

    def module(self, kind: str, /, *words: str, **options: object) -> dict:
        """Run one module and return its result, also if it fails."""
        return self.play([{f"lvp.provisioner.{kind}": options}], *words).only

    def each(self, kind: str, options: list[dict], *words: str) -> list[dict]:
        """Run a module once for each of ``options``, in one play; return the results, also of those that fail."""
        tasks = [{f"lvp.provisioner.{kind}": one, "ignore_errors": True} for one in options]
        return self.play(tasks, *words).results
