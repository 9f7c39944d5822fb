"""Typed experiments: frozen, keyword-only dataclasses that validate themselves.

Make a variant with `dataclasses.replace`. This module imports no torch, so `--help` is fast.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from heatmap.errors import UserError
from heatmap.runtime.validate import Function, check_fields, parse_json, typed

T = TypeVar("T")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


# Numbers with their valid interval, bounded far beyond useful values.
Count = Annotated[int, "[1, 1e9]"]
Size = Annotated[int, "[32, 4096]"]
Index = Annotated[int, "[0, 1e9]"]
Folds = Annotated[int, "[2, 100000]"]
Seed = Annotated[int, "[0, 1e18]"]
Positive = Annotated[float, "(0, 1e9]"]
NotNegative = Annotated[float, "[0, 1e9]"]
Fraction = Annotated[float, "[0, 1]"]
BelowOne = Annotated[float, "[0, 1)"]
Deviation = Annotated[float, "[0.001, 1000]"]
Offset = Annotated[float, "[-1000, 1000]"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A group of options, whose values must have the types of the fields."""

    _prefix = ""
    _renamed: ClassVar[Mapping[str, str | None]] = {}  # see `validate.typed`

    def __init_subclass__(
        cls, prefix: str = "", renamed: Mapping[str, str | None] | None = None
    ) -> None:
        cls._prefix, cls._renamed = prefix or cls._prefix, renamed or cls._renamed

    def __post_init__(self) -> None:
        """Raises UserError for the first invalid field."""
        check_fields(self, self._prefix)


@dataclass(frozen=True, kw_only=True)
class Data(Part, prefix="data", renamed={"crop_cache": None}):
    """The dataset and its split."""

    root: Path = Path("data")
    """Folder with train/landmarks.csv, train/images and test/, directly or in contest01_data/."""
    split: Literal["auto", "person", "order", "hash", "random"] = "auto"
    """Rule for validation rows. person: whole people; order: the table's last rows; hash: names
    with a low hash (adding rows never moves one); auto: person if names allow it, else order."""
    split_file: Path | None = None
    """Split to use instead: a run's split.json, or a table from heatmap data split (comma or TAB;
    file_name, and part: train or validation, or fold: 0, 1, ...; see data.fold)."""
    split_seed: Seed = 42
    """Seed of split random, separate from the run's seed so that runs share a split."""
    validation: BelowOne = 0.2
    """Fraction of rows to validate on, below 1. 0 trains on all rows, without scores; best.pt is
    then the last epoch."""
    folds: Folds | None = None
    """Number of folds to split the rows into, by the same rule, instead of data.validation."""
    fold: Index = 0
    """Fold to validate on, counted from 0. Fold 0 is the same as data.validation 1/folds."""
    exclude: Path | None = None
    """Table (comma or TAB; file_name) or plain list of images not to train on. They stay in
    validation. Names of images that are not there are logged."""
    person_pattern: str = "(.+)_[^_]+$"
    """Regular expression for the file name; its first group is the person."""
    multiplier: Annotated[int, "[1, 1000]"] = 1
    """Passes over the training rows per epoch, each with its own random augmentation."""
    boxes: Path | None = None
    """For crop.rule box: table (comma or TAB; file_name, x0, y0, x1, y1) of the training images'
    face boxes in image pixels. For other images use --boxes."""
    weights: Path | None = None
    """Table (comma or TAB; file_name, weight) of every training image's weight in the loss.
    heatmap data pose writes one that favours turned heads."""
    label_offset: str = "auto"
    """Distance of the labels from the true landmarks, "x,y" in image pixels, positive to the right
    and down. auto: measured along x from mirrored images early in training; none: 0. Training
    corrects the labels by it; predictions follow the labels."""
    symmetry: Path | None = None
    """Mirror permutation and groups from heatmap data symmetry; built in for 971, 194, 68, 15
    and 5 landmarks."""
    cache: Path | None = None
    """Cache folder; default: heatmap in $XDG_CACHE_HOME or ~/.cache."""
    workers: Annotated[int, "[0, 256]"] | None = None
    """Processes that load images; 0 loads them in the training process. Default: two fewer than
    the cores, at least 2 and at most 16, shared by the training processes of a host."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.split_file is not None or self.fold < (self.folds or 1),
            f"data.fold must be in [0, data.folds), not {self.fold} with data.folds {self.folds}",
        )
        _ = self.fixed_label_offset  # may be invalid
        both = self.folds is not None and self.split_file is not None
        _check(not both, "data.split_file has its own folds; remove data.folds")

    @property
    def fixed_label_offset(self) -> tuple[float, float] | None:
        """The offset (x, y) of the labels in image pixels; None if training measures it."""
        if self.label_offset in ("auto", "none"):
            return None if self.label_offset == "auto" else (0.0, 0.0)
        try:
            return parse_json(f"[{self.label_offset}]", tuple[Offset, Offset])
        except UserError:
            wanted = 'auto, none or two numbers "x,y" from -1000 to 1000'
            raise UserError(
                f"data.label_offset must be {wanted}, not {self.label_offset!r}"
            ) from None

    @property
    def all_rows_train(self) -> bool:
        return self.split_file is None and self.folds is None and self.validation == 0


@dataclass(frozen=True, kw_only=True)
class Crop(Part, prefix="crop"):
    """The part of an image that the network sees."""

    height: Size = 128
    """Height of the network's input in pixels, at least 32."""
    width: Size = 128
    """Width of the network's input in pixels, at least 32."""
    rule: Literal["cover", "contain", "box"] = "cover"
    """cover: the image fills the crop, and its long ends are cut off (the organisers' crop);
    contain: the whole image, padded with black; box: the whole box from data.boxes."""
    box_scale: Annotated[float, "[0.01, 100]"] = 1.0
    """For rule box: factor that enlarges each box about its centre."""
    trim_border: Annotated[int, "[0, 255)"] = 0
    """First cut off border rows and columns whose pixels all have a channel mean of at most this,
    0 to 254. 0 cuts nothing; 9 suits images padded with black."""


@dataclass(frozen=True, kw_only=True)
class Augment(Part, prefix="augment"):
    """Random changes of the training crops, drawn anew for every crop; 0 switches one off."""

    mirror: Fraction = 0.0
    """Probability of mirroring a crop; left and right landmarks swap."""
    rotate_deg: Annotated[float, "[0, 180]"] = 0.0
    """Largest rotation to either side in degrees; 180 is any rotation."""
    scale: Fraction = 0.0
    """Largest relative change of size, 0 to 1: 0.2 draws factors from 1/1.2 to 1.2."""
    shift: Fraction = 0.0
    """Largest shift along each axis, as a fraction of the crop."""
    aspect: Fraction = 0.0
    """Largest relative stretch of width against height, drawn like scale, at constant area."""
    fill: Literal["black", "edge", "noise", "mixed"] = "black"
    """Fill outside the image: black, the colours of its edge, noise, or mixed (edge for three crops
    in four, noise for the fourth). Validation and test use black."""
    brightness: Fraction = 0.0
    """Largest brightness offset, as a fraction of white. 0.068 has standard deviation 10 / 255."""
    contrast: Fraction = 0.0
    """Largest relative change of contrast, 0 to 1. 0.087 has standard deviation 0.05."""
    saturation: Fraction = 0.0
    """Largest relative change of saturation, 0 to 1; 1 reaches grey."""
    hue: Annotated[float, "[0, 0.5]"] = 0.0
    """Largest hue shift, as a fraction of the colour circle; 0.5 is any hue."""
    gray: Fraction = 0.0
    """Probability of making a crop grey."""
    sharpness: Fraction = 0.0
    """Largest change of sharpness, 0 to 1: 1 draws factors from 0 (smoothed) to 2 (sharpened)."""
    blur: Annotated[float, "[0, 10]"] = 0.0
    """Largest standard deviation of a Gaussian blur in crop pixels, 0 to 10."""
    noise: Fraction = 0.0
    """Largest standard deviation of Gaussian noise, as a fraction of white."""
    jpeg: Fraction = 0.0
    """Largest loss of JPEG quality, 0 to 1: 0.7 draws qualities from 30 to 100."""
    erase: Fraction = 0.0
    """Probability of covering a random rectangle with one colour; its landmarks still count."""
    erase_area: tuple[Fraction, Fraction] = (0.01, 0.02)
    """Smallest and largest area of that rectangle, as fractions of the crop."""
    extra: Function | None = None
    """Your function, FILE.py:FUNCTION or MODULE:FUNCTION, that changes the batch after all this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        smallest, largest = self.erase_area
        wanted = "augment.erase_area must be two rising fractions above 0"
        _check(0 < smallest <= largest, f"{wanted}, not {smallest} and {largest}")


# The names in `losses.LOSSES`, which imports torch. A loss may also be a function: docs/extend.md.
HeatmapLoss = Literal["adaptive_wing", "mse"]
PointLoss = Literal["mse", "mae", "smooth_l1", "wing"]


@dataclass(frozen=True, kw_only=True)
class EncoderModel(Part, prefix="model"):
    """Options shared by all networks."""

    encoder: str = "resnet34"
    """Encoder of segmentation_models_pytorch, or tu-NAME for one of timm's."""
    weights: str = "imagenet"
    """Encoder weights: the name of pretrained ones, bundled (those of the package that
    the extra [pretrained] installs), a local file, or none (random)."""
    mean: tuple[Fraction, Fraction, Fraction] | None = None
    """Means of red, green and blue, 0 to 1, to subtract from images. Default: those that the
    pretrained weights were trained with."""
    std: tuple[Deviation, Deviation, Deviation] | None = None
    """Standard deviations to divide by after that, at least 0.001. Default: as for the mean."""


@dataclass(frozen=True, kw_only=True)
class HeatmapModel(EncoderModel):
    """Options shared by all heatmap networks."""

    stride: Literal[1, 2, 4] = 4
    """Crop pixels per heatmap pixel."""
    width: Annotated[int, "[1, 10000]"] = 128
    """Feature channels. Sharp heatmaps of h x w pixels need min(0.25 h w / sigma², landmarks)."""
    sigma: Annotated[float, "[0.5, 10]"] = 1.5
    """Standard deviation of the target Gaussians in heatmap pixels, 0.5 to 10."""
    sigma_start: Annotated[float, "(0, 10]"] | None = None
    """First sigma of the targets, up to 10; shrinks to sigma as the loss settles (Adaloss)."""
    loss: HeatmapLoss | Literal["none"] | Function = "adaptive_wing"
    """Loss of the heatmaps: a name or your function; none trains on coordinates alone
    (coordinate_loss)."""
    weight_map: NotNegative = 10.0
    """Extra weight of pixels near a landmark in the loss; 0 is the plain loss."""
    coordinate_loss: PointLoss | Literal["none"] | Function = "none"
    """Loss of the maps' soft-argmax in crop pixels, trained end to end (integral regression)."""
    coordinate_weight: NotNegative = 1.0
    """Factor of the coordinate loss in the total loss."""
    divergence: NotNegative = 0.0
    """Factor of the Jensen-Shannon divergence of the maps' softmax from the targets (DSNT)."""
    decoder: Literal["window", "parabola", "global", "softmax"] = "window"
    """window: soft-argmax in a window around the peak; parabola: through the logarithms of the peak
    and its neighbours; global: soft-argmax over the whole map, its temperature set by the peak;
    softmax: the same, at the temperature of training with coordinate_loss."""
    shape_prior: Literal["auto", "none"] = "auto"
    """auto: at the end of training, fit a Gaussian model of the training shapes that improves
    decoded landmarks, and keep it if it lowers the validation error; none: decode each landmark
    alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.sigma_start is None or self.sigma <= self.sigma_start,
            f"model.sigma_start must be at least model.sigma, not {self.sigma_start}",
        )
        if self.loss == "none":
            _check(
                self.coordinate_loss != "none" or self.divergence > 0,
                "model.loss is none, so there is nothing to train on: set model.coordinate_loss",
            )
            wanted = "without a heatmap loss, set model.decoder softmax"
            _check(self.decoder == "softmax", f"{wanted}, not {self.decoder}")


@dataclass(frozen=True, kw_only=True)
class UNet(HeatmapModel):
    """Heatmaps from any encoder with a decoder back up to the model's stride."""

    architecture: Literal["unet", "unetplusplus", "fpn", "linknet"] = "unet"
    """Decoder: U-Net, U-Net++, feature pyramid (fpn) or LinkNet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.architecture != "fpn" or self.width % 32 == 0
        _check(fits, f"model.width must be a multiple of 32 for fpn, not {self.width}")


@dataclass(frozen=True, kw_only=True)
class DenseUNet(HeatmapModel):
    """Heatmaps from H-DenseUNet's 2-D network, whose skips add raw DenseNet features."""

    encoder: Literal["densenet121", "densenet161", "densenet169", "densenet201"] = "densenet161"
    """DenseNet encoder; densenet161 gives the paper's DenseUNet-167."""
    dropout: BelowOne = 0.3
    """Dropout probability of the last stage at stride 1, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Direct(EncoderModel):
    """Direct regression: encoder, global pooling, fully connected layers to coordinates."""

    encoder: str = "resnet18"
    """Encoder of segmentation_models_pytorch, or tu-NAME for one of timm's."""
    hidden: Annotated[int, "[0, 100000]"] = 0
    """Units of a hidden layer with ReLU; 0 for none, as in the organisers' baseline."""
    dropout: BelowOne = 0.0
    """Dropout probability of the last layer's inputs."""
    loss: PointLoss | Function = "mse"
    """Loss of the x and y distances in crop pixels: a name or your function."""


Model = UNet | DenseUNet | Direct


@dataclass(frozen=True, kw_only=True)
class Optimizer(Part, prefix="optimizer"):
    """The optimizer."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimizer of torch.optim."""
    lr: Positive = 1e-3
    """Peak learning rate of the schedule."""
    weight_decay: NotNegative = 0.01
    """Weight decay coefficient."""
    momentum: BelowOne = 0.9
    """Momentum of sgd, 0 to below 1."""
    amsgrad: bool = False
    """Use the AMSGrad variant of adam and adamw."""
    clip_norm: Positive | None = None
    """Largest gradient norm; larger gradients are scaled down to it."""


@dataclass(frozen=True, kw_only=True)
class Schedule(Part, prefix="schedule"):
    """The learning rate over a stage, as a factor of its peak."""

    kind: Literal["cosine", "step", "constant", "plateau", "onecycle", "cyclic"] = "cosine"
    """cosine: down to the floor; step: times gamma every step_epochs; plateau: times gamma when the
    score stops improving; onecycle: up from 1/25 over the warm-up, then down to nearly 0; cyclic:
    between the floor and a peak that shrinks by gamma every step (exp_range)."""
    warmup: BelowOne = 0.05
    """Fraction of the stage in which the rate rises (not cyclic); torch's OneCycleLR has 0.3."""
    gamma: Annotated[float, "(0, 1]"] = 0.1
    """Factor of step, plateau and cyclic, above 0 to 1."""
    floor: BelowOne = 0.0
    """Lowest factor of cosine, step, plateau and cyclic, 0 to below 1."""
    step_epochs: Count = 1
    """For step: epochs between drops."""
    patience: Index = 4
    """For plateau: epochs without improvement to tolerate."""
    threshold: NotNegative = 0.01
    """For plateau: smallest improvement of the score that counts, in square pixels."""
    rise_steps: Count = 2000
    """For cyclic: training steps from the floor to the peak, and as many back."""


@dataclass(frozen=True, kw_only=True)
class Rates(Part, prefix="rates"):
    """Learning-rate factors of a network's parts; 0 freezes a part and its batch statistics."""

    block1: NotNegative = 1.0
    """Encoder up to its first features (stride 2)."""
    block2: NotNegative = 1.0
    """Encoder from stride 2 to 4."""
    block3: NotNegative = 1.0
    """Encoder from stride 4 to 8."""
    block4: NotNegative = 1.0
    """Encoder from stride 8 to 16."""
    block5: NotNegative = 1.0
    """Encoder from stride 16 to 32."""
    decoder: NotNegative = 1.0
    """Decoder of a heatmap network."""
    head: NotNegative = 1.0
    """Fully connected layers, or the landmark embeddings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(any(vars(self).values()), "rates: every part is frozen; nothing is left to train")


FROZEN_ENCODER = Rates(block1=0, block2=0, block3=0, block4=0, block5=0)


@dataclass(frozen=True, kw_only=True)
class Stage(Part, prefix="stage"):
    """A stage of a run, with its own optimizer state, learning rate and trainable parts."""

    epochs: Count
    """Epochs of the stage, which also set its share of train.max_minutes."""
    lr: Positive | None = None
    """Peak learning rate; default: optimizer.lr."""
    schedule: Schedule = field(default_factory=Schedule)
    rates: Rates = field(default_factory=Rates)
    start: Literal["last", "best"] = "last"
    """Weights to start from: the last ones, or the best so far."""


@dataclass(frozen=True, kw_only=True)
class Train(Part, prefix="train"):
    """The training loop and its limits; it stops at the first one reached."""

    epochs: Count | None = None
    """Epochs; default: 20. Experiments with stages set the epochs of each stage instead."""
    start: Path | None = None
    """Run folder or checkpoint to take weights from; a head for other landmarks stays random."""
    max_minutes: Positive | None = None
    """Minutes of training and validation; the schedule is fitted to them."""
    max_steps: Count | None = None
    """Steps after which the run stops, whatever the epoch."""
    batch: Count = 32
    """Images per step, over all processes."""
    accumulate: Annotated[int, "[1, 10000]"] = 1
    """Parts to split a batch into, to save memory. Batch normalisation sees each part alone."""
    pixel_weights: bool = False
    """Weight images by the area that a crop pixel covers in them (by its side for mae, smooth_l1
    and wing), so that errors count in image pixels."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network; rendering, loss and decoding always use float32."""
    compile: Literal["off", "loss", "all"] = "loss"
    """What torch.compile compiles: nothing, the loss, or also the network."""
    graph: Literal["auto", "off"] = "auto"
    """auto: on a GPU, launch forward, loss and backward as one CUDA graph, unless several processes
    train; off: launch every kernel."""
    deterministic: bool = False
    """Make runs on the same GPU and software identical to the bit, at some cost in speed. Runs on a
    CPU always are."""
    patience: Count | None = None
    """Epochs without a better validation score after which the run stops."""
    ema: BelowOne = 0.0
    """Decay per step of an exponential moving average of the weights, which is then scored and
    saved instead; at most (1 + step) / (10 + step). 0 for none; 0.999 is usual."""
    keep_every: Count | None = None
    """Epochs between extra checkpoints that are never overwritten (epoch-10.pt)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto: the GPU if there is one."""
    checkpoint_minutes: NotNegative = 10.0
    """Minutes between checkpoints within an epoch; every epoch ends with one too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = f"a multiple of train.accumulate ({self.accumulate})"
        _check(self.batch % self.accumulate == 0, f"train.batch ({self.batch}) must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class Wandb(Part, prefix="wandb", renamed={"pictures_every": "images_every"}):
    """Weights & Biases, which gets a copy of what the run folder holds."""

    mode: Literal["online", "offline", "off"] = "offline"
    """online: send during the run; offline: keep for wandb sync; off: nothing. WANDB_MODE and
    WANDB_DISABLED set it where the command line does not."""
    project: str = "heatmap"
    """Project of the run; WANDB_PROJECT sets it where the command line does not."""
    entity: str | None = None
    """User or team that owns the project; default: your login's."""
    group: str | None = None
    """Group of the run; default: the experiment's name."""
    job_type: str = "train"
    """Job type of the run."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""
    images_every: Count = 5
    """Epochs between images of predictions; the last epoch always has one."""


@dataclass(frozen=True, kw_only=True)
class Experiment(Part):
    """Everything that defines a run."""

    name: str
    """Name of the experiment, used for the default run folder and the W&B run."""
    seed: Seed = 0
    """Seed of weights, order and augmentation, at least 0."""
    data: Data = field(default_factory=Data)
    crop: Crop = field(default_factory=Crop)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=UNet)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    """The learning rate over a run without stages."""
    stages: tuple[Stage, ...] = ()
    """Stages to train one after the other; none for one schedule that trains everything."""
    train: Train = field(default_factory=Train)
    wandb: Wandb = field(default_factory=Wandb)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(bool(self.name), "name must not be empty")
        _check(
            not self.stages or self.train.epochs is None,
            "train.epochs is invalid with stages; set each stage's epochs (--stages.0.epochs)",
        )
        needs_scores = {
            "train.patience": self.train.patience is not None,
            "schedule.kind plateau": any(s.schedule.kind == "plateau" for s in self.all_stages),
            "stage.start best": any(s.start == "best" for s in self.all_stages),
        }
        for option, is_set in needs_scores.items():
            impossible = is_set and self.data.all_rows_train
            _check(not impossible, f"{option} needs validation scores; data.validation 0 has none")

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The stages, or a single one if there are none."""
        return self.stages or (Stage(epochs=self.train.epochs or 20, schedule=self.schedule),)

    @property
    def start_weights(self) -> str:
        """The weights that training starts from, for display."""
        if self.train.start is not None:
            return f"weights of the run {self.train.start}"
        return "random weights" if self.model.weights == "none" else f"{self.model.weights} weights"


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Returns the experiment as JSON values; the model records its class as "type"."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(experiment), default=str))
    values["model"] = {"type": type(experiment.model).__name__, **values["model"]}
    return values


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Rebuilds a dataclass from the values of `to_dict`, also of an earlier version.

    Raises:
        UserError: an unknown, missing or invalid field, named with its parents: train.batch.
    """
    return typed(kind, values)


def flatten(values: Any, name: str = "") -> dict[str, Any]:
    """Flattens the values of `to_dict` to dotted option names: train.epochs and so on."""
    if isinstance(values, list) and any(isinstance(inner, dict) for inner in values):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        return {name: values}
    parts = (flatten(v, f"{name}.{key}" if name else str(key)) for key, v in values.items())
    return {name: value for part in parts for name, value in part.items()}
