"""The memories, one file or folder each, with the tables that name them and the modes that users choose from.

To add a memory, write it (`RATE_model.memories.contract`; docs/adding_a_memory.md) and give it a line in `MEMORIES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from RATE_model.memories.amrl import AMRL, AMRLOptions
from RATE_model.memories.bank import Bank, BankOptions
from RATE_model.memories.compressive import Compressive, CompressiveOptions
from RATE_model.memories.contract import Memory, MemoryConfig, MemoryOptions
from RATE_model.memories.dnc import DNC, DNCOptions
from RATE_model.memories.elmur import ELMUR, ELMUROptions
from RATE_model.memories.ffm import FFM, FFMOptions
from RATE_model.memories.hcam import HCAM, HCAMOptions
from RATE_model.memories.knn import KNN, KNNOptions
from RATE_model.memories.lru import LRU, LRUOptions
from RATE_model.memories.lsdt import LSDT, LSDTOptions
from RATE_model.memories.mamba import Mamba, MambaOptions
from RATE_model.memories.mlstm import MLSTM, MLSTMOptions
from RATE_model.memories.none import MLP, MLPOptions
from RATE_model.memories.rate.config import MODES as RATE_MODES
from RATE_model.memories.rate.config import RATEOptions
from RATE_model.memories.rate.memory import RATE
from RATE_model.memories.recurrent import GRU, LSTM, RecurrentOptions
from RATE_model.memories.retrieval import Retrieval, RetrievalOptions
from RATE_model.memories.rmc import RMC, RMCOptions
from RATE_model.memories.shm import SHM, SHMOptions

Condition = Literal["rtg", "none"]


@dataclass(frozen=True)
class Entry:
    """A memory, its configuration and its flags."""

    memory: type[Memory]
    options: type[MemoryOptions]

    @property
    def config(self) -> type[MemoryConfig]:
        """The class of its configuration."""
        return self.options.makes


@dataclass(frozen=True)
class Mode:
    """What a `--model_mode` stands for: a memory, whether it is conditioned on returns, and the flags that it fixes."""

    memory: str
    condition: Condition = "rtg"
    fixed: Mapping[str, Any] = field(default_factory=dict)


MEMORIES: dict[str, Entry] = {
    "RATE": Entry(RATE, RATEOptions),
    "LSTM": Entry(LSTM, RecurrentOptions),
    "GRU": Entry(GRU, RecurrentOptions),
    "MLP": Entry(MLP, MLPOptions),
    "FFM": Entry(FFM, FFMOptions),
    "LRU": Entry(LRU, LRUOptions),
    "Mamba": Entry(Mamba, MambaOptions),
    "mLSTM": Entry(MLSTM, MLSTMOptions),
    "SHM": Entry(SHM, SHMOptions),
    "AMRL": Entry(AMRL, AMRLOptions),
    "ELMUR": Entry(ELMUR, ELMUROptions),
    "HCAM": Entry(HCAM, HCAMOptions),
    "Compressive": Entry(Compressive, CompressiveOptions),
    "RMC": Entry(RMC, RMCOptions),
    "DNC": Entry(DNC, DNCOptions),
    "Bank": Entry(Bank, BankOptions),
    "LSDT": Entry(LSDT, LSDTOptions),
    "kNN": Entry(KNN, KNNOptions),
    "Retrieval": Entry(Retrieval, RetrievalOptions),
}


def modes_of(memories: Mapping[str, Entry]) -> dict[str, Mode]:
    """The modes named as these memories; RATE's family has others."""
    return {name: Mode(name) for name in memories if name != "RATE"}


MODES: dict[str, Mode] = {
    **{name: Mode("RATE") for name in RATE_MODES},
    **modes_of(MEMORIES),
    # The Decision LSTM (Siebenborn et al. 2022, arXiv 2211.14655): return, observation and action enter one by one.
    "DLSTM": Mode("LSTM", fixed={"step_input": "sequence"}),
    "DGRU": Mode("GRU", fixed={"step_input": "sequence"}),
    "DMamba": Mode("Mamba", fixed={"mamba_input": "sequence"}),
    # Behaviour cloning: no returns.
    "BC-LSTM": Mode("LSTM", condition="none"),
    "BC-GRU": Mode("GRU", condition="none"),
    "BC-MLP": Mode("MLP", condition="none"),
}
