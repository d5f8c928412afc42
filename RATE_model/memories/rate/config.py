"""The model's hyper-parameters and the table of model modes."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from RATE_model.cli.limits import MAX_SIZE, MAX_STEPS, at_least, at_most
from RATE_model.errors import UserError

Mode = Literal["RATE", "RMT", "TrXL", "DT", "DTXL", "RATEM", "RATE_wo_nmt"]
Arch = Literal["TrXL", "TrXL-I", "GTrXL"]
Activation = Literal["relu", "leaky_relu", "elu", "tanh", "no_act"]

MODES: tuple[str, ...] = get_args(Mode)
ARCHS: tuple[str, ...] = get_args(Arch)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of one model. Every mode is the same class with another `ModelConfig`."""

    # Decoder layers, attention heads, width of the residual stream, of one head, and of the feed-forward network
    n_layer: int
    n_head: int
    d_model: int
    d_head: int
    d_inner: int
    # K: environment steps in one segment (3 K tokens)
    context_length: int
    # Memory tokens at either end of a segment; 0 = none
    num_mem_tokens: int = 0
    # Cached hidden states of earlier segments that a layer may attend to, in tokens; 0 = none
    mem_len: int = 0
    # Heads of the memory retention valve (MRV); 0 = the written tokens replace the memory as they are
    n_head_ca: int = 0
    # Activation of the written tokens before the MRV
    mrv_act: Activation = "relu"
    # Decoder block: post-norm Transformer-XL, identity-map reordering, or gated
    arch: Arch = "TrXL"
    # Leave the feed-forward network out of every decoder layer
    skip_dec_ffn: bool = False
    # Dropout of embeddings, attention output, feed-forward network and final output
    dropout: float = 0.0
    # Dropout of attention probabilities (self-attention and MRV)
    dropatt: float = 0.0
    # Acting: slide a window of `context_length` steps (DT, DTXL) instead of closing segments
    sliding: bool = False

    @property
    def segment_tokens(self) -> int:
        """Tokens of a full segment: both memory blocks and three per step."""
        return 2 * self.num_mem_tokens + 3 * self.context_length

    def validate(self) -> None:
        """Raise `UserError`, in terms of the flags, for sizes that make no model."""
        sizes = {name: getattr(self, name) for name in ("n_layer", "n_head", "d_model", "d_head", "d_inner")}
        at_least(1, **sizes, context_length=self.context_length)
        at_most(MAX_SIZE, **sizes)
        at_most(MAX_STEPS, context_length=self.context_length)
        self.validate_memory_sizes()
        for name in ("dropout", "dropatt"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 0 and below 1")
        if self.d_model % 2:
            raise UserError(f"--d_model {self.d_model}: must be even (half sines, half cosines encode a position)")
        for value, allowed, flag in (
            (self.arch, ARCHS, "arch_mode"),
            (self.mrv_act, ACTIVATIONS, "mrv_act"),
        ):
            if value not in allowed:
                raise UserError(f"--{flag} {value!r}: choose one of {', '.join(allowed)}")
        self._validate_memory()

    def validate_memory_sizes(self) -> None:
        """Raise `UserError` for an impossible number of memory tokens, MRV heads or cached states."""
        for name, flag in (("num_mem_tokens", "nmt"), ("mem_len", "mem_len"), ("n_head_ca", "n_head_ca")):
            if getattr(self, name) < 0:
                raise UserError(f"--{flag} {getattr(self, name)}: must be 0 (off) or more")
        at_most(MAX_SIZE, nmt=self.num_mem_tokens, n_head_ca=self.n_head_ca)
        at_most(MAX_STEPS, mem_len=self.mem_len)

    def _validate_memory(self) -> None:
        if not self.n_head_ca:
            return
        if not self.num_mem_tokens:
            raise UserError(
                f"--n_head_ca {self.n_head_ca} with --nmt 0: the memory retention valve needs memory tokens; "
                "set --n_head_ca 0, or --nmt to 1 or more"
            )
        if self.d_model % self.n_head_ca:
            divisors = [h for h in range(1, min(self.d_model, 16) + 1) if self.d_model % h == 0]
            raise UserError(
                f"--n_head_ca {self.n_head_ca} does not divide --d_model {self.d_model}: "
                f"choose one of {', '.join(map(str, divisors))}, or 0 for no valve"
            )


# What a mode leaves of the flags, in every environment. Columns: memory tokens, MRV, cached hidden states, and whether
# the whole trajectory of N*K steps is one segment over which acting slides.
_MODE_TABLE: dict[str, tuple[bool, bool, bool, bool]] = {
    #               tokens  MRV    cache  sliding
    "RATE":        (True,  True,  True,  False),
    "RATEM":       (True,  True,  False, False),
    "RMT":         (True,  False, False, False),
    "TrXL":        (False, False, True,  False),
    "RATE_wo_nmt": (False, False, True,  False),
    "DT":          (False, False, False, True),
    "DTXL":        (False, False, True,  True),
}  # fmt: skip


def apply_mode(config: ModelConfig, *, mode: str, segments: int) -> ModelConfig:
    """The model that `mode` makes of a RATE configuration.

    Args:
        config: sizes as the flags say; `context_length` is K, the steps of one segment.
        mode: a key of the table above.
        segments: N, the segments of a training trajectory; DT and DTXL see all N*K steps as one segment.

    Raises:
        UserError: an unknown mode, a negative size (even one that the mode has no use for), or `mem_len` asked of DT.
    """
    if mode not in _MODE_TABLE:
        raise UserError(f"--model_mode {mode!r}: choose one of {', '.join(MODES)}")
    if segments < 1:
        raise UserError(f"--segments {segments}: must be at least 1")
    config.validate_memory_sizes()
    tokens, valve, cache, sliding = _MODE_TABLE[mode]
    if mode == "DT" and config.mem_len:
        raise UserError(
            f"--mem_len {config.mem_len} with --model_mode DT: a Decision Transformer has no cached hidden states; "
            "set --mem_len 0, or --model_mode DTXL"
        )
    return replace(
        config,
        num_mem_tokens=config.num_mem_tokens if tokens else 0,
        n_head_ca=config.n_head_ca if valve else 0,
        mem_len=config.mem_len if cache else 0,
        context_length=config.context_length * (segments if sliding else 1),
        sliding=sliding,
    )
