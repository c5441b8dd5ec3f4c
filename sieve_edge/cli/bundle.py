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
@click.option(
    "--image",
    metavar="TAG",
    help="Also make a device image around it, by the first of docker, podman, buildah that has the one to start from.",
)
@click.option(
    "--base",
    metavar="IMAGE",
    help="Device image that --image starts from; default: what make image makes for the target.",
)
def bundle(run: Path, out: Path | None, machine: str | None, image: str | None, base: str | None) -> None:
    """Pack RUN's artifact with all that a device needs: runner, report, model card, install.sh, and check.sh.

    A model card beside the artifact, see sieve-edge card, is packed as it is; else one is written.
    On the device: unpack, ./install.sh, ./check.sh. The last line of standard output is one JSON document.
    """
    from sieve_edge.device.bundle import device_image, image_engine, make_image, write_bundle

    # First, since it is refused at once where there is none.
    start = (base or device_image(run)) if image else None
    engine = image_engine(start) if start else None
    archive = out or run / f"{run.resolve().name}.tar.gz"
    told = write_bundle(run, archive, machine, run.parent / "shared", _card(run))
    click.echo(f"{archive}: {told['bytes'] / 2**20:.1f} MiB", err=True)
    if image and start and engine:
        told |= make_image(archive, image, start, machine, engine)
    click.echo(json.dumps(told))


def _card(run: Path) -> Path:
    """Find the model card that its user may have edited, or write one that is as new as the build."""
    from sieve_edge.report.card import card_file, write_card
    from sieve_edge.report.record import RunRecord

    # Refuses a build whose report is older than its validation, whoever wrote the card.
    record, mine = RunRecord.read(run), card_file(run)
    if mine.is_file():
        click.echo(f"card: {mine}, as it is; sieve-edge card {run} writes it anew", err=True)
        return mine
    return write_card(record, file=run / "card.md")[0]
