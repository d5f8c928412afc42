"""Running an agent in environments: the actor, rollouts, vector environments, video."""
