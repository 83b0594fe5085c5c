"""How many digits are told otherwise after an export at spline:16x3: `python -m tests.benchmarks.agreement [NAME ...]`.

The digits network is trained with every activation, plain and as the gate of its feed-forward layers, and every structure of
feed-forward layer with its own activation. Printed for each are the accuracy it was trained to, and of the 450 held-out
images those that the exported network gives another label. The certificates bound what a site is off by; this shows what that
means at the end of a trained network. At 40 epochs two processes with half of the
names each take about twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from actx.exporter import Form, export
from actx.models.activations import ACTIVATIONS
from actx.models.demo import CALIBRATION, EVALUATION, demo_path
from actx.models.digits import load_digits
from actx.models.ffn import FFNS
from actx.models.train import accuracy, digits_task, export_archive, train
from actx.models.trained import Recipe

FORM = Form.parse("spline:16x3")
ALLOWED = 0.001
RECIPES = (
    *(Recipe("digits", name, ffn) for name in ACTIVATIONS for ffn in ("plain", "gated")),
    *(Recipe("digits", ffn=name) for name in FFNS),
)


def measure(recipe: Recipe, epochs: int, folder: Path) -> tuple[float, float, int, int]:
    """Train, export and compare: the accuracy, the share of labels that change, and the sites that are rewritten of all."""
    task = digits_task(load_digits(), epochs=epochs, peak_learning_rate=5e-3)
    model = train(recipe, task)
    archive = folder / f"{recipe.name}.pt2"
    torch.export.save(export_archive(model), archive)
    exported = export(
        archive, folder / recipe.name, form=FORM, data=str(demo_path(CALIBRATION)),
        held_out=str(demo_path(EVALUATION)), measure_latency=False, metric="top1",
    )  # fmt: skip
    assert exported.drift is not None
    sites = exported.manifest.sites
    return accuracy(model, task), exported.drift.drift, sum(site.form != "keep" for site in sites), len(sites)


def main() -> None:
    """Print a line per network, and how many are within the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these networks, such as digits_mish_gated")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    chosen = [recipe for recipe in RECIPES if not options.names or recipe.name in options.names]
    within = 0
    with tempfile.TemporaryDirectory() as folder:
        for recipe in chosen:
            trained, changed, rewritten, sites = measure(recipe, options.epochs, Path(folder))
            within += changed <= ALLOWED
            print(
                f"{recipe.name:34} accuracy {trained:.4f}, labels changed {changed:.4%}, sites {rewritten} of {sites}",
                flush=True,
            )
    print(f"{within} of {len(chosen)} networks within {ALLOWED:.1%}")


if __name__ == "__main__":
    main()
