# SPDX-License-Identifier: Apache-2.0
"""Find the style code of an image, and adapt the network to it.

    # 1,000 steps of projection, then 350 steps of pivotal tuning
    python run_inversion.py --outdir=out --target=jay.png --run-pti --network=network.pkl

    # all images of a folder, one style per layer, features that need no download
    python run_inversion.py --outdir=out --target=photos/ --space=w+ --feature=lite0 --network=network.pkl

    # a known class, another start
    python run_inversion.py --outdir=out --target=cat.jpg --class=cat --network=network.pkl
    python run_inversion.py --outdir=out2 --target=cat.jpg --w-init=out/projected_w.npz --network=network.pkl

The largest centred square of a target is resized to the network's resolution. Transparent pixels become
white, and only the first frame of an animation is used. The search starts at the mean style code of the
target's class.

--outdir gets target.png, proj.png, projected_w.npz, a video and inversion.json with the distances; with
--run-pti also tuned.png and the tuned network tuned.pkl, in which projected_w.npz gives tuned.png. Each of
several targets has its own folder. After an interruption the same command resumes.
"""

from __future__ import annotations

from typing import Any

import click

from dnnlib import outputs
from dnnlib.one_path import OnePath
from generation import commands, metric_commands
from metrics.names import PERCEPTUAL


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option(
    "--network",
    cls=OnePath,
    required=True,
    metavar="PATH|URL",
    help="Network pickle, .safetensors file, run folder (its best network), or hf://OWNER/NAME.",
)
@click.option(
    "--target",
    "targets",
    required=True,
    multiple=True,
    metavar="FILE|DIR|ZIP",
    help="Image to invert, or a folder or zip of images. May be repeated.",
)
@click.option("--outdir", required=True, metavar="DIR", help="Folder for the results.")
@click.option(
    "--seed",
    type=click.IntRange(0, commands.MAX_SEED),
    default=42,
    show_default=True,
    help="Random seed of the tuning.",
)
@click.option(
    "--save-video",
    type=bool,
    default=True,
    show_default=True,
    help="Write a video of the steps: proj.mp4, or proj.webp without the package av.",
)
@click.option(
    "--inv-steps",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Steps of the projection.",
)
@click.option(
    "--w-init",
    default="",
    metavar="NPZ",
    help="Style code to start from, such as projected_w.npz.  [default: the mean of the class]",
)
@click.option("--run-pti", is_flag=True, help="Tune the network to the image afterwards (pivotal tuning).")
@click.option(
    "--pti-steps", type=click.IntRange(min=1), default=350, show_default=True, help="Steps of the tuning."
)
@click.option(
    "--class",
    "class_name",
    metavar="CLASS",
    help="Class index or name of the target.  [default: found by a classifier or by features]",
)
@click.option(
    "--space",
    type=click.Choice(["w", "w+"]),
    default="w",
    show_default=True,
    help="One style for all layers, or one per layer.",
)
@click.option(
    "--feature",
    type=click.Choice(["auto", *PERCEPTUAL]),
    default="auto",
    show_default=True,
    help="Features of the distance. auto: vgg16 if its file is there, else lite0. lite0 needs no download.",
)
@metric_commands.detector_option
@click.option(
    "--classifier",
    metavar="NAME",
    help="timm's name of a classifier of the network's classes.  [default: DeiT for 1000 classes, else the "
    "nearest class mean]",
)
@click.option("--classifier-weights", metavar="FILE", help="Weights of --classifier.")
@click.option("--trust-pickle", is_flag=True, help=commands.TRUST_HELP)
@click.option(
    "--data", metavar="ZIP|DIR", help="Data set that provides class names, if the network file has none."
)
@commands.device_option
@commands.one_line_errors
def main(**options: Any) -> None:
    """Find the style code of an image, and adapt the network to it."""
    network, trusted = options.pop("network"), options.pop("trust_pickle")
    data, device_name = options.pop("data"), options.pop("device")
    inputs = {"--network": network, "--w-init": options["w_init"] or None}
    for target in options["targets"]:
        sources = {"--data": data, "--target": target}
        outputs.check_output("--outdir", options["outdir"], inputs=inputs, data=sources, folder=True)
    if options["classifier_weights"] and not options["classifier"]:
        raise ValueError("--classifier-weights needs --classifier")
    if options["class_name"] and options["classifier"]:
        raise ValueError("--class names the class that --classifier would find: remove one of them")
    if options["w_init"]:
        start = {"--class": options["class_name"], "--classifier": options["classifier"]}
        commands.note_ignored("--w-init", start)
    from generation import inversion_job, render
    from metrics import detectors
    from torch_utils.devices import use_device

    options["weights"] = detectors.parse_weights(options.pop("detector"))
    options["w_init"] = options["w_init"] or None
    device = use_device(device_name)
    job = inversion_job.Job(**options)

    def load() -> render.Network:
        return render.load_network(network, device, data, trust_pickle=trusted, precision="auto")

    inversion_job.run(job, load, device)


if __name__ == "__main__":
    main()
