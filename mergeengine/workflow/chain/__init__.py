"""Running chains: what is up to date, what is made, and what is kept of it."""
