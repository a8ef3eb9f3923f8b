"""fvit-evaluate: how right, how certain and how faithful an FViT is on a data set (docs/evaluation.md)."""
