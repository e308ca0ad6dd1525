"""The same configurations by an installed mergekit and by mergeengine, compared."""
