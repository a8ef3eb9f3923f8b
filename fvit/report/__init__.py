"""fvit-report: what a folder of certificates came to, as one page."""
