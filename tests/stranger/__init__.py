"""A folder of an environment as a stranger would add it; see docs/adding_an_environment.md."""
