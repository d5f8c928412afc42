"""The memories, one file or folder each, with the tables that name them and the modes that users choose from.

To add a memory, write it (`RATE_model.memories.contract`; docs/adding_a_memory.md) and give it a line in `MEMORIES` and
one in `MODES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from RATE_model.memories.amrl import AMRL, AMRLConfig, AMRLOptions
from RATE_model.memories.bank import Bank, BankConfig, BankOptions
from RATE_model.memories.compressive import Compressive, CompressiveConfig, CompressiveOptions
from RATE_model.memories.contract import Memory, MemoryConfig, MemoryOptions
from RATE_model.memories.dnc import DNC, DNCConfig, DNCOptions
from RATE_model.memories.elmur import ELMUR, ELMURConfig, ELMUROptions
from RATE_model.memories.ffm import FFM, FFMConfig, FFMOptions
from RATE_model.memories.hcam import HCAM, HCAMConfig, HCAMOptions
from RATE_model.memories.knn import KNN, KNNConfig, KNNOptions
from RATE_model.memories.lru import LRU, LRUConfig, LRUOptions
from RATE_model.memories.lsdt import LSDT, LSDTConfig, LSDTOptions
from RATE_model.memories.mamba import Mamba, MambaConfig, MambaOptions
from RATE_model.memories.mlstm import MLSTM, MLSTMConfig, MLSTMOptions
from RATE_model.memories.none import MLP, MLPConfig, MLPOptions
from RATE_model.memories.rate.config import MODES as RATE_MODES
from RATE_model.memories.rate.config import RATEConfig, RATEOptions
from RATE_model.memories.rate.memory import RATE
from RATE_model.memories.recurrent import GRU, LSTM, RecurrentConfig, RecurrentOptions
from RATE_model.memories.retrieval import Retrieval, RetrievalConfig, RetrievalOptions
from RATE_model.memories.rmc import RMC, RMCConfig, RMCOptions
from RATE_model.memories.shm import SHM, SHMConfig, SHMOptions

Condition = Literal["rtg", "none"]


@dataclass(frozen=True)
class Entry:
    """A memory, its configuration and its flags."""

    memory: type[Memory]
    config: type[MemoryConfig]
    options: type[MemoryOptions]


@dataclass(frozen=True)
class Mode:
    """What a `--model_mode` stands for: a memory, whether it is conditioned on returns, and the flags that it fixes."""

    memory: str
    condition: Condition = "rtg"
    fixed: Mapping[str, Any] = field(default_factory=dict)


MEMORIES: dict[str, Entry] = {
    "RATE": Entry(RATE, RATEConfig, RATEOptions),
    "LSTM": Entry(LSTM, RecurrentConfig, RecurrentOptions),
    "GRU": Entry(GRU, RecurrentConfig, RecurrentOptions),
    "MLP": Entry(MLP, MLPConfig, MLPOptions),
    "FFM": Entry(FFM, FFMConfig, FFMOptions),
    "LRU": Entry(LRU, LRUConfig, LRUOptions),
    "Mamba": Entry(Mamba, MambaConfig, MambaOptions),
    "mLSTM": Entry(MLSTM, MLSTMConfig, MLSTMOptions),
    "SHM": Entry(SHM, SHMConfig, SHMOptions),
    "AMRL": Entry(AMRL, AMRLConfig, AMRLOptions),
    "ELMUR": Entry(ELMUR, ELMURConfig, ELMUROptions),
    "HCAM": Entry(HCAM, HCAMConfig, HCAMOptions),
    "Compressive": Entry(Compressive, CompressiveConfig, CompressiveOptions),
    "RMC": Entry(RMC, RMCConfig, RMCOptions),
    "DNC": Entry(DNC, DNCConfig, DNCOptions),
    "Bank": Entry(Bank, BankConfig, BankOptions),
    "LSDT": Entry(LSDT, LSDTConfig, LSDTOptions),
    "kNN": Entry(KNN, KNNConfig, KNNOptions),
    "Retrieval": Entry(Retrieval, RetrievalConfig, RetrievalOptions),
}

MODES: dict[str, Mode] = {
    **{name: Mode("RATE") for name in RATE_MODES},
    "LSTM": Mode("LSTM"),
    "GRU": Mode("GRU"),
    "MLP": Mode("MLP"),
    "FFM": Mode("FFM"),
    "LRU": Mode("LRU"),
    "Mamba": Mode("Mamba"),
    "mLSTM": Mode("mLSTM"),
    "SHM": Mode("SHM"),
    "AMRL": Mode("AMRL"),
    "ELMUR": Mode("ELMUR"),
    "HCAM": Mode("HCAM"),
    "Compressive": Mode("Compressive"),
    "RMC": Mode("RMC"),
    "DNC": Mode("DNC"),
    "Bank": Mode("Bank"),
    "LSDT": Mode("LSDT"),
    "kNN": Mode("kNN"),
    "Retrieval": Mode("Retrieval"),
    # The Decision LSTM (Siebenborn et al. 2022, arXiv 2211.14655): return, observation and action enter one by one.
    "DLSTM": Mode("LSTM", fixed={"step_input": "sequence"}),
    "DGRU": Mode("GRU", fixed={"step_input": "sequence"}),
    "DMamba": Mode("Mamba", fixed={"mamba_input": "sequence"}),
    # Behaviour cloning: no returns.
    "BC-LSTM": Mode("LSTM", condition="none"),
    "BC-GRU": Mode("GRU", condition="none"),
    "BC-MLP": Mode("MLP", condition="none"),
}
