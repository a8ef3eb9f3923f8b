"""fvit-serve: the queue behind HTTP, and a page to watch certificates grow."""
