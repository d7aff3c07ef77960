"""Images with labels: folders, archives, FFCV files, known sets, and how a model is shown them."""
