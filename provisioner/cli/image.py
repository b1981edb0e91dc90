"""``lvp image``: list named images, show what a name stands for, and fetch one into the cache."""

from __future__ import annotations

import click

from provisioner.cli.connection import connect, connection_options, json_option, path
from provisioner.cli.formatting import printable, table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup
from provisioner.cli.job import image_field, patience_option, start


@click.group(cls=SuggestingGroup)
def image() -> None:
    """Show the images that have a name on the server."""


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


@image.command(cls=SectionedCommand, examples=["lvp image pull debian-12 --wait"])
@click.argument("name")
@click.option("--wait", is_flag=True, help="Show progress and wait until the job ends.")
@patience_option
@json_option
@connection_options
def pull(name: str, wait: bool, patience: float, as_json: bool, **connection: str | None) -> None:
    """Download the newest image NAME into the cache, without creating a volume.

    Prints the job's id. With --wait, shows the progress as lvp job submit does.
    """
    client = connect(connection)
    start(client, path("cache", "fetch"), image_field(name), None, wait=wait, patience=patience, as_json=as_json)
