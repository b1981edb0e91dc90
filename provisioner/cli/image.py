"""``lvp image``: list named images, show what a name stands for, fetch one into the cache, and upload files."""

from __future__ import annotations

from typing import Any

import click

from provisioner.cli.connection import connect, connection_options, fleet_options, json_option, path
from provisioner.cli.formatting import printable, table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup
from provisioner.cli.output import is_terminal
from provisioner.cli.starting import Start, image_field, patience_option, start


@click.group(cls=SuggestingGroup)
def image() -> None:
    """Show the images that have a name on the server, and upload others."""


@image.command("list", cls=SectionedCommand, examples=["lvp image list"])
@json_option
@connection_options
def list_images(as_json: bool, **connection: str | None) -> None:
    """List the named images. Their server is not asked."""
    answer = connect(connection).get(path("images"))
    if as_json:
        click.echo(answer.text)
        return
    rows = [[entry["name"], entry["image_type"], entry["description"]] for entry in answer.data["images"]]
    click.echo(table(["IMAGE", "TYPE", "DESCRIPTION"], rows))
    if not rows:
        click.echo("No images have names: see catalogs and [images.NAME] in the server's configuration.", err=True)


@image.command(cls=SectionedCommand, examples=["lvp image show debian-12"])
@click.argument("name")
@json_option
@connection_options
def show(name: str, as_json: bool, **connection: str | None) -> None:
    """Show what NAME stands for now: the url, the version and the checksum of the newest image."""
    answer = connect(connection).get(path("images", name))
    lines = (f"{key}: {printable(value)}" for key, value in answer.data.items() if value != "")
    click.echo(answer.text if as_json else "\n".join(lines))


@image.command(
    cls=SectionedCommand,
    examples=["lvp image pull debian-12 --wait", "lvp image pull debian-12 --hosts 'kvm-[01-20]' --wait"],
)
@click.argument("name")
@click.option("--wait", is_flag=True, help="Show progress and wait until the job ends.")
@patience_option
@json_option
@fleet_options
@connection_options
def pull(name: str, wait: bool, patience: float, as_json: bool, **connection: Any) -> None:
    """Download the newest image NAME into the cache, without creating a volume.

    Prints the job's id. With --wait, shows the progress as lvp job submit does. With --hosts the same on each host.
    """
    how = Start(None, wait=wait, patience=patience, as_json=as_json)
    start(connection, path("cache", "fetch"), image_field(name), how)


@image.command(
    cls=SectionedCommand,
    examples=[
        "lvp image push build/web.qcow2",
        "lvp image push build/web.qcow2 --name builds/web.qcow2 --no-pin",
        "lvp job submit upload://cache/web.qcow2 web-01 20 --wait",
    ],
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--name", metavar="NAME", help="Name of the image for jobs.  [default: the name of the file]")
@click.option("--type", "image_type", metavar="TYPE", help="Refuse the image if it has another format.")
@click.option("--no-pin", is_flag=True, help="Let the server evict the image when it needs room.")
@patience_option
@json_option
@connection_options
def push(
    file: str,
    name: str | None,
    image_type: str | None,
    no_pin: bool,
    patience: float,
    as_json: bool,
    **connection: str | None,
) -> None:
    """Upload FILE, a disk image, into the server's cache.

    Reads the file twice: to compute its digest, and to send it. If the connection breaks, goes on where it ended.
    Prints the URL by which jobs use the image.
    """
    client = connect(connection)
    from provisioner.cli.polling import RetryWindow
    from provisioner.cli.push import push as upload

    options = {"name": name, "image_type": image_type, "pinned": "false" if no_pin else None}
    given = {key: value for key, value in options.items() if value is not None}
    answer, url = upload(client, file, given, RetryWindow(patience), as_json=as_json)
    click.echo(answer.text if as_json else printable(url))
    if not as_json and is_terminal():
        known = "The server had the image already" if answer.data["status"] == "cached" else "Uploaded"
        click.echo(f"{known}. To use it: lvp job submit {printable(url)} NAME", err=True)
