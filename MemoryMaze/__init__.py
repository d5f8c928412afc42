"""Memory Maze: find coloured objects in a maze, in the order asked for; remembering the map pays."""
