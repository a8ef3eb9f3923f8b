"""From counts over noisy copies to claims: all mathematics, and nothing of the runtime."""
