"""The composition root: creates the parts of the service and owns the order in which they start and stop.

Start: lock the state directory and bind the addresses, then start store, cache, recovery, workers and the API;
``READY=1`` when all of them run. Stop: the API accepts no new jobs, running ones get a grace period and are then rolled
back, then cache, store and back ends close.
"""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import structlog
import trio

from provisioner import __version__, registry
from provisioner.api.app import create_app
from provisioner.api.services import Services
from provisioner.auth.audit_events import Auditor
from provisioner.auth.authenticator import Authenticator
from provisioner.auth.token_keys import token_keys
from provisioner.auth.tokens import TokenFile
from provisioner.cache import UPLOADS, ImageCache
from provisioner.contracts.cancel_shield import shielded
from provisioner.contracts.errors import ConfigError, ProvisionerError, UnavailableError
from provisioner.contracts.tasks import first_cause, leaves
from provisioner.images import ImageResolver
from provisioner.jobs import JobSpec, JobStore, Supervisor
from provisioner.jobs.change_events import newest_ends
from provisioner.jobs.notify import Notifier
from provisioner.jobs.prewarm import prewarm
from provisioner.linux import ioprio, loop_priority, state_lock, systemd
from provisioner.observe import logs
from provisioner.observe.audit import AuditLog
from provisioner.observe.metrics import Metrics
from provisioner.observe.source_health import SourceHealth
from provisioner.observe.status_line import StatusLine
from provisioner.pipeline.pipeline import Pipeline
from provisioner.reload import Reloader
from provisioner.server.connections import serving
from provisioner.server.listener import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from provisioner.back_ends import BackEnds
    from provisioner.config import Config
    from provisioner.contracts import ImageSource

log = structlog.get_logger(__name__)

# Seconds between writes of token uses, which are rare.
_SETTLE = 60.0
# Seconds for the thread that writes the token file; it waits at most one second for the lock.
_SETTLE_TIMEOUT = 5.0
# Seconds to close each part of the service.
_CLOSE_TIMEOUT = 10.0


def run(config: Config, read_again: Callable[[], Config] | None = None, file: Path | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status, 1 on failure. Raises ConfigError.

    SIGHUP calls ``read_again`` for the configuration; without it SIGHUP stops the service too. ``file`` is where it
    was read from.
    """
    logs.configure(config.log.format, config.log.level)
    try:
        return _run(config, read_again, file)
    finally:
        logs.flush()


def _run(config: Config, read_again: Callable[[], Config] | None, file: Path | None) -> int:
    os.umask(0o027)
    ioprio.apply(config.jobs.io_class)
    back_ends = registry.load().build(config)
    back_ends.sources = {name: cast("ImageSource", SourceHealth(one)) for name, one in back_ends.sources.items()}
    try:
        with state_lock.locked(Path(config.state_directory)):
            listener = Listener(config.server)
            listener.bind()
            log.info("starting", configuration=str(file or "none"), state_directory=config.state_directory)
            # The objects loaded so far are permanent; scanning them in each collection would pause the loop for 50 ms.
            gc.freeze()
            loop_priority.raise_priority()
            try:
                trio.run(partial(_main, config, back_ends, listener, read_again), strict_exception_groups=True)
            finally:
                listener.remove_sockets()
    except (BaseExceptionGroup, ProvisionerError) as error:
        return _report(error)
    return 0


def _report(error: BaseException) -> int:
    cause = first_cause(error)
    if any(not isinstance(leaf, ProvisionerError | OSError) for leaf in leaves(error)):
        log.critical("the service failed unexpectedly", exc_info=error)
    else:
        log.critical("the service cannot run", reason=str(cause))
    return 1


async def _main(
    config: Config, back_ends: BackEnds, listener: Listener, read_again: Callable[[], Config] | None
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with _parts(config, back_ends, listener) as services, trio.open_nursery() as outer:
            supervisor = services.supervisor
            await outer.start(services.cache.run)
            await supervisor.recover()
            await outer.start(services.notifier.run, partial(newest_ends, services.store))
            outer.start_soon(services.notifier.feed.run, supervisor.running)
            await outer.start(services.probes.run)
            async with trio.open_nursery() as jobs:
                jobs.start_soon(supervisor.run)
                jobs.start_soon(prewarm, supervisor, config.cache.prewarm, partial(_named, services))
                reloader = Reloader(config, read_again or (lambda: config), listener, services.authenticator)
                services.warnings, services.expires = reloader.warnings, lambda: listener.tls.tls_files.expires
                outer.start_soon(reloader.watch)
                outer.start_soon(reloader.run)
                outer.start_soon(_settle_tokens, services.tokens)
                await _serve(services, listener, signals, reloader if read_again else None)
                jobs.cancel_scope.cancel(reason="shutdown")
            outer.cancel_scope.cancel(reason="shutdown")
    log.info("stopped")


async def _named(services: Services, name: str) -> JobSpec:
    """Return the fetch of a named image to prewarm, and keep in the cache what the name stands for now."""
    cached = services.images.cached(name)
    if cached is not None:  # pinned after a restart too, until the publisher answers
        services.cache.resolved(name, cached.url.text, cached.checksum)
    found = await services.images.resolve(name)
    services.cache.resolved(name, found.url.text, found.checksum)
    return JobSpec(
        image_url=found.url, image_format=found.image_type, checksum=found.checksum, signature=found.signature
    )


@asynccontextmanager
async def _parts(config: Config, back_ends: BackEnds, listener: Listener) -> AsyncIterator[Services]:
    """Create the parts of the service in order, and close them in reverse."""
    metrics = Metrics()
    logs.report_drops(lambda sink, count: metrics.log_dropped.labels(sink).inc(count))
    store = JobStore(Path(config.database))
    notifier = Notifier({**back_ends.observers, "the service manager": StatusLine()})
    cache = ImageCache(
        Path(config.cache_directory),
        config.cache,
        metrics.downloaded.inc,
        metrics.cache_evictions.inc,
        notifier.image_changed,
    )
    back_ends.sources = {**back_ends.sources, UPLOADS: cache.upload_source}
    pipeline = Pipeline(back_ends, cache, config.cache.require_checksum)
    to_log = config.audit.goes_to_log(config.log.format)
    audit = AuditLog(Path(config.audit.file) if config.audit.file else None, metrics.audit_lost.inc, to_log=to_log)
    if not (config.audit.file or to_log):
        log.info("no audit log is kept; set file or log in [audit]")
    auditor = Auditor(audit, metrics, config.auth.max_failures)
    supervisor = Supervisor(pipeline, store, config.jobs, metrics, notifier, auditor.job_ended)
    images = ImageResolver(config.images, back_ends.source_for, lambda: [entry.url for entry in cache.entries()])
    tokens = TokenFile(Path(config.token_file), token_keys(config))
    tokens.prepare()
    _leave_client_token(config, tokens)
    authenticator = Authenticator(config.auth, tokens, listener.tls.tls_files.lists)
    try:
        async with _writing(audit, config.audit.file):
            await store.open()
            yield Services(
                config, back_ends, cache, store, supervisor, notifier, metrics, authenticator, auditor, tokens, images
            )
    finally:
        await _close("back ends", back_ends.aclose)
        await _close("job store", store.aclose)


async def _close(what: str, close: Callable[[], Awaitable[None]]) -> None:
    """Close one part of the service. Log a failure, since the other parts must be closed too."""
    try:
        with shielded(f"close the {what}", _CLOSE_TIMEOUT):
            await close()
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything
        log.error("a part of the service could not be closed", part=what, reason=str(error))


async def _serve(
    services: Services, listener: Listener, signals: AsyncIterator[int], reloader: Reloader | None
) -> None:
    """Serve the API until a signal, then let running jobs finish within their grace period."""
    stop = trio.Event()
    async with serving(create_app(services), listener, services.auditor) as urls, trio.open_nursery() as front:
        systemd.notify("READY=1\nSTATUS=Ready")
        log.info("ready", version=__version__, bind=urls, targets=sorted(services.back_ends.targets))
        _say_where_to_sign_in(services.config, urls)
        front.start_soon(_keep_watchdog, stop)
        async for signum in signals:
            if signum == signal.SIGHUP and reloader is not None:
                reloader.request()
                continue
            log.info("stopping", signal=signal.Signals(signum).name, active_jobs=services.supervisor.active_count)
            break
        systemd.notify("STOPPING=1\nSTATUS=Stopping: waiting for running jobs")
        services.notifier.feed.publish("service.stopping", None)
        await services.supervisor.drain()
        services.notifier.feed.close()
        stop.set()
    log.info("the API has stopped")


@asynccontextmanager
async def _writing(audit: AuditLog, file: str | None) -> AsyncIterator[None]:
    """Keep the audit log open while the block runs. Raises ConfigError."""
    with ExitStack() as opened:
        try:
            opened.enter_context(audit.open())
        except OSError as error:
            raise ConfigError(f"the audit log {file} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            with shielded("write the last audit lines", _CLOSE_TIMEOUT):  # ``close`` itself takes less
                if not await trio.to_thread.run_sync(audit.close, limiter=trio.CapacityLimiter(1)):
                    log.error("the audit log cannot be written; its last lines are lost", file=file)


async def _settle_tokens(tokens: TokenFile) -> None:
    """Write token uses and key moves to the token file once a minute, and at the end."""
    try:
        while True:
            await trio.sleep(_SETTLE)
            await _settle_once(tokens)
    finally:
        await _settle_once(tokens)


async def _settle_once(tokens: TokenFile) -> None:
    """Write token uses. What cannot be written stays in memory until the next time."""
    try:
        with shielded("write down when tokens were used", _SETTLE_TIMEOUT):
            await trio.to_thread.run_sync(tokens.settle)
    except (ProvisionerError, OSError) as error:
        log.warning("the last use of tokens could not be saved", reason=str(error))


async def _keep_watchdog(stop: trio.Event) -> None:
    interval = systemd.watchdog_interval()
    while interval is not None and not stop.is_set():
        systemd.notify("WATCHDOG=1")
        with trio.move_on_after(interval):
            await stop.wait()


def _leave_client_token(config: Config, tokens: TokenFile) -> None:
    """Create the token of the local client at the first start of the embedded default.

    If the token file is locked, the service starts without it and creates the token at the next start.
    """
    where = config.auth.client_token
    if where is None or Path(where).exists():
        return
    name = "client"
    try:
        if any(record.name == name for record in tokens.list()):
            tokens.revoke(name)
        token = tokens.create(name, "operator")
    except UnavailableError as error:
        log.error("the client token was not created; restart the service to try again", reason=error.message)
        return
    try:
        fd = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the client token cannot be written to {where}: {error.strerror}") from error
    with os.fdopen(fd, "w") as file:
        file.write(token + "\n")


def _say_where_to_sign_in(config: Config, urls: Sequence[str]) -> None:
    """Tell the person who started the embedded default what to open and what to type next. Programs read JSON logs."""
    where, page = config.auth.client_token, next((url for url in urls if url.startswith("http")), None)
    if where is None or not Path(where).exists() or config.log.format == "json":
        return
    text = f"for lvp in another terminal: export LVP_TOKEN_FILE={shlex.quote(str(where))}\n"
    if page is not None and config.server.page:
        text = f"sign in at {page}/ with the token in {where}\n{text}"
    sys.stderr.write(text)
