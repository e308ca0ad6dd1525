"""From a plan and its checkpoints to a graph, and from a graph to a schedule. No data is read."""
