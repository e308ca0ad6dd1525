"""Where every byte of the output goes, and what makes it trustworthy."""
