"""Programs that steps of a chain can run as they are."""
