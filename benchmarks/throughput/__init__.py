"""How far mergeengine is from the machine's floor, and how far from other ways to do the same."""
