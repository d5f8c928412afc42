"""How the model sees T-Maze: four numbers, four actions, and the published encoder variant."""

from RATE_model.spec import EnvironmentSpec
from TMaze_new.TMaze_new_src.env import NUM_ACTIONS, OBSERVATION_SIZE

# The published action table has a fifth row for padding.
SPEC = EnvironmentSpec(
    observation_shape=(OBSERVATION_SIZE,),
    num_actions=NUM_ACTIONS,
    action_embeddings=NUM_ACTIONS + 1,
    action_tanh=True,
)
