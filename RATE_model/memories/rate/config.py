"""Sizes and switches of the RATE family, its flags, and the table of its modes."""

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from RATE_model.cli.limits import MAX_SIZE, MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, check_choice
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryConfig, MemoryOptions, as_wide

Arch = Literal["TrXL", "TrXL-I", "GTrXL"]
Activation = Literal["relu", "leaky_relu", "elu", "tanh", "no_act"]
Valve = Literal["CA-2", "CA-1", "G", "GRU", "LSTM", "FSQ", "none"]

ARCHS: tuple[str, ...] = get_args(Arch)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
VALVES: tuple[str, ...] = get_args(Valve)
_ATTENTION_VALVES = ("CA-2", "CA-1")


@dataclass(frozen=True, kw_only=True)
class RATEConfig(MemoryConfig):
    """Sizes and switches of one memory of the family. All modes are the same class with different configurations."""

    # Decoder layers, attention heads, width of one head, and of the feed-forward network
    n_layer: int
    n_head: int
    d_head: int
    d_inner: int
    # Memory tokens at either end of a segment; 0 = none
    num_mem_tokens: int = 0
    # Cached hidden states of earlier segments that a layer may attend to, in tokens; 0 = none
    mem_len: int = 0
    # Heads of an attention MRV; 0 = written tokens replace the memory unchanged
    n_head_ca: int = 0
    # Activation of the written tokens before such an MRV
    mrv_act: Activation = "relu"
    # Which MRV; see `valve`
    mrv: Valve = "CA-2"
    # Decoder block: post-norm Transformer-XL, identity-map reordering, or gated
    arch: Arch = "TrXL"
    # Leave the feed-forward network out of every decoder layer
    skip_dec_ffn: bool = False
    # Dropout of embeddings, attention output, feed-forward network and final output
    dropout: float = 0.0
    # Dropout of attention probabilities (self-attention and MRV)
    dropatt: float = 0.0
    # When acting, slide a window of `context_length` steps (DT, DTXL) instead of closing segments
    sliding: bool = False

    @property
    def step_tokens(self) -> int:
        """Tokens per step: return-to-go, observation, action; without conditioning there is no return-to-go."""
        return 3 if self.conditioned else 2

    @property
    def segment_tokens(self) -> int:
        """Tokens of a full segment: both memory blocks and all steps."""
        return 2 * self.num_mem_tokens + self.step_tokens * self.context_length

    @property
    def has_valve(self) -> bool:
        """Whether there is an MRV."""
        return self.mrv != "none" and (self.n_head_ca > 0 or self.mrv not in _ATTENTION_VALVES)

    @property
    def tokens_width(self) -> int:
        """Numbers passed on per memory token; an LSTM valve also passes on its cell."""
        return self.d_model * (2 if self.has_valve and self.mrv == "LSTM" else 1)

    def validate(self) -> None:
        """Raise `UserError`, in terms of the flags, for invalid sizes."""
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
            (self.mrv, VALVES, "mrv"),
        ):
            check_choice(allowed, **{flag: value})
        self._validate_memory()

    def validate_memory_sizes(self) -> None:
        """Raise `UserError` for an invalid number of memory tokens, MRV heads or cached states."""
        for name, flag in (("num_mem_tokens", "nmt"), ("mem_len", "mem_len"), ("n_head_ca", "n_head_ca")):
            if getattr(self, name) < 0:
                raise UserError(f"--{flag} {getattr(self, name)}: must be 0 (off) or more")
        at_most(MAX_SIZE, nmt=self.num_mem_tokens, n_head_ca=self.n_head_ca)
        at_most(MAX_STEPS, mem_len=self.mem_len)

    def _validate_memory(self) -> None:
        if not self.has_valve:
            return
        attends = self.mrv in _ATTENTION_VALVES
        if not self.num_mem_tokens:
            flag, off = (
                (f"--n_head_ca {self.n_head_ca}", "--n_head_ca 0") if attends else (f"--mrv {self.mrv}", "--mrv none")
            )
            raise UserError(
                f"{flag} with --nmt 0: the memory retention valve needs memory tokens; set {off}, or --nmt to 1 or more"
            )
        if attends and self.d_model % self.n_head_ca:
            divisors = [h for h in range(1, min(self.d_model, 16) + 1) if self.d_model % h == 0]
            raise UserError(
                f"--n_head_ca {self.n_head_ca} does not divide --d_model {self.d_model}: "
                f"choose one of {', '.join(map(str, divisors))}, or 0 for no valve"
            )


# What each mode keeps of the flags, in every environment. Columns: memory tokens, MRV, cached hidden states, and
# whether the whole trajectory of N*K steps is one segment, over which acting slides.
_MODE_TABLE: dict[str, tuple[bool, bool, bool, bool]] = {
    #               tokens  MRV    cache  sliding
    "RATE":        (True,  True,  True,  False),
    "RMT":         (True,  False, False, False),
    "TrXL":        (False, False, True,  False),
    "DT":          (False, False, False, True),
    "DTXL":        (False, False, True,  True),
    "RATEM":       (True,  True,  False, False),
    "RATE_wo_nmt": (False, False, True,  False),
}  # fmt: skip
MODES = tuple(_MODE_TABLE)


def apply_mode(config: RATEConfig, *, mode: str, segments: int) -> RATEConfig:
    """The memory of a mode, derived from a RATE configuration.

    Args:
        config: sizes as in the flags; `context_length` is K, the steps of one segment.
        mode: a key of the table above.
        segments: N, the segments of a training trajectory; DT and DTXL see all N*K steps as one segment.

    Raises:
        UserError: an unknown mode, or a negative size (even one that does not apply to the mode).
    """
    if mode not in _MODE_TABLE:
        raise UserError(f"--model_mode {mode!r}: choose one of {', '.join(MODES)}")
    at_least(1, segments=segments)
    config.validate_memory_sizes()
    tokens, valve, cache, sliding = _MODE_TABLE[mode]
    return replace(
        config,
        num_mem_tokens=config.num_mem_tokens if tokens else 0,
        n_head_ca=config.n_head_ca if valve else 0,
        mrv=config.mrv if valve or config.mrv in _ATTENTION_VALVES else "none",
        mem_len=config.mem_len if cache else 0,
        context_length=config.context_length * (segments if sliding else 1),
        sliding=sliding,
    )


@dataclass(frozen=True)
class RATEOptions(MemoryOptions):
    """The RATE family: segments, memory tokens, cached hidden states, memory retention valve."""

    makes, prefix = RATEConfig, ""
    renamed = {"nmt": "num_mem_tokens", "arch_mode": "arch"}
    derived = {"d_head": as_wide, "d_inner": as_wide}

    # Decoder block: post-norm (TrXL), identity-map reordering (TrXL-I) or gated (GTrXL)
    arch_mode: Arch = "TrXL"
    # Memory tokens at either end of a segment
    nmt: int = 5
    # Cached hidden states of earlier segments, in tokens; 0 = none
    mem_len: int = 0
    # Memory retention valve: combines the old memory with what a segment wrote. CA-2: the old memory attends to the
    # written tokens (published); CA-1: the reverse; G, GRU, LSTM: gates; FSQ: the written tokens, rounded to
    # -1, 0 or 1, replace the old memory (recommended for several facts, kept for long); none: they replace it unchanged
    mrv: Valve = "CA-2"
    # Heads of an attention valve (CA-2, CA-1); 0 = no valve
    n_head_ca: int = 4
    # Activation of the written tokens before such a valve
    mrv_act: Activation = "relu"
    # Remove the decoder's feed-forward network
    skip_dec_ffn: Boolean = False
    # Decoder layers
    n_layer: int = 8
    # Attention heads
    n_head: int = 10
    # Width of one attention head; none = d_model
    d_head: int | None = None
    # Width inside the feed-forward network; none = d_model
    d_inner: int | None = None
    # Dropout of attention probabilities
    dropatt: float = 0.0

    def check_mode(self, mode: str, typed: Set[str]) -> None:
        """Raise a `UserError` for a typed flag that does not apply to the mode, unless its value is 0 or none."""
        flags = {"nmt": "memory tokens", "n_head_ca": "memory retention valve", "mem_len": "cached hidden states"}
        for column, (name, what) in enumerate(flags.items()):
            if name in typed and getattr(self, name) and not _MODE_TABLE[mode][column]:
                having = [other for other, row in _MODE_TABLE.items() if row[column]]
                raise UserError(
                    f"--{name} {getattr(self, name)} with --model_mode {mode}, which has no {what}: leave it out, set "
                    f"it to 0, or choose one of {', '.join(having)}"
                )
        self._check_valve(mode, typed)

    def _check_valve(self, mode: str, typed: Set[str]) -> None:
        attends = self.mrv in _ATTENTION_VALVES
        for name in ("mrv", "mrv_act"):
            value = getattr(self, name)
            if name not in typed or value in ("none", "no_act"):
                continue
            if not _MODE_TABLE[mode][1]:
                having = [other for other, row in _MODE_TABLE.items() if row[1]]
                raise UserError(
                    f"--{name} {value} with --model_mode {mode}, which has no memory retention valve: leave it out, or "
                    f"choose one of {', '.join(having)}"
                )
            if attends and not self.n_head_ca:
                raise UserError(
                    f"--{name} {value} with --n_head_ca 0, which is not a valve: leave it out, or set --n_head_ca to "
                    "1 or more"
                )
        for name in ("n_head_ca", "mrv_act"):
            value = getattr(self, name)
            if name in typed and not attends and value not in (0, "no_act"):
                raise UserError(
                    f"--{name} {value} with --mrv {self.mrv}, which does not attend: leave it out, or choose --mrv "
                    f"{' or '.join(_ATTENTION_VALVES)}"
                )

    def config(
        self, *, mode: str, d_model: int, dropout: float, context_length: int, segments: int, conditioned: bool
    ) -> RATEConfig:
        """The memory of a mode, for trajectories of `segments` segments of `context_length` steps."""
        shared: dict[str, Any] = {"d_model": d_model, "dropout": dropout, "conditioned": conditioned}
        config = super().config(mode=mode, context_length=context_length, segments=segments, **shared)
        assert isinstance(config, RATEConfig)
        return apply_mode(config, mode=mode, segments=segments)
