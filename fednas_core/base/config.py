"""Typed settings of a run: one frozen value with a help text and a rule for every field.

`fednas_core.base.settings` reads it from flat ``key = value`` pairs; nothing else in fednas reads raw options.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fednas_core.base.values import NormKind


def _setting(default: Any, help: str, **rule: Any) -> Any:
    """Return a field with its help text and its rule: ``choices=…`` or ``low=…``, ``high=…`` (both inclusive).

    ``later=True`` says that it may change when a run is resumed: it decides how rounds are carried out, or what becomes
    of the networks after training, and no round that is done would have been another.
    ``only=…`` names the cases in which anything reads it, each by the values that other settings have there; no values
    stand for all but the default and nothing ('', 0 or false).
    """
    return field(default=default, metadata={"help": help, **rule})


COMPETING = ("fednas", "ddc")
"""Methods whose networks compete."""
SUPERNETS = ("superfednas", "deepfednas", "fedsup", "efedsup")
"""Methods that train any network of a space."""
MAX_NET = ("superfednas", "deepfednas")
MEASURED = ({"search.by": ("accuracy",)}, {"search.by": ("auto",), "method": ("superfednas",)})
"""When networks are searched by what was measured."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which images, and how they are spread over clients."""

    source: str = _setting(
        "auto",
        "data set (auto: npz or folder, as data.path is a file or a folder; digits without a path)",
        choices=("auto", "digits", "cifar10", "cifar100", "fashion-mnist", "folder", "npz"),
    )
    path: str = _setting(
        "",
        "folder or .npz file of your own images, or the folder of a named data set ('' : ~/.cache/fednas)",
        later=True,
        only=({"data.source": ("auto", "cifar10", "cifar100", "fashion-mnist", "folder", "npz")},),
    )
    download: bool = _setting(True, "whether a missing torchvision data set may be downloaded", later=True)
    image_size: int = _setting(
        0, "side of the images in pixels; larger ones are averaged down (0: as they are, your own 32 at most)", low=0
    )
    examples: int = _setting(0, "training examples to use, drawn evenly from each class (0: all)", low=0)
    partition: str = _setting(
        "dirichlet", "how classes spread over clients", choices=("iid", "dirichlet", "classes", "column")
    )
    alpha: float = _setting(
        1.0,
        "Dirichlet concentration: small is non-IID, 100 is nearly IID",
        low=1e-3,
        high=1e6,
        only=({"data.partition": ("dirichlet",)},),
    )
    classes_per_client: int = _setting(2, "for partition 'classes'", low=1, only=({"data.partition": ("classes",)},))
    column: str = _setting(
        "",
        "for partition 'column': the array of an npz file whose values name the client",
        only=({"data.partition": ("column",)},),
    )
    only: str = _setting(
        "",
        "classes to which the run is restricted, by name or number, e.g. cat,dog ('' : all); clients hold what they do "
        "in the run on all classes, less the others, and take no part if that is nothing",
    )
    disclose: bool = _setting(
        False,
        "fednas, ddc: whether clients tell how many images of each class they have, so that groups can be alike; a "
        "device refuses with disclose=false in its node configuration",
        only=({"method": COMPETING},),
    )
    clients: int = _setting(
        0,
        "number of partitions, one for each simulated client (0: 10, but fewer where they would have less than ten "
        "images each; for partition 'column' as many as it names)",
        low=0,
        high=100_000,
    )
    validation: float = _setting(0.1, "share of the training examples the server keeps to validate", low=0.01, high=0.5)
    holdout: float = _setting(
        0.1,
        "share of each client's examples kept to test models on the device, never trained on (0: none: models are then "
        "tested on the images that they were trained on)",
        low=0.0,
        high=0.9,
    )


@dataclass(frozen=True, slots=True)
class SpaceConfig:
    """Which networks exist."""

    name: str = _setting(
        "auto",
        "a preset's name or the path of a TOML file (auto: the method's own; ddc: cnn8, all others: small, or "
        "cifar-light of images above 16 pixels, the same with a stride in its stem)",
    )
    norm: NormKind = _setting(
        "group",
        "normalisation; parametric: as in FedSup, scaled by the batch; parametric-sample: by each image alone",
        choices=("none", "group", "batch", "parametric", "parametric-sample"),
    )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How clients train (see `TrainSettings`)."""

    epochs: int = _setting(
        0, "local epochs (0: 5, but fewer of above 1,500 images, for a round to take 7,500 at most; at least 1)", low=0
    )
    batch: int = _setting(16, "batch size", low=1)
    lr: float = _setting(0.03, "learning rate", low=0.0, high=100.0)
    schedule: str = _setting(
        "cosine", "learning rate over the rounds; cosine: down to nothing", choices=("constant", "cosine")
    )
    warmup: int = _setting(0, "rounds over which the learning rate rises to its full height", low=0)
    momentum: float = _setting(0.9, "SGD momentum", low=0.0, high=0.9999)
    weight_decay: float = _setting(5e-3, "weight decay", low=0.0, high=10.0)
    clip: float = _setting(10.0, "largest gradient norm (0: unclipped)", low=0.0)
    clip_value: float = _setting(0.0, "largest size of a gradient's entry (0: unclipped)", low=0.0)
    label_smoothing: float = _setting(0.1, "label smoothing", low=0.0, high=0.99)
    precision: str = _setting("auto", "arithmetic of training", choices=("auto", "fp32", "bf16"))
    augment: str = _setting("none", "augmentation recipe", choices=("none", "crop", "crop-flip", "crop-flip-cutout"))


@dataclass(frozen=True, slots=True)
class SampleConfig:
    """Which architectures a round trains."""

    between: str = _setting(
        "auto",
        "what clients train that hold neither the largest nor the smallest network; auto: the method's own",
        choices=("auto", "path", "uniform", "range-matched", "mac-matched"),
        only=({"method": MAX_NET},),
    )
    arch: str = _setting(
        "",
        'fedavg: the architecture as JSON, {"d":[…],"e":[…],"w":[…]} (empty: the largest)',
        only=({"method": ("fedavg", "fedper")},),
    )
    path: Literal["exact", "evolved"] = _setting(
        "exact",
        "how the path is found (evolved: by the published genetic algorithm, needs the extra 'search')",
        choices=("exact", "evolved"),
        only=({"method": SUPERNETS},),
    )
    budgets: int = _setting(60, "architectures on the path, one for each MAC budget", low=2, high=1000)
    population: int = _setting(
        128, "for path 'evolved': networks in a generation", low=2, high=100_000, only=({"sample.path": ("evolved",)},)
    )
    generations: int = _setting(
        100, "for path 'evolved': generations", low=1, high=100_000, only=({"sample.path": ("evolved",)},)
    )
    stratify: bool = _setting(
        False, "ours: spread the path over depths instead of full depth only", only=({"method": SUPERNETS},)
    )
    range_share: float = _setting(
        0.0,
        "ours: share of clients that train range-matched networks",
        low=0.0,
        high=1.0,
        only=(
            {"method": ("deepfednas",), "sample.between": ("auto", "path")},
            {"method": ("superfednas",), "sample.between": ("path",)},
        ),
    )
    fitness_lambda: float = _setting(1000.0, "λ of the fitness: weight of effectiveness", low=0.0)
    beta_start: float = _setting(
        0.2, "MaxNet: weight of the largest network in the first round", low=0.0, high=1.0, only=({"method": MAX_NET},)
    )
    beta_end: float = _setting(
        0.0,
        "MaxNet: its weight in the end (0: one over the cohort's size)",
        low=0.0,
        high=1.0,
        only=({"method": MAX_NET},),
    )
    beta_decay: float = _setting(
        0.8, "MaxNet: share of the rounds over which it falls", low=0.01, high=1.0, only=({"method": MAX_NET},)
    )
    weigh: str = _setting(
        "auto",
        "how much replies count; examples: by the client's number of examples; uniform: all the same; auto: the "
        "method's own (superfednas, deepfednas: uniform beside the largest network's weight; others: examples)",
        choices=("auto", "examples", "uniform"),
    )
    inner: int = _setting(
        2,
        "fedsup: random networks that a client trains in each step besides the largest and the smallest",
        low=0,
        only=({"method": ("fedsup",)},),
    )
    sandwich: bool = _setting(
        True,
        "fedsup: whether each step trains the largest and the smallest network (false: random ones only)",
        only=({"method": ("fedsup",)},),
    )
    distill: bool = _setting(
        True, "fedsup: the largest network teaches the others in each step", only=({"method": ("fedsup",)},)
    )
    tiers: str = _setting(
        "min,0%-30%,30%-70%,max",
        "efedsup: parameters of each tier's networks, as a share of the supernet's or a range of shares, e.g. 10%-30%",
        only=({"method": ("efedsup",)},),
    )
    deal: str = _setting(
        "rotate",
        "efedsup: tiers of clients without a budget; rotate: dealt anew in each round; fixed: bound to clients, by "
        "their numbers, as published",
        choices=("rotate", "fixed"),
        only=({"method": ("efedsup",)},),
    )
    shrink: str = _setting(
        "",
        "progressive shrinking: genes in the order in which they become elastic, e.g. k,d,e ('' : all from the start)",
        only=({"method": SUPERNETS},),
    )
    shrink_until: float = _setting(
        0.5,
        "share of the run's summed learning rate after which shrink has opened everything: what opens late learns "
        "next to nothing",
        low=0.05,
        high=0.6,
        only=({"sample.shrink": ()},),
    )
    sort: bool = _setting(
        False, "with shrink: sort channels by importance whenever a gene becomes elastic", only=({"sample.shrink": ()},)
    )


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """How the networks of a trained supernet are found for each device."""

    by: str = _setting(
        "auto",
        "what they are searched by; accuracy: evolution on measured validation accuracy; fitness: the closed form of "
        "DeepFedNAS, in other spaces a ladder of proportions; auto: the method's own (superfednas: accuracy, others: "
        "fitness)",
        choices=("auto", "fitness", "accuracy"),
        later=True,
    )
    population: int = _setting(
        16, "for search by accuracy: networks in a generation", low=4, high=100_000, later=True, only=MEASURED
    )
    generations: int = _setting(
        4, "for search by accuracy: generations after the first", low=1, high=100_000, later=True, only=MEASURED
    )
    images: int = _setting(
        256,
        "for search by accuracy: validation images that each network is measured on (0: all)",
        low=0,
        later=True,
        only=MEASURED,
    )


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """How replies are judged and merged."""

    rule: str = _setting(
        "overlap",
        "how replies are merged; overlap: mean over those that cover a coordinate; damped: over all of them, as FedSup "
        "published; trimmed: overlap without the extreme values",
        choices=("overlap", "damped", "trimmed"),
    )
    trim: float = _setting(
        0.25,
        "for rule 'trimmed': share of values left out at each end of a coordinate",
        low=0.0,
        high=0.49,
        only=({"merge.rule": ("trimmed",)},),
    )
    clip: float = _setting(
        0.0, "norm clipping: updates are shortened to this many times the cohort's median norm (0: not)", low=0.0
    )
    outlier: float = _setting(
        100.0, "replies whose update is this many times the cohort's median norm are refused (0: none)", low=0.0
    )
    opposed: float = _setting(
        1.0,
        "replies whose update points against the others' are refused: its cosine with theirs is below minus this "
        "(1: none)",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True, slots=True)
class PersonalConfig:
    """Which part of the network stays on the client, trained there and never sent; any method can have one."""

    layers: str = _setting(
        "auto", "layers that never leave a client, e.g. head,stages.2 ('' : none; auto: the method's own, fedper: head)"
    )
    blocks: int = _setting(0, "last blocks of the network that stay as well", low=0)
    arch: bool = _setting(False, "whether each client keeps to one architecture of its own")
    epochs: int = _setting(
        5,
        "local epochs in which a client that never trained fits its own part",
        low=0,
        only=({"method": ("fedper",)}, {"personal.layers": ()}, {"personal.blocks": ()}),
    )


@dataclass(frozen=True, slots=True)
class ContestConfig:
    """fednas, ddc: how candidate networks compete on the clients."""

    start: str = _setting(
        "",
        "id of a run in the same output folder whose largest network is the start, as it is ('' : a fresh one, trained "
        "for 'rounds' rounds); of the same data, seed and share of testers; let it be one of fednas or ddc, where the "
        "clients that test have not trained",
    )
    iterations: int = _setting(0, "iterations of the search (0: the method's own; fednas: 12, ddc: 25)", low=0)
    candidates: int = _setting(
        0, "most candidates in an iteration (0: the method's own; fednas: one for each layer group, ddc: 4)", low=0
    )
    clients: Literal["parts", "all"] = _setting(
        "parts",
        "who trains a candidate; parts: a group of clients of its own; all: every client, candidate after candidate",
        choices=("parts", "all"),
    )
    testers: float = _setting(
        0.2, "share of the clients that test candidates and never train (at least one of two)", low=0.01, high=0.5
    )
    own: bool = _setting(
        False,
        "whether each client is handed the smallest network that does on images that it holds out, of its own classes, "
        "what the best does (false: the best on the server's)",
    )
    loss: float = _setting(
        0.01,
        "with contest.own: accuracy that a smaller network may cost a client",
        low=0.0,
        high=1.0,
        later=True,
        only=({"contest.own": (True,)},),
    )
    finish: int = _setting(6, "rounds in which all clients train each network that is delivered", low=0)


@dataclass(frozen=True, slots=True)
class FedNasConfig:
    """fednas: which candidates there are, how long they train and when the losers are dropped."""

    search: str = _setting(
        "netadapt",
        "how candidates are made; netadapt: of the last winner, one layer group smaller; evolution: MnasNet-style",
        choices=("netadapt", "evolution"),
    )
    resource: str = _setting(
        "macs", "what falls from iteration to iteration", choices=("macs", "params", "bytes", "ms")
    )
    step: float = _setting(
        0.1,
        "share of the start's resource that the first iteration saves; less where no single group can save so much",
        low=1e-4,
        high=0.9,
    )
    decay: float = _setting(0.96, "what a step is of the one before", low=0.1, high=1.0)
    target: float = _setting(
        0.0,
        "share of the start's resource at which the search ends (0: when all budgets are met, or after the iterations)",
        low=0.0,
        high=1.0,
    )
    exponent: float = _setting(
        -0.07,
        "evolution: w of the score accuracy·(resource/target)^w",
        low=-10.0,
        high=0.0,
        only=({"fednas.search": ("evolution",)},),
    )
    rounds_min: int = _setting(2, "rounds that the candidates of the first iteration train", low=1)
    rounds_max: int = _setting(4, "rounds that those of the last iteration train", low=1)
    drop_every: int = _setting(1, "rounds between tests of the candidates", low=1)
    drop: float = _setting(0.5, "share of the candidates that a test drops (0: none)", low=0.0, high=0.99)
    margin: float = _setting(
        0.0, "a candidate is dropped only if it is this many standard errors behind the best (0: without that)", low=0.0
    )
    freed: str = _setting(
        "idle",
        "what clients of dropped candidates do; idle: nothing, the cheapest; join: they train the others",
        choices=("idle", "join"),
    )
    lr: float = _setting(0.3, "learning rate of candidates, as a share of train.lr", low=1e-6, high=10.0)


@dataclass(frozen=True, slots=True)
class DdcConfig:
    """ddc: which layers are removed, how students learn and what they are rewarded for."""

    rounds: int = _setting(2, "rounds that each student trains", low=1)
    sampler: str = _setting(
        "policy", "who chooses the layers to remove; random: nobody, the control", choices=("policy", "random")
    )
    policy: str = _setting("", "id of a run in the same output folder whose policy is transferred ('' : a fresh one)")
    lr: float = _setting(0.01, "learning rate of the policy (published: 0.003 over 100 iterations)", low=1e-6, high=1.0)
    reward: str = _setting(
        "ddc", "what students are rewarded for; n2n: the published reward of N2N", choices=("ddc", "n2n")
    )
    accuracy: float = _setting(0.9, "threshold A_th of accuracy, as a share of the teacher's", low=0.0, high=2.0)
    resource: str = _setting(
        "macs",
        "what T is measured in; macs: the same reward on any machine; ms: as published, by the devices' latency models",
        choices=("macs", "ms"),
    )
    latency: float = _setting(0.3, "threshold T_th of T, as a share of the teacher's", low=0.0, high=2.0)
    params: float = _setting(0.6, "threshold C_th of parameters, as a share of the teacher's", low=0.0, high=2.0)
    soft: float = _setting(0.7, "λ: weight of the teacher's answers (0: labels only)", low=0.0, high=1.0)
    temperature: float = _setting(3.0, "temperature of the distillation", low=0.1, high=100.0)
    inherit: bool = _setting(False, "whether students inherit the teacher's weights (false: as published, fresh ones)")


@dataclass(frozen=True, slots=True)
class WireConfig:
    """How tensors travel: less than 32 bits a value saves bytes."""

    down: str = _setting("fp32", "weights sent to clients", choices=("fp32", "fp16", "bf16", "int8"))
    up: str = _setting(
        "fp32",
        "what clients send back; fp32: weights, all others: the change of the weights (topk: its largest entries)",
        choices=("fp32", "fp16", "bf16", "int8", "topk"),
    )
    keep: float = _setting(
        0.1, "for up 'topk': share of the entries that is sent", low=1e-4, high=1.0, only=({"wire.up": ("topk",)},)
    )


@dataclass(frozen=True, slots=True)
class StaleConfig:
    """For loop 'async': how replies of different age are absorbed."""

    power: float = _setting(0.5, "weight (1 + s)^(-power) of a reply that s replies overtook", low=0.0, high=10.0)
    rate: float = _setting(0.5, "share of the way that one fresh reply moves the weights it covers", low=1e-3, high=1.0)
    limit: int = _setting(0, "replies overtaken by more than this many others are dropped (0: none)", low=0)
    batch: int = _setting(0, "idle clients that get new orders together (0: a quarter of the cohort)", low=0)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides a run. `fednas_core.base.settings` makes one of flat pairs and turns it back."""

    method: str = _setting(
        "deepfednas",
        "which published system trains",
        choices=("fedavg", "superfednas", "deepfednas", "fedsup", "efedsup", "fedper", "fednas", "ddc"),
    )
    rounds: int = _setting(
        40,
        "rounds of training (fednas, ddc: of the network that the search starts from)",
        low=1,
        high=1_000_000,
        later=True,
    )
    cohort: int = _setting(0, "clients a round (0: all)", low=0)
    seed: int = _setting(1, "seed of every random stream", low=0)
    budgets: str = _setting(
        "auto",
        "devices and their budgets: name=2M (MACs; k, M, G allowed), 30% (of the largest network's MACs), max, "
        "1.5Mparams, 8MB or 20ms; several joined by + hold together (auto: phone=1M,tablet=2M,workstation=max, but "
        "phone=15%,tablet=35%,workstation=max where the smallest network takes more than 0.5M)",
    )
    client_budgets: str = _setting(
        "",
        "budgets of clients whose device names none, dealt in turn: names of 'budgets' or budgets, e.g. phone,2M,20ms "
        "('' : no limit)",
    )
    loop: str = _setting("sync", "sync: rounds; async: each reply is absorbed as it arrives", choices=("sync", "async"))
    install: bool = _setting(True, "whether every client gets a model within its own budget after training", later=True)
    calibrate: str = _setting(
        "server",
        "whose images set a delivered model's batch statistics (norm 'batch'); federated: those of all clients",
        choices=("server", "client", "federated"),
        only=({"space.norm": ("batch",)},),
    )
    calibration_passes: int = _setting(
        2,
        "for calibrate 'federated': passes over the clients' images (0: one a norm layer, which is exact)",
        low=0,
        later=True,
        only=({"calibrate": ("federated",)},),
    )
    evaluate_every: int = _setting(5, "rounds between evaluations of the networks that are followed", low=1, later=True)
    evaluate_clients: int = _setting(
        0,
        "clients that test networks on their own images at each evaluation (0: none, but 100 if layers are personal)",
        low=0,
    )
    deadline: float = _setting(600.0, "seconds a client may take for one round", low=0.1, high=1e6, later=True)
    device: str = _setting("auto", "where networks run", choices=("auto", "cpu", "cuda"), later=True)
    workers: int = _setting(
        0, "processes of the in-process backend (0: one a core; 1: in this process)", low=0, high=1024, later=True
    )
    output: str = _setting("", "folder that receives the runs ('' : runs/ in the project)", later=True)
    tensorboard: bool = _setting(False, "also write the events for TensorBoard (extra 'tensorboard')", later=True)
    resume: str = _setting("", "id of a run to continue")
    space: SpaceConfig = field(default_factory=SpaceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    personal: PersonalConfig = field(default_factory=PersonalConfig)
    contest: ContestConfig = field(default_factory=ContestConfig, metadata={"only": ({"method": COMPETING},)})
    fednas: FedNasConfig = field(default_factory=FedNasConfig, metadata={"only": ({"method": ("fednas",)},)})
    ddc: DdcConfig = field(default_factory=DdcConfig, metadata={"only": ({"method": ("ddc",)},)})
    wire: WireConfig = field(default_factory=WireConfig)
    stale: StaleConfig = field(default_factory=StaleConfig, metadata={"only": ({"loop": ("async",)},)})
