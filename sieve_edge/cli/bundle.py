"""``sieve-edge bundle``: a finished build as one archive for the device."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Archive, .tar.gz; default: RUN/NAME-OF-RUN.tar.gz."
)
@click.option(
    "--machine",
    metavar="NAME",
    help="Put the packages for such machines inside, e.g. aarch64 or x86_64, so that the device needs no network.",
)
@click.option("--image", metavar="TAG", help="Also make a device image around it, with docker, podman or buildah.")
@click.option(
    "--base",
    metavar="IMAGE",
    help="Device image that --image starts from; default: what make image makes for the target.",
)
def bundle(run: Path, out: Path | None, machine: str | None, image: str | None, base: str | None) -> None:
    """Pack RUN's artifact with all that a device needs: runner, report, install.sh, and check.sh.

    On the device: unpack, ./install.sh, ./check.sh. The last line of standard output is one JSON document.
    """
    from sieve_edge.device.bundle import device_image, make_image, write_bundle

    # First, since it is refused at once where there is none.
    start = (base or device_image(run)) if image else None
    archive = out or run / f"{run.resolve().name}.tar.gz"
    told = write_bundle(run, archive, machine, run.parent / "shared")
    click.echo(f"{archive}: {told['bytes'] / 2**20:.1f} MiB", err=True)
    if image and start:
        told |= make_image(archive, image, start, machine)
    click.echo(json.dumps(told))
