"""Recognise the environment of a published checkpoint from names and shapes, and the branch that saved it.

The authors' repository has two generations of the model. Branch `rate-old` (and the folder `Atari_MuJoCo` of branch
`main`) has one class, whose vocabulary layers (`crit`, `out_layer`, `word_emb`) are saved but unused. Branch `main` has
encoder classes and no vocabulary; its Minigrid has a table of five actions, its HalfCheetah, Hopper and Walker2d a tanh
after the action encoder, and it also supports POPGym, MIKASA-Robo and classic control.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from RATE_model.cli.options import check_choice
from RATE_model.errors import UserError
from RATE_model.spec import IMAGES, TANH, EnvironmentSpec

Branch = Literal["rate-old", "main"]

_VOCABULARY = re.compile(r"(crit|out_layer|word_emb)\..*")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The encoders and the head of the published code for one environment."""

    # Its encoders, with the sizes of one environment of this kind
    spec: EnvironmentSpec
    # Display name, for messages
    title: str
    branches: tuple[Branch, ...] = ("rate-old", "main")
    # Allowed numbers of rows of the action table
    rows: tuple[int, ...] = ()
    # Pairs of observation features and actions, if the environments of this kind differ in them; empty: the spec's
    sizes: tuple[tuple[int, int], ...] = ()
    # Whether any are allowed
    any_size: bool = False
    # Whether names of the action encoder's weights begin with `action_embeddings.0`; None: either
    nested_actions: bool | None = None
    # Factor applied to the return before the published model sees it
    return_scale: float = 1.0
    # Whether an environment folder of this project plays it
    playable: bool = True


# The only place in the package that knows environments by name: published checkpoints do not name theirs.
VARIANTS: dict[str, Variant] = {
    "tmaze": Variant(
        title="T-Maze",
        spec=EnvironmentSpec(observation_shape=(4,), num_actions=4, action_embeddings=5, action_tanh=True),
    ),
    "doom": Variant(
        title="ViZDoom-Two-Colors",
        spec=EnvironmentSpec(observation_shape=(3, 64, 112), num_actions=5, **TANH, **IMAGES),
    ),
    "minigrid_memory": Variant(
        title="Minigrid-Memory",
        spec=EnvironmentSpec(observation_shape=(3, 84, 84), num_actions=4, **IMAGES),
        rows=(4, 5),
    ),
    "memory_maze": Variant(
        title="Memory Maze",
        spec=EnvironmentSpec(observation_shape=(3, 64, 64), num_actions=6, conv_padding=2, **TANH, **IMAGES),
    ),
    "atari": Variant(
        title="Atari",
        spec=EnvironmentSpec(observation_shape=(4, 84, 84), num_actions=4, **TANH, **IMAGES),
        any_size=True,
    ),
    "mujoco": Variant(
        title="MuJoCo",
        spec=EnvironmentSpec(observation_shape=(11,), num_actions=3, continuous=True),
        sizes=((11, 3), (17, 6)),
        nested_actions=False,
        return_scale=1 / 1000,
    ),
    "mujoco_tanh": Variant(
        title="MuJoCo with a tanh after the action encoder",
        spec=EnvironmentSpec(observation_shape=(11,), num_actions=3, continuous=True, action_tanh=True),
        branches=("main",),
        sizes=((11, 3), (17, 6)),
        nested_actions=True,
        return_scale=1 / 1000,
    ),
    "aar": Variant(
        title="Action Associative Retrieval",
        spec=EnvironmentSpec(observation_shape=(3,), num_actions=3, action_embeddings=4, action_tanh=True),
        playable=False,
    ),
    "popgym": Variant(
        title="POPGym with discrete actions",
        spec=EnvironmentSpec(observation_shape=(4,), num_actions=4, action_embeddings=5),
        branches=("main",),
        any_size=True,
        nested_actions=True,
        playable=False,
    ),
    "maniskill-pushcube": Variant(
        title="ManiSkill PushCube",
        spec=EnvironmentSpec(
            observation_shape=(3, 128, 128), num_actions=8, continuous=True, observation_tanh=True, **IMAGES
        ),
        branches=("rate-old",),
        nested_actions=False,
        playable=False,
    ),
    "mikasa_robo": Variant(
        title="MIKASA-Robo",
        spec=EnvironmentSpec(
            observation_shape=(6, 128, 128), num_actions=8, continuous=True, observation_tanh=True, **IMAGES
        ),
        branches=("main",),
        nested_actions=False,
        playable=False,
    ),
}

# Names in branch `main` (`model.env_name` of its config.json).
_NAMES_IN_MAIN = {
    "vizdoom": "doom", "hopper": "mujoco_tanh", "halfcheetah": "mujoco_tanh", "walker2d": "mujoco_tanh",
}  # fmt: skip


def variant_named(env_name: str) -> str | None:
    """The variant for an environment name of branch `main`; None if it is unknown here."""
    name = env_name.lower()
    if name.startswith("popgym"):
        # The Pendulums have continuous actions and a head without a tanh: not supported.
        return None if "pendulum" in name else "popgym"
    if name.startswith("mikasa_robo"):
        return "mikasa_robo"
    for prefix, variant in _NAMES_IN_MAIN.items():
        if name.startswith(prefix):
            return variant
    return name if name in VARIANTS else None


@dataclass(frozen=True)
class Shapes:
    """What the shapes of the encoders' and the head's weights show."""

    channels: int | None  # of an image; None: observations are vectors
    inputs: int  # features of a vector, or outputs of the convolutions on an image
    continuous: bool
    rows: int  # of the action table, or dimensions of a continuous action
    actions: int
    nested_actions: bool

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "Shapes":
        """Raises UserError if an encoder or the head is missing."""
        observation = _of_module(weights, "state_encoder")
        channels = next((tensor.shape[1] for tensor in observation.values() if tensor.ndim == 4), None)
        table, head = _matrix(weights, "action_embeddings"), _matrix(weights, "head")
        continuous = any(name.endswith("bias") for name in _of_module(weights, "action_embeddings"))
        if continuous and not any(name.endswith("bias") for name in _of_module(weights, "head")):
            raise UserError("continuous actions and a head without a bias (POPGym's Pendulum) are not supported")
        return cls(
            channels=channels,
            inputs=_matrix(weights, "state_encoder").shape[1],
            continuous=continuous,
            rows=table.shape[1] if continuous else table.shape[0],
            actions=head.shape[0],
            nested_actions=any(name.startswith("action_embeddings.0.") for name in weights),
        )

    def __str__(self) -> str:
        seen = f"vectors of {self.inputs}" if self.channels is None else (
            f"images of {self.channels} channels, {self.inputs} numbers after the convolutions"
        )  # fmt: skip
        acts = f"{self.rows} continuous actions" if self.continuous else f"an action table of {self.rows} rows"
        return f"{seen}, {acts}, a head of {self.actions}"

    def misfit(self, variant: Variant) -> str | None:
        """How these shapes contradict a variant, in words; None if they fit."""
        expected = self.expected(variant)
        for name, words in (
            ("continuous", "continuous actions"),
            ("channels", "image channels"),
            ("inputs", "inputs of the observation encoder"),
            ("actions", "outputs of the head"),
            ("rows", "rows of the action table"),
        ):
            allowed = expected[name]
            if allowed is not None and getattr(self, name) not in allowed:
                wanted = " or ".join("none" if value is None else str(value) for value in sorted(allowed, key=str))
                found = getattr(self, name)
                return f"{words}: {'none' if found is None else found}, expected {wanted}"
        if variant.sizes and (self.inputs, self.actions) not in variant.sizes:
            pairs = ", ".join(f"{features} and {actions}" for features, actions in variant.sizes)
            return f"{self.inputs} features and {self.actions} actions, expected {pairs}"
        if variant.nested_actions not in (None, self.nested_actions):
            name = "action_embeddings.0" if self.nested_actions else "action_embeddings"
            return f"the action encoder's weights are called {name}.*"
        return None

    def expected(self, variant: Variant) -> dict[str, set | None]:
        """The allowed values of each field; None: any."""
        spec, fixed = variant.spec, not variant.sizes and not variant.any_size
        spare = (spec.action_embeddings or spec.num_actions) - spec.num_actions
        return {
            "continuous": {spec.continuous},
            "channels": {spec.observation_shape[0] if spec.is_image else None},
            "inputs": {_encoded_size(spec)} if fixed or spec.is_image else None,
            "actions": {spec.num_actions} if fixed else None,
            "rows": set(variant.rows) or {self.actions + spare},
        }


def branch_of(weights: Mapping[str, Tensor]) -> Branch:
    """The branch that saved these weights: only the model of `rate-old` has a vocabulary."""
    return "rate-old" if any(_VOCABULARY.fullmatch(name) for name in weights) else "main"


def recognise(weights: Mapping[str, Tensor]) -> list[str]:
    """The variants that these weights fit, the most likely first.

    Raises:
        UserError: none; the message says what was found, and what is known.
    """
    shapes, old = Shapes.of(weights), branch_of(weights) == "rate-old"
    fitting = [
        name
        for name, variant in VARIANTS.items()
        if shapes.misfit(variant) is None and not (old and "rate-old" not in variant.branches)
    ]
    if not fitting:
        known = "; ".join(f"{name} ({_described(variant)})" for name, variant in VARIANTS.items() if variant.playable)
        raise UserError(f"fits no published environment known here: {shapes}. Known: {known}")
    return fitting


def _described(variant: Variant) -> str:
    spec = variant.spec
    shape = "x".join(map(str, spec.observation_shape))
    return f"{shape}, {'any number of' if variant.any_size else spec.num_actions} actions"


def check_variant(weights: Mapping[str, Tensor], name: str) -> None:
    """Raise UserError if the weights do not fit this variant."""
    check_choice(list(VARIANTS), variant=name)
    if reason := Shapes.of(weights).misfit(VARIANTS[name]):
        raise UserError(f"not of --variant {name}: {reason}")


def infer_spec(weights: Mapping[str, Tensor], variant: str) -> EnvironmentSpec:
    """A variant's spec with the sizes of these weights, as features and actions differ between tasks.

    Returns are not scaled; see `Variant.return_scale`.

    Raises:
        UserError: the weights do not fit this variant.
    """
    check_variant(weights, variant)
    spec, shapes = VARIANTS[variant].spec, Shapes.of(weights)
    return replace(
        spec,
        observation_shape=spec.observation_shape if spec.is_image else (shapes.inputs,),
        num_actions=shapes.actions,
        action_embeddings=None if spec.continuous else shapes.rows,
    )


def _encoded_size(spec: EnvironmentSpec) -> int:
    """Inputs of the observation encoder's linear layer."""
    if not spec.is_image:
        return spec.observation_shape[0]
    height, width = spec.observation_shape[1:]
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        height, width = ((size + 2 * spec.conv_padding - kernel) // stride + 1 for size in (height, width))
    return spec.conv_channels[-1] * height * width


def _of_module(weights: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.split(".")[0] == module}


def _matrix(weights: Mapping[str, Tensor], module: str) -> Tensor:
    for tensor in _of_module(weights, module).values():
        if tensor.ndim == 2:
            return tensor
    raise UserError(f"the weights have no matrix of {module}: is the checkpoint incomplete, or not of RATE?")
