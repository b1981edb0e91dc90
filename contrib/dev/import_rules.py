"""A contract for import-linter that lists the allowed imports.

import-linter's own ``forbidden`` contract lists the forbidden ones, so any module could import a new one until it is
added there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from importlinter import Contract, ContractCheck, fields, output

if TYPE_CHECKING:
    from grimp import ImportGraph


class OnlyContract(Contract):  # type: ignore[misc]
    """From the package ``within``, ``source_modules`` import only ``allowed_modules``, without their submodules."""

    source_modules = fields.SetField(fields.StringField())
    allowed_modules = fields.SetField(fields.StringField())
    within = fields.StringField()

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002
        wrong: list[tuple[str, str]] = []
        for source in sorted(str(name) for name in self.source_modules):
            for module in sorted({source} | graph.find_descendants(source)):
                imported = graph.find_modules_directly_imported_by(module)
                ours = {name for name in imported if name == self.within or name.startswith(f"{self.within}.")}
                wrong += [(module, name) for name in sorted(ours - {str(name) for name in self.allowed_modules})]
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for module, name in check.metadata["wrong"]:
            output.print_error(f"{module} imports {name}, which is not on the list")
