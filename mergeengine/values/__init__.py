"""Values: references, selectors, scalings and masks, which plans and methods both speak."""
