"""How the model sees Minigrid-Memory: small images, three actions, and the published encoder variant."""

from MinigridMemory.MinigridMemory_src.env import NUM_ACTIONS, OBSERVATION_SHAPE
from RATE_model.spec import EnvironmentSpec

# The published model had a fourth action, which denoted padding in its action table and could be sampled when acting.
# Here the table keeps its four rows, but the head predicts three actions.
SPEC = EnvironmentSpec(
    observation_shape=OBSERVATION_SHAPE,
    num_actions=NUM_ACTIONS,
    action_embeddings=NUM_ACTIONS + 1,
    observation_scale=1 / 255,
)
