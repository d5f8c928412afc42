"""Acting with a model in environments: the actor, rollouts, vector environments, video."""
