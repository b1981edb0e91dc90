"""URL rules that are only matched, because the service never builds a URL from a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart.routing import QuartRule

if TYPE_CHECKING:
    from collections.abc import Callable


class MatchedRule(QuartRule):
    """A rule without the two functions that werkzeug compiles for each rule to build its URLs.

    To compile them for all rules takes 50 ms of processor time. If werkzeug no longer calls this
    private method, the start takes that time again, and nothing else changes.
    """

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:  # noqa: ARG002
        return _build_no_url


def _build_no_url(rule: QuartRule, **_values: object) -> tuple[str, str]:
    raise NotImplementedError(f"the rule {rule.rule} is only matched; it builds no URL")
