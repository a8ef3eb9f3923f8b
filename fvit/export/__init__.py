"""Export: torch models in, a bundle out. The one part of the package that needs torch."""
