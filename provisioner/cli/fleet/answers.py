"""Answers of hosts in the form that tables rely on: what has another type than the API says is left out.

One host with a bad proxy or of a later version must not end a command for the others. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_JOB_NUMBERS = ("bytes_processed", "bytes_total", "eta_sec", "percent")
_TARGET_NUMBERS = ("size_bytes", "free_bytes", "freeable_bytes")


def job_of(answer: Any) -> dict[str, Any]:
    """Return a job: it has an id and a status; objects and numbers are such. Raises TypeError if it is none."""
    if not isinstance(answer, dict) or not all(isinstance(answer.get(name), str) for name in ("job_id", "status")):
        raise TypeError("this is no job")
    job = {name: value for name, value in answer.items() if name not in {"progress", "volume", "warnings"}}
    if isinstance(answer.get("progress"), dict):
        job["progress"] = _with_numbers(answer["progress"], _JOB_NUMBERS)
    volume = answer.get("volume")
    names = ("name", "target", "path", "provisioned_by", "size_bytes")
    if isinstance(volume, dict) and all(name in volume for name in names) and _is_number(volume["size_bytes"]):
        job["volume"] = volume
    if isinstance(answer.get("warnings"), list):
        job["warnings"] = answer["warnings"]
    job.setdefault("created_at", "")
    return job


def target_of(answer: Any) -> dict[str, Any]:
    """Return a target; its space and the fill of its pool are numbers. Raises TypeError if it is none."""
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        raise TypeError("this is no target")
    target = _with_numbers(answer, _TARGET_NUMBERS)
    pool = target.pop("thin_pool", None)
    if isinstance(pool, dict):
        target["thin_pool"] = {name: value for name, value in pool.items() if _is_number(value)}
    return target


def health_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the health of a service. Raises TypeError if it is none."""
    if not isinstance(answer.get("status"), str):
        raise TypeError("this is no health")
    return dict(answer)


def _with_numbers(fields: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names or _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
