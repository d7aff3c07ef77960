"""Image data: archives (the format) -> index -> zip_images (a data set); folder (the other data set); transforms; loaders."""
