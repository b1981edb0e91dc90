"""Finds out what to expect of an image: its checksum, and the signature that its source or its name demands."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.cache import Expectation
from provisioner.contracts import RemoteImage
from provisioner.contracts.errors import ProvisionerError, SignatureError, SourceError
from provisioner.contracts.redaction import redact
from provisioner.download.checksum_lookup import Found, discover
from provisioner.download.checksum_memory import side_by_side
from provisioner.download.retries import with_retries
from provisioner.pipeline.plan import check_checksum, unverified_warning
from provisioner.signatures import read_key, search

if TYPE_CHECKING:
    from provisioner.contracts import Checksum, ImageSource
    from provisioner.pipeline.job_run import JobRun, JobSpec
    from provisioner.pipeline.pipeline import Pipeline
    from provisioner.signatures import Key, Proof

log = structlog.get_logger(__name__)


async def expectation_of(pipeline: Pipeline, run: JobRun, source: ImageSource) -> Expectation:
    """Return what to expect of the run's image, and set the run's checksum and signer.

    No server is asked if the cache has an image with the request's own checksum and, if a signature is demanded, the
    record that it was verified with the same key file.
    """
    spec, may_use, cache = run.spec, pipeline.may_use(run.spec), pipeline.cache
    url, key = spec.image_url, await key_for(pipeline, run.spec, source)
    if spec.checksum is not None:
        entry = cache.find(spec.checksum, url.text, None, may_use)
        if entry is not None and (key is None or entry.signed_under == key.id):
            run.signed_by = None if key is None else entry.signed_by
            remote = RemoteImage(url, entry.size, None, accepts_ranges=True)
            return Expectation(remote=remote, checksum=spec.checksum, may_use=may_use)
    ask = partial(_ask, pipeline, run, source, key)
    remote, found, proof = await with_retries(ask, cache.attempts, partial(_wait, run))
    await run.pin(remote.pinned)
    if proof is not None and (signed := proof.signed) is not None:
        run.signed_by = signed[1]
        if spec.checksum is None:
            found = Found(signed[0], proof.where)
        entry = cache.find(signed[0], url.text, None, may_use)
        if entry is not None:
            await cache.note_signature(entry.sha256, signed[1], proof)
    if found.checksum is None and key is not None:
        found = await with_retries(lambda: discover(source, url, remote), cache.attempts, partial(_wait, run))
    # A signature of the image itself proves more than a checksum.
    check_checksum(found, url, required=pipeline.require_checksum and proof is None)
    run.checksum = found.checksum
    run.warning = unverified_warning(found, url) if proof is None else None
    if run.warning is not None:
        log.warning("the image is not verified", url=str(url), checksum_files=found.useless_files())
    return Expectation(remote=remote, checksum=found.checksum, may_use=may_use, proof=proof, origin=found.origin)


async def _ask(
    pipeline: Pipeline, run: JobRun, source: ImageSource, key: Key | None
) -> tuple[RemoteImage, Found, Proof | None]:
    """Ask for the image and at the same time for what proves it: the demanded signature, else a checksum."""
    spec, found = run.spec, Found(run.spec.checksum, "the request")
    stat = partial(_stat, run, source)
    if key is not None:
        remote, proof = await side_by_side(stat, partial(find_proof, pipeline, spec, source, key))
        if isinstance(proof, ProvisionerError):
            raise proof
        return remote, found, proof
    if spec.checksum is not None:
        return await stat(), found, None
    return *await pipeline.checksums.look_up(source, spec.image_url, stat), None


async def find_proof(pipeline: Pipeline, spec: JobSpec, source: ImageSource, key: Key) -> Proof:
    """Return the signature that the image must have. Raises SignatureError, RemoteUnavailableError."""
    settings = pipeline.signature_for(spec, source)
    assert settings is not None
    proof = await search(settings, key, source, spec.image_url, spec.checksum)
    signed, asked = proof.signed, spec.checksum
    if signed is not None and asked is not None and asked.algorithm == signed[0].algorithm and asked != signed[0]:
        raise SignatureError(
            f"{proof.where} is of an image with {signed[0]}, but the request expects {asked}; leave the checksum out "
            "to get what the publisher signed"
        )
    return proof


async def signed_checksum(pipeline: Pipeline, run: JobRun, source: ImageSource) -> Checksum | None:
    """Return the checksum that is expected now, None if there is none; for a job whose image did not match."""
    url = run.spec.image_url
    try:
        key = await key_for(pipeline, run.spec, source)
        if key is not None:
            signed = (await find_proof(pipeline, run.spec, source, key)).signed
            return None if signed is None else signed[0]
        return (await discover(source, url, await _stat(run, source))).checksum
    except (SourceError, SignatureError):
        return None


def is_proven(run: JobRun, expectation: Expectation) -> bool:
    """Return whether the expected checksum itself is signed, or no signature is demanded."""
    proof = expectation.proof
    return proof is None or (proof.signed is not None and proof.signed[0] == run.checksum)


async def key_for(pipeline: Pipeline, spec: JobSpec, source: ImageSource) -> Key | None:
    """Return the key that the demanded signature is checked with, None if none is demanded. Raises SignatureError."""
    settings = pipeline.signature_for(spec, source)
    return None if settings is None else await trio.to_thread.run_sync(read_key, settings)


async def _stat(run: JobRun, source: ImageSource) -> RemoteImage:
    """Ask the source about the job's image: about the one that its url stood for when the job first asked."""
    url = run.spec.image_url
    if run.pinned_url is None:
        return await source.stat(url)
    return replace(await source.stat(run.pinned_url), url=url, pinned=run.pinned_url)


def _wait(run: JobRun, error: str | None) -> None:
    """Show readers of the job for which error it waits."""
    run.progress.waiting_for = lambda: redacted(error)


def redacted(error: str | None) -> str | None:
    """Return an error without the query of any url in it, which may be a signature."""
    return None if error is None else redact(error)
