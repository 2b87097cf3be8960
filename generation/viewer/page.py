# SPDX-License-Identifier: Apache-2.0
"""The page of the viewer in the browser. The only module that imports gradio (extra `viewer`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import numpy as np

from generation.network import Network
from generation.viewer import layers, path
from generation.viewer.inverting import MAX_STEPS, Inverter
from generation.viewer.session import Superseded, Viewer, check_port, magnified, training_order
from generation.viewer.state import GROUPS, State

CSS = """
.gradio-container > main {max-width: 1400px; margin: auto; padding: 16px !important}
.pixels img {image-rendering: pixelated}
#status {min-height: 1.6em}
#status p {margin: 0}
"""
FONTS = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none from servers
BY_SEED = -1  # in the lists of classes: no class chosen
NOTHING = ""  # in the list of second networks
PICTURE: dict[str, Any] = dict(  # without a label, which would hide a corner
    format="png",
    interactive=False,
    show_label=False,
    elem_classes="pixels",
    buttons=["download", "fullscreen"],
)
FAILURES = (ValueError, OSError, RuntimeError, KeyError, IndexError, MemoryError)
CONCURRENT = 16  # requests; all but the newest of each page end at the next layer


class Page:
    """The components of one page and what they do.

    Args:
        viewer: Makes the pictures.
    """

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.folder = tempfile.TemporaryDirectory(prefix="viewer-")  # of exported files
        self.names = [(choice.name, choice.source) for choice in viewer.choices]
        self.first = viewer.open(viewer.choices[0].source)
        theme_args: dict[str, Any] = dict(title="Viewer", delete_cache=(600, 3600), fill_width=True)
        with gr.Blocks(**theme_args) as self.blocks:
            with gr.Row():
                with gr.Column(scale=6, min_width=320):
                    self._pictures()
                with gr.Column(scale=5, min_width=320):
                    self.network = gr.Dropdown(
                        self.names, value=self.names[0][1], label="Network", elem_id="network"
                    )
                    with gr.Tabs():
                        self._image_tab()
                        self._motion_tab()
                        self._styles_tab()
                        self._layers_tab()
                        self._keyframes_tab()
                        self._time_tab()
            self._connect()

    def _pictures(self) -> None:
        with gr.Row():
            self.picture = gr.Image(label="Picture", elem_id="picture", **PICTURE)
            self.second_picture = gr.Image(label="Second network", elem_id="second", visible=False, **PICTURE)
        self.status = gr.Markdown("", elem_id="status")
        self.command = gr.Textbox(
            label="Command that makes this picture",
            buttons=["copy"],
            lines=2,
            max_lines=12,
            elem_id="command",
        )

    def _image_tab(self) -> None:
        conditional = self.first.num_classes > 0
        with gr.Tab("Image"):
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed")
            with gr.Row():
                self.previous = gr.Button("Previous seed", size="sm", min_width=80)
                self.next = gr.Button("Next seed", size="sm", min_width=80, elem_id="next")
            self.label = gr.Dropdown(
                class_choices(self.first),
                value=BY_SEED,
                label="Class (type to search)",
                visible=conditional,
                elem_id="class",
            )
            with gr.Group(visible=conditional) as self.mixing:
                self.label_b = gr.Dropdown(
                    class_choices(self.first, "none"),
                    value=BY_SEED,
                    label="Mix with class",
                    elem_id="mix-class",
                )
                self.mix = gr.Slider(0, 1, 0, step=0.01, label="Share of the second class", elem_id="mix")
            self.truncation = gr.Slider(-1, 2, 1, step=0.01, label="Truncation (psi)", elem_id="truncation")
            self.centroids = gr.Checkbox(
                False,
                label="Truncate towards the nearest centroid",
                visible=self.viewer.centroids is not None,
            )
            self.second = gr.Dropdown(
                [("none", NOTHING), *self.names],
                value=NOTHING,
                label="Second network, side by side",
                visible=len(self.names) > 1,
                elem_id="compare",
            )
            self.inversion = Inversion(Inverter(self.viewer, self.folder.name))

    def _motion_tab(self) -> None:
        with gr.Tab("Move"):
            self.x = gr.Slider(-1, 1, 0, step=0.01, label="Shift right (image widths)")
            self.y = gr.Slider(-1, 1, 0, step=0.01, label="Shift down (image widths)")
            self.rotate = gr.Slider(-180, 180, 0, step=1, label="Rotate anticlockwise (degrees)")

    def _styles_tab(self) -> None:
        with gr.Tab("Styles"):
            self.style_seed = gr.Number(1, label="Seed of the other styles", precision=0, minimum=0)
            self.groups = gr.CheckboxGroup(
                list(GROUPS), label="Layers that take the other styles", elem_id="groups"
            )
            self.strengths = [
                gr.Slider(
                    min(-10, slider.strength),
                    max(10, slider.strength),
                    slider.strength,
                    step=0.1,
                    label=slider.label,
                    elem_id=f"edit-{number}",
                )
                for number, slider in enumerate(self.viewer.sliders)
            ]

    def _layers_tab(self) -> None:
        with gr.Tab("Layers"):
            self.layer = gr.Dropdown(layers.layer_names(self.first), label="Layer", elem_id="layer")
            self.channel = gr.Number(
                0, label=f"First of up to {layers.MAX_CHANNELS} channels", precision=0, minimum=0
            )
            gr.Markdown(
                f"Left: activations. Right: power spectrum, {layers.DYNAMIC_RANGE:g} dB from white to black."
            )
            with gr.Row():
                self.activations = gr.Image(label="Activations", elem_id="activations", **PICTURE)
                self.spectrum = gr.Image(label="Power spectrum", elem_id="spectrum", **PICTURE)
            self.show_layer = gr.Button("Show layer", elem_id="show-layer")

    def _keyframes_tab(self) -> None:
        with gr.Tab("Keyframes"):
            self.keyframes = gr.State([])
            self.keyframe_text = gr.Markdown("No keyframes.", elem_id="keyframes")
            with gr.Row():
                self.add = gr.Button("Add picture", elem_id="add")
                self.clear = gr.Button("Remove all")
            self.form = gr.Dropdown(list(path.FORMATS), value="GIF", label="Format", elem_id="format")
            self.steps = gr.Slider(1, 240, 30, step=1, label="Frames from one keyframe to the next")
            self.export = gr.Button("Export", variant="primary", elem_id="export")
            self.exported = gr.File(label="File", elem_id="file", visible=False)

    def _time_tab(self) -> None:
        visible = len(training_order(self.viewer.choices)) > 1
        with gr.Tab("Training", visible=visible):
            gr.Markdown("Shows the picture in every snapshot of the run, in order.")
            self.play = gr.Button("Play training", elem_id="play")

    @property
    def controls(self) -> list[Any]:
        """The components that `state_of` reads, after the network."""
        first = [self.seed, self.label, self.label_b, self.mix, self.truncation, self.centroids]
        moved = [self.x, self.y, self.rotate, self.style_seed, self.groups]
        return [*first, *moved, self.inversion.projected, *self.strengths]

    def state_of(self, values: Sequence[Any]) -> State:
        """The state that the values of `controls` stand for."""
        return state_of(values, [slider.name for slider in self.viewer.sliders])

    def _connect(self) -> None:
        inputs = [self.network, self.second, *self.controls]
        shown = [self.picture, self.second_picture, self.command, self.status]
        quick: dict[str, Any] = dict(
            show_progress="hidden",
            trigger_mode="multiple",
            concurrency_limit=CONCURRENT,
            api_visibility="private",
        )
        slow: dict[str, Any] = dict(concurrency_limit=2, api_visibility="private")
        sliders = [self.mix, self.truncation, self.x, self.y, self.rotate, *self.strengths]
        changes = [
            component.input for component in [*sliders, self.label, self.label_b, self.centroids, self.groups]
        ]
        changes += [self.seed.change, self.style_seed.change, self.second.input]
        gr.on([*changes, self.blocks.load], self.show, inputs, shown, **quick)
        kinds = [self.label, self.mixing, self.label_b, self.layer]
        switched = self.network.input(self.switch, self.network, [*kinds, self.status], **quick)
        switched.then(self.show, inputs, shown, **quick)
        self.next.click(lambda seed: min(int(seed or 0) + 1, 2**32 - 1), self.seed, self.seed, **quick)
        self.previous.click(lambda seed: max(int(seed or 0) - 1, 0), self.seed, self.seed, **quick)
        layer_inputs = [self.network, self.layer, self.channel, *self.controls]
        pictures = [self.activations, self.spectrum, self.status]
        gr.on(
            [self.show_layer.click, self.layer.input], self.show_activations, layer_inputs, pictures, **slow
        )
        listed = [self.keyframes, self.keyframe_text]
        self.add.click(self.add_keyframe, [self.keyframes, *self.controls], listed, **quick)
        self.clear.click(lambda: ([], "No keyframes."), None, listed, **quick)
        export_inputs = [self.network, self.keyframes, self.form, self.steps]
        self.export.click(self.write, export_inputs, [self.exported, self.status], **slow)
        for changed in self.inversion.connect(self.network, self.label, slow):
            changed.then(self.show, inputs, shown, **quick)
        self.play.click(
            self.play_training, [self.network, *self.controls], [self.picture, self.status], **quick
        )

    def show(self, request: gr.Request, source: str, second: str, *values: Any) -> Iterator[Any]:
        """Yield updates of the picture: a preview if the CPU has a fast precision, then the exact one."""
        client = str(request.session_hash)
        number = self.viewer.requests.start(client)
        try:
            network = self.viewer.open(source)
            state = self.state_of(values).for_network(network)
            command = state.command(network, self.viewer.centroids_path)
            if self.viewer.fast_precision is not None:
                picture = self.viewer.picture(source, state, client, number, preview=True)
                yield magnified(picture), gr.skip(), command, "preview"
            picture = self.viewer.picture(source, state, client, number)
            text = describe(network, state)
            yield magnified(picture), gr.skip() if second else gr.update(visible=False), command, text
            if second:
                other = self.viewer.open(second)
                own = state.for_network(other)
                picture = self.viewer.picture(second, own, client, number)
                update = gr.update(value=magnified(picture), visible=True)
                parts = [text, f"beside it {describe(other, own)}", state.misfits(other)]
                yield gr.skip(), update, command, "; ".join(part for part in parts if part)
        except Superseded:
            yield [gr.skip()] * 4
        except FAILURES as error:
            yield gr.skip(), gr.skip(), "", failure(error)

    def switch(self, source: str) -> Any:
        """Adapt the lists of classes and layers to another network."""
        try:
            network = self.viewer.open(source)
        except FAILURES as error:
            return [*[gr.skip()] * 4, failure(error)]
        conditional = network.num_classes > 0
        choices = gr.update(choices=class_choices(network), value=BY_SEED, visible=conditional)
        second = gr.update(choices=class_choices(network, "none"), value=BY_SEED)
        names = layers.layer_names(network)
        row = gr.update(visible=conditional)
        return [choices, row, second, gr.update(choices=names, value=names[0]), ""]

    def show_activations(self, source: str, layer: str, first: int | None, *values: Any) -> Any:
        """Return pictures of a layer."""
        try:
            state = self.state_of(values).for_network(self.viewer.open(source))
            found = self.viewer.layer(source, state, layer, int(first or 0))
        except FAILURES as error:
            return gr.skip(), gr.skip(), failure(error)
        pictures = [magnified(np.repeat(picture[..., None], 3, axis=2)) for picture in found]
        return [*pictures, f"layer {layer} of {summary(state)}"]

    def add_keyframe(self, keyframes: list[State], *values: Any) -> Any:
        """Append the settings shown to the path."""
        keyframes = [*keyframes, self.state_of(values)][: path.MAX_KEYFRAMES]
        lines = [f"{number}. {summary(state)}" for number, state in enumerate(keyframes, 1)]
        return keyframes, "\n".join(lines)

    def write(
        self,
        source: str,
        keyframes: list[State],
        form: str,
        steps: float,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Any:
        """Export the path of keyframes."""
        output = Path(tempfile.mkdtemp(dir=self.folder.name), f"path{path.FORMATS[form]}")
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress((done, len(keyframes) * int(steps)), unit="frames")

        try:
            network = self.viewer.open(source)
            states = [state.for_network(network) for state in keyframes]
            path.export(self.viewer, source, states, output, int(steps), done=advance)
        except FAILURES as error:
            return gr.skip(), failure(error)
        return gr.update(value=str(output), visible=True), f"{len(keyframes)} keyframes: {output.name}"

    def play_training(self, request: gr.Request, source: str, *values: Any) -> Iterator[Any]:
        """Yield the picture of every snapshot."""
        client = str(request.session_hash)
        number = self.viewer.requests.start(client)
        for choice in training_order(self.viewer.choices):
            try:
                network = self.viewer.open(choice.source)
                state = self.state_of(values).for_network(network)
                picture = self.viewer.picture(choice.source, state, client, number)
                yield magnified(picture), choice.name
            except Superseded:
                return
            except FAILURES as error:
                yield gr.skip(), failure(error)


class Inversion:
    """The part of the page in which a dropped image becomes the style code that it shows.

    Args:
        inverter: Finds the code.
    """

    def __init__(self, inverter: Inverter) -> None:
        self.inverter = inverter
        with gr.Accordion("Invert an image", open=False, elem_id="inversion"):
            self.projected = gr.State(None)  # path of the file with the code
            self.image = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                label="Drop an image",
                height=200,
                elem_id="target",
            )
            self.steps = gr.Slider(10, MAX_STEPS, 200, step=10, label="Steps", elem_id="invert-steps")
            with gr.Row():
                self.invert = gr.Button("Invert", variant="primary", elem_id="invert")
                self.release = gr.Button("Back to seeds", elem_id="seeds")
            self.text = gr.Markdown(
                "Finds the style code whose image is nearest, of the class chosen above, or else guessed.",
                elem_id="inverted",
            )
            self.file = gr.File(label="Style code, for --projected-w", visible=False)

    def connect(self, network: Any, label: Any, slow: dict[str, Any]) -> list[Any]:
        """Connect the buttons. Returns the events after which the picture changes."""
        outputs = [self.projected, self.text, self.file]
        found = self.invert.click(self.run, [network, self.image, self.steps, label], outputs, **slow)
        released = self.release.click(lambda: (None, ""), None, [self.projected, self.text], **slow)
        return [found, released]

    def run(
        self,
        request: gr.Request,
        source: str,
        image: str | None,
        steps: float,
        label: Any,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Any:
        """Invert the image."""

        def done(step: int, total: int) -> None:
            progress((step, total), unit="steps")

        chosen = None if label in (None, BY_SEED) else int(label)
        try:
            found, text = self.inverter.invert(
                source, image, int(steps), chosen, str(request.session_hash), done
            )
        except Superseded:
            return [gr.skip()] * 3
        except FAILURES as error:
            return gr.skip(), failure(error), gr.skip()
        return found, text, gr.update(value=found, visible=True)


def state_of(values: Sequence[Any], directions: Sequence[str] = ()) -> State:
    """The state that the values of `Page.controls` stand for. Empty fields take their defaults.

    Args:
        values: The values.
        directions: Names of the directions, for the strengths at the end of the values.
    """
    seed, label, label_b, mix, truncation, centroids, x, y, rotate, style_seed, groups, *more = values
    projected, *strengths = more

    def index(value: Any) -> int | None:
        return None if value in (None, BY_SEED) else int(value)

    return State(
        seed=int(seed or 0),
        label=index(label),
        label_b=index(label_b),
        mix=float(mix or 0),
        truncation=1.0 if truncation is None else float(truncation),
        centroids=bool(centroids),
        translate_x=float(x or 0),
        translate_y=float(y or 0),
        rotate=float(rotate or 0),
        style_seed=None if style_seed is None else int(style_seed),
        groups=tuple(groups or ()),
        edits=tuple((name, float(value or 0)) for name, value in zip(directions, strengths, strict=True)),
        projected=projected,
    )


def class_choices(network: Network, none: str = "drawn by the seed") -> list[tuple[str, int]]:
    """The classes for a list: (label, index), after `none`."""
    labels = [(network.label_text(index), index) for index in range(network.num_classes)]
    return [(none, BY_SEED), *labels]


def describe(network: Network, state: State) -> str:
    """A line about a picture."""
    return f"{summary(state, network)}, {network.resolution}x{network.resolution} pixels"


def summary(state: State, network: Network | None = None) -> str:
    """The settings of a state in a few words."""

    def name(label: int) -> str:
        return network.label_text(label) if network is not None and network.num_classes else str(label)

    label = "" if state.label is None else f", class {name(state.label)}"
    mixed = "" if state.label_b is None or not state.mix else f", {state.mix:.0%} {name(state.label_b)}"
    styles = f", {' and '.join(state.groups)} from seed {state.style_seed}" if state.groups else ""
    count = len(state.edit_texts)
    edited = f", {count} {'edit' if count == 1 else 'edits'}" if count else ""
    start, psi = f"seed {state.seed}{label}", f", psi {state.truncation:g}"
    if state.projected is not None:
        start, psi = "inverted image", ""
    return f"{start}{mixed}{psi}{styles}{edited}"


def failure(error: BaseException) -> str:
    """What the page says about a request that failed."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"**Not shown:** {text[:500]}"


def serve(
    viewer: Viewer, host: str = "127.0.0.1", port: int = 7860, block: bool = True
) -> tuple[gr.Blocks, str]:
    """Serve the page. Returns it and its address, if not `block`.

    Raises:
        ValueError: The port is in use.
    """
    port = check_port(host, port)
    blocks = Page(viewer).blocks
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
        css=CSS,
        theme=gr.themes.Default(**FONTS),
    )
    print(f"Viewer: {address}", flush=True)
    if block:
        blocks.block_thread()
    return blocks, address
