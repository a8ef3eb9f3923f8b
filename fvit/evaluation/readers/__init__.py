"""One file a layout of data sets: from what lies on the disk to samples."""
