"""RATE: the Recurrent Action Transformer with Memory, and the code shared by its experiments.

The names below are public. Each is imported from its module on first use, so importing this package is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from RATE_model.acting.actor import Actor
    from RATE_model.acting.controls import exchange_twins, knock_out_memory, knock_out_part, memory_conditions
    from RATE_model.acting.rollout import Episodes, rollout
    from RATE_model.agent import Agent, AgentConfig, AgentState
    from RATE_model.data.dataset import WindowDataset
    from RATE_model.data.trajectories import TrajectoryFile
    from RATE_model.data.writer import TrajectoryWriter
    from RATE_model.environments.contract import Environment, Evaluation
    from RATE_model.errors import UserError
    from RATE_model.loading import load_agent, load_model
    from RATE_model.memories import MEMORIES, MODES
    from RATE_model.memories.contract import Memory, MemoryConfig, State, Stepper, Steps
    from RATE_model.own.api import Result, TrainedRun, evaluate, train
    from RATE_model.own.dataset import Dataset
    from RATE_model.spec import EnvironmentSpec
    from RATE_model.training.checkpoints import resolve_checkpoint
    from RATE_model.training.trainer import Trainer

__version__ = "0.2.0"

_PUBLIC = {
    "acting.actor": ("Actor",),
    "acting.controls": ("exchange_twins", "knock_out_memory", "knock_out_part", "memory_conditions"),
    "acting.rollout": ("Episodes", "rollout"),
    "agent": ("Agent", "AgentConfig", "AgentState"),
    "data.dataset": ("WindowDataset",),
    "data.trajectories": ("TrajectoryFile",),
    "data.writer": ("TrajectoryWriter",),
    "errors": ("UserError",),
    "loading": ("load_agent", "load_model"),
    "memories": ("MEMORIES", "MODES"),
    "memories.contract": ("Memory", "MemoryConfig", "State", "Stepper", "Steps"),
    "environments.contract": ("Environment", "Evaluation"),
    "own.api": ("Result", "TrainedRun", "evaluate", "train"),
    "own.dataset": ("Dataset",),
    "spec": ("EnvironmentSpec",),
    "training.checkpoints": ("resolve_checkpoint",),
    "training.trainer": ("Trainer",),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [  # imported on first use
    "MEMORIES",
    "MODES",
    "Actor",
    "Agent",
    "AgentConfig",
    "AgentState",
    "Dataset",
    "Environment",
    "EnvironmentSpec",
    "Episodes",
    "Evaluation",
    "Memory",
    "MemoryConfig",
    "Result",
    "State",
    "Stepper",
    "Steps",
    "TrainedRun",
    "Trainer",
    "TrajectoryFile",
    "TrajectoryWriter",
    "UserError",
    "WindowDataset",
    "evaluate",
    "exchange_twins",
    "knock_out_memory",
    "knock_out_part",
    "load_agent",
    "load_model",
    "memory_conditions",
    "resolve_checkpoint",
    "rollout",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
