"""``pppml predict RUN --input PATH -o DIR``: apply a trained model to images."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--input", "source", type=click.Path(path_type=Path), required=True, metavar="PATH", help="Image, npz, or a folder of them.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR", help="Where to write.")
@click.option("--site", metavar="SITE", help="Use this site's personalized model.  [default: the global one]")
@click.option("--probabilities", is_flag=True, help="Write the probability of every class too.")
def command(run: Path, source: Path, out: Path, site: str | None, probabilities: bool) -> None:
    """Predict with the model of the finished run folder RUN.

    \b
      pppml predict runs/a --input scan.nii.gz -o predictions
      pppml predict runs/a --input dicom_series/ --site hospital_a --probabilities -o predictions

    Reads NIfTI, DICOM files and series, PNG, JPG and npz. Segmentation writes masks on the grid of the input (NIfTI for NIfTI and DICOM,
    PNG, npz), classification writes predictions.csv. Not for clinical use.
    """  # noqa: D301 - click wants the control character
    from pppml_core import api

    result = api.open(run).predict(source, site=site, out=out, probabilities=probabilities)
    for file in result.files:
        click.echo(file)
