"""``lvp cache``: manage the cached images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.completion import complete_checksum
from provisioner.cli.connection import connect, connection_options, fleet_options, json_option, path
from provisioner.cli.exit_status import CliError
from provisioner.cli.formatting import printable, size, table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup
from provisioner.cli.id_prefixes import ImageChecksum, whole_checksum
from provisioner.cli.starting import Start, image_field, patience_option, print_if_more, start

if TYPE_CHECKING:
    from provisioner.cli.client import Client

# Seconds; reading tens of gigabytes takes minutes.
_VERIFY_LIMIT = 3600.0


@click.group(cls=SuggestingGroup)
def cache() -> None:
    """Manage the images in a server's cache."""


@cache.command("list", cls=SectionedCommand, examples=["lvp cache list --limit 10"])
@click.option("--offset", type=click.IntRange(min=0), default=0, metavar="N", help="Skip the first N.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, metavar="N", help="Show at most N.  [default: 100]")
@json_option
@connection_options
def list_images(offset: int, limit: int, as_json: bool, **connection: str | None) -> None:
    """List the cached images."""
    client = connect(connection)
    answer = client.get(path("cache", "images"), {"offset": offset, "limit": limit})
    if as_json:
        click.echo(answer.text)
        return
    rows = [
        [
            image["checksum"],
            size(image["size"]),
            image.get("format"),
            image.get("last_used_at"),
            "yes" if image.get("pinned") else "",
            image.get("url") or image["path"],
        ]
        for image in answer.data["images"]
    ]
    click.echo(table(["CHECKSUM", "SIZE", "FORMAT", "LAST USED", "PINNED", "FROM"], rows))
    print_if_more(answer.data, len(rows))


@cache.command(cls=SectionedCommand, examples=["lvp cache fetch https://images.example.org/debian-12.qcow2 --wait"])
@click.argument("image")
@click.option("--type", "image_type", metavar="TYPE", help="Format of the image: qcow2 or raw.  [default: qcow2]")
@click.option("--checksum", metavar="sha256:HEX", help="Expected digest; overrides checksum files beside the image.")
@click.option("--wait", is_flag=True, help="Show progress and wait until the job ends.")
@patience_option
@json_option
@fleet_options
@connection_options
def fetch(
    image: str,
    image_type: str | None,
    checksum: str | None,
    wait: bool,
    patience: float,
    as_json: bool,
    **connection: Any,
) -> None:
    """Download IMAGE, a URL or the name of an image, into the cache, without creating a volume.

    Prints the job's id. With --wait, shows the progress as lvp job submit does. With --hosts the same on each host.
    """
    wanted = {**image_field(image), "image_type": image_type, "checksum": checksum}
    start(connection, path("cache", "fetch"), wanted, Start(None, wait=wait, patience=patience, as_json=as_json))


@cache.command(
    cls=SectionedCommand,
    examples=["lvp cache remove sha256:9f86d081"],
)
@click.argument("checksum", type=ImageChecksum(), shell_complete=complete_checksum)
@json_option
@connection_options
def remove(checksum: str, as_json: bool, **connection: str | None) -> None:
    """Remove the image with CHECKSUM from the cache; lvp cache list shows the checksums.

    The first 8 digits are enough if they are unique, here and in the other commands.
    """
    client = connect(connection)
    checksum = whole_checksum(client, checksum)
    answer = client.delete(path("cache", "images", checksum))
    click.echo(answer.text if as_json else f"removed {printable(checksum)} from the cache")


@cache.command(cls=SectionedCommand, examples=["lvp cache pin sha256:9f86d081"])
@click.argument("checksum", type=ImageChecksum(), shell_complete=complete_checksum)
@json_option
@connection_options
def pin(checksum: str, as_json: bool, **connection: str | None) -> None:
    """Protect the image with CHECKSUM from eviction."""
    client = connect(connection)
    checksum = whole_checksum(client, checksum)
    answer = client.put(path("cache", "images", checksum, "pin"))
    click.echo(answer.text if as_json else f"pinned {printable(checksum)}")


@cache.command(cls=SectionedCommand, examples=["lvp cache unpin sha256:9f86d081"])
@click.argument("checksum", type=ImageChecksum(), shell_complete=complete_checksum)
@json_option
@connection_options
def unpin(checksum: str, as_json: bool, **connection: str | None) -> None:
    """Allow the eviction of the image with CHECKSUM again."""
    client = connect(connection)
    checksum = whole_checksum(client, checksum)
    answer = client.delete(path("cache", "images", checksum, "pin"))
    click.echo(answer.text if as_json else f"unpinned {printable(checksum)}")


@cache.command(cls=SectionedCommand, examples=["lvp cache verify", "lvp cache verify sha256:9f86d081"])
@click.argument("checksum", type=ImageChecksum(), shell_complete=complete_checksum, required=False)
@json_option
@connection_options
def verify(checksum: str | None, as_json: bool, **connection: str | None) -> None:
    """Verify the digest of the image with CHECKSUM, or of all cached images.

    A changed image is removed from the cache, and the exit status is 1.
    """
    client = connect(connection)
    images = [whole_checksum(client, checksum)] if checksum else [image["checksum"] for image in _all_images(client)]
    broken = 0
    for digest in images:
        answer = client.post(path("cache", "images", digest, "verify"), limit=_VERIFY_LIMIT)
        broken += answer.data["status"] != "intact"
        click.echo(answer.text if as_json else f"{answer.data['status']:<8} {printable(digest)}")
    if broken:
        noun, verb = ("image", "was") if broken == 1 else ("images", "were")
        raise CliError(f"{broken} cached {noun} had changed and {verb} removed")


def _all_images(client: Client) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = []
    while True:
        page = client.get(path("cache", "images"), {"offset": len(images), "limit": 1000}).data
        images += page["images"]
        if not page["images"] or len(images) >= page["count"]:
            return images


@cache.command(cls=SectionedCommand, examples=["lvp cache prune"])
@json_option
@connection_options
def prune(as_json: bool, **connection: str | None) -> None:
    """Remove every cached image that is neither pinned nor in use."""
    client = connect(connection)
    answer = client.post(path("cache", "prune"))
    removed, freed = answer.data["removed"], answer.data["freed_bytes"]
    words = f"removed {len(removed)} image{'' if len(removed) == 1 else 's'}, {size(freed)} freed"
    click.echo(answer.text if as_json else words)
