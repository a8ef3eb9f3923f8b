"""fvit-certify on a Ray cluster: one process reads images and keeps the journal, workers certify."""
